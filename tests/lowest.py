"""Run tests with the lowest versions that settings.ini allows: `python tests/lowest.py [what pytest takes]`.

PyTorch alone is the one of the Python that runs this: older builds are gigabytes, or not to be had.
"""
import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from environments import here, install_uv, new_environment, requirements, run
from paths import ROOT

TESTED = ("config", "data", "tracking", "cli", "pipeline")
TESTS = ["-m", "not slow", *(f"tests/test_{name}.py" for name in TESTED)]
ELSEWHERE = re.compile(r"(torch|triton|nvidia-.*|cuda-.*)==")   # of PyTorch, which is borrowed


def lowest_versions(uv):
    "Every package as `name==version`: what settings.ini names at its lowest, the rest at its newest."
    wanted = [name for name in requirements() if not name.startswith("torch>")]
    options = ["-q", "--no-config", "--no-header", "--no-annotate", "--only-binary", ":all:"]
    options += ["--python", sys.executable, "--resolution", "lowest-direct"]
    text = run([uv, "pip", "compile", *options, "-"],
               input="\n".join([*wanted, "pytest>=9", "hypothesis>=6.100"]))
    return [line for line in text.splitlines() if not ELSEWHERE.match(line)]


def borrow_torch(python):
    "Put links to this Python's PyTorch into the environment of `python`."
    site = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())
    home = Path(find_spec("torch").origin).parent.parent
    for path in [*home.glob("torch-*.dist-info"), *map(home.joinpath, ("torch", "torchgen", "functorch"))]:
        if path.exists(): (site / path.name).symlink_to(path)


def lowest_environment(folder):
    "The environment of the lowest versions, made in `folder`; returns its Python."
    uv = install_uv(folder / "uv")
    python = new_environment(uv, folder / "lowest")
    run([uv, "pip", "install", "-q", "--no-config", "--no-deps", "--python", python, "-r", "-"],
        input="\n".join(lowest_versions(uv)))
    borrow_torch(python)
    return python


def main(arguments):
    with tempfile.TemporaryDirectory() as folder:
        python = lowest_environment(Path(folder))
        command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(arguments or TESTS)]
        return subprocess.run(command, cwd=ROOT, env=here(OMP_NUM_THREADS="1")).returncode


if __name__ == "__main__": sys.exit(main(sys.argv[1:]))
