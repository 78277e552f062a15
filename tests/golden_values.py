"""What every model computes, written down: loss curves of 30 steps, and codes that the shipped run draws.

    python tests/golden_values.py     # writes tests/golden/*.json anew, where numbers are meant to change
"""
import json
import platform
import tempfile
from pathlib import Path

import torch
from tiny import CONFIG, changed, coded, splits

from vqgen.config import StageConfig, TrainConfig
from vqgen.pipeline import Pipeline
from vqgen.priors.build import PRIORS, new_prior, train_prior
from vqgen.priors.curriculum import train_stage
from vqgen.training.loop import train
from vqgen.vqvae.model import VQVAE

FOLDER = Path(__file__).parent / "golden"
STEPS = {"steps": 30, "batch_size": 16, "warmup_steps": 5, "learning_rate": 3e-3}
CURVES = {"vqvae": "adamw", **dict.fromkeys(PRIORS, "adamw"), "cftn, muon": "muon", "cftn-v2, muon": "muon"}
CAPTIONS = ["a person with a green mohawk and sunglasses",
            "a person with long red hair, a purple background and a smiling mouth",
            "brown skin, a blue hat, yellow clothes", "a person with curly brown hair"]
DRAWINGS = {"lstm": {}, "transformer": {}, "cftn": {}, "cftn-v2": {}, "cftn-v2, 4 passes": {"steps": 4},
            "transformer, guided": {"guidance_scale": 2.0, "top_k": 100},
            "cftn, guided": {"steps": 5, "guidance_scale": 2.0, "order": "confidence"},
            "cftn-v2, guided": {"guidance_scale": 2.0, "top_p": 0.9}}


def machine():
    "What decides how sums are rounded here."
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} torch {torch.__version__}"


def loss_curve(case):
    "The loss at each of 30 steps of a small training, in float32."
    name, optimizer = case.split(",")[0], CURVES[case]
    losses = []
    torch.manual_seed(0)
    if name == "vqvae": model, data = VQVAE(CONFIG.vqvae.model), splits()[0]
    else:
        vqvae, tokenizer, data, _ = coded()
        shape = changed(getattr(CONFIG, name.replace("-", "_")).model, dropout=0.1)
        model = new_prior(name, shape, vqvae, tokenizer, splits()[0].image_size, codes=data.codes)
    loss = model.loss

    def record(*arguments, **options):
        value, metrics = loss(*arguments, **options)
        losses.append(value.item())
        return value, metrics
    model.loss = record
    settings = {**STEPS, "optimizer": optimizer}
    with tempfile.TemporaryDirectory() as folder:
        if name == "vqvae": train(model, data, TrainConfig(**settings), folder)
        elif name == "cftn-v2":
            train_stage(model, "stage1", StageConfig(caption_weight=0.3, **settings), data, None, folder)
        else: train_prior(model, data, None, TrainConfig(**settings), folder)
    return losses


def drawn_codes(case):
    "The codes (4, 8, 8) of `CAPTIONS` by a prior of the shipped run, as nested lists."
    pipe = Pipeline.from_pretrained("avatars-hour", case.split(",")[0], "cpu")
    return pipe.codes(CAPTIONS, seed=7, **DRAWINGS[case]).tolist()


def written_captions():
    "What CFTN v2 of the shipped run says of the pictures that it draws."
    pipe = Pipeline.from_pretrained("avatars-hour", "cftn-v2", "cpu")
    return pipe.caption(pipe.images(CAPTIONS, seed=7))


def one_thread(make, *arguments):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try: return make(*arguments)
    finally: torch.set_num_threads(threads)


def write(name, values):
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps({"machine": machine(), **values}) + "\n", "utf-8")


def main():
    write("curves", {case: one_thread(loss_curve, case) for case in CURVES})
    codes = {case: one_thread(drawn_codes, case) for case in DRAWINGS}
    write("codes", {**codes, "captions": one_thread(written_captions)})


if __name__ == "__main__": main()
