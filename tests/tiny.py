"An experiment that trains in a second, a short training for each model, and the `vqgen` command."
import functools
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from sentences import complaints

from vqgen.config import StageConfig, TrainConfig, parse_config
from vqgen.data.datasets import load_data
from vqgen.errors import VQGenError
from vqgen.priors.build import new_prior, train_prior
from vqgen.priors.codes import CodedCaptions, encode_dataset
from vqgen.priors.curriculum import train_stage
from vqgen.priors.text import train_tokenizer
from vqgen.training.checkpoints import newest_state
from vqgen.training.loop import train
from vqgen.vqvae.model import VQVAE

NARROW = {"width": 16, "heads": 2, "layers": 2}
FOUR_STEPS = {"steps": 4, "batch_size": 8, "warmup_steps": 1}
TREE = {
    "name": "tiny",
    "data": {"source": "avatars", "image_size": 16, "count": 120},
    "vqvae": {"model": {"downsample": 4, "hidden_channels": 8, "residual_channels": 4, "residual_layers": 1,
                        "codebook_size": 16, "code_dim": 4},
              "train": {**FOUR_STEPS, "save_every": 2}},
    "text": {"vocab_size": 192, "max_length": 64},
    "classifier": {"train": {"steps": 5}},
    "lstm": {"model": NARROW, "train": FOUR_STEPS},
    "transformer": {"model": NARROW, "train": FOUR_STEPS},
    "cftn": {"model": NARROW, "train": {**FOUR_STEPS, "optimizer": "muon"}},
    "cftn_v2": {"model": {"width": 16, "heads": 2, "layers": 3},
                "stage1": {**FOUR_STEPS, "caption_weight": 0.2},
                "stage2": {**FOUR_STEPS, "steps": 3}},
}
CONFIG = parse_config(TREE)
VQGEN = shutil.which("vqgen", path=str(Path(sys.executable).parent)) or shutil.which("vqgen")


def write_config(path):
    path.write_text(yaml.safe_dump(TREE), "utf-8")
    return path


