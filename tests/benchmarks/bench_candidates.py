"""What a run's own captioner is worth to its drawings: the best of several, by the judge's figures.

    python tests/benchmarks/bench_candidates.py RUN ... [--candidates 1 4 16] [--guidance 1.5] [--captions N]

Each RUN holds a cftn-v2 of faces or of emoji (the presets `avatars-hour` and `emoji`, or one like them). Of N
held-out captions: 60 by default, with 16 pictures each; or 300, with one each. The columns are those of the
trial, `FaceTrial` or `EmojiTrial`.
"""
import argparse
from functools import partial

from vqgen.config import load_config
from vqgen.evaluation.frontier import EmojiTrial, FaceTrial
from vqgen.experiment import knows_roles, load_judge, load_splits
from vqgen.pipeline import Pipeline, find_run


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--candidates", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--captions", type=int)
    return parser.parse_args()


def main():
    asked = parse()
    splits = load_splits(load_config(find_run(asked.runs[0]) / "vqvae" / "config.yaml"))
    first = Pipeline.from_pretrained(asked.runs[0], "cftn-v2", "cpu")
    kind = EmojiTrial if knows_roles(splits[0]) else FaceTrial
    many = {} if asked.captions is None else {"captions": asked.captions}
    trial = kind(load_judge(asked.runs[0], *splits, first.vqvae), splits[1], **many)
    print(f"{'':24} best of", *(f"{name:>13}" for name in trial.columns))
    for run in asked.runs:
        pipe = Pipeline.from_pretrained(run, "cftn-v2", "cpu")
        for count in asked.candidates:
            found = trial(partial(pipe.images, candidates=count, guidance_scale=asked.guidance))
            figures = (f"{found[name]:13.3f}" for name in trial.columns)
            print(f"{run[-24:]:24} {count:7}", *figures, flush=True)


if __name__ == "__main__": main()
