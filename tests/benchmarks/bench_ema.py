"""What averaging the weights costs a step: our `EMA` and PyTorch's `AveragedModel`, which agree to the bit.

    python tests/benchmarks/bench_ema.py [--run avatars-hour] [--updates 60]
"""
import argparse
import statistics
import time

from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vqgen.pipeline import Pipeline
from vqgen.training.loop import EMA


def timed(average, model):
    start = time.perf_counter()
    average.update_parameters(model)
    return 1000 * (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="avatars-hour")
    parser.add_argument("--updates", type=int, default=60)
    options = parser.parse_args()
    pipeline = Pipeline.from_pretrained(options.run, "cftn-v2", "cpu")
    for name, model in {"vqvae": pipeline.vqvae, "cftn-v2": pipeline.prior}.items():
        ours = EMA(model, 0.99)
        theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))
        times = [(timed(ours, model), timed(theirs, model)) for _ in range(options.updates)]
        states = zip(ours.module.state_dict().values(), theirs.module.state_dict().values())
        assert all(one.equal(other) for one, other in states)
        here, there = (statistics.median(column) for column in zip(*times))
        print(f"{name}: EMA {here:.2f} ms, AveragedModel {there:.2f} ms an update")


if __name__ == "__main__": main()
