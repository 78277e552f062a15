"""What a training step costs beside its products, the loop beside a bare step, bf16 beside float32, and
`import vqgen` beside torch.

    python tests/benchmarks/bench_training.py [--json FILE] [--config avatars] [--steps 50] [--rounds 8]
                                              [--only loop|step|precision|import]
"""
import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import torch
from training_step import TrainingStep, calls, processor, shares

from vqgen.config import load_config
from vqgen.data.datasets import load_data
from vqgen.priors.build import new_prior
from vqgen.priors.codes import CodedCaptions, encode_dataset
from vqgen.priors.curriculum import train_stage
from vqgen.priors.text import train_tokenizer
from vqgen.training.loop import model_loss, train
from vqgen.vqvae.model import VQVAE


@dataclass
class Contender:
    "A model to train: `new()` makes a fresh one, `loop(model, data)` trains it by the package's own loop."
    name: str
    new: Callable
    data: object
    config: object
    loss: Callable
    loop: Callable


def contenders(config, steps, precision="auto"):
    "The VQ-VAE and the brain of `config`, for `steps` steps each."
    fast = {"steps": steps, "eval_every": 10**9, "save_every": 10**9, "precision": precision}
    data, section = load_data(config.data, "train"), config.vqvae.train.model_copy(update=fast)
    yield Contender("vqvae", lambda: VQVAE(config.vqvae.model), data, section, model_loss,
                    lambda model, data: train(model, data, section, tempfile.mkdtemp()))
    vqvae, stage = VQVAE(config.vqvae.model), config.cftn_v2.stage1.model_copy(update=fast)
    vqvae.loss(data.batch(range(64)))
    tokenizer = train_tokenizer(data.captions, config.text)
    coded = CodedCaptions(encode_dataset(vqvae.eval(), data), data.captions, tokenizer)
    shape = config.cftn_v2.model, vqvae, tokenizer, config.data.image_size
    yield Contender("cftn-v2", lambda: new_prior("cftn-v2", *shape), coded, stage,
                    lambda model, batch: model.loss(**batch, stage=stage),
                    lambda model, data: train_stage(model, "stage1", stage, data, None, tempfile.mkdtemp()))


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


def bare(contender):
    "The seconds of each step of forward, backward and optimizer alone, on batches that are read beforehand."
    step = TrainingStep(contender.new(), contender.data, contender.config, contender.loss, clip=False)
    step.batches = iter([next(step.batches) for _ in range(contender.config.steps)])
    times = [time.perf_counter()]
    for _ in range(contender.config.steps):
        step.run()
        times.append(time.perf_counter())
    return differences(times)


def looped(contender):
    "The seconds of each step of the loop, from one batch to the next, and the share of waiting for data."
    clock = Clock(contender.data)
    history = contender.loop(contender.new(), clock)
    return differences(clock.times), statistics.mean(record["data_wait"] for record in history)


def differences(times): return [after - before for before, after in zip(times, times[1:])]


def mean_of_faster_half(times):
    "In ms, without the first five: the slower half shared the machine with something else."
    return 1000 * statistics.mean(sorted(times[5:])[:len(times) // 2])


def compare(contender, rounds):
    """`(bare, loop, loop / bare, share waiting)`: medians over the rounds, in ms a step and as a ratio.

    A round times one after the other, in turns this or that first: the machine's speed may drift in between.
    """
    found = []
    for turn in range(rounds):
        if turn % 2:
            loop, wait = looped(contender)
            alone = bare(contender)
        else:
            alone = bare(contender)
            loop, wait = looped(contender)
        alone, loop = mean_of_faster_half(alone), mean_of_faster_half(loop)
        found.append((alone, loop, loop / alone, wait))
    return [statistics.median(values) for values in zip(*found)]


def loop_figures(config, steps, rounds):
    print(f"{rounds} rounds of {steps} steps\n\n"
          "| | bare, ms a step | loop, ms a step | loop / bare | waiting for data |\n|---|---|---|---|---|")
    figures = {}
    for contender in contenders(config, steps):
        alone, loop, ratio, wait = compare(contender, rounds)
        figures |= {f"{contender.name}_loop_vs_bare": ratio, f"{contender.name}_data_wait": wait}
        print(f"| {contender.name} | {alone:.1f} | {loop:.1f} | {ratio:.3f} | {wait:.1%} |", flush=True)
    return figures


def step_figures(config, rounds):
    print("\n| | calls a step | most often | shares of the optimizer | share of a large product's rate |\n"
          "|---|---|---|---|---|")
    figures = {}
    for contender, name in zip(contenders(config, 10**6), ("vqvae", "brain")):
        step = TrainingStep(contender.new(), contender.data, contender.config, contender.loss)
        parts, reached = shares(step, rounds)
        counts = calls(step)
        figures[f"{name}_share_of_product_peak"] = reached
        if name == "brain":
            figures |= {"muon_share_of_step": parts.get("muon", 0.0), "calls_per_step": counts.total()}
        often = ", ".join(f"{func.removeprefix('aten.')} {count}" for func, count in counts.most_common(5))
        optimizer = ", ".join(f"{part} {share:.3f}" for part, share in parts.items() if part != "gradients")
        print(f"| {name} | {counts.total()} | {often} | {optimizer} | {reached:.3f} |", flush=True)
    return figures


def precision_figures(config, steps, rounds):
    "How long a step of the brain's loop takes in bf16, in times of float32: timed in turns."
    ways = [list(contenders(config, steps, precision))[1] for precision in ("float32", "bf16")]
    times = [[mean_of_faster_half(looped(way)[0]) for way in ways] for _ in range(rounds)]
    single, half = map(statistics.median, zip(*times))
    ratio = statistics.median(after / before for before, after in times)
    print(f"\nbrain: float32 {single:.1f} ms a step, bf16 {half:.1f} ms: {ratio:.3f}x")
    return {"brain_bf16_vs_float32": ratio}


def import_figures(rounds=5):
    "How long `import vqgen` takes, in times of `import torch`, each in a fresh process."
    def seconds(module):
        program = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
        command = [sys.executable, "-c", program]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    pairs = [(seconds("torch"), seconds("vqgen")) for _ in range(rounds)]
    of_torch, of_vqgen = (statistics.median(times) for times in zip(*pairs))
    print(f"\nimport torch {of_torch:.2f} s, import vqgen {of_vqgen:.2f} s: {of_vqgen / of_torch:.2f}x")
    return {"import_vs_torch": of_vqgen / of_torch}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--config", default="avatars")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--only", choices=("loop", "step", "precision", "import"))
    options = parser.parse_args()
    config, figures = load_config(options.config), {}
    print(f"{options.config} on {processor()}, {torch.get_num_threads()} threads")
    if options.only in (None, "loop"): figures |= loop_figures(config, options.steps, options.rounds)
    if options.only in (None, "step"): figures |= step_figures(config, 4 * options.rounds)
    if options.only == "precision": figures |= precision_figures(config, options.steps, options.rounds)
    if options.only in (None, "import"): figures |= import_figures()
    if options.json: Path(options.json).write_text(json.dumps(figures, indent=2), "utf-8")


if __name__ == "__main__": main()
