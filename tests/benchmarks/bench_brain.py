"""A picture of 128 px in one pass of CFTN v2, from tokens to pixels, against the design's ancestor.

    python tests/benchmarks/bench_brain.py [--json FILE] [--rounds 7] [--batch 1 4 16 64] [--device cpu]
        [--bf16]

`..._vs_own_products` is the time of a picture over that of its matrix products, convolutions and attentions
alone, which the processor cannot be spared. The ancestor is a stand-in. Both have 12 layers a tower and draw
1,024 codes (f = 4). The same picture from 256 codes (f = 8) is what the preset `naruto` draws, with a wider
brain; here it has the size of the others. `--bf16` adds the same in bfloat16, for processors that
have it, and the share of codes of the shipped run that come out otherwise.
"""
import argparse
import itertools
import json

import torch
import torch.nn.functional as F
from stand_ins import ExplicitBlock, ExplicitBridge
from timing import medians
from torch import nn
from torch.overrides import TorchFunctionMode

from vqgen.config import BrainConfig, PriorShape, VQVAEConfig
from vqgen.pipeline import Pipeline
from vqgen.priors.brain import BiHemisphericBrain
from vqgen.priors.text import PAD, Text
from vqgen.vqvae.model import VQVAE

WIDTH, HEADS = 256, 4
LAYERS = 12
K, VOCABULARY = 4096, 2048
LIMIT, REAL = 256, 24            # tokens: of the longest caption, of the captions here
IMAGE_SIZE = 128
OURS = ("one_shot", "one_shot_256")


class StandIn(nn.Module):
    """Two towers in the ancestor's way.

    Explicit softmax attention, all LIMIT words with their padding, both towers through all layers, bridges in
    the middle third in both directions, and logits for [MASK], too.
    """
    def __init__(self, count):
        super().__init__()
        self.words, self.codes = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(K + 1, WIDTH)
        self.text_places = nn.Parameter(torch.randn(LIMIT, WIDTH))
        self.places = nn.Parameter(torch.randn(count, WIDTH))
        self.words_blocks = nn.ModuleList(ExplicitBlock(WIDTH, HEADS) for _ in range(LAYERS))
        self.codes_blocks = nn.ModuleList(ExplicitBlock(WIDTH, HEADS) for _ in range(LAYERS))
        middle = range(LAYERS // 3, LAYERS - LAYERS // 3)
        self.bridges = nn.ModuleDict({str(layer): ExplicitBridge(WIDTH, HEADS) for layer in middle})
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, K + 1)

    def forward(self, canvas, ids):
        words, codes = self.words(ids) + self.text_places, self.codes(canvas) + self.places
        for layer, (words_block, codes_block) in enumerate(zip(self.words_blocks, self.codes_blocks)):
            words, codes = words_block(words), codes_block(codes)
            if str(layer) in self.bridges: words, codes = self.bridges[str(layer)](words, codes)
        return self.head(self.norm(codes))


def captions(batch, device):
    "`batch` captions of REAL tokens, padded to LIMIT."
    ids = torch.randint(4, VOCABULARY, (batch, LIMIT), generator=torch.Generator().manual_seed(0))
    real = (torch.arange(LIMIT) < REAL).expand(batch, -1)
    return Text(torch.where(real, ids, PAD), real, lengths=(REAL,) * batch).to(device)


def vqvae_of(downsample):
    sizes = {"hidden_channels": 256, "residual_channels": 64, "residual_layers": 4, "codebook_size": K}
    return VQVAE(VQVAEConfig(downsample=downsample, **sizes))


def millions(model): return f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f} M"


def ours(downsample, device, dtype=torch.float32):
    "A function that draws a batch of pictures in one pass, with a codebook for that `downsample`."
    grid = IMAGE_SIZE // downsample
    shape = PriorShape(codebook_size=K, grid_size=grid, vocab_size=VOCABULARY, max_length=LIMIT)
    brain = BiHemisphericBrain(BrainConfig(width=WIDTH, heads=HEADS, layers=LAYERS), shape).eval().to(device)
    vqvae = vqvae_of(downsample).eval().to(device)
    print(f"ours, {grid ** 2:5,} codes: {millions(brain)} parameters, decoder {millions(vqvae.decoder)}")
    for part in (brain, vqvae.decoder): part.to(dtype)

    @torch.inference_mode()
    def draw(text):
        generators = [torch.Generator().manual_seed(i) for i in range(len(text.input_ids))]
        pictures = vqvae.decode(brain.generate(text, generators))
        assert pictures.shape[1:] == (3, IMAGE_SIZE, IMAGE_SIZE)
        return pictures
    return draw


