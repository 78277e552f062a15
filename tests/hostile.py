"""A run whose files are damaged in every way, and what comes of it: run by test_hostile.py.

    python tests/hostile.py FOLDER COUNT     # FOLDER holds `run`; prints one JSON object
"""
import collections
import faulthandler
import json
import random
import resource
import shutil
import sys
import time
import warnings
from pathlib import Path

import numpy as np

from vqgen.config import load_config
from vqgen.data.cache import cached_array
from vqgen.errors import VQGenError
from vqgen.pipeline import load_run
from vqgen.training.checkpoints import CHECKPOINT_FILES, _checksum, load_state

ROWS = np.arange(4096, dtype=np.int16).reshape(512, 8)
FILES = ("vqvae/config.json", "cftn/config.json", "cftn/config.yaml", "cftn/tokenizer.json",
         "cftn/tokenizer_config.json", "vqvae/model.safetensors", "cftn/model.safetensors",
         "checkpoint/training.pt", "checkpoint/config.json", "checkpoint/sha256.json", "codes.npy")
VALUES = (None, True, -1, 0, 10**6, 10**30, 1e308, "", "x" * 10_000, "\ud800", [], {}, [[]], {"a": {}}, 0.5)


def places(tree):
    "Every container in `tree` and its keys, as pairs."
    left, found = [tree], []
    while left:
        part = left.pop()
        keys = list(part) if isinstance(part, dict) else list(range(len(part)))
        found += [(part, key) for key in keys]
        left += [part[key] for key in keys if isinstance(part[key], (dict, list))]
    return found


def deep(rng): return rng.choice(("[", '{"a":')) * rng.choice((50, 900, 10_000))


def change_value(content, rng):
    tree = json.loads(content)
    part, key = rng.choice(places(tree))
    what = rng.randrange(4)
    if what == 0: part[key] = rng.choice(VALUES)
    elif what == 1: part.pop(key)
    elif what == 2: part[key] = [part[key]] * rng.choice((2, 1000))
    else:
        other, name = rng.choice(places(tree))
        part[key], other[name] = other[name], part[key]
    try: return json.dumps(tree).encode()
    except (ValueError, RecursionError): return b"{}"


def change_line(content, rng):
    lines = content.decode().splitlines()
    number = rng.randrange(len(lines))
    values = ("[" * 10_000, "&a [*a]", "!!timestamp x", "!!python/object/apply:os.mkdir [exploded]",
              "1" * 5000, "{a: b", "\t", "2024-13-45", ".inf", "*b", "? [a]", "- 1")
    lines[number] = rng.choice((lines[number].split(":")[0] + ": ", "")) + rng.choice(values)
    return "\n".join(lines).encode()


def damage(name, content, rng):
    "The bytes of file `name` after one accident or one act of malice."
    way = rng.randrange(7)
    if way == 0: return content[:rng.randrange(len(content) + 1)]
    if way == 1: return content + rng.randbytes(rng.choice((1, 100)))
    if way == 2:
        other = deep(rng).encode(), b"\xff\xfe", rng.randbytes(300)
        return rng.choice((b"", bytes(len(content)), *other))
    if way == 3:
        start = rng.randrange(len(content))
        return content[:start] + content[rng.randrange(len(content)):]
    if way >= 5 and name.endswith(".json"): return change_value(content, rng)
    if way >= 5 and name.endswith(".yaml"): return change_line(content, rng)
    flipped = bytearray(content)
    end = len(content) if rng.random() < 0.5 else min(len(content), 2000)     # headers come first
    for _ in range(rng.choice((1, 8, 64))): flipped[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def use(folder, name):
    "Read the part of the run in `folder` that file `name` belongs to."
    if name.endswith(".yaml"): return load_config(folder / name)
    if name == "codes.npy":
        array = cached_array(folder / name, ROWS.shape, ROWS.dtype, lambda rows: ROWS[rows])
        assert np.array_equal(array, ROWS)
    elif name.startswith("checkpoint"): load_state(folder / "checkpoint")
    else:
        vqvae, prior, tokenizer, _ = load_run(folder, "cftn")
        tokenizer.decode(tokenizer(["a green hat", ""])["input_ids"][0])


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "cache" not in path.parts)


def forge(checkpoint):
    "Let the checksums of `checkpoint` say that all is as it was written."
    sums = {name: _checksum(checkpoint / name) for name in CHECKPOINT_FILES}
    (checkpoint / "sha256.json").write_text(json.dumps(sums))


def peak():
    "The most memory, in KB, that this process has had; `ru_maxrss` would count its parent's, too."
    try: lines = Path("/proc/self/status").read_text().splitlines()
    except FileNotFoundError: return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def try_all(folder, paths, use, spoil, count, repair=None):
    """Damage one of `paths` after the other, `count` times in all, and `use` it: what came of it, a dict.

    `spoil(name, bytes, generator)` gives other bytes; `repair(path, generator)` is called before a use, too.
    """
    honest = {path: path.read_bytes() for path in paths}
    for path in paths: use(path)
    before, listed = peak(), listing(folder)
    slowest = 0.0, ""
    outcomes = collections.Counter()
    for number in range(count):
        rng, path = random.Random(number), paths[number % len(paths)]
        path.write_bytes(spoil(path.name, honest[path], rng))
        kept = repair(path, rng) if repair else {}
        faulthandler.dump_traceback_later(60, exit=True)       # a hang, not a slow machine
        print(path.name, number, file=sys.stderr)              # the last line, where the process dies
        start = time.perf_counter()
        outcomes[outcome(use, path, number)] += 1
        slowest = max(slowest, (time.perf_counter() - start, f"{path.name} {number}"))
        faulthandler.cancel_dump_traceback_later()
        for other, content in {**kept, path: honest[path]}.items(): other.write_bytes(content)
    return {"outcomes": outcomes, "grown": (peak() - before) // 1024, "slowest": slowest,
            "new": sorted({*listing(folder)} ^ {*listed})}


def outcome(use, path, number):
    "`read`, `refused`, or what was wrong with how `use` took the file `path`."
    try: use(path)
    except VQGenError as fault:
        said = str(fault)
        if len(said.splitlines()) == 1: return "refused"
        return f"{path.name} {number}: {said[:200]}"
    except BaseException as fault:
        return f"{path.name} {number}: {type(fault).__name__}: {str(fault)[:200]}"
    return "read"


def main(folder, count):
    warnings.simplefilter("ignore")
    run = folder / "run"
    sums = run / "checkpoint/sha256.json"
    written = sums.read_bytes()

    def repair(path, rng):
        if path.parent.name == "checkpoint" and path != sums and rng.random() < 0.7: forge(path.parent)
        return {sums: written}

    def read(path): use(run, str(path.relative_to(run)))

    print(json.dumps(try_all(folder, [run / name for name in FILES], read, damage, count, repair)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
    shutil.rmtree(Path(sys.argv[1]) / "run", ignore_errors=True)
