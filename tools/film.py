"""Draw one pass of a shipped run as it decides, for held-out captions, into nbs/images/one_pass.gif.

    python tools/film.py [--still FILE.png]

The captions are the first of the run's validation split that differ; `--still` keeps the last frame, too.
"""
import argparse
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from vqgen.config import load_config
from vqgen.data.datasets import load_data
from vqgen.experiment import unseen_words_allowed
from vqgen.pipeline import Pipeline, find_run
from vqgen.viz import image_grid, paint

FILE = Path(__file__).resolve().parent.parent / "nbs" / "images" / "one_pass.gif"
RUN, COUNT = "vqgen/avatars-hour", 7    # faces in a row
SCALE, PADDING = 4, 8                   # a pixel becomes SCALE x SCALE
MILLISECONDS, HELD = 350, 4000          # a round is shown, and the last


def held_out_captions():
    "The first `COUNT` captions of the run's validation split, each once."
    data = load_config(find_run(RUN) / "vqvae" / "config.yaml").data
    held_out = load_data(data.model_copy(update={"count": 3000}), "validation")   # the first of its faces
    return [*dict.fromkeys(held_out.captions)][:COUNT]


def frame(images, captions):
    "`images` (B, 3, H, W) in a row, their captions beneath, as a Pillow picture."
    faces = image_grid(images, columns=COUNT, scale=SCALE, padding=PADDING)
    font, texts = ImageFont.load_default(size=13), [textwrap.fill(caption, 20) for caption in captions]
    top, height = faces.height + 2 * PADDING, 17 * max(text.count("\n") + 1 for text in texts)
    sheet = Image.new("RGB", (faces.width + 2 * PADDING, top + height + PADDING), "#f2f2ee")
    sheet.paste(faces, (PADDING, PADDING))
    pen, step = ImageDraw.Draw(sheet), SCALE * images.shape[-1] + PADDING
    for place, text in enumerate(texts): pen.text((PADDING + place * step, top), text, "#222222", font)
    return sheet


@unseen_words_allowed()
def main():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--still")
    still = parser.parse_args().still
    pipe, captions = Pipeline.from_pretrained(RUN, "cftn-v2", "cpu"), held_out_captions()
    frames = [frame(paint(pipe.vqvae, codes), captions) for codes in pipe.stream(captions)]
    if still: frames[-1].save(still)
    colours = frames[-1].quantize(128, dither=Image.Dither.NONE)
    frames = [one.quantize(palette=colours, dither=Image.Dither.NONE) for one in frames]
    shown = [MILLISECONDS] * (len(frames) - 1) + [HELD]
    frames[0].save(FILE, save_all=True, append_images=frames[1:], duration=shown, loop=0)
    print(f"{FILE.name}: {len(frames)} rounds, {FILE.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__": main()
