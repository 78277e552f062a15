"""What the training loop costs beside a bare forward, backward and step; and what `import vqgen` costs beside `import torch`.

    python tests/benchmarks/bench_training.py [--json FILE] [--config avatars] [--steps 100] [--rounds 3]
"""
import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from vqgen.config import load_config
from vqgen.curriculum import train_stage
from vqgen.priors.fit import new_prior
from vqgen.data import load_data
from vqgen.priors.codes import CodedCaptions, encode_dataset
from vqgen.priors.text import train_tokenizer
from vqgen.training import batches, make_optimizer, train
from vqgen.vqvae.model import VQVAE


def bare(model, stream, config, loss):
    "The seconds of `config.steps` steps of forward, backward and optimizer alone, on batches that are read beforehand."
    optimizer, ready = make_optimizer(model.train(), config), [next(stream) for _ in range(config.steps)]
    start = time.perf_counter()
    for batch in ready:
        value, _ = loss(model, batch)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - start


def looped(run):
    "The seconds of the loop, without what happens once (starting, the last look and the save), and the share of waiting for data."
    start = time.perf_counter()
    history = run()
    return time.perf_counter() - start, statistics.mean(record["data_wait"] for record in history)


def contenders(config, steps):
    "For each model `(name, bare, loop of n steps)`: functions that begin with a fresh model."
    data, text = load_data(config.data, "train"), config.text
    settings = lambda section, n: section.model_copy(update={"steps": n, "eval_every": 10**9, "save_every": 10**9})
    model_loss = lambda model, batch: model.loss(**batch)
    section = config.vqvae.train
    yield ("vqvae", lambda: bare(VQVAE(config.vqvae.model), iter(batches(data, section)), settings(section, steps), model_loss),
           lambda n: lambda: train(VQVAE(config.vqvae.model), data, settings(section, n), tempfile.mkdtemp()))
    vqvae, stage = VQVAE(config.vqvae.model), config.cftn_v2.stage1
    vqvae.loss(data.batch(range(64)))
    tokenizer = train_tokenizer(data.captions, text)
    coded = CodedCaptions(encode_dataset(vqvae.eval(), data), data.captions, tokenizer)
    new = lambda: new_prior("cftn-v2", config.cftn_v2.model, vqvae, tokenizer, config.data.image_size)
    stage_loss = lambda model, batch: model.loss(**batch, stage=stage)
    yield ("cftn-v2", lambda: bare(new(), iter(batches(coded, stage)), settings(stage, steps), stage_loss),
           lambda n: lambda: train_stage(new(), "stage1", settings(stage, n), coded, None, tempfile.mkdtemp()))


def compare(bare_run, loop_run, steps, rounds):
    "`(bare, loop, share waiting)` in ms a step, medians; the loop's start and end are measured by a run of half the length, and taken off."
    bares, loops, waits = [], [], []
    for _ in range(rounds):   # taking turns, so that a slow moment of the machine hits all
        bares.append(bare_run() / steps)
        half, _ = looped(loop_run(steps // 2))
        whole, wait = looped(loop_run(steps))
        loops.append((whole - half) / (steps - steps // 2))
        waits.append(wait)
    return 1000 * statistics.median(bares), 1000 * statistics.median(loops), statistics.median(waits)


def import_times(rounds):
    "The median seconds of `import torch` and of `import vqgen` in a fresh process."
    def seconds(module):
        program = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
        return float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
    pairs = [(seconds("torch"), seconds("vqgen")) for _ in range(rounds)]
    return [statistics.median(times) for times in zip(*pairs)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--config", default="avatars")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    figures = {}
    print(f"{options.config}, {torch.get_num_threads()} threads, median of {options.rounds} rounds of {options.steps} steps\n\n"
          "| | bare, ms a step | loop, ms a step | loop / bare | waiting for data |\n|---|---|---|---|---|")
    for name, bare_run, loop_run in contenders(load_config(options.config), options.steps):
        alone, loop, wait = compare(bare_run, loop_run, options.steps, options.rounds)
        figures |= {f"{name}_loop_vs_bare": loop / alone, f"{name}_data_wait": wait}
        print(f"| {name} | {alone:.1f} | {loop:.1f} | {loop / alone:.3f} | {wait:.1%} |")
    of_torch, of_vqgen = import_times(5)
    figures["import_vs_torch"] = of_vqgen / of_torch
    print(f"\nimport torch {of_torch:.2f} s, import vqgen {of_vqgen:.2f} s: {of_vqgen / of_torch:.2f}x")
    if options.json: Path(options.json).write_text(json.dumps(figures, indent=2), "utf-8")


if __name__ == "__main__": main()
