"""What one training step consists of: its calls, its products, and the time that each of its parts takes."""
import platform
import statistics
from collections import Counter
from functools import partial
from pathlib import Path
from time import perf_counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from vqgen.training.batches import batches
from vqgen.training.optimizers import make_optimizer

SIDE = 1024   # of the large matrices whose product is the measure of what a machine can do


class TrainingStep:
    "Forward, backward, clipping and optimizer of `model`, on one batch after the other."
    def __init__(self, model, data, config, loss, clip=True):
        self.model, self.config = model.train(), config
        self.loss, self.clip = loss, clip
        self.optimizer = make_optimizer(model, config)
        self.batches = iter(batches(data, config))

    def gradients(self):
        "The gradients of the loss of the next batch, clipped if asked for."
        self.optimizer.zero_grad()
        self.loss(self.model, next(self.batches)[1])[0].backward()
        if self.clip: torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)

    def parts(self):
        "The parts of a step by name, in their order."
        optimizers = getattr(self.optimizer, "parts", {self.config.optimizer: self.optimizer})
        return {"gradients": self.gradients, **{name: part.step for name, part in optimizers.items()}}

    def run(self):
        for part in self.parts().values(): part()


class Calls(TorchDispatchMode):
    "Counts the operations that compute something, by name: all but views."
    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        aliases = [result.alias_info for result in func._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in aliases)
        if not is_view: self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def calls(step):
    "The operations of one step of `step`, by name."
    with Calls() as counter: step.run()
    return counter.counts


def attention_flops(query, key, value, *options, **more): return sdpa_flop_count(query, key, value)


def attention_backward_flops(gradient, query, key, value, *options, **more):
    return sdpa_backward_flop_count(gradient, query, key, value)


ON_CPU = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
          torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flops}


def flops(step):
    "The floating point operations of the products and convolutions of one step."
    with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter: step.run()
    return counter.get_total_flops()


def seconds(work):
    start = perf_counter()
    work()
    return perf_counter() - start


def large_product():
    "A product of two large float32 matrices."
    return partial(torch.matmul, torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE))


def shares(step, rounds):
    """`{part: its share of a step}`, and the share of one large product's rate that its products reach.

    Both are medians over the rounds; a round times all parts and the large product, one after the other.
    """
    for _ in range(3): step.run()   # the first steps only warm up
    work, product = flops(step), large_product()
    found, reached = {name: [] for name in step.parts()}, []
    for _ in range(rounds):
        peak = 2 * SIDE ** 3 / seconds(product)
        times = {name: seconds(part) for name, part in step.parts().items()}
        whole = sum(times.values())
        for name, time in times.items(): found[name].append(time / whole)
        reached.append(work / whole / peak)
    return {name: statistics.median(values) for name, values in found.items()}, statistics.median(reached)


def processor():
    "The processor's name, and the widest instructions that PyTorch uses on it."
    table = Path("/proc/cpuinfo")
    lines = table.read_text("utf-8").splitlines() if table.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"
