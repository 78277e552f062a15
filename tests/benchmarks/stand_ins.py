"The building blocks of the design's ancestor, written anew: explicit attention, and padding is looked at."
import math

import torch
from torch import nn


class Explicit(nn.Module):
    "Attention that writes its table of weights to memory, and computes keys and values of the context anew."
    def __init__(self, width, heads, causal_length=0):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.register_buffer("mask", torch.ones(causal_length, causal_length).tril())

    def forward(self, x, context):
        query, key, value = map(self.split_heads, (self.query(x), self.key(context), self.value(context)))
        logits = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        if len(self.mask):
            mask = self.mask[:x.shape[1], :x.shape[1]]
            logits = logits.masked_fill(mask == 0, float("-inf"))
        return self.out((logits.softmax(-1) @ value).transpose(1, 2).flatten(2))

    def split_heads(self, x): return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


class ExplicitBlock(nn.Module):
    "Attention to itself, to words where there are any, and an MLP."
    def __init__(self, width, heads, words=False, causal_length=0):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3 if words else 2))
        self.itself = Explicit(width, heads, causal_length)
        self.words = Explicit(width, heads) if words else None
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x, words=None):
        y = self.norms[0](x)
        x = x + self.itself(y, y)
        if self.words: x = x + self.words(self.norms[1](x), words)
        return x + self.mlp(self.norms[-1](x))


class ExplicitBridge(nn.Module):
    "Words look at codes and codes at words, each behind a gate."
    def __init__(self, width, heads):
        super().__init__()
        self.words_norm, self.codes_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_words, self.to_codes = Explicit(width, heads), Explicit(width, heads)
        self.words_gate, self.codes_gate = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.tensor(0.5))

    def forward(self, words, codes):
        w, c = self.words_norm(words), self.codes_norm(codes)
        new_words = words + self.words_gate.tanh() * self.to_words(w, c)
        return new_words, codes + self.codes_gate.tanh() * self.to_codes(c, w)
