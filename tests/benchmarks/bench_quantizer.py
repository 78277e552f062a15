"""The quantizer against the one matrix product that exact search needs, and against vector-quantize-pytorch.

    python tests/benchmarks/bench_quantizer.py [--json FILE] [--rounds 9] [--device cpu]
"""
import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import torch
from timing import medians

from vqgen.vqvae.quantizer import VectorQuantizerEMA, nearest_codes, reset_codes

SHAPE, CODES = (16, 256, 32, 32), 4096   # N = 16,384 vectors of 256 numbers


def inputs(device="cpu"):
    "Vectors `(B, D, h, w)` and a codebook `(K, D)`."
    generator = torch.Generator().manual_seed(0)
    z, codebook = (torch.randn(shape, generator=generator) for shape in (SHAPE, (CODES, SHAPE[1])))
    return z.to(device), codebook.to(device)


def started(codebook, device="cpu"):
    "Our quantizer with `codebook`, in the middle of a training."
    quantizer = VectorQuantizerEMA(*codebook.shape).to(device)
    reset_codes(quantizer, codebook, torch.ones(len(codebook), device=device))
    quantizer.steps.fill_(1000)
    return quantizer


def contenders(device):
    "What is timed, by name: functions without arguments."
    z, codebook = inputs(device)
    rows = z.movedim(1, -1).reshape(-1, SHAPE[1])
    distances = torch.empty(len(rows), CODES, device=device)
    ours, frozen = started(codebook, device), started(codebook, device).eval()
    return {"product": lambda: torch.mm(rows, codebook.T),
            "product_into_memory_at_hand": lambda: torch.mm(rows, codebook.T, out=distances),
            "search": lambda: nearest_codes(rows, codebook),
            "train": lambda: ours(z),
            "eval": lambda: frozen(z), **peers(z, device)}


def peers(z, device):
    "The same work by vector-quantize-pytorch, where it is installed."
    try:
        from vector_quantize_pytorch import VectorQuantize
    except ImportError:
        print("vector-quantize-pytorch is not installed: pip install -e '.[bench]'")
        return {}

    options = {"decay": 0.95, "threshold_ema_dead_code": 0.1, "accept_image_fmap": True}
    train, frozen = (VectorQuantize(SHAPE[1], CODES, **options).to(device) for _ in range(2))
    frozen.eval()
    return {"vqp_train": lambda: train(z), "vqp_eval": lambda: frozen(z)}


def wrong_codes(device):
    "How many codes differ from a float64 brute force, and how many of them are not a tie (of 1e-5)."
    z, codebook = inputs(device)
    rows = z.movedim(1, -1).reshape(-1, SHAPE[1])
    codes = nearest_codes(rows, codebook)
    best, chosen = [], []
    for part, code in zip(rows.double().split(1024), codes.split(1024)):
        distances = torch.cdist(part, codebook.double()).square()
        best.append(distances.min(1))
        chosen.append(distances.gather(1, code[:, None])[:, 0])
    exact, least = (torch.cat([pair[i] for pair in best]) for i in (1, 0))
    worse = torch.cat(chosen) > least * (1 + 1e-5)
    return int((codes != exact).sum()), int(worse.sum())


def peak_extra_mib():
    """How much memory one training forward takes beyond its input and itself, at its peak, in MiB.

    In a process of its own; Linux only.
    """
    here = str(Path(__file__).parent)
    program = f"import sys; sys.path.insert(0, {here!r}); import bench_quantizer as b; b.print_peak()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return float(done.stdout)


def memory_kib(name):
    "A line of /proc/self/status, such as VmRSS."
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def print_peak():
    z, codebook = inputs()
    quantizer = started(codebook)
    started(codebook[:8])(z[:1, :, :8, :8].clone())      # whatever libraries load, they load now
    Path("/proc/self/clear_refs").write_text("5")        # the peak counts from here
    before = memory_kib("VmRSS")
    quantizer(z)
    print((memory_kib("VmHWM") - before) / 1024)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    times = medians(contenders(options.device), options.rounds, options.device)
    times = {name: 1000 * seconds for name, seconds in times.items()}
    product = times["product"]
    figures = {f"{name}_vs_product": value / product for name, value in times.items() if name != "product"}
    different, worse = wrong_codes(options.device)
    print(f"{SHAPE[0] * SHAPE[2] * SHAPE[3]:,} vectors x {CODES:,} codes of length {SHAPE[1]}, float32, "
          f"{options.device}, {torch.get_num_threads()} threads, median of {options.rounds}\n\n"
          "| | ms | of one product |\n|---|---|---|")
    for name, value in times.items(): print(f"| {name} | {value:.0f} | {value / product:.2f} |")
    figures |= {"product_ms": product, "codes_unlike_float64": different, "codes_worse_than_1e-5": worse}
    print(f"\ncodes unlike float64 brute force: {different}, of which not a near tie: {worse}")
    if options.device == "cpu":
        figures["peak_extra_mib"] = peak_extra_mib()
        print(f"peak extra memory of a training forward: {figures['peak_extra_mib']:.0f} MiB")
    if options.json: Path(options.json).write_text(json.dumps(figures, indent=2), "utf-8")


if __name__ == "__main__": main()