class Products(TorchFunctionMode):
    "Notes every matrix product, convolution and attention that runs inside the `with` block."
    KINDS = (F.linear, F.scaled_dot_product_attention, F.conv2d, F.conv_transpose2d, torch.baddbmm)

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in self.KINDS: self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    @torch.inference_mode()
    def again(self):
        for func, args, kwargs in self.calls: func(*args, **kwargs)


def products_of(draw, text):
    "A function that does the products of drawing `text` again, and nothing else."
    draw(text)                                     # what is kept for the next picture is no product of this
    with Products() as products: draw(text)
    return products.again


def standing_in(device):
    "A function that draws a batch of pictures in the stand-in's way, from a null canvas, with our VQ-VAE."
    grid = IMAGE_SIZE // 4
    brain, vqvae = StandIn(grid ** 2).eval().to(device), vqvae_of(4).eval().to(device)
    print(f"stand-in, {grid ** 2:,} codes: {millions(brain)} parameters")

    @torch.inference_mode()
    def draw(text):
        canvas = torch.full((len(text.input_ids), grid ** 2), K, device=device)
        codes = brain(canvas, text.input_ids).argmax(-1).clamp(max=K - 1)
        return vqvae.decode(codes.view(-1, grid, grid))
    return draw


def changed_codes(run="avatars-hour"):
    "The share of codes that a shipped run draws otherwise in bfloat16 than in float32, with the same seeds."
    hair, rest = ("red", "black", "green", "blond"), ("a mohawk", "a blue hat", "glasses", "yellow clothes")
    captions = [f"a person with {color} hair and {thing}" for color, thing in itertools.product(hair, rest)]
    drawn = [Pipeline.from_pretrained(run, device="cpu", dtype=dtype).codes(captions)
             for dtype in (torch.float32, torch.bfloat16)]
    return (drawn[0] != drawn[1]).float().mean().item()


def drawing(draw, text): return lambda: draw(text)


def compare(contenders, options):
    "Print how long one picture takes, and return the figures."
    text = captions(1, options.device)
    work = {name: drawing(draw, text) for name, draw in contenders.items()}
    work |= {f"products of {name}": products_of(contenders[name], text) for name in OURS}
    times = medians(work, options.rounds, options.device)
    print("\n| batch 1 | ms | of the stand-in |\n|---|---|---|")
    for name, value in times.items():
        print(f"| {name} | {1000 * value:.0f} | {value / times['standin']:.3f} |")
    ratios = {f"{name}_vs_standin": times[name] / times["standin"] for name in OURS}
    ratios |= {f"{name}_bf16_vs_float32": times[f"{name}_bf16"] / times[name]
               for name in OURS if f"{name}_bf16" in times}
    for name in OURS: ratios[f"{name}_vs_own_products"] = times[name] / times[f"products of {name}"]
    return {"threads": torch.get_num_threads(), "standin_ms_b1": 1000 * times["standin"], **ratios}


def curve(contenders, options):
    "Print how long batches of pictures take, and return the figures."
    print(f"\n| batch | {' | '.join(f'{name}, ms | pictures/s' for name in OURS)} |\n|---|---|---|---|---|")
    figures = {}
    for batch in options.batch:
        text, rounds = captions(batch, options.device), max(1, round(options.rounds / batch ** 0.5))
        times = medians({name: drawing(contenders[name], text) for name in OURS}, rounds, options.device)
        cells = [f"{1000 * value:.0f} | {batch / value:.1f}" for value in times.values()]
        print(f"| {batch} | {' | '.join(cells)} |")
        figures |= {f"{name}_ms_b{batch}": 1000 * value for name, value in times.items()}
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--rounds", type=int, default=7, help="at batch 1; fewer for larger batches")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16, 64], help="for the curve of ours")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()
    print(f"{WIDTH} wide, {HEADS} heads, {LAYERS} layers, K = {K}, {REAL} words of at most {LIMIT},",
          f"{IMAGE_SIZE} px, float32, {options.device}, {torch.get_num_threads()} threads,",
          f"median of {options.rounds}")
    contenders = {"one_shot": ours(4, options.device), "one_shot_256": ours(8, options.device),
                  "standin": standing_in(options.device)}
    if options.bf16:
        contenders |= {f"one_shot{name}_bf16": ours(downsample, options.device, torch.bfloat16)
                       for name, downsample in (("", 4), ("_256", 8))}
    figures = {**compare(contenders, options), **curve(contenders, options)}
    if options.bf16: figures["changed_vs_float32"] = changed_codes()
    print()
    for key in figures:
        if "_vs_" in key: print(f"{key}: {figures[key]:.3f}")
    if options.json:
        with open(options.json, "w") as file: json.dump(figures, file, indent=2)


if __name__ == "__main__": main()
