"""Put the models of a run into the package, under the name of the run's config, as `vqgen/trained/NAME`.

    python tools/trained.py runs/avatars-hour

The run holds a VQ-VAE and all four priors, as `vqgen train` leaves them; its classifier is trained now if it is not there. Priors and
classifier are stored in half precision, the VQ-VAE as it is: the priors know it by its fingerprint.
"""
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from vqgen.training.checkpoints import load_model
from vqgen.config import load_config
from vqgen.experiment import load_classifier, load_splits
from vqgen.priors.build import PRIORS
from vqgen.vqvae.model import VQVAE

ROOT = Path(__file__).resolve().parent.parent

KEPT = ("config.json", "config.yaml", "tokenizer.json", "tokenizer_config.json")


def halved(weights): return {name: value.half() if value.dtype == torch.float32 else value for name, value in weights.items()}


def main(run):
    config = load_config(run / "vqvae" / "config.yaml")
    vqvae = load_model(run / "vqvae", VQVAE)
    load_classifier(run, load_splits(config)[0], vqvae, config.classifier.train)
    target = ROOT / "vqgen" / "trained" / config.name
    for name in ("vqvae", *PRIORS, "classifier"):
        folder, weights = target / name, load_file(run / name / "model.safetensors")
        folder.mkdir(parents=True, exist_ok=True)
        for path in (run / name / kept for kept in KEPT):
            if path.exists(): shutil.copy(path, folder)
        save_file(weights if name == "vqvae" else halved(weights), folder / "model.safetensors")
        print(f"{folder.relative_to(ROOT)}: {sum(path.stat().st_size for path in folder.iterdir()) / 1e6:.2f} MB")


if __name__ == "__main__": main(Path(sys.argv[1]))
