"""A stand-in for `lambdalabs/naruto-blip-captions`, of portraits that may be shown, where there is no Hub.

Two parquet shards and a README with metadata, as on the Hub; columns `image` (JPEG and PNG, RGB and RGBA, of
odd sizes) and `text` (a sentence such as BLIP's). `python tests/naruto_standin.py FOLDER [ROWS]` writes it.
"""
import io
import random
import sys
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from vqgen.data.styles import draw_style

ID = "lambdalabs/naruto-blip-captions"
ROWS = 1221
SHARDS = ["data/train-00000-of-00002-6f3f344626d517b5.parquet",
          "data/train-00001-of-00002-e5a1ce4e1b5b1c11.parquet"]
README = """---
dataset_info:
  features:
  - name: image
    dtype: image
  - name: text
    dtype: string
  splits:
  - name: train
    num_bytes: {bytes}
    num_examples: {rows}
  download_size: {bytes}
  dataset_size: {bytes}
---
# Dataset Card for a stand-in of "{id}"

Portraits by code, in DiceBear's styles Adventurer (CC BY 4.0) and Lorelei (CC0 1.0), both by Lisa Wischofsky.
"""
_SIZES = [(97, 143), (128, 128), (201, 160), (233, 311), (360, 203), (512, 700)]   # width, height


def _words(attributes, rng):
    "What BLIP might say of a portrait: some of it, in one of its habits, and now and then a side."
    color = attributes.get("hairColor", rng.choice(["black", "white"]))
    hair = f"{attributes.get('hair', 'short')} {color} hair"
    worn = [name for name in ("glasses", "earrings", "beard", "freckles") if attributes.get(name) == "yes"]
    about = rng.choice([hair, f"a {attributes['backgroundColor']} background", *worn])
    who = rng.choice(["man", "woman", "person", "boy with a headband", "cartoon character"])
    about = f"and {about}" if " with " in who else f"with {about}"
    end = rng.choice(["", "", " looking at the camera", " in front of a wall", " looking to the left"])
    return f"a {rng.choice(['', '', 'drawing of a '])}{who} {about}{end}"


def _picture(number, rng):
    "A portrait of an odd size, and what is known of it."
    width, height = rng.choice(_SIZES)
    square, _, attributes = draw_style(rng.choice(["adventurer", "lorelei"]), number, max(width, height))
    left, top = (square.width - width) // 2, (square.height - height) // 2
    return square.crop((left, top, left + width, top + height)), attributes


def _bytes(picture, rng):
    "The bytes of a JPEG file, or of a PNG file that may be transparent at its corners."
    kind = rng.choice(["JPEG", "JPEG", "PNG", "RGBA"])
    if kind == "RGBA":
        mask = Image.new("L", picture.size)
        ImageDraw.Draw(mask).rounded_rectangle((0, 0, *picture.size), min(picture.size) // 8, fill=255)
        picture.putalpha(mask)
    file = io.BytesIO()
    picture.save(file, "JPEG" if kind == "JPEG" else "PNG")
    return file.getvalue()


def naruto_row(number):
    "Row `number`: the bytes of a picture and its caption."
    rng = random.Random(f"naruto {number}")
    picture, attributes = _picture(number, rng)
    return {"image": {"bytes": _bytes(picture, rng), "path": None}, "text": _words(attributes, rng)}


def write_standin(folder, rows=ROWS):
    "Write the set with so many rows into `folder`, which is returned."
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature
    features = Features({"image": ImageFeature(), "text": Value("string")})
    table = Dataset.from_list([naruto_row(number) for number in range(rows)], features)
    folder = Path(folder)
    (folder / "data").mkdir(parents=True)
    table = table.with_format("arrow")
    for number, name in enumerate(SHARDS): pq.write_table(table.shard(len(SHARDS), number)[:], folder / name)
    size = sum((folder / name).stat().st_size for name in SHARDS)
    (folder / "README.md").write_text(README.format(bytes=size, rows=rows, id=ID), "utf-8")
    (folder / ".gitattributes").write_text("*.parquet filter=lfs diff=lfs merge=lfs -text\n", "utf-8")
    return folder


if __name__ == "__main__": print(write_standin(sys.argv[1], int((sys.argv[2:] or [ROWS])[0])))
