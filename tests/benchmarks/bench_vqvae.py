"""Our VQ-VAE against the design's ancestor: same emoji, steps, loss, loop, size and codes (f = 4, K = 512).

    python tests/benchmarks/bench_vqvae.py [--steps 1500] [--json FILE]
"""
import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from vqgen.config import VQVAEConfig, load_config
from vqgen.evaluation.metrics import codebook_usage
from vqgen.experiment import load_splits, train_vqvae
from vqgen.training.loop import train
from vqgen.vqvae.losses import psnr, ssim


class AncestorQuantizer(nn.Module):
    """An EMA codebook as the ancestor has it: normal initialisation, one-hot products, nothing revived.

    The smoothed counts are what it keeps, so codes that are not used fly off at once, and some come back
    after hundreds of steps.
    """
    def __init__(self, codebook_size, code_dim, decay=0.99, epsilon=1e-5, commitment_weight=0.25):
        super().__init__()
        self.decay, self.epsilon = decay, epsilon
        self.commitment_weight = commitment_weight
        self.register_buffer("codebook", torch.randn(codebook_size, code_dim))
        self.register_buffer("count", torch.zeros(codebook_size))
        self.register_buffer("sum", self.codebook.clone())

    def forward(self, z):                                                # (B, D, h, w)
        rows = z.movedim(1, -1).flatten(0, -2)                           # (N, D)
        codes = torch.cdist(rows, self.codebook).argmin(1)
        one_hot = F.one_hot(codes, len(self.codebook)).float()           # (N, K)
        if self.training:
            with torch.no_grad():
                self.count.lerp_(one_hot.sum(0), 1 - self.decay)
                self.sum.lerp_(one_hot.T @ rows, 1 - self.decay)
                total = self.count.sum()
                smoothed = (self.count + self.epsilon) / (total + len(self.count) * self.epsilon)
                self.count.copy_(smoothed * total)
                self.codebook.copy_(self.sum / self.count[:, None])
        nearest = one_hot @ self.codebook
        passed = rows + (nearest - rows).detach()
        loss = self.commitment_weight * F.mse_loss(rows, nearest.detach())
        grid = z.shape[0], *z.shape[2:]                                  # (B, h, w)
        return passed.view(*grid, -1).movedim(-1, 1), codes.view(grid), loss


class AncestorBlock(nn.Module):
    "The classic residual block, with PyTorch's own initialisation."
    def __init__(self, channels, residual_channels):
        super().__init__()
        self.layers = nn.Sequential(nn.ReLU(), nn.Conv2d(channels, residual_channels, 3, 1, 1),
                                    nn.ReLU(), nn.Conv2d(residual_channels, channels, 1))

    def forward(self, x): return x + self.layers(x)


