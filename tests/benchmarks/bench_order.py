"""How long the places take to be put in order, of smooth fields in codes: wall time, and of the processor.

    python tests/benchmarks/bench_order.py [--places 256] [--grids 8000] [--codes 1024] [--json FILE]

Of `--grids` fields of four numbers a place, smooth but for a tenth of noise, each place shows the nearest of
`--codes` vectors. Few codes take longer than many: a pair that occurs only once is not sorted.
"""
import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from vqgen.priors.brain import entropy_order


def smooth_codes(grids, side, codes):
    "An array (M, side, side) of `codes` numbers, of which neighbours are alike."
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(grids, 4, 4, 4, generator=generator)
    parts = []
    for part in coarse.split(100):                                                    # (B, 4, 4, 4)
        fields = F.interpolate(part, (side, side), mode="bilinear", align_corners=True)
        fields += 0.1 * torch.randn(fields.shape, generator=generator)
        vectors = fields.movedim(1, -1).reshape(-1, 4)                                # (B * side * side, 4)
        if not parts: codebook = vectors[torch.randperm(len(vectors), generator=generator)[:codes]]
        parts.append(torch.cat([torch.cdist(rows, codebook).argmin(1) for rows in vectors.split(4096)]))
    return torch.cat(parts).view(grids, side, side).numpy().astype(np.uint16)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--places", type=int, default=256, help="a square number")
    parser.add_argument("--grids", type=int, default=8000)
    parser.add_argument("--codes", type=int, default=1024)
    parser.add_argument("--json", help="write the figures to this file")
    options = parser.parse_args()
    grids = smooth_codes(options.grids, math.isqrt(options.places), options.codes)
    start, worked = time.perf_counter(), time.process_time()
    entropy_order(grids)
    figures = {"seconds": time.perf_counter() - start, "processor_seconds": time.process_time() - worked}
    print(f"{grids[0].size} places, {len(grids):,} grids, {options.codes:,} codes: "
          f"{figures['seconds']:.1f} s, of the processor {figures['processor_seconds']:.1f} s")
    if options.json: Path(options.json).write_text(json.dumps(figures, indent=2), "utf-8")


if __name__ == "__main__": main()
