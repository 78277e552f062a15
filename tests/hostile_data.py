"""A data set whose files are damaged in every way, built or to be built: run by test_hostile.py.

    python tests/hostile_data.py FOLDER COUNT     # prints one JSON object
"""
import io
import json
import os
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hostile import damage, try_all
from PIL import Image

from vqgen.config import DataConfig
from vqgen.data.datasets import build_data, load_data
from vqgen.data.report import describe_data

SIZE, COUNT = 16, 24


def picture(i):
    file = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE), (10 * i, 0, 99)).save(file, "PNG")
    return file.getvalue()


def sources(folder):
    "The same captioned pictures as a parquet file, two Arrow files, a saved folder and a table of names."
    import datasets
    texts = [f"a fox number {i} of all" for i in range(COUNT)]
    table = pa.table({"image": [picture(i) for i in range(COUNT)], "text": texts})
    (folder / "loose").mkdir(parents=True)
    pq.write_table(table, folder / "shots.parquet")
    with pa.OSFile(str(folder / "shots.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as out:
        out.write_table(table, max_chunksize=10)
    with pa.OSFile(str(folder / "random.feather"), "wb") as file, pa.ipc.new_file(file, table.schema) as out:
        out.write_table(table)
    datasets.Dataset(table).save_to_disk(folder / "saved")
    for i in range(COUNT): (folder / f"loose/{i}.png").write_bytes(picture(i))
    pq.write_table(table.set_column(0, "image", [[f"loose/{i}.png" for i in range(COUNT)]]),
                   folder / "named.parquet")


def config(folder, name): return DataConfig(source=str(folder / name), image_size=SIZE)


def columns(content, rng):
    "The Arrow stream `content` with a column of another kind, without one, or compressed."
    table = pa.ipc.open_stream(content).read_all()
    place = rng.randrange(table.num_columns)
    name, rows = table.column_names[place], table.num_rows
    others = [pa.nulls(rows), pa.array([[[1.5]]] * rows), pa.array([{"a": 1}] * rows), pa.array([""] * rows),
              pa.array([None] * rows, table.schema.types[place]), pa.array([b"\xff\xfe"] * rows),
              pa.array([10**6] * rows), pa.array(["[" * 9999] * rows),
              pa.array(["x"] * rows).dictionary_encode(), pa.array([[]] * rows, pa.list_(pa.string()))]
    way = rng.randrange(4)
    if way == 0: table = table.remove_column(place)
    elif way == 1: table = table.append_column(name, table.column(place))
    elif way == 2: table = table.slice(0, rng.randrange(rows))
    else: table = table.set_column(place, name, rng.choice(others))
    sink, options = pa.BufferOutputStream(), pa.ipc.IpcWriteOptions(compression=rng.choice((None, "zstd")))
    with pa.ipc.new_stream(sink, table.schema, options=options) as stream: stream.write_table(table)
    return sink.getvalue().to_pybytes()


def other_array(content, rng):
    "Bytes of a NumPy file of another shape or type."
    rows = np.load(io.BytesIO(content))
    shape = rng.choice((rows.astype("f4"), rows - 1, rows * 10**9, rows[None], rows[:0], rows.astype("S9"),
                        rows.astype("i1"), np.zeros(3, [("a", "i8"), ("b", "O")])))
    file = io.BytesIO()
    np.save(file, shape, allow_pickle=True)
    header = f"({rng.choice((10**6, 10**12, 10**30, -1))},)".encode()
    return rng.choice((file.getvalue(), content.replace(f"({len(rows)},)".encode(), header)))


def lengths(content, rng):
    "`content` where a few numbers of four or eight bytes are huge or negative."
    changed, width = bytearray(content), rng.choice((4, 8))
    for _ in range(rng.choice((1, 4, 30))):
        place = rng.randrange(len(changed) // width) * width
        changed[place:place + width] = rng.choice((2**31 - 1, 2**30, -1, -2**31, 10**6)).to_bytes(
            width, "little", signed=True)
    return bytes(changed)


def spoil(name, content, rng):
    "The bytes of file `name` of a data set after one accident or one act of malice."
    way = rng.randrange(5)
    if way == 0 and name.endswith((".arrow", ".npy", ".parquet", ".feather")): return lengths(content, rng)
    if way < 3 and name.endswith(".arrow"): return columns(content, rng)
    if way < 3 and name.endswith(".npy"): return other_array(content, rng)
    return damage(name, content, rng)


def read(config):
    for split in ("train", "validation"):
        data = load_data(config, split)
        assert data.batch(range(len(data))).shape[1:] == (3, SIZE, SIZE) and " ".join(data.all_captions())
    describe_data(config)


def build_again(store, config):
    "Read `config` where nothing is remembered of it."
    shutil.rmtree(store, ignore_errors=True)
    try: read(config)
    finally: shutil.rmtree(store, ignore_errors=True)


def main(folder, count):
    warnings.simplefilter("ignore")
    sys.stdout, out = io.StringIO(), sys.stdout
    made = folder / "made"
    store, scrap = folder / "cache/kept", folder / "cache/scrap"
    sources(made)
    targets = {}
    os.environ["VQGEN_CACHE"] = str(store)
    for name in ("shots.parquet", "named.parquet"):
        wanted = config(made, name)
        built = build_data(wanted)
        read(wanted)
        for path in built.iterdir(): targets[path] = (store, wanted)
    for path in [*store.glob("hashes/*"), *store.glob("listings/*")]: targets[path] = (store, wanted)
    for path in [*made.glob("*.*"), *made.glob("saved/*")]:
        name = "saved" if path.parent.name == "saved" else path.name
        targets[path] = (scrap, config(made, name))

    def use(path):
        place, wanted = targets[path]
        os.environ["VQGEN_CACHE"] = str(place)
        build_again(place, wanted) if place == scrap else read(wanted)

    found = try_all(folder, list(targets), use, spoil, count)
    print(json.dumps(found), file=out)


if __name__ == "__main__": main(Path(sys.argv[1]), int(sys.argv[2]))
