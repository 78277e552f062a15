"""The priors against their peers: a generation of the Transformer against Hugging Face GPT-2, a step of CFTN
and training steps against stand-ins for the design's ancestor.

    python tests/benchmarks/bench_priors.py [--json FILE] [--rounds 3] [--batch 1 4] [--codes 1024]
                                            [--device cpu] [--bf16]
"""
import argparse
import json
import math

import torch
import torch.nn.functional as F
from stand_ins import ExplicitBlock
from timing import medians
from torch import nn

from vqgen.config import CFTNConfig, LSTMConfig, PriorShape, TransformerConfig
from vqgen.priors.cftn import CFTN
from vqgen.priors.lstm import LSTMPrior
from vqgen.priors.text import pad
from vqgen.priors.transformer import TransformerPrior

WIDTH, HEADS = 256, 8
LAYERS = 8
K, VOCABULARY = 4096, 2048     # codes and words
LIMIT, REAL = 128, 24          # the tokens of the longest caption, and of the captions here
CONTEXT = 128                  # how much of the past the ancestor's LSTM sees


# --- the ancestor's ways, written anew: explicit softmax attention, texts of full length ---

class MaskedStandIn(nn.Module):
    "CFTN in the ancestor's way: the loss of every code, hidden or not."
    def __init__(self, count):
        super().__init__()
        self.codes, self.places = nn.Embedding(K + 1, WIDTH), nn.Parameter(torch.randn(count, WIDTH))
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.text_places = nn.Parameter(torch.randn(LIMIT, WIDTH))
        self.blocks = nn.ModuleList(ExplicitBlock(WIDTH, HEADS, words=True) for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, K)

    def forward(self, canvas, ids):
        x, words = self.codes(canvas) + self.places, self.words(ids) + self.text_places
        for block in self.blocks: x = block(x, words)
        return self.head(self.norm(x))

    def loss(self, codes, ids):
        hidden = torch.rand(codes.shape) < torch.cos(math.pi / 2 * torch.rand(len(codes), 1))
        return F.cross_entropy(self(codes.masked_fill(hidden, K), ids).flatten(0, 1), codes.flatten())


class CausalStandIn(nn.Module):
    "A Transformer in the ancestor's way: LIMIT words in front of the codes, and logits for those words, too."
    def __init__(self, count):
        super().__init__()
        self.tokens = nn.Embedding(K + 1 + VOCABULARY, WIDTH)
        self.places, length = nn.Parameter(torch.randn(LIMIT + count, WIDTH)), LIMIT + count
        self.blocks = nn.ModuleList(ExplicitBlock(WIDTH, HEADS, causal_length=length) for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, K)

    def loss(self, codes, ids):
        shifted = F.pad(codes[:, :-1], (1, 0), value=K)
        x = self.tokens(torch.cat([ids + K + 1, shifted], 1)) + self.places
        for block in self.blocks: x = block(x)
        return F.cross_entropy(self.head(self.norm(x))[:, LIMIT:].flatten(0, 1), codes.flatten())


class RecurrentStandIn(nn.Module):
    """An LSTM in the ancestor's way: one example is CONTEXT codes and the one that follows.

    A mean of the words stands for the caption.
    """
    def __init__(self, layers):
        super().__init__()
        self.codes, self.words = nn.Embedding(K + 1, WIDTH), nn.Embedding(VOCABULARY, WIDTH)
        self.lstm, self.head = nn.LSTM(WIDTH, WIDTH, layers, batch_first=True), nn.Linear(WIDTH, K)

    def loss(self, context, following, ids):
        x, _ = self.lstm(self.codes(context) + self.words(ids).mean(1, keepdim=True))
        return F.cross_entropy(self.head(x[:, -1]), following)


# --- measuring ---

def captions(batch, length, device):
    "`batch` captions of `length` tokens."
    ids = torch.randint(4, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(0))
    return pad(ids).to(device)


def shape_of(codes):
    return PriorShape(codebook_size=K, grid_size=math.isqrt(codes), vocab_size=VOCABULARY, max_length=LIMIT)


def parameters(model): return sum(parameter.numel() for parameter in model.parameters()) / 1e6


def generation(batch, codes, device):
    "A generation of the Transformer and of GPT-2, with caches, after REAL words, at temperature 1."
    from transformers import GPT2Config, GPT2LMHeadModel
    config = TransformerConfig(width=WIDTH, heads=HEADS, layers=LAYERS)
    ours = TransformerPrior(config, shape_of(codes)).eval().to(device)
    config = GPT2Config(vocab_size=K, n_positions=codes + REAL, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
                        bos_token_id=None, eos_token_id=None)
    peer = GPT2LMHeadModel(config).eval().to(device)
    text, generators = captions(batch, REAL, device), [torch.Generator().manual_seed(i) for i in range(batch)]

    def theirs(count=codes):
        return peer.generate(text.input_ids, attention_mask=text.attention_mask, max_new_tokens=count,
                             min_new_tokens=count, do_sample=True, top_k=0, use_cache=True, pad_token_id=0)
    assert theirs(3).shape == (batch, REAL + 3)
    print(f"  generation: ours {parameters(ours):.1f} M parameters, GPT-2 {parameters(peer):.1f} M")
    return {"transformer": lambda: ours.generate(text, generators), "hf": theirs}


