"""Make the drawings that the package brings, vqgen/drawings/, out of two npm packages:

    npm pack @iconify-json/noto@1.2.9 @iconify-json/fluent-emoji-flat@1.2.6
    python tools/drawings.py iconify-json-noto-1.2.9.tgz iconify-json-fluent-emoji-flat-1.2.6.tgz

What `vqgen.data.emoji` draws is kept: no flags, no symbols, one skin tone at most.
"""
import json
import lzma
import sys
import tarfile
from pathlib import Path

from vqgen.data.emoji import DRAWINGS, TONES, drawn_records, plain_points

TO = Path(__file__).resolve().parent.parent / "vqgen" / "drawings"


def read_json(archive, name):
    with tarfile.open(archive) as tar: return json.load(tar.extractfile(f"package/{name}"))


def body_of(icons, name):
    "The inside of the SVG of the icon `name`; an alias stands for another icon, or for its mirror image."
    alias = {} if name in icons["icons"] else icons["aliases"][name]
    body = icons["icons"][alias.get("parent", name)]["body"]
    return f'<g transform="matrix(-1 0 0 1 {icons["width"]} 0)">{body}</g>' if alias.get("hFlip") else body


def main(*archives):
    wanted = {plain_points(record.unified) for record in drawn_records()}
    for hand, archive in zip(DRAWINGS, archives, strict=True):
        icons = read_json(archive, "icons.json")
        names, drawings = {}, {}
        for points, name in sorted(read_json(archive, "chars.json").items()):
            parts = plain_points(points).split("-")
            base = "-".join(part for part in parts if part not in TONES)
            if base not in wanted or len(parts) - len(base.split("-")) > 1: continue
            drawings["-".join(parts)] = body_of(icons, name)
            if base == "-".join(parts): names[base] = name.replace("-", " ")
        text = json.dumps({"names": names, "drawings": drawings}, indent=0, sort_keys=True)
        path = TO / f"{hand}.json.xz"
        path.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))
        print(f"{path.name}: {len(drawings):,} drawings, {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__": main(*sys.argv[1:])
