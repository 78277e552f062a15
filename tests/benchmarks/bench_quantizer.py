"""The quantizer against the one matrix product that exact nearest-code search needs, and against vector-quantize-pytorch.

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
from vqgen.vqvae.quantizer import VectorQuantizerEMA, nearest_codes

SHAPE, CODES = (16, 256, 32, 32), 4096   # N = 16,384 vectors of 256 numbers


def inputs(device="cpu"):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(SHAPE, generator=generator).to(device), torch.randn(CODES, SHAPE[1], generator=generator).to(device)


def started(quantizer, codebook):
    "Our quantizer with `codebook`, in the middle of a training."
    quantizer.codebook.copy_(codebook)
    quantizer.ema_sum.copy_(codebook)
    quantizer.steps.fill_(1000)
    return quantizer


def contenders(device):
    "What is timed, by name: functions without arguments."
    z, codebook = inputs(device)
    rows, scores = z.movedim(1, -1).reshape(-1, SHAPE[1]), torch.empty(z.numel() // SHAPE[1], CODES, device=device)
    ours = started(VectorQuantizerEMA(CODES, SHAPE[1]).to(device), codebook)
    frozen = started(VectorQuantizerEMA(CODES, SHAPE[1]).to(device), codebook).eval()
    work = {"product": lambda: torch.mm(rows, codebook.T), "product_into_memory_at_hand": lambda: torch.mm(rows, codebook.T, out=scores),
            "search": lambda: nearest_codes(rows, codebook), "train": lambda: ours(z), "eval": lambda: frozen(z)}
    try: from vector_quantize_pytorch import VectorQuantize
    except ImportError: print("vector-quantize-pytorch is not installed: pip install -e '.[bench]'")
    else:
        peer, peer_frozen = (VectorQuantize(SHAPE[1], CODES, decay=0.95, threshold_ema_dead_code=0.1, accept_image_fmap=True).to(device) for _ in range(2))
        peer_frozen.eval()
        work |= {"vqp_train": lambda: peer(z), "vqp_eval": lambda: peer_frozen(z)}
    return work


def wrong_codes(device):
    "How many codes differ from a float64 brute force, and how many of them where the two distances differ by 1e-5 or more."
    z, codebook = inputs(device)
    rows = z.movedim(1, -1).reshape(-1, SHAPE[1])
    codes, best, chosen = nearest_codes(rows, codebook), [], []
    for part, code in zip(rows.double().split(1024), codes.split(1024)):
        distances = torch.cdist(part, codebook.double()).square()
        best.append(distances.min(1))
        chosen.append(distances.gather(1, code[:, None])[:, 0])
    exact, least = (torch.cat([pair[i] for pair in best]) for i in (1, 0))
    worse = torch.cat(chosen) > least * (1 + 1e-5)
    return int((codes != exact).sum()), int(worse.sum())


def peak_extra_mib():
    "How much memory one training forward takes beyond its input and itself, at its peak, in MiB (in a process of its own; Linux)."
    program = f"import sys; sys.path.insert(0, {str(sys.path[0])!r}); import bench_quantizer; bench_quantizer.print_peak()"
    return float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)


def print_peak():
    z, codebook = inputs()
    quantizer = started(VectorQuantizerEMA(CODES, SHAPE[1]), codebook)
    started(VectorQuantizerEMA(8, SHAPE[1]), codebook[:8])(z[:1, :, :8, :8].clone())   # whatever libraries load, they load now
    Path("/proc/self/clear_refs").write_text("5")                                      # the peak counts from here
    kib = lambda name: int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1])
    before = kib("VmRSS")
    quantizer(z)
    print((kib("VmHWM") - before) / 1024)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    times = {name: 1000 * seconds for name, seconds in medians(contenders(options.device), options.rounds, options.device).items()}
    figures = {f"{name}_vs_product": value / times["product"] for name, value in times.items() if name != "product"}
    different, worse = wrong_codes(options.device)
    print(f"{SHAPE[0] * SHAPE[2] * SHAPE[3]:,} vectors x {CODES:,} codes of length {SHAPE[1]}, float32, {options.device}, "
          f"{torch.get_num_threads()} threads, median of {options.rounds}\n\n| | ms | of one product |\n|---|---|---|")
    for name, value in times.items(): print(f"| {name} | {value:.0f} | {value / times['product']:.2f} |")
    figures |= {"product_ms": times["product"], "codes_unlike_float64": different, "codes_worse_than_1e-5": worse}
    print(f"\ncodes unlike float64 brute force: {different}, of which not a near tie: {worse}")
    if options.device == "cpu":
        figures["peak_extra_mib"] = peak_extra_mib()
        print(f"peak extra memory of a training forward: {figures['peak_extra_mib']:.0f} MiB")
    if options.json:
        with open(options.json, "w") as file: json.dump(figures, file, indent=2)


if __name__ == "__main__": main()
