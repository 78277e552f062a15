"""Put the models of a run into the package, under the name of the run's config, as `vqgen/trained/NAME`.

    python tools/trained.py runs/avatars-hour

The run holds a VQ-VAE and some of the priors, as `vqgen train` leaves them; of faces the classifier is
trained now if it is not there. All are stored in half precision; the others know the VQ-VAE by its
fingerprint, which is that of what is stored.
"""
import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from vqgen.config import load_config
from vqgen.experiment import knows_roles, load_classifier, load_splits
from vqgen.files import fingerprint
from vqgen.priors.build import PRIORS
from vqgen.training.checkpoints import load_model
from vqgen.vqvae.model import VQVAE

ROOT = Path(__file__).resolve().parent.parent

KEPT = ("config.json", "config.yaml", "tokenizer.json", "tokenizer_config.json")


def halved(weights):
    floats = {name: value.half() for name, value in weights.items() if value.dtype == torch.float32}
    wide = [name for name, value in floats.items() if not value.isfinite().all()]
    if wide: sys.exit(f"too large for half precision: {', '.join(wide)}")
    return {**weights, **floats}


def store(source, folder):
    "Put the model in `source` into `folder`, in half precision."
    folder.mkdir(parents=True, exist_ok=True)
    for path in (source / kept for kept in KEPT):
        if path.exists(): shutil.copy(path, folder)
    save_file(halved(load_file(source / "model.safetensors")), folder / "model.safetensors")


def rename_vqvae(folder, mark):
    "Tell the model in `folder` the fingerprint of its VQ-VAE."
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"vqvae": mark}, indent=2), "utf-8")


def main(run):
    config = load_config(run / "vqvae" / "config.yaml")
    data, names = load_splits(config)[0], [name for name in PRIORS if (run / name).is_dir()]
    if not knows_roles(data):
        load_classifier(run, data, load_model(run / "vqvae", VQVAE), config.classifier.train)
        names.append("classifier")
    target = ROOT / "vqgen" / "trained" / config.name
    store(run / "vqvae", target / "vqvae")
    mark = fingerprint(load_model(target / "vqvae", VQVAE))
    for name in names:
        store(run / name, target / name)
        rename_vqvae(target / name, mark)
    for folder in sorted(target.iterdir()):
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        print(f"{folder.relative_to(ROOT)}: {size / 1e6:.2f} MB")


if __name__ == "__main__": main(Path(sys.argv[1]))
