"""One table: every prior of a run at 1, 4, 8 and 16 steps, on combinations that no training has seen.

    python tests/benchmarks/bench_one_shot.py [--run avatars-hour] [--json FILE] [--captions 60]
        [--pictures 16] [--rounds 20]

By default that is the run that comes with the package; `make trained` trains it anew. Another must hold a
VQ-VAE and all four priors, as `vqgen train NAME --config avatars-hour --run RUN` leaves them for vqvae, lstm,
transformer, cftn and cftn-v2. The naive one pass, in which nothing is decided on the way, is the row of CFTN
with one step. Nats a picture and bits a code are of the first 400 held-out pictures; CFTN has none that are
exact.
"""
import argparse
import json
import random
from pathlib import Path

import torch
from timing import medians

from vqgen.config import load_config
from vqgen.evaluation.judge import caption_accuracy, diversity
from vqgen.experiment import held_out_likelihood, load_judge, load_splits, reconstruct
from vqgen.pipeline import Pipeline, find_run
from vqgen.priors.build import PRIORS

STEPS = (1, 4, 8, 16)
CEILING = "VQ-VAE ceiling"
LSTM, TRANSFORMER = "LSTM, top-p 0.9", "Transformer, top-p 0.9"
ONE, TEACHER = "CFTN v2, one-shot", "CFTN v2, 16 steps"


def ways_of(pipes):
    "Functions from captions and a seed to pictures, by the name of their row."
    def way(name, **options): return lambda captions, seed: pipes[name].images(captions, seed, **options)
    ways = {LSTM: way("lstm", top_p=0.9), TRANSFORMER: way("transformer", top_p=0.9)}
    ways |= {f"CFTN, {steps} steps": way("cftn", steps=steps) for steps in STEPS}
    ways |= {f"CFTN v2, {steps} steps": way("cftn-v2", steps=steps) for steps in STEPS[1:]}
    return {**ways, "CFTN v2, the likeliest codes": way("cftn-v2", temperature=0.0), ONE: way("cftn-v2")}


def measure(way, judge, captions, wanted, pictures, batch_size=96):
    "The judge's figures for `pictures` of each caption, and their diversity."
    rows = [number // pictures for number in range(len(captions) * pictures)]
    starts = range(0, len(rows), batch_size)
    drawn = torch.cat([way([captions[i] for i in rows[start:start + batch_size]], start) for start in starts])
    seen, far = judge.look(drawn)
    groups = [seen[start:start + pictures] for start in range(0, len(rows), pictures)]
    freedom = diversity(groups, wanted, random.Random(0))
    return {**judge.mark(seen, far, [wanted[i] for i in rows]), "diversity": freedom}


def likelihoods(pipes, held_out):
    "The likelihood of held-out pictures, a dict, by the name of its row."
    rows = {LSTM: ("lstm", {}), TRANSFORMER: ("transformer", {}), ONE: ("cftn-v2", {"steps": 1})}
    rows |= {f"CFTN v2, {steps} steps": ("cftn-v2", {"steps": steps}) for steps in STEPS[1:]}
    return {row: held_out_likelihood(pipes[name], held_out, **options)
            for row, (name, options) in rows.items()}


def print_row(name, row):
    line = f"{name:28} {row['stated']:6.1%} {row['in_range']:9.1%} {row['accuracy']:9.1%}"
    if "ms" in row: line += f" {row['diversity']:10.1%} {row['ms']:6.1f}"
    if "nats" in row: line += f" {row['nats']:6.2f} {row['bits_per_code']:11.3f}"
    print(line, flush=True)


def summary(table, pipe, held_out):
    "The figures of one pass beside those of sixteen and of the Transformer."
    one, teacher = table[ONE], table[TEACHER]
    faces = held_out.batch(range(min(400, len(held_out))))
    return {"one_shot_accuracy": one["accuracy"], "teacher_accuracy": teacher["accuracy"],
            "diversity_vs_teacher": one["diversity"] / teacher["diversity"],
            "speedup_vs_teacher": teacher["ms"] / one["ms"],
            "speedup_vs_transformer": table[TRANSFORMER]["ms"] / one["ms"],
            "caption_accuracy": caption_accuracy(pipe.caption(faces), held_out.attributes)}


def parse():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--run", default="avatars-hour")
    parser.add_argument("--json")
    parser.add_argument("--captions", type=int, default=60)
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=20)
    return parser.parse_args()


def main():
    asked = parse()
    data, held_out = load_splits(load_config(find_run(asked.run) / "vqvae" / "config.yaml"))
    pipes = {name: Pipeline.from_pretrained(asked.run, name, "cpu") for name in PRIORS}
    sizes = {name: sum(part.numel() for part in pipe.prior.parameters()) for name, pipe in pipes.items()}
    ways = ways_of(pipes)
    print("parameters:", ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in sizes.items()))
    vqvae = pipes["cftn-v2"].vqvae
    judge = load_judge(asked.run, data, held_out, vqvae)
    different = [*dict.fromkeys(held_out.captions)][:asked.captions]
    places = [held_out.captions.index(caption) for caption in different]
    captions, wanted = ([values[i] for i in places] for values in (held_out.captions, held_out.attributes))

    work = {name: lambda way=way: way(captions[:1], 0) for name, way in ways.items()}
    times = medians(work, asked.rounds, "cpu")
    costs = likelihoods(pipes, held_out)
    print(f"{'':28} stated  in range  accuracy  diversity     ms   nats bits a code")
    table = {CEILING: judge.accuracy(reconstruct(vqvae, held_out), held_out.attributes)}
    print_row(CEILING, table[CEILING])
    for name, way in ways.items():
        figures = measure(way, judge, captions, wanted, asked.pictures)
        table[name] = {**figures, "ms": 1000 * times[name], **costs.get(name, {})}
        print_row(name, table[name])

    result = summary(table, pipes["cftn-v2"], held_out)
    for name, value in result.items(): print(f"{name:24} {value:.3f}")
    if asked.json:
        nats = {name: found["nats"] for name, found in costs.items()}
        found = {**result, "nats": nats, "table": table, "parameters": sizes}
        Path(asked.json).write_text(json.dumps(found, indent=1))


if __name__ == "__main__": main()
