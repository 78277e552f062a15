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
from vqgen.priors.blocks import Block
from vqgen.priors.brain import (
    code_loss,
    decide_pass,
    shared_prefix,
    suffix_mask,
    teacher_forced,
    weighted_loss,
)
from vqgen.priors.build import new_prior, train_prior
from vqgen.priors.codes import CodedCaptions, encode_dataset
from vqgen.priors.sampling import confidence
from vqgen.priors.text import drop_captions, new_tokenizer, tokenize
from vqgen.training.checkpoints import load_model
from vqgen.vqvae.model import VQVAE


@dataclass(frozen=True)
class Arm:
    "A way to draw: what decides when, what places hear, what training adds, from how many it chooses."
    kind: str = "cftn-v2"
    order: str = "entropy"       # or halton, or last: every code in the last layer
    neighbours: bool = False     # of decisions and of known codes, and rotary positions
    mistakes: float = 0.0        # share of decisions that are heard wrong in training
    deep: float = 0.0            # weight of a loss on all places that are not yet decided, at each layer
    captions: float = 0.0        # weight of captioning in training
    candidates: int = 1          # of which the own captioner keeps one
    renewal: float = 0.0         # what is less probable than this to the last layer is decided again
    first_bridge: int | None = None
    early: float = 0.5           # share of the codes that layers below the last decide


ARMS = {"last": Arm(order="last"), "halton": Arm(order="halton"), "entropy": Arm(),
        "few": Arm(early=0.125), "fewer": Arm(early=0.03125),
        "few-neighbours": Arm(early=0.125, neighbours=True),
        "neighbours": Arm(neighbours=True), "mistakes": Arm(neighbours=True, mistakes=0.1),
        "renewal": Arm(neighbours=True, mistakes=0.1, renewal=0.3),
        "deep": Arm(neighbours=True, deep=0.2), "captions": Arm(neighbours=True, captions=0.1),
        "low-bridges": Arm(neighbours=True, first_bridge=2),
        "candidates": Arm(neighbours=True, captions=0.1, candidates=4), "cftn": Arm("cftn"),
        "cftn-neighbours": Arm("cftn", neighbours=True), "transformer": Arm("transformer"),
        "lstm": Arm("lstm")}


def arm_loss(arm):
    "The loss of a batch as `train_prior` wants it."
    if arm.kind != "cftn-v2": return lambda model, batch: model.loss(**batch)
    stage = StageConfig(caption_weight=arm.captions, caption_share=0.25)

    def loss(brain, batch):
        codes, text = batch["codes"].flatten(1), batch["text"]
        if not arm.mistakes and not arm.deep: return weighted_loss(brain, codes, text, stage)
        prompt = drop_captions(text, brain.config.caption_dropout) if brain.training else text
        return experimental_loss(brain, codes, prompt, arm)
    return loss


