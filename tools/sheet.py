"""Draw one picture for each of the first held-out captions of a run, beside the true one, on one sheet.

    python tools/sheet.py vqgen/emoji nbs/images/emoji.jpg [--prior cftn-v2] [--captions 100]
        [--temperature 1] [--guidance 1]

Each cell has the true picture, what its codes give back, and the drawing.
"""
import argparse
import textwrap

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch

from vqgen.config import load_config
from vqgen.data.datasets import load_data
from vqgen.experiment import drawings_of
from vqgen.pipeline import Pipeline, find_run
from vqgen.viz import image_grid


def parse():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("run")
    parser.add_argument("file")
    parser.add_argument("--prior", default="cftn-v2")
    parser.add_argument("--captions", type=int, default=100)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--guidance", type=float, default=1.0)
    return parser.parse_args()


@torch.no_grad()
def main():
    asked = parse()
    held_out = load_data(load_config(find_run(asked.run) / "vqvae" / "config.yaml").data, "validation")
    pipe = Pipeline.from_pretrained(asked.run, asked.prior, "cpu")
    places = np.linspace(0, len(held_out) - 1, asked.captions).round().astype(int)
    captions, true = [held_out.captions[place] for place in places], held_out.batch(places)
    drawn = drawings_of(pipe, captions, temperature=asked.temperature, guidance_scale=asked.guidance)
    copies = pipe.vqvae.decode(pipe.vqvae.encode(true))
    matplotlib.use("agg")
    rows = -(-asked.captions // 8)
    fig, axes = plt.subplots(rows, 8, figsize=(20, 1.32 * rows), dpi=90, layout="constrained")
    for axis in axes.flat: axis.set_axis_off()
    for axis, caption, *triple in zip(axes.flat, captions, true, copies, drawn):
        axis.imshow(image_grid(torch.stack(triple), columns=3))
        axis.set_title("\n".join(textwrap.wrap(caption, 44)), fontsize=6.5, pad=2)
    fig.savefig(asked.file, pil_kwargs={"quality": 85})
    print(asked.file)


if __name__ == "__main__": main()
