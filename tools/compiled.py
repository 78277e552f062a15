"""`vqgen` on a CPU with the blocks of its priors compiled, for trainings in bf16 that take an hour.

    python tools/compiled.py train cftn-v2 --config emoji --cftn_v2.stage2.precision bf16

What follows the name is what follows `vqgen`, and what comes out is the same but for rounding. It needs a
C++ compiler. Attention is written as products, with a softmax that the compiler does not know again: it would
turn them into its fused attention, whose way back takes longer on a CPU.
"""
import torch

from vqgen import cli
from vqgen.priors import blocks, brain


def weighted_mean(query, key, value, mask=None):
    "As `vqgen.priors.blocks.weighted_mean`."
    logits = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
    weights = (logits.float() - logits.float().amax(-1, keepdim=True).detach()).exp()
    return (weights / weights.sum(-1, keepdim=True)).to(value.dtype) @ value


def main():
    torch._dynamo.config.recompile_limit = 64   # one for each number of places that a layer decides
    blocks.weighted_mean = weighted_mean
    blocks.Block.forward = torch.compile(blocks.Block.forward)
    brain.CallosalLayer.forward = torch.compile(brain.CallosalLayer.forward, dynamic=True)
    brain.code_loss = torch.compile(brain.code_loss)
    cli.main()


if __name__ == "__main__": main()
