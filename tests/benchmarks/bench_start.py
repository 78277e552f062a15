"""From Enter to a picture: `vqgen generate` with the run of the package, against `import torch` alone.

    python tests/benchmarks/bench_start.py [--rounds 7] [--json FILE]

Both are processes of their own, in turns; the ratio of the medians is what is asked for (at most 2.2).
"""
import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from timing import medians


def run(*arguments): subprocess.run([sys.executable, *arguments], check=True, capture_output=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    picture = Path(tempfile.mkdtemp()) / "x.png"
    words = ["-m", "vqgen", "generate", "a person with green hair", "--run", "avatars-hour", "--out", picture,
             "--overwrite"]
    work = {"import torch": lambda: run("-c", "import torch"), "vqgen generate": lambda: run(*words)}
    times = medians(work, options.rounds, "cpu")
    found = {**times, "ratio": times["vqgen generate"] / times["import torch"]}
    for name, value in found.items(): print(f"{name:16} {value:.2f}" + ("" if name == "ratio" else " s"))
    if options.json: options.json.write_text(json.dumps(found))


if __name__ == "__main__": main()
