"""What a run's own captioner is worth to its drawings: the best of several, by the judge's figures.

    python tests/benchmarks/bench_candidates.py RUN ... [--candidates 1 4 16] [--captions 60]

Each RUN holds a cftn-v2 of faces (the preset `avatars-hour`, or one like it). For so many held-out captions,
with 16 pictures each: the shares right in what is stated, in range and in both, and the diversity.
"""
import argparse
from functools import partial

from vqgen.config import load_config
from vqgen.evaluation.frontier import FaceTrial
from vqgen.experiment import load_judge, load_splits
from vqgen.pipeline import Pipeline, find_run

COLUMNS = "stated", "in_range", "accuracy", "diversity"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--candidates", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--captions", type=int, default=60)
    asked = parser.parse_args()
    splits = load_splits(load_config(find_run(asked.runs[0]) / "vqvae" / "config.yaml"))
    first = Pipeline.from_pretrained(asked.runs[0], "cftn-v2", "cpu")
    trial = FaceTrial(load_judge(asked.runs[0], *splits, first.vqvae), splits[1], asked.captions)
    print(f"{'':24} best of", *(f"{name:>10}" for name in COLUMNS))
    for run in asked.runs:
        pipe = Pipeline.from_pretrained(run, "cftn-v2", "cpu")
        for count in asked.candidates:
            found = trial(partial(pipe.images, candidates=count))
            print(f"{run[-24:]:24} {count:7}", *(f"{found[name]:10.1%}" for name in COLUMNS), flush=True)


if __name__ == "__main__": main()
