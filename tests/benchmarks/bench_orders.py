"""Ways to draw 256 codes in one pass: each trained equally long on emoji, then judged by what it draws.

    python tests/benchmarks/bench_orders.py --run runs/emoji [--arms last,halton,entropy,...] [--steps 400]
        [--roles 80] [--width 96] [--layers 12] [--batch 32] [--seeds 1] [--captions 150]
        [--scales 1] [--settings 1:1 1.5:1 1:0.4 1:1.7] [--precision auto] [--json FILE]

RUN holds a VQ-VAE that is trained on the preset `emoji` (`vqgen train vqvae --config emoji`). So that minutes
of training show something, only so many roles are taken, of those that have held-out pictures (0: everything
is taken). An arm is a way to draw; `transformer` is the rival, `cftn` the masked one. A row: nats a held-out
picture (in 1, 4 and 16 passes), the share of held-out captions for which the nearest true picture is right
(all, role, tone, style) and how free drawings are where the caption leaves something open, at each setting,
guidance scale and temperature; the milliseconds and the blocks of one picture.
"""
import argparse
import itertools
import json
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch

from vqgen.config import (
    BrainConfig,
    CFTNConfig,
    LSTMConfig,
    StageConfig,
    TextConfig,
    TransformerConfig,
    load_config,
)
from vqgen.data.avatars import hash_order
from vqgen.evaluation.frontier import EmojiTrial
from vqgen.evaluation.likelihood import likelihood
from vqgen.evaluation.nearest import NearestJudge
from vqgen.experiment import load_splits, milliseconds_per_image
from vqgen.pipeline import Pipeline, find_run
from vqgen.placement import best_device
from vqgen.priors.build import new_prior, train_prior
from vqgen.priors.codes import CodedCaptions, encode_dataset
from vqgen.priors.text import new_tokenizer
from vqgen.training.checkpoints import load_model
from vqgen.vqvae.model import VQVAE


@dataclass(frozen=True)
class Arm:
    "A way to draw: which prior, in which order its codes are decided, and how many of them early."
    kind: str = "cftn-v2"
    order: str = "entropy"       # or halton, or last: every code in the last layer
    early: float = 0.5           # share of the codes that layers below the last decide


ARMS = {"last": Arm(order="last"), "halton": Arm(order="halton"), "entropy": Arm(),
        "few": Arm(early=0.125), "fewer": Arm(early=0.03125),
        "cftn": Arm("cftn"), "transformer": Arm("transformer"), "lstm": Arm("lstm")}


def arm_prior(arm, world, options, seed):
    "A fresh prior of an arm."
    sizes = {"width": options.width, "heads": 4}
    config = {"lstm": LSTMConfig(**sizes, layers=2),
              "transformer": TransformerConfig(**sizes, layers=options.layers),
              "cftn": CFTNConfig(**sizes, layers=options.layers - 2),
              "cftn-v2": BrainConfig(**sizes, layers=options.layers, mlp_ratio=2, early_share=arm.early)}
    codes = world.codes if arm.order == "entropy" and arm.kind == "cftn-v2" else None
    prior = new_prior(arm.kind, config[arm.kind], world.vqvae, world.tokenizer, world.size, seed, codes=codes)
    if arm.order == "last":
        prior.decided = [0] * options.layers + [len(prior.order)]
    return prior


def train_arm(arm, prior, world, options, seed, scale):
    "Trains `prior`, with `scale` times the learning rates of its kind; returns the seconds it took."
    rate = options.rate if arm.kind == "cftn-v2" else options.rival_rate
    rates = {"learning_rate": scale * rate, "matrix_learning_rate": scale * options.matrix_rate}
    config = StageConfig(steps=options.steps, batch_size=options.batch, optimizer="muon", **rates,
                         precision=options.precision, eval_every=10**6, save_every=10**6)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        train_prior(prior, world.train, None, config, Path(folder), seed=seed, stage="arm")
        return time.perf_counter() - start


