"""Our VQ-VAE against the design's ancestor: the same emoji, steps, loss, loop, number of parameters and codes (f = 4, K = 512).

    python tests/benchmarks/bench_vqvae.py [--steps 1000] [--json FILE]
"""
import argparse
import json
import tempfile
import time

import torch
import torch.nn.functional as F
from torch import nn

from vqgen.config import TrainConfig, VQVAEConfig, load_config
from vqgen.experiment import load_splits
from vqgen.metrics import codebook_usage
from vqgen.training import train
from vqgen.vqvae.model import VQVAE, psnr, ssim


class AncestorQuantizer(nn.Module):
    "An EMA codebook as the ancestor has it: normal initialisation, products with one-hot matrices, nothing revived."
    def __init__(self, codebook_size, code_dim, decay=0.99, epsilon=1e-5, commitment_weight=0.25):
        super().__init__()
        self.decay, self.epsilon, self.commitment_weight = decay, epsilon, commitment_weight
        self.register_buffer("codebook", torch.randn(codebook_size, code_dim))
        self.register_buffer("count", torch.zeros(codebook_size))
        self.register_buffer("sum", torch.randn(codebook_size, code_dim))

    def forward(self, z):                                                # (B, D, h, w)
        rows = z.movedim(1, -1).flatten(0, -2)                           # (N, D)
        codes = torch.cdist(rows, self.codebook).argmin(1)
        one_hot = F.one_hot(codes, len(self.codebook)).float()           # (N, K)
        if self.training:
            with torch.no_grad():
                self.count.lerp_(one_hot.sum(0), 1 - self.decay)
                self.sum.lerp_(one_hot.T @ rows, 1 - self.decay)
                total = self.count.sum()
                count = (self.count + self.epsilon) / (total + len(self.count) * self.epsilon) * total
                self.codebook.copy_(self.sum / count[:, None])
        nearest = one_hot @ self.codebook
        passed = rows + (nearest - rows).detach()
        loss = self.commitment_weight * F.mse_loss(rows, nearest.detach())
        return passed.view(*z.shape[:1], *z.shape[2:], -1).movedim(-1, 1), codes.view(z.shape[0], *z.shape[2:]), loss


def stack(channels, residual_channels, layers):
    "The classic residual stack, with PyTorch's own initialisation."
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.ReLU(), nn.Conv2d(channels, residual_channels, 3, 1, 1), nn.ReLU(), nn.Conv2d(residual_channels, channels, 1))

        def forward(self, x): return x + self.layers(x)
    return nn.Sequential(*(Block() for _ in range(layers)), nn.ReLU())