def vqgen(*arguments, **options):
    "Run the command to its end."
    command = [VQGEN, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def interrupt(number, pattern, *arguments):
    """Run the command until its error stream matches `pattern`, send it signal `number`, wait for its end.

    Returns (exit code, stdout, stderr). There is no clock in it: what the command prints says where it is.
    """
    process = subprocess.Popen([VQGEN, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    seen = b""
    while not re.search(pattern, seen.decode(errors="replace")):
        part = process.stderr.read1()
        assert part, f"the command ended before it printed {pattern}: {seen.decode()}"
        seen += part
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    return process.returncode, out.decode(), (seen + err).decode()


def one_sentence(message):
    "Is `message` fit for a user? See `sentences.complaints`."
    return not complaints(message)


def error_line(result):
    "The message of a command that failed as it should: one line `error: ...`, nothing else, exit code 1."
    assert result.returncode == 1, (result.returncode, result.stdout, result.stderr)
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and one_sentence(lines[0]), result.stderr
    return lines[0].removeprefix("error: ")


class Stopping:
    "A data set that sends this very process a signal while batch number `at` (from 1) is read."
    def __init__(self, data, at, number=signal.SIGINT):
        self.data, self.batches = data, 0
        self.at, self.number = at, number

    def __len__(self): return len(self.data)

    def __getitem__(self, i): return self.data[i]

    def __getattr__(self, name):   # such as `collate`, where the data set has one
        if name in ("data", "__getitems__"): raise AttributeError(name)
        return getattr(self.data, name)

    def __getitems__(self, indices):
        self.batches += 1
        if self.batches == self.at: signal.raise_signal(self.number)
        fetch = getattr(self.data, "__getitems__", None)
        return fetch(indices) if fetch else [self.data[i] for i in indices]


# --- one short training for each model there is ---

STEPS = dict(steps=9, batch_size=8, warmup_steps=2, learning_rate=3e-3, save_every=4)
SHORT = TrainConfig(**STEPS)


def changed(config, **changes): return config.model_copy(update=changes)


def unchanged(data): return data


@functools.cache
def splits(): return load_data(changed(CONFIG.data, flip=True)), load_data(CONFIG.data, "validation")


@functools.cache
def coded():
    "A VQ-VAE that has seen one batch, a tokenizer, and both splits as codes and captions."
    torch.manual_seed(0)
    vqvae = VQVAE(CONFIG.vqvae.model)
    vqvae.loss(splits()[0].batch(range(32)))
    tokenizer = train_tokenizer(splits()[0].captions, CONFIG.text)
    vqvae.eval()
    coded = [CodedCaptions(encode_dataset(vqvae, part), part.captions, tokenizer) for part in splits()]
    return vqvae, tokenizer, *coded


def fit_vqvae(folder, wrap=unchanged, seed=0, chance=True, tracking=None, **changes):
    "Without `chance` nothing at random differs from process to process: no picture is mirrored."
    torch.manual_seed(0)
    model, data = VQVAE(CONFIG.vqvae.model), splits()[0] if chance else load_data(CONFIG.data)
    history = train(model, wrap(data), changed(SHORT, **changes), folder, validation=splits()[1], seed=seed,
                    tracking=tracking)
    return model, history


def fit_brain(folder, wrap=unchanged, seed=0, **changes):
    vqvae, tokenizer, data, validation = coded()
    shape = changed(CONFIG.cftn_v2.model, dropout=0.1)
    model = new_prior("cftn-v2", shape, vqvae, tokenizer, splits()[0].image_size)
    settings = {**STEPS, "optimizer": "muon", **changes}
    stage = StageConfig(caption_weight=0.2, gate_learning_rate=0.01, **settings)
    return model, train_stage(model, "train", stage, wrap(data), validation, folder, seed=seed)


def fit_prior(name, folder, wrap=unchanged, seed=0, chance=True, **changes):
    "Without `chance` no caption is dropped and nothing is masked at random but what the prior must mask."
    vqvae, tokenizer, data, validation = coded()
    share = {"dropout": 0.1} if chance else {"caption_dropout": 0.0}
    shape = changed(getattr(CONFIG, name).model, **share)
    model = new_prior(name, shape, vqvae, tokenizer, splits()[0].image_size)
    return model, train_prior(model, wrap(data), validation, changed(SHORT, **changes), folder, seed=seed)


# with a name here a new prior joins the tests of resume and of several processes
FITS = {"vqvae": fit_vqvae, "brain": fit_brain, "lstm": functools.partial(fit_prior, "lstm"),
        "transformer": functools.partial(fit_prior, "transformer"),
        "cftn": functools.partial(fit_prior, "cftn", optimizer="muon")}


def train_plain(folder, wrap=unchanged, **changes):
    "The shortest training of a VQ-VAE."
    torch.manual_seed(0)
    model = VQVAE(CONFIG.vqvae.model)
    return model, train(model, wrap(load_data(CONFIG.data)), changed(SHORT, **changes), folder)


# --- what is in a folder ---

def contents(folder):
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def weights(folder): return (Path(folder) / "model.safetensors").read_bytes()


def load_step(folder, stage="train"):
    "The step from which a training in `folder` would go on."
    state, note = newest_state(Path(folder) / "state" / stage)
    assert not note
    return state["step"] if state else 0


def scraps(folder): return [path for path in Path(folder).rglob(".*") if path.name != ".lock"]


def generators(*seeds): return [torch.Generator().manual_seed(seed) for seed in seeds]


def refusal(call, *arguments, **options):
    "The sentence with which `call` refuses."
    with pytest.raises(VQGenError) as caught: call(*arguments, **options)
    assert one_sentence(caught.value), str(caught.value)
    return str(caught.value)
