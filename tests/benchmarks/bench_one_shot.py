"""One table: every prior of a run at 1, 4, 8 and 16 steps, on attribute combinations that no training has seen.

    python tests/benchmarks/bench_one_shot.py [--run avatars-hour] [--json FILE] [--captions 60] [--pictures 16]

By default that is the run that comes with the package; `make trained` trains it anew. Another must hold a VQ-VAE and all four priors, as
`vqgen train NAME --config avatars-hour --run RUN` leaves them for vqvae, lstm, transformer, cftn and cftn-v2.
The naive one pass, in which nothing is decided on the way, is the row of CFTN with one step.
"""
import argparse
import json
import random
from pathlib import Path

import torch
from timing import medians

from vqgen.config import load_config
from vqgen.evaluation.judge import caption_accuracy, diversity
from vqgen.experiment import load_judge, load_splits, reconstruct
from vqgen.pipeline import Pipeline, find_run
from vqgen.priors.build import PRIORS

STEPS = (1, 4, 8, 16)


def ways_of(pipes):
    "Functions from captions and a seed to pictures, by the name of their row."
    def way(name, **options): return lambda captions, seed: pipes[name].images(captions, seed, **options)
    ways = {"LSTM, top-p 0.9": way("lstm", top_p=0.9), "Transformer, top-p 0.9": way("transformer", top_p=0.9)}
    ways |= {f"CFTN, {steps} steps": way("cftn", steps=steps) for steps in STEPS}
    ways |= {f"CFTN v2, {steps} steps": way("cftn-v2", steps=steps) for steps in STEPS[1:]}
    return {**ways, "CFTN v2, the likeliest codes": way("cftn-v2", temperature=0.0), "CFTN v2, one-shot": way("cftn-v2")}


def measure(way, judge, captions, wanted, pictures, batch_size=96):
    "The judge's figures for `pictures` of each caption, and their diversity."
    rows = [i for i in range(len(captions)) for _ in range(pictures)]
    drawn = torch.cat([way([captions[i] for i in rows[start:start + batch_size]], start) for start in range(0, len(rows), batch_size)])
    seen, far = judge.look(drawn)
    groups = [seen[start:start + pictures] for start in range(0, len(rows), pictures)]
    return {**judge.mark(seen, far, [wanted[i] for i in rows]), "diversity": diversity(groups, wanted, random.Random(0))}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="avatars-hour")
    parser.add_argument("--json")
    parser.add_argument("--captions", type=int, default=60)
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=20)
    asked = parser.parse_args()

    config = load_config(find_run(asked.run) / "vqvae" / "config.yaml")
    data, held_out = load_splits(config)
    pipes = {name: Pipeline.from_pretrained(asked.run, name, "cpu") for name in PRIORS}
    sizes = {name: sum(part.numel() for part in pipe.prior.parameters()) for name, pipe in pipes.items()}
    ways = ways_of(pipes)
    print("parameters:", ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in sizes.items()))
    vqvae = pipes["cftn-v2"].vqvae
    judge, places = load_judge(asked.run, data, held_out, vqvae), [held_out.captions.index(caption) for caption in dict.fromkeys(held_out.captions)]
    captions, wanted = [held_out.captions[i] for i in places[:asked.captions]], [held_out.attributes[i] for i in places[:asked.captions]]

    table = {"VQ-VAE ceiling": judge.accuracy(reconstruct(vqvae, held_out), held_out.attributes)}
    times = medians({name: lambda way=way: way(captions[:1], 0) for name, way in ways.items()}, asked.rounds, "cpu")
    print(f"{'':26} stated  in range  accuracy  diversity     ms")
    for name, way in [("VQ-VAE ceiling", None), *ways.items()]:
        if way: table[name] = {**measure(way, judge, captions, wanted, asked.pictures), "ms": 1000 * times[name]}
        row = table[name]
        print(f"{name:26} {row['stated']:6.1%} {row['in_range']:9.1%} {row['accuracy']:9.1%}", f"{row['diversity']:10.1%} {row['ms']:6.1f}" if way else "", flush=True)

    one, teacher = table["CFTN v2, one-shot"], table["CFTN v2, 16 steps"]
    faces = held_out.batch(range(min(400, len(held_out))))
    result = {"one_shot_accuracy": one["accuracy"], "teacher_accuracy": teacher["accuracy"], "diversity_vs_teacher": one["diversity"] / teacher["diversity"],
              "speedup_vs_teacher": teacher["ms"] / one["ms"], "speedup_vs_transformer": table["Transformer, top-p 0.9"]["ms"] / one["ms"],
              "caption_accuracy": caption_accuracy(pipes["cftn-v2"].caption(faces), held_out.attributes)}
    for name, value in result.items(): print(f"{name:24} {value:.3f}")
    if asked.json: Path(asked.json).write_text(json.dumps({**result, "table": table, "parameters": sizes}, indent=1))


if __name__ == "__main__": main()
