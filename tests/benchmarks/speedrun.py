"""The speedrun: in how many minutes do two processor cores come from nothing to 80 % prompt accuracy?

    python tests/benchmarks/speedrun.py [--config avatars] [--cftn_v2.stage1.steps 500 ...]

Trains the VQ-VAE and CFTN v2 of a preset or of a YAML file to the steps that it says; any key can be set on
the line, as for `vqgen train`. Then prints minutes, prompt accuracy and what they were reached on. The rules:

1. The data are those of the preset `avatars`. Run and cache are new, nothing is pretrained, and two cores
   compute. The clock starts when the pictures are drawn and stops when the last model is trained: order,
   tokenizer and codes count, the judge does not.
2. One pass draws 16 pictures for each of 60 held-out captions; 80 % have to be right (`FaceTrial`, as in the
   README). The copies that the VQ-VAE makes of held-out pictures have to reach 30 dB, for the judge is
   trained on copies.
3. A row of the table in the README has the minutes and the accuracy as printed, the entry, and the processor.
"""
import argparse
import os
import tempfile
import time
from pathlib import Path

import torch
from training_step import processor

from vqgen.cli import parse_overrides
from vqgen.config import load_config
from vqgen.evaluation.frontier import FaceTrial
from vqgen.experiment import load_judge, load_splits, reconstruct, train_model, unseen_words_allowed
from vqgen.pipeline import Pipeline
from vqgen.vqvae.losses import psnr

CORES = 2
RIGHT, DECIBELS = 0.8, 30     # to reach: prompt accuracy, and what copies have


def stay_on_cores():
    "Compute on `CORES` of the processor's cores alone, where the system lets us choose, and on no GPU."
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    if hasattr(os, "sched_setaffinity"): os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    torch.set_num_threads(CORES)


def minutes_of_training(config, run):
    "Train both models of `config` in the new folder `run`; returns the minutes."
    start = time.perf_counter()
    for name in ("vqvae", "cftn-v2"): train_model(name, config, run)
    return (time.perf_counter() - start) / 60


@unseen_words_allowed()
def figures_of(config, run, data, validation):
    "A dict of accuracy and the other figures of `FaceTrial`, and psnr in dB, of the models in `run`."
    pipe = Pipeline.from_pretrained(run, "cftn-v2", "cpu")
    judge = load_judge(run, data, validation, pipe.vqvae, config.classifier.train)
    originals, copies = validation.batch(range(len(validation))), reconstruct(pipe.vqvae, validation)
    return {**FaceTrial(judge, validation)(pipe.images), "psnr": psnr(copies, originals).mean().item()}


def faults(config, figures):
    "What keeps a run of `config` with these `figures` from the table, a list."
    ours = load_config("avatars")
    found = [f"{name} is not that of the preset avatars" for name in ("data", "classifier")
             if getattr(config, name) != getattr(ours, name)]
    if config.text.tokenizer or config.text.encoder: found.append("it begins with what was trained before")
    if figures["psnr"] < DECIBELS: found.append(f"the copies are below {DECIBELS} dB")
    if figures["accuracy"] < RIGHT: found.append(f"the accuracy is below {RIGHT:.0%}")
    return found


def main():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--config", default="avatars")
    asked, rest = parser.parse_known_args()
    config = load_config(asked.config, parse_overrides(rest))
    stay_on_cores()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["VQGEN_CACHE"] = str(Path(folder) / "cache")
        splits = load_splits(config)
        minutes = minutes_of_training(config, Path(folder) / "run")
        figures = figures_of(config, Path(folder) / "run", *splits)
    found = f"prompt accuracy {figures['accuracy']:.1%}, copies {figures['psnr']:.1f} dB"
    print(f"{minutes:.1f} minutes, {found}", f"{torch.get_num_threads()} threads, {processor()}", sep="\n")
    print(*[f"does not count: {fault}" for fault in faults(config, figures)] or ["counts"], sep="\n")


if __name__ == "__main__": main()