def masked_step(batch, codes, device, bf16):
    "One step of CFTN, which has the words' keys and values, and of the stand-in; both for all codes."
    ours = CFTN(CFTNConfig(width=WIDTH, heads=HEADS, layers=LAYERS), shape_of(codes)).eval().to(device)
    stand_in = MaskedStandIn(codes).eval().to(device)
    canvas, text = torch.randint(K + 1, (batch, codes)).to(device), captions(batch, LIMIT, device)
    with torch.inference_mode(): words = ours.prefill(captions(batch, REAL, device))   # without padding

    @torch.inference_mode()
    def step(): return ours.decode_step(canvas, words)

    @torch.inference_mode()
    def standing_in(): return stand_in(canvas, text.input_ids)

    @torch.inference_mode()
    def in_bf16():
        with torch.autocast(device, torch.bfloat16): return ours.decode_step(canvas, words)
    print(f"  step: ours {parameters(ours):.1f} M parameters, stand-in {parameters(stand_in):.1f} M")
    if bf16:
        exact, rounded = step().float(), in_bf16().float()
        spread, others = (exact - rounded).std() / exact.std(), exact.argmax(-1) != rounded.argmax(-1)
        print(f"  bf16: logits differ by {spread:.2%} of their spread, "
              f"the likeliest code in {others.float().mean():.2%} of places")
    return {"cftn_step": step, "standin_step": standing_in, **({"cftn_step_bf16": in_bf16} if bf16 else {})}


def step_of(model, loss, device):
    "One step of training: loss, gradients, AdamW."
    model.train().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

    def step():
        value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return step


def training(batch, codes, device):
    """A training step of each prior and of its stand-in, on `batch` pictures.

    The LSTM's stand-in learns one code an example; its examples are counted so that it, too, learns every
    code of the pictures: `batch * codes` of them, of which it is timed for one in 64.
    """
    shape, sizes = shape_of(codes), dict(width=WIDTH, heads=HEADS)
    pictures, text = torch.randint(K, (batch, codes)).to(device), captions(batch, REAL, device)
    grids, examples = pictures.view(batch, shape.grid_size, -1), max(1, batch * codes // 64)
    context = torch.randint(K, (examples, CONTEXT)).to(device)
    following = torch.randint(K, (examples,)).to(device)
    long = captions(batch, LIMIT, device).input_ids
    ours = {"lstm": LSTMPrior(LSTMConfig(**sizes, layers=4), shape),
            "transformer": TransformerPrior(TransformerConfig(**sizes, layers=LAYERS), shape),
            "cftn": CFTN(CFTNConfig(**sizes, layers=LAYERS), shape)}
    words = long[:1].expand(examples, -1)
    stand_ins = {"lstm_standin_1_in_64": (RecurrentStandIn(4), context, following, words),
                 "transformer_standin": (CausalStandIn(codes), pictures, long),
                 "cftn_standin": (MaskedStandIn(codes), pictures, long)}
    work = {}
    for name, prior in ours.items():
        work[name] = step_of(prior, lambda prior=prior: prior.loss(grids, text)[0], device)
    for name, (model, *batch) in stand_ins.items():
        work[name] = step_of(model, lambda model=model, batch=batch: model.loss(*batch), device)
    return work


def table(title, times):
    print(f"\n| {title} | ms |\n|---|---|")
    for name, value in times.items(): print(f"| {name} | {1000 * value:.0f} |")


def measure(batch, options):
    "All figures of one batch size."
    figures, rest = {}, (options.codes, options.device)
    times = medians(generation(batch, *rest), options.rounds, options.device)
    table(f"generation, batch {batch}", times)
    figures[f"transformer_vs_hf_b{batch}"] = times["transformer"] / times["hf"]
    figures[f"transformer_ms_per_token_b{batch}"] = 1000 * times["transformer"] / options.codes
    times = medians(masked_step(batch, *rest, options.bf16), 3 * options.rounds, options.device)
    table(f"step of a masked generation, batch {batch}", times)
    for name in times.keys() - {"standin_step"}:
        figures[f"{name}_vs_standin_b{batch}"] = times[name] / times["standin_step"]
    times = medians(training(batch, *rest), options.rounds, options.device)
    table(f"training step, batch {batch}", times)
    times["lstm_standin"] = 64 * times.pop("lstm_standin_1_in_64")
    for name in ("lstm", "transformer", "cftn"):
        figures[f"{name}_train_step_vs_standin_b{batch}"] = times[name] / times[f"{name}_standin"]
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--codes", type=int, default=1024, help="to a picture: a square number")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true",
                        help="time a step of CFTN in bf16 as well, and print what it costs in accuracy")
    options = parser.parse_args()
    threads = torch.get_num_threads()
    print(f"{WIDTH} wide, {HEADS} heads, {LAYERS} layers, {options.codes} codes of {K}, {REAL} words of at "
          f"most {LIMIT}, float32, {options.device}, {threads} threads, median of {options.rounds}")
    figures = {"threads": threads}
    for batch in options.batch: figures |= measure(batch, options)
    last = options.batch[-1]
    for name in ("lstm", "transformer", "cftn"):
        figures[f"{name}_train_step_vs_standin"] = figures[f"{name}_train_step_vs_standin_b{last}"]
    print()
    for name, value in figures.items(): print(f"{name}: {value:.3f}")
    if options.json:
        with open(options.json, "w") as file: json.dump(figures, file, indent=2)


if __name__ == "__main__": main()
