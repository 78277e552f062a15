"""Draw what the priors of the shipped runs reach as temperature and guidance are turned, into nbs/images.

    python tools/frontiers.py

The figures are those that `tests/benchmarks/bench_one_shot.py` wrote to `vqgen/trained/NAME/figures.json`.
"""
import json
from pathlib import Path

import matplotlib.pyplot as plt

from vqgen.evaluation.frontier import show_frontiers

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "nbs" / "images" / "frontiers.png"


def main():
    plt.switch_backend("agg")
    paths = sorted((ROOT / "vqgen" / "trained").glob("*/figures.json"))
    size = (5 * len(paths), 3.4)
    fig, axes = plt.subplots(1, len(paths), figsize=size, squeeze=False, layout="constrained")
    for axis, path in zip(axes[0], paths):
        show_frontiers(axis, json.loads(path.read_text("utf-8"))["sweeps"])
        axis.set_title(path.parent.name)
    fig.savefig(FILE, dpi=100)
    print(FILE.relative_to(ROOT))


if __name__ == "__main__": main()