class World:
    "Emoji of some roles as codes, their captions, and who judges drawings of them."
    def __init__(self, options):
        config = load_config("emoji")
        folder, self.size = find_run(options.run), config.data.image_size
        self.vqvae = load_model(folder / "vqvae", VQVAE).eval().to(options.device)
        splits = load_splits(config)
        kept = hash_order(face["role"] for face in splits[1].attributes)[:options.roles or None]
        train, held_out = (self.part(split, options.roles and kept, options.device) for split in splits)
        self.codes, lists, faces = train
        self.tokenizer = new_tokenizer([*itertools.chain.from_iterable(lists)], TextConfig(vocab_size=4096))
        self.train = CodedCaptions(self.codes, lists, self.tokenizer)
        self.captions = [captions[0] for captions in held_out[1]]
        self.few = CodedCaptions(held_out[0][:96], self.captions[:96], self.tokenizer)
        is_training = [place < len(faces) for place in range(len(faces) + len(self.captions))]
        judge = NearestJudge(self.copies(train[0], held_out[0]), faces + held_out[2], is_training)
        asked = SimpleNamespace(captions=self.captions, attributes=held_out[2])
        self.trial = EmojiTrial(judge, asked, options.captions)

    def part(self, split, kept, device):
        "Codes, lists of captions and attributes of the pictures of `split` whose role is `kept`; 0: of all."
        codes = encode_dataset(self.vqvae, split, device=device)
        places = [i for i, face in enumerate(split.attributes) if not kept or face["role"] in kept]
        captions, faces = ([values[i] for i in places] for values in (split.caption_lists, split.attributes))
        return codes[places], captions, faces

    @torch.no_grad()
    def copies(self, *parts):
        for codes in parts:
            for some in torch.from_numpy(codes.astype("int64")).split(64): yield self.vqvae.decode(some)


def measure_arm(arm, prior, world, options):
    pipe = Pipeline(world.vqvae, prior.eval(), world.tokenizer, device=options.device)
    row = {}
    if arm.kind == "cftn-v2":
        for steps in (1, 4, 16): row[f"nats_{steps}"] = likelihood(pipe.prior, world.few, steps=steps)["nats"]
    elif arm.kind != "cftn": row["nats_1"] = likelihood(pipe.prior, world.few)["nats"]
    usual = {"top_p": 0.9} if arm.kind in ("transformer", "lstm") else {}
    for setting in options.settings:
        how = dict(zip(("guidance_scale", "temperature"), map(float, setting.split(":")))) | usual
        marks = world.trial(partial(pipe.images, **how))
        row |= {f"{name}@{setting}": mark for name, mark in marks.items()}
    row["ms"] = milliseconds_per_image(pipe, world.captions, 7, **usual)
    passes = {"cftn-v2": 1, "cftn": 16}.get(arm.kind, prior.shape.grid_size**2)
    return {**row, "blocks": passes * prior.config.layers}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--json", type=Path)
    numbers = {"steps": 400, "width": 96, "layers": 12, "batch": 32, "seeds": 1, "captions": 150, "roles": 80}
    rates = {"rate": 3e-3, "rival-rate": 1.5e-3, "matrix-rate": 0.01}
    for name, default in {**numbers, **rates}.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0])
    parser.add_argument("--settings", nargs="+", default=["1:1", "1.5:1", "1:0.4", "1:1.7"])
    options = parser.parse_args()
    options.device = best_device()
    world, rows = World(options), []
    for name, scale, seed in itertools.product(options.arms.split(","), options.scales, range(options.seeds)):
        prior = arm_prior(ARMS[name], world, options, seed)
        seconds = train_arm(ARMS[name], prior, world, options, seed, scale)
        row = {"arm": name, "scale": scale, "seed": seed, "seconds": seconds}
        row |= measure_arm(ARMS[name], prior, world, options)
        rows.append(row)
        print({key: round(v, 3) if isinstance(v, float) else v for key, v in row.items()}, flush=True)
        if options.json: options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__": main()
