"Timing that a benchmark can be trusted with."
import statistics
import time

import torch


def medians(work, rounds, device):
    "The median time of each contender in seconds; they take turns, so that a slow moment hits all."
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    times = {name: [] for name in work}
    for turn in range(rounds + 1):
        for name, run in work.items():
            synchronize()
            start = time.perf_counter()
            run()
            synchronize()
            if turn: times[name].append(time.perf_counter() - start)   # the first turn only warms up
    return {name: statistics.median(values) for name, values in times.items()}
