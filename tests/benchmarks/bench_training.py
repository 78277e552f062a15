"""What the training loop costs beside a bare forward, backward and step; and what `import vqgen` costs beside `import torch`.

    python tests/benchmarks/bench_training.py [--json FILE] [--config avatars] [--steps 50] [--rounds 8]
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

from vqgen.training.batches import batches
from vqgen.config import load_config
from vqgen.priors.curriculum import train_stage
from vqgen.priors.build import new_prior
from vqgen.data.datasets import load_data
from vqgen.priors.codes import CodedCaptions, encode_dataset
from vqgen.priors.text import train_tokenizer
from vqgen.training.loop import make_optimizer, model_loss, train
from vqgen.vqvae.model import VQVAE


class Clock:
    "A data set that notes when each batch is asked for."
    def __init__(self, data): self.data, self.times = data, []

    def __len__(self): return len(self.data)

    def __getitem__(self, i): return self.data[i]

    def __getattr__(self, name): return getattr(self.data, name)

    def __getitems__(self, indices):
        self.times.append(time.perf_counter())
        fetch = getattr(self.data, "__getitems__", None)
        return fetch(indices) if fetch else [self.data[i] for i in indices]


def bare(model, data, config, loss):
    "The seconds of each step of forward, backward and optimizer alone, on batches that are read beforehand."
    optimizer, stream = make_optimizer(model.train(), config), iter(batches(data, config))
    ready, times = [next(stream)[1] for _ in range(config.steps)], [time.perf_counter()]
    for batch in ready:
        value, _ = loss(model, batch)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter())
    return differences(times), 0.0


def looped(run, data):
    "The seconds of each step of the loop, from one batch to the next, and the share of waiting for data."
    clock = Clock(data)
    history = run(clock)
    return differences(clock.times), statistics.mean(record["data_wait"] for record in history)


def differences(times): return [after - before for before, after in zip(times, times[1:])]


def contenders(config, steps):
    "For each model `(name, bare, loop)`: functions that train a fresh model."
    data, fast = load_data(config.data, "train"), {"steps": steps, "eval_every": 10**9, "save_every": 10**9}
    section = config.vqvae.train.model_copy(update=fast)
    yield ("vqvae", lambda: bare(VQVAE(config.vqvae.model), data, section, model_loss),
           lambda: looped(lambda clock: train(VQVAE(config.vqvae.model), clock, section, tempfile.mkdtemp()), data))
    vqvae, stage = VQVAE(config.vqvae.model), config.cftn_v2.stage1.model_copy(update=fast)
    vqvae.loss(data.batch(range(64)))
    tokenizer = train_tokenizer(data.captions, config.text)
    coded = CodedCaptions(encode_dataset(vqvae.eval(), data), data.captions, tokenizer)
    new = lambda: new_prior("cftn-v2", config.cftn_v2.model, vqvae, tokenizer, config.data.image_size)
    yield ("cftn-v2", lambda: bare(new(), coded, stage, lambda model, batch: model.loss(**batch, stage=stage)),
           lambda: looped(lambda clock: train_stage(new(), "stage1", stage, clock, None, tempfile.mkdtemp()), coded))


def compare(bare_run, loop_run, rounds):
    """`(bare, loop, loop / bare, share waiting)`: medians over the rounds, in ms a step and as a ratio within a round.

    A round times one after the other, in turns this or that first: the machine's own speed may drift by a quarter within a minute.
    """
    mean = lambda times: 1000 * statistics.mean(sorted(times[5:])[:len(times) // 2])   # the faster half: nothing else had the machine
    found = []
    for turn in range(rounds):
        if turn % 2: (loop, wait), (alone, _) = loop_run(), bare_run()
        else: (alone, _), (loop, wait) = bare_run(), loop_run()
        found.append((mean(alone), mean(loop), mean(loop) / mean(alone), wait))
    return [statistics.median(values) for values in zip(*found)]


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
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args()
    figures = {}
    print(f"{options.config}, {torch.get_num_threads()} threads, {options.rounds} rounds of {options.steps} steps\n\n"
          "| | bare, ms a step | loop, ms a step | loop / bare | waiting for data |\n|---|---|---|---|---|")
    for name, bare_run, loop_run in contenders(load_config(options.config), options.steps):
        alone, loop, ratio, wait = compare(bare_run, loop_run, options.rounds)
        figures |= {f"{name}_loop_vs_bare": ratio, f"{name}_data_wait": wait}
        print(f"| {name} | {alone:.1f} | {loop:.1f} | {ratio:.3f} | {wait:.1%} |", flush=True)
    of_torch, of_vqgen = import_times(5)
    figures["import_vs_torch"] = of_vqgen / of_torch
    print(f"\nimport torch {of_torch:.2f} s, import vqgen {of_vqgen:.2f} s: {of_vqgen / of_torch:.2f}x")
    if options.json: Path(options.json).write_text(json.dumps(figures, indent=2), "utf-8")


if __name__ == "__main__": main()
