"""Two hundred thousand pictures in bounded memory, and 8,000 from the map against memory.

    python tests/benchmarks/bench_data.py [--count 200000] [--steps 300] [--folder FOLDER] [--json FILE]
                                          [--only large|small]

Peak memory is that of a process that only trains (VmHWM), pages of mapped files included. The model is that
of the preset: the smaller it is, the more of a step is waiting.
"""
import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from vqgen.config import DataConfig, load_config
from vqgen.data import datasets as built
from vqgen.data.datasets import build_data, load_data
from vqgen.priors.codes import encode_dataset
from vqgen.training.loop import train
from vqgen.vqvae.model import VQVAE

SHARD, SIZE = 5_000, 128


def picture(rng):
    "A JPEG of a smooth pattern."
    file, small = io.BytesIO(), Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
    small.resize((SIZE, SIZE), Image.Resampling.BILINEAR).save(file, "JPEG", quality=80)
    return file.getvalue()


def make_shards(folder, count):
    "Parquet files of `count` captioned pictures in `folder`, those that are not there yet."
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, count, SHARD):
        path, rng = folder / f"train-{start // SHARD:05}.parquet", np.random.default_rng(start)
        if path.is_file(): continue
        numbers = range(start, min(start + SHARD, count))
        rows = {"image": [picture(rng) for _ in numbers], "text": [f"pattern number {i}" for i in numbers]}
        pq.write_table(pa.table(rows), path)


def peak_memory():
    "The most memory that this process has held, in GB."
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def train_large(source, steps):
    "Train a VQ-VAE on the set and encode it, in this process."
    config = load_config("avatars", {"vqvae.model.downsample": 8})
    data = load_data(DataConfig(source=source, image_size=SIZE))
    section = config.vqvae.train.model_copy(update={"steps": steps, "batch_size": 16})
    model = VQVAE(config.vqvae.model)
    history = train(model, data, section, tempfile.mkdtemp())
    waits = [record["data_wait"] for record in history if "data_wait" in record][1:]
    found = {"rows": len(data), "data_wait": statistics.mean(waits), "train_peak_gb": peak_memory()}
    start = time.perf_counter()
    encode_dataset(model, data)
    return {**found, "encode_minutes": (time.perf_counter() - start) / 60, "peak_gb": peak_memory()}


def in_process(*arguments):
    "What this script prints with `arguments`, run in a process of its own."
    done = subprocess.run([sys.executable, __file__, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode: sys.exit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def large(folder, count, steps):
    make_shards(folder, count)
    start = time.perf_counter()
    built = in_process("--build", folder)
    minutes = (time.perf_counter() - start) / 60
    return {"build_minutes": minutes, "build_peak_gb": built["peak_gb"],
            **in_process("--train", folder, "--steps", steps)}


def small(rounds=3, steps=60):
    "Steps a second on 8,000 avatars in memory and from the map, in turn."
    config, rates = load_config("avatars"), {"memory": [], "map": []}
    section = config.vqvae.train.model_copy(update={"steps": steps, "eval_every": 10**9, "save_every": 10**9})
    sets = {}
    for name, limit in [("memory", built.IN_MEMORY), ("map", 0)]:
        built.IN_MEMORY = limit
        sets[name] = load_data(config.data)
    for _ in range(rounds):
        for name, data in sets.items():
            model, start = VQVAE(config.vqvae.model), time.perf_counter()
            train(model, data, section, tempfile.mkdtemp())
            rates[name].append(steps / (time.perf_counter() - start))
    return {f"steps_per_second_{name}": statistics.median(found) for name, found in rates.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=["large", "small"])
    for name in ("--build", "--train"): parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
    if options.build:
        build_data(DataConfig(source=options.build, image_size=SIZE))
        return print(json.dumps({"peak_gb": peak_memory()}))
    if options.train: return print(json.dumps(train_large(options.train, options.steps)))
    folder, figures = options.folder or Path(tempfile.mkdtemp()), {}
    if options.only != "small": figures |= large(folder / f"{options.count}", options.count, options.steps)
    if options.only != "large": figures |= small()
    text = json.dumps(figures, indent=2)
    print(text)
    if options.json: options.json.write_text(text, "utf-8")


if __name__ == "__main__": main()
