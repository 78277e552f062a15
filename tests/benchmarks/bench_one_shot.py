"""One table: every prior of a run at 1, 4, 8 and 16 steps, on combinations that no training has seen.

    python tests/benchmarks/bench_one_shot.py [--run avatars-hour] [--json FILE] [--captions N]
        [--pictures 16] [--rounds 20] [--frontier N]

By default that is the run that comes with the package; `make trained` trains it anew. Another must hold a
VQ-VAE, a Transformer and CFTN v2, as `vqgen train NAME --config avatars-hour --run RUN` leaves them for
vqvae, transformer and cftn-v2; LSTM and CFTN are measured where they are. The naive one pass, in which
nothing is decided on the way, is the row of CFTN with one step. Nats a picture and bits a code are of the
first 400 held-out pictures; CFTN has none that are exact. The frontier is what each prior reaches at six
temperatures and three guidance scales on N captions (60 by default; 0 leaves it out), accuracy against
diversity; one pass leaves out unlikely codes (`min_p`), so it is drawn from more hotly. `at_equal_diversity`
is the accuracy of one pass where it is as free as the Transformer is at temperature 1, `at_the_best` where it
is as free as the Transformer where that is most often right; null where it nowhere is.
"""
import argparse
import json
import math
from functools import partial
from pathlib import Path

from timing import medians

from vqgen.config import load_config
from vqgen.evaluation.distances import feature_spaces
from vqgen.evaluation.frontier import EmojiTrial, FaceTrial, accuracy_at, frontier, points_of, sweep
from vqgen.experiment import (
    held_out_likelihood,
    knows_roles,
    load_judge,
    load_splits,
    nearest_judge,
    reconstruct,
    unseen_words_allowed,
)
from vqgen.pipeline import Pipeline, find_run
from vqgen.priors.build import PRIORS

STEPS = (1, 4, 8, 16)
CEILING = "VQ-VAE ceiling"
LSTM, TRANSFORMER = "LSTM, top-p 0.9", "Transformer, top-p 0.9"
ONE, TEACHER = "CFTN v2, one-shot", "CFTN v2, 16 steps"
WAYS = {LSTM: ("lstm", {"top_p": 0.9}), TRANSFORMER: ("transformer", {"top_p": 0.9}),
        **{f"CFTN, {steps} steps": ("cftn", {"steps": steps}) for steps in STEPS},
        **{f"CFTN v2, {steps} steps": ("cftn-v2", {"steps": steps}) for steps in STEPS[1:]},
        "CFTN v2, the likeliest codes": ("cftn-v2", {"temperature": 0.0}), ONE: ("cftn-v2", {})}
BORDERS = {"LSTM": ("lstm", {"top_p": 0.9}), "transformer": ("transformer", {"top_p": 0.9}),
           "CFTN, 8 steps": ("cftn", {"steps": 8}),
           "one_pass": ("cftn-v2", {"temperatures": (0.5, 0.8, 1.0, 1.3, 1.7, 2.2)})}