class Ancestor(nn.Module):
    "A VQ-VAE of plain strided convolutions (arXiv 1711.00937) with the ancestor's quantizer; f = 4."
    def __init__(self, config: VQVAEConfig):
        super().__init__()
        self.config, width = config, config.hidden_channels
        residual = config.residual_channels, config.residual_layers
        self.encoder = nn.Sequential(nn.Conv2d(3, width // 2, 4, 2, 1), nn.ReLU(), nn.Conv2d(width // 2, width, 4, 2, 1), nn.ReLU(),
                                     nn.Conv2d(width, width, 3, 1, 1), stack(width, *residual), nn.Conv2d(width, config.code_dim, 1))
        self.quantizer = AncestorQuantizer(config.codebook_size, config.code_dim)
        self.decoder = nn.Sequential(nn.Conv2d(config.code_dim, width, 3, 1, 1), stack(width, *residual),
                                     nn.ConvTranspose2d(width, width // 2, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(width // 2, 3, 4, 2, 1))

    def forward(self, images):
        quantized, codes, commitment = self.quantizer(self.encoder(images))
        return self.decoder(quantized), codes, commitment

    def loss(self, images):
        pictures, codes, commitment = self(images)
        reconstruction = F.mse_loss(pictures, images) + F.l1_loss(pictures, images)
        return reconstruction + commitment, {"psnr": psnr(pictures.detach(), images).mean()}


def parameters(model): return sum(parameter.numel() for parameter in model.parameters())


def as_large_as(model, config):
    "The ancestor whose number of parameters is nearest to that of `model`."
    sizes = [config.model_copy(update={"hidden_channels": width}) for width in range(16, 513, 2)]
    return min(sizes, key=lambda size: abs(parameters(Ancestor(size)) - parameters(model)))


@torch.no_grad()
def figures(model, data, held_out, reconstruct):
    "PSNR and SSIM on held-out pictures, and codebook usage over the training set; `reconstruct(model, images)` -> pictures, codes."
    def copies(split):
        pairs = [reconstruct(model, split.batch(part)) for part in torch.arange(len(split)).split(64)]
        return torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs])
    pictures, originals = copies(held_out)[0], held_out.batch(range(len(held_out)))
    usage, perplexity = codebook_usage(copies(data)[1], model.config.codebook_size)
    return {"psnr": psnr(pictures, originals).mean().item(), "ssim": ssim(pictures, originals).mean().item(), "usage": usage, "perplexity": perplexity}


def nearest_training_picture(data, held_out):
    "The PSNR of answering each held-out picture with the training picture that is most like it, and with the mean picture."
    library, pictures = data.batch(range(len(data))), held_out.batch(range(len(held_out)))
    best = torch.cdist(pictures.flatten(1), library.flatten(1)).argmin(1)
    return psnr(library[best], pictures).mean().item(), psnr(library.mean(0, keepdim=True).expand_as(pictures), pictures).mean().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.001, 0.004], help="learning rates of the ancestor, which is judged at its best; ours has the preset's")
    parser.add_argument("--json", help="write the figures to this file")
    options = parser.parse_args()
    config = load_config("emoji")
    data, held_out = load_splits(config)
    shape = config.vqvae.model.model_copy(update={"downsample": 4})
    ours = lambda: VQVAE(shape)
    ancestor_shape = as_large_as(ours(), shape)
    contenders = {"ours": (ours, lambda model, images: (model.decode(codes := model.encode(images)), codes), [config.vqvae.train.learning_rate]),
                  "ancestor": (lambda: Ancestor(ancestor_shape), lambda model, images: model(images)[:2], options.rates)}
    results = {}
    for name, (make, reconstruct, rates) in contenders.items():
        for rate in rates:
            torch.manual_seed(0)
            model, start = make(), time.perf_counter()
            training = config.vqvae.train.model_copy(update={"steps": options.steps, "learning_rate": rate, "save_every": options.steps})
            with tempfile.TemporaryDirectory() as folder: train(model, data, training, folder, stage=f"{name} {rate}")
            results[f"{name} {rate}"] = {"parameters": parameters(model), "seconds": time.perf_counter() - start,
                                         **figures(model.eval(), data, held_out, reconstruct)}
    print(f"{len(held_out)} held-out emoji, 64 px, f = 4, K = 512, {options.steps} steps of {config.vqvae.train.batch_size}\n\n"
          "| | parameters | PSNR | SSIM | usage | perplexity | s |\n|---|---|---|---|---|---|---|")
    for name, row in results.items():
        print(f"| {name} | {row['parameters']:,} | {row['psnr']:.2f} dB | {row['ssim']:.3f} | {row['usage']:.1%} | {row['perplexity']:.0f} | {row['seconds']:.0f} |")
    nearest, mean = nearest_training_picture(data, held_out)
    best = {name: max(row["psnr"] for key, row in results.items() if key.startswith(name)) for name in contenders}
    print(f"\nmost alike training picture {nearest:.2f} dB, mean picture {mean:.2f} dB\nours - ancestor at its best rate: {best['ours'] - best['ancestor']:+.2f} dB")
    if options.json:
        with open(options.json, "w") as file: json.dump({**results, "nearest": nearest, "mean": mean, "gain_db": best["ours"] - best["ancestor"]}, file, indent=2)


if __name__ == "__main__": main()
