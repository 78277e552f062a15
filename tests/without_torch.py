"""Uses every part that needs no PyTorch, in a Python that has none, and prints a digest of what it made.

With --beside-torch it may be there, and is not imported.
"""
import hashlib
import json
import random
import sys
from importlib import import_module
from importlib.util import find_spec

import yaml

assert find_spec("torch") is None or "--beside-torch" in sys.argv, "PyTorch is here"
for name in ("errors", "files", "config", "cli", "data.avatars", "data.styles", "data.emoji", "data.sources",
             "data.cache"): import_module(f"vqgen.{name}")

from vqgen.config import dump_config, load_config, preset_names  # noqa: E402
from vqgen.data.avatars import caption_of, make_avatar, sample_attributes  # noqa: E402
from vqgen.data.emoji import twemoji_picture  # noqa: E402
from vqgen.data.styles import draw_style  # noqa: E402
from vqgen.errors import VQGenError  # noqa: E402

configs = {name: yaml.safe_load(dump_config(load_config(name))) for name in preset_names()}
rng = random.Random(0)
faces = [sample_attributes(rng) for _ in range(20)]
pictures = [make_avatar(face).tobytes() for face in faces]
captions = [caption_of(face, rng) for face in faces]
assert twemoji_picture("1F600").size[0] > 0 and draw_style("lorelei", 1, 32)[0].size == (32, 32)
try: load_config("avatarz")
except VQGenError as error: refusal = str(error)

digests = [hashlib.sha256(picture).hexdigest() for picture in pictures]
made = json.dumps([configs, faces, captions, digests, refusal], sort_keys=True)
print(hashlib.sha256(made.encode()).hexdigest())
sys.exit("torch" in sys.modules)