def trials_of(asked, splits, vqvae):
    "The trial of the table, and that of the frontier, which has fewer captions (None: it is left out)."
    judge, held_out = load_judge(asked.run, *splits, vqvae), splits[1]
    def small(kind, count): return kind(count, asked.pictures // 2) if asked.frontier else None
    if not knows_roles(splits[0]):
        kind = partial(FaceTrial, judge, held_out)
        return kind(asked.captions or 60, asked.pictures), small(kind, asked.frontier)
    space = feature_spaces("cpu")[0].get("features")
    second = space and nearest_judge(*splits, vqvae, space=space)
    kind = partial(EmojiTrial, judge, held_out)
    table = kind(asked.captions or len(held_out), asked.pictures, second=second)
    return table, small(kind, 2 * asked.frontier)


def likelihoods(pipes, held_out):
    "The likelihood of held-out pictures, a dict, by the name of its row."
    rows = {LSTM: ("lstm", {}), TRANSFORMER: ("transformer", {}), ONE: ("cftn-v2", {"steps": 1})}
    rows |= {f"CFTN v2, {steps} steps": ("cftn-v2", {"steps": steps}) for steps in STEPS[1:]}
    return {row: held_out_likelihood(pipes[name], held_out, **options)
            for row, (name, options) in rows.items() if name in pipes}


def print_row(name, row, columns):
    print(f"{name:28}", *(f"{row[key]:13.3f}" if key in row else " " * 13 for key in columns), flush=True)


def borders(pipes, trial):
    "The rows of a `sweep` of each prior, by its name."
    found = {}
    for name, (prior, options) in BORDERS.items():
        if prior not in pipes: continue
        found[name] = [*sweep(trial, pipes[prior], **options)]
        border = frontier(points_of(found[name]))
        print(name, *(f"{free:.2f}/{right:.3f}" for free, right in border), flush=True)
    return found


def summary(table, trial, pipe, held_out):
    "The figures of one pass beside those of sixteen and of the Transformer."
    one, teacher, rival = (table[name] for name in (ONE, TEACHER, TRANSFORMER))
    faces = held_out.batch(range(min(400, len(held_out))))
    return {"one_shot_accuracy": one["accuracy"], "teacher_accuracy": teacher["accuracy"],
            "transformer_accuracy": rival["accuracy"],
            "diversity_vs_teacher": one["diversity"] / teacher["diversity"],
            "speedup_vs_teacher": teacher["ms"] / one["ms"],
            "speedup_vs_transformer": rival["ms"] / one["ms"],
            "caption_accuracy": trial.of_captions(pipe.caption(faces), held_out.attributes)}


def at_equal_diversity(sweeps):
    "The accuracy of one pass where it is as free as the Transformer, and that of the Transformer, two ways."
    plain, own = (1.0, 1.0), points_of(sweeps["one_pass"])
    rival = {(row["temperature"], row["guidance_scale"]): row for row in sweeps["transformer"]}
    [usual] = points_of([rival[plain]])
    best = max(points_of(rival.values()), key=lambda point: point[1])
    found = {"at_equal_diversity": accuracy_at(usual[0], own), "transformer_at_equal_diversity": usual[1],
             "at_the_best": accuracy_at(best[0], own), "transformer_at_the_best": best[1],
             "diversity_at_the_best": best[0]}
    return {name: None if math.isnan(value) else value for name, value in found.items()}


def parse():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--run", default="avatars-hour")
    parser.add_argument("--json")
    for name, default in {"captions": None, "pictures": 16, "rounds": 20, "frontier": 60}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()


@unseen_words_allowed()
def main():
    asked = parse()
    run = find_run(asked.run)
    splits = load_splits(load_config(run / "vqvae" / "config.yaml"))
    held_out = splits[1]
    there = [name for name in PRIORS if (run / name).is_dir()]
    pipes = {name: Pipeline.from_pretrained(asked.run, name, "cpu") for name in there}
    sizes = {name: sum(part.numel() for part in pipe.prior.parameters()) for name, pipe in pipes.items()}
    ways = {row: partial(pipes[prior].images, **how) for row, (prior, how) in WAYS.items() if prior in pipes}
    print("parameters:", ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in sizes.items()))
    pipe = pipes["cftn-v2"]
    trial, small_trial = trials_of(asked, splits, pipe.vqvae)

    work = {name: partial(way, held_out.captions[:1], 0) for name, way in ways.items()}
    times = medians(work, asked.rounds, "cpu")
    costs = likelihoods(pipes, held_out)
    columns = *trial.columns, "ms", "nats", "bits_per_code"
    print(" " * 28, *(f"{name:>13}" for name in columns))
    table = {CEILING: trial.marks(reconstruct(pipe.vqvae, held_out), held_out.attributes)}
    print_row(CEILING, table[CEILING], columns)
    for name, way in ways.items():
        table[name] = {**trial(way), "ms": 1000 * times[name], **costs.get(name, {})}
        print_row(name, table[name], columns)

    result = summary(table, trial, pipe, held_out)
    result["nats"] = {name: found["nats"] for name, found in costs.items()}
    sweeps = borders(pipes, small_trial) if asked.frontier else {}
    if sweeps: result |= at_equal_diversity(sweeps)
    for name, value in result.items(): print(f"{name:24}", value)
    result["frontier"] = {name: frontier(points_of(rows)) for name, rows in sweeps.items()}
    found = {**result, "sweeps": sweeps, "table": table, "parameters": sizes}
    if asked.json: Path(asked.json).write_text(json.dumps(found, indent=1))


if __name__ == "__main__": main()