class Ancestor(nn.Module):
    """A VQ-VAE of plain strided convolutions (arXiv 1711.00937) with the ancestor's quantizer; f = 4.

    Its encoder's stack works on code vectors.
    """
    def __init__(self, config: VQVAEConfig):
        super().__init__()
        self.config = config
        width, narrow = config.hidden_channels, config.residual_channels
        dim = config.code_dim

        def stack(channels):
            blocks = (AncestorBlock(channels, narrow) for _ in range(config.residual_layers))
            return nn.Sequential(*blocks, nn.ReLU())
        self.encoder = nn.Sequential(nn.Conv2d(3, width // 2, 4, 2, 1), nn.ReLU(),
                                     nn.Conv2d(width // 2, width, 4, 2, 1), nn.ReLU(),
                                     nn.Conv2d(width, dim, 3, 1, 1), stack(dim))
        self.quantizer = AncestorQuantizer(config.codebook_size, dim)
        self.decoder = nn.Sequential(nn.Conv2d(dim, width, 3, 1, 1), stack(width),
                                     nn.ConvTranspose2d(width, width // 2, 4, 2, 1), nn.ReLU(),
                                     nn.ConvTranspose2d(width // 2, 3, 4, 2, 1))

    def forward(self, images):
        quantized, codes, commitment = self.quantizer(self.encoder(images))
        return self.decoder(quantized), codes, commitment

    def loss(self, images):
        pictures, codes, commitment = self(images)
        reconstruction = F.mse_loss(pictures, images) + F.l1_loss(pictures, images)
        return reconstruction + commitment, {"psnr": psnr(pictures.detach(), images).mean()}


def parameters(model): return sum(parameter.numel() for parameter in model.parameters())


def as_large_as(model):
    "The ancestor with about as many parameters as `model`; its codes are as long as it is wide."
    widths = [{"hidden_channels": width, "code_dim": width} for width in range(16, 257, 2)]
    sizes = [model.config.model_copy(update=width) for width in widths]
    return Ancestor(min(sizes, key=lambda size: abs(parameters(Ancestor(size)) - parameters(model))))


def reconstruct_ours(model, images):
    "Images and their codes, from our model."
    codes = model.encode(images)
    return model.decode(codes), codes


def reconstruct_ancestor(model, images): return model(images)[:2]


@torch.no_grad()
def figures(model, data, held_out, reconstruct):
    """PSNR and SSIM on held-out images, and codebook usage over the training set.

    `reconstruct(model, images)` -> images, codes.
    """
    def copies(split):
        pairs = [reconstruct(model, split.batch(part)) for part in torch.arange(len(split)).split(64)]
        return [torch.cat(parts) for parts in zip(*pairs)]
    images, originals = copies(held_out)[0], held_out.batch(range(len(held_out)))
    usage, perplexity = codebook_usage(copies(data)[1], model.config.codebook_size)
    return {"psnr": psnr(images, originals).mean().item(), "ssim": ssim(images, originals).mean().item(),
            "usage": usage, "perplexity": perplexity}


def nearest_training_image(data, held_out):
    "The PSNR of answering each held-out image with the most alike training image, and with the mean image."
    library, images = data.batch(range(len(data))), held_out.batch(range(len(held_out)))
    best = torch.cdist(images.flatten(1), library.flatten(1)).argmin(1)
    mean = library.mean(0, keepdim=True).expand_as(images)
    return psnr(library[best], images).mean().item(), psnr(mean, images).mean().item()


def compare(config, data, held_out, run, rates):
    "What is measured of ours and of the ancestor at each of the learning `rates`, by name."
    start = time.perf_counter()
    ours, _ = train_vqvae(config, f"{run}/ours")
    results = {"ours": {"parameters": parameters(ours), "seconds": time.perf_counter() - start,
                        **figures(ours, data, held_out, reconstruct_ours)}}
    for rate in rates:
        torch.manual_seed(config.seed)
        ancestor, start = as_large_as(ours), time.perf_counter()
        settings = config.vqvae.train.model_copy(update={"learning_rate": rate})
        train(ancestor, data, settings, f"{run}/ancestor-{rate}", validation=held_out, stage="ancestor")
        seconds = time.perf_counter() - start
        measured = figures(ancestor, data, held_out, reconstruct_ancestor)
        results[f"ancestor, learning rate {rate}"] = {"parameters": parameters(ancestor), "seconds": seconds,
                                                      **measured}
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.001],
                        help="learning rates of the ancestor (judged at its best); ours has the preset's")
    parser.add_argument("--run", default="runs/bench-vqvae", help="where the trainings are kept, and go on")
    parser.add_argument("--json", help="write the figures to this file")
    options = parser.parse_args()
    config = load_config("twemoji", {"vqvae.model.downsample": 4, "vqvae.train.steps": options.steps})
    data, held_out = load_splits(config)
    results = compare(config, data, held_out, options.run, options.rates)
    print(f"{len(held_out)} held-out emoji, 64 px, f = 4, K = 512, {options.steps} steps of "
          f"{config.vqvae.train.batch_size}\n\n"
          "| | parameters | PSNR | SSIM | usage | perplexity | s |\n|---|---|---|---|---|---|---|")
    for name, row in results.items():
        print(f"| {name} | {row['parameters']:,} | {row['psnr']:.2f} dB | {row['ssim']:.3f} "
              f"| {row['usage']:.1%} | {row['perplexity']:.0f} | {row['seconds']:.0f} |")
    nearest, mean = nearest_training_image(data, held_out)
    gain = results["ours"]["psnr"] - max(row["psnr"] for name, row in results.items() if name != "ours")
    print(f"\nmost alike training picture {nearest:.2f} dB, mean picture {mean:.2f} dB\n"
          f"ours - ancestor at its best rate: {gain:+.2f} dB")
    results |= {"nearest": nearest, "mean": mean, "gain_db": gain}
    if options.json: Path(options.json).write_text(json.dumps(results, indent=2), "utf-8")


if __name__ == "__main__": main()