def experimental_loss(brain, codes, text, arm):
    "The cross-entropy of `codes` (B, N) where some decisions are heard wrong, and other places count, too."
    hidden, null_rows = suffix_mask(codes, brain.order, 0.5)
    found, extra = [], []

    def decide(patches, places):
        found.append(brain.code_logits(patches).float())
        wrong = torch.rand(codes[:, places].shape, device=codes.device) < arm.mistakes
        return torch.where(wrong & hidden[:, places], codes.roll(1, 0)[:, places], codes[:, places])

    def watch(block, inputs, patches):
        later = brain.order[torch.randint(len(brain.order) // 2, len(brain.order), (32,))]
        logits = brain.code_logits(patches[:, later]).float().flatten(0, 1)
        extra.append(torch.nn.functional.cross_entropy(logits, codes[:, later].flatten()))

    def look_back(block, inputs):
        early = brain.order[torch.randperm(brain.decided[brain.top])[:64]]
        found = brain.code_logits(Block.forward(block, *inputs, places=early)).float().flatten(0, 1)
        extra.append(torch.nn.functional.cross_entropy(found, codes[:, early].flatten()))

    blocks = brain.image_tower.blocks
    deciding = blocks[brain.first_bridge + 1:brain.top] if arm.deep else []   # above the shared prefix
    hooks = [block.register_forward_hook(watch) for block in deciding]
    if arm.renewal: hooks.append(blocks[brain.top].register_forward_pre_hook(look_back))
    canvas = codes.masked_fill(hidden, brain.mask_id)
    decide_pass(brain, shared_prefix(brain, canvas, null_rows), text, decide)
    for hook in hooks: hook.remove()
    loss, accuracy = code_loss(torch.cat(found, 1), codes[:, brain.order], hidden[:, brain.order])
    total = loss + (arm.deep or 0.5) * torch.stack(extra).mean() if extra else loss
    return total, {"code_loss": loss.detach(), "accuracy": accuracy}


def arm_prior(arm, world, options, seed):
    "A fresh prior of an arm."
    sizes = {"width": options.width, "heads": 4}
    config = {"lstm": LSTMConfig(**sizes, layers=2),
              "transformer": TransformerConfig(**sizes, layers=options.layers),
              "cftn": CFTNConfig(**sizes, layers=options.layers - 2, neighbours=arm.neighbours),
              "cftn-v2": BrainConfig(**sizes, layers=options.layers, mlp_ratio=2, neighbours=arm.neighbours,
                                     first_bridge=arm.first_bridge, early_share=arm.early)}
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
        train_prior(prior, world.train, None, config, Path(folder), arm_loss(arm), seed=seed, stage="arm")
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


@torch.no_grad()
def renewed(brain, codes, text, least):
    "`codes` (B, h, w); where the last layer gives one less probability than `least`, the likeliest instead."
    early, seen = brain.order[:brain.decided[brain.top]], []
    block = brain.image_tower.blocks[brain.top]
    hook = block.register_forward_pre_hook(lambda block, inputs: seen.append(inputs[0]))
    every = torch.ones_like(codes.flatten(1), dtype=torch.bool)
    teacher_forced(brain, codes.flatten(1), text, every, len(codes))
    hook.remove()
    logits, found = brain.code_logits(block(seen[0], places=early)).float(), codes.flatten(1).clone()
    sure = confidence(logits, found[:, early]) >= least
    found[:, early] = torch.where(sure, found[:, early], logits.argmax(-1))
    return found.view_as(codes)


def drawn(pipe, arm, captions, seed, **how):
    "Images for `captions`, as `arm` draws them."
    if not arm.renewal: return pipe.images(captions, seed, candidates=arm.candidates, **how)
    text = tokenize(pipe.tokenizer, captions).to(pipe.device)
    return pipe.decode(renewed(pipe.prior, pipe.codes(captions, seed, **how), text, arm.renewal))


def measure_arm(arm, prior, world, options):
    pipe = Pipeline(world.vqvae, prior.eval(), world.tokenizer, device=options.device)
    row = {}
    if arm.kind == "cftn-v2":
        for steps in (1, 4, 16): row[f"nats_{steps}"] = likelihood(pipe.prior, world.few, steps=steps)["nats"]
    elif arm.kind != "cftn": row["nats_1"] = likelihood(pipe.prior, world.few)["nats"]
    usual = {"top_p": 0.9} if arm.kind in ("transformer", "lstm") else {}
    for setting in options.settings:
        how = dict(zip(("guidance_scale", "temperature"), map(float, setting.split(":")))) | usual
        marks = world.trial(partial(drawn, pipe, arm, **how))
        row |= {f"{name}@{setting}": mark for name, mark in marks.items()}
    row["ms"] = milliseconds_per_image(pipe, world.captions, 7, **usual)
    passes = {"cftn-v2": arm.candidates, "cftn": 16}.get(arm.kind, prior.shape.grid_size**2)
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
