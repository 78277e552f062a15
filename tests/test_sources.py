"Pictures as people have them: read as they are meant, or refused in one sentence that names the file."
import csv
import io
import json
import tarfile
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vqgen.config import DataConfig
from vqgen.data.sources import open_picture, read_source, why_unreadable
from vqgen.errors import VQGenError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    return tmp_path / "cache"


def png(shade=200, size=(12, 12)):
    "The bytes of a plain picture."
    file = io.BytesIO()
    Image.new("RGB", size, (shade, 30, 30)).save(file, "PNG")
    return file.getvalue()


PICTURES = [png(10 * i) for i in range(6)]
WORDS = [f"shade {i}" for i in range(6)]


def write_table(path, **columns):
    "A parquet file at `path`."
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns or {"image": PICTURES, "text": WORDS}), path)
    return path


def write_pictures(folder, texts=()):
    "A folder of the pictures, and of the text files `texts`, a dict from name to text or bytes."
    folder.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(PICTURES): (folder / f"{i}.png").write_bytes(picture)
    for name, text in dict(texts).items():
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def read(source, cache, **options):
    "What `read_source` finds in `source`, by split."
    return read_source(DataConfig(source=str(source), **options), cache)


def captions(source, cache, **options):
    "The captions that `read_source` finds in `source`, which has no splits of its own."
    found = read(source, cache, **options)
    assert list(found) == [None]
    return [row["captions"] for row in found[None]]


def fails(source, cache, *words, **options):
    "`read_source` raises one `VQGenError`, short and of one line, with all of `words` in its message."
    with pytest.raises(VQGenError) as error:
        for table in read(source, cache, **options).values(): list(table)
    message = str(error.value)
    for word in words: assert str(word) in message, f"{word!r} not in: {message}"
    assert len(message.replace(str(cache.parent), "")) <= 240 and "\n" not in message, message
    assert message.count(str(cache.parent)) <= 1, message
    return message


def shades(table):
    "The red of each picture."
    return [open_picture(row["image"]).getpixel((0, 0))[0] for row in table]


# The same pictures in every coat

def saved(path, is_dict=False):
    "A data set written to `path` by the library."
    rows = {"image": [{"bytes": picture, "path": None} for picture in PICTURES], "text": WORDS}
    features = datasets.Features(image=datasets.Image(), text=datasets.Value("string"))
    table = datasets.Dataset.from_dict(rows, features=features)
    (datasets.DatasetDict(train=table) if is_dict else table).save_to_disk(str(path))
    return path


def shards(folder):
    "The pictures in two files, as a set of the Hub that was cloned."
    for i, part in enumerate([slice(0, 4), slice(4, 6)]):
        write_table(folder / f"data/train-0000{i}-of-00002.parquet", image=PICTURES[part], text=WORDS[part])
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / ".git").mkdir()
    write_table(folder / ".git/old.parquet")
    return folder


def arrow(path, stream=True):
    "An Arrow file, of the streaming format or the other."
    table = pa.table({"image": PICTURES, "text": WORDS})
    open_file = pa.ipc.new_stream if stream else pa.ipc.new_file
    with open_file(str(path), table.schema) as file: file.write_table(table)
    return path


def tar(path, numbers=range(6), suffix="txt"):
    "A webdataset with the pictures of `numbers`."
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for i in numbers:
            for name, data in [(f"._{i}.png", b"?"), (f"{i}.png", PICTURES[i]), (f"{i}.{suffix}", WORDS[i].encode())]:
                note = tarfile.TarInfo(name)
                note.size = len(data)
                file.addfile(note, io.BytesIO(data))
    return path


def pattern(folder):
    "Two files, and the pattern that names them."
    for name, part in [("a", slice(0, 4)), ("b", slice(4, 6))]:
        write_table(folder / f"{name}.parquet", image=PICTURES[part], text=WORDS[part])
    return folder / "*.parquet"


def tars(folder):
    "Two archives, and the folder where they lie."
    for name, numbers in [("00", range(4)), ("01", range(4, 6))]: tar(folder / f"{name}.tar", numbers)
    return folder


def listed(folder, kind="jsonl"):
    "A folder with a table of its pictures."
    rows = [{"file_name": f"{i}.png", "text": word} for i, word in enumerate(WORDS)]
    lines = [json.dumps(row) for row in rows] if kind == "jsonl" else [",".join(row.values()) for row in rows]
    if kind == "csv": lines.insert(0, "file_name,text")
    return write_pictures(folder, {f"metadata.{kind}": "\n".join([*lines, ""])})


COATS = {
    "parquet file": lambda path: write_table(path / "a.parquet"),
    "shards": lambda path: shards(path / "naruto"),
    "pattern": lambda path: pattern(path / "many"),
    "a folder [1] of parquet": lambda path: write_table(path / "a [1]*" / "b.parquet").parent,
    "struct": lambda path: write_table(path / "c.parquet", text=WORDS,
                                       image=[{"bytes": picture, "path": None} for picture in PICTURES]),
    "arrow stream": lambda path: arrow(path / "a.arrow"),
    "arrow file": lambda path: arrow(path / "b.arrow", stream=False),
    "saved": lambda path: saved(path / "saved"),
    "saved dict": lambda path: saved(path / "saved dict", is_dict=True),
    "tar": lambda path: tar(path / "a.tar"),
    "tars": lambda path: tars(path / "tars"),
    "jsonl": lambda path: listed(path / "jsonl"),
    "csv": lambda path: listed(path / "csv", "csv"),
    "texts": lambda path: write_pictures(path / "texts", {f"{i}.txt": word for i, word in enumerate(WORDS)}),
}


@pytest.mark.parametrize("coat", COATS)
def test_every_coat_gives_the_same_pictures_with_their_captions(coat, tmp_path, cache):
    source = COATS[coat](tmp_path)
    for streaming in (False, True):
        found = read(source, cache, streaming=streaming)
        assert list(found) == [None]
        table = found[None]
        assert isinstance(table, datasets.IterableDataset if streaming else datasets.Dataset)
        assert set(table.column_names) == {"image", "captions", "name"}
        assert table.features["image"] == datasets.Image(decode=False)
        rows = list(table)
        assert [row["captions"] for row in rows] == [[word] for word in WORDS]
        assert shades(rows) == [10 * i for i in range(6)]
        assert len({row["name"] for row in rows}) == 6 and all(row["name"] for row in rows)


def test_rows_are_named_by_file_and_place(tmp_path, cache):
    names = {coat: read(COATS[coat](tmp_path), cache)[None][5]["name"]
             for coat in ["shards", "parquet file", "texts", "tars"]}
    assert names == {"shards": "train-00001-of-00002.parquet row 1", "parquet file": "a.parquet row 5",
                     "texts": "5.png", "tars": "01.tar 5"}


# The Hub

def hub(monkeypatch, answer):
    "Let `answer(name, **options)` stand for the Hub, which can't be reached here."
    monkeypatch.setattr(datasets, "load_dataset", answer)


def test_a_hub_set_is_asked_for_by_name_and_revision(tmp_path, cache, monkeypatch):
    rows = {"picture": [{"bytes": picture, "path": None} for picture in PICTURES], "words": WORDS}
    features = datasets.Features(picture=datasets.Image(), words=datasets.Value("string"))
    table, asked = datasets.Dataset.from_dict(rows, features=features), []

    def answer(name, **options):
        asked.append((name, options["revision"]))
        return datasets.DatasetDict(train=table)
    hub(monkeypatch, answer)
    options = {"image_column": "picture", "caption_column": "words"}
    assert captions("who/what", cache, revision="v1", **options) == [[word] for word in WORDS]
    fails("who/what", cache, "who/what", "'image'", "data.image_column", "picture, words", caption_column="words")
    assert asked == [("who/what", "v1"), ("who/what", None)]


def test_no_network_or_unknown_name(cache, monkeypatch):
    def unreachable(name, **options): raise ConnectionError("Couldn't reach 'who/nobody' on the Hub")
    hub(monkeypatch, unreachable)
    fails("who/nobody", cache, "who/nobody", "Couldn't reach", "network")
    fails("avatar", cache, "'avatar'", "avatars, emoji")


# Splits

def test_a_source_keeps_its_own_splits(tmp_path, cache):
    for split in ["train", "test"]: write_pictures(tmp_path / "set" / split, {"1.txt": split})
    found = read(tmp_path / "set", cache)
    assert {split: table["name"][1] for split, table in found.items()} == {"train": "train/1.png",
                                                                           "validation": "test/1.png"}


# What can't be used

def test_bad_sources_are_named(tmp_path, cache):
    fails(tmp_path / "nowhere", cache, tmp_path / "nowhere", "no such file or folder")
    fails("nothing.parquet", cache, "nothing.parquet", "no such file or folder")
    (tmp_path / "empty").mkdir()
    fails(tmp_path / "empty", cache, tmp_path / "empty", "metadata.jsonl", ".txt")
    (tmp_path / "notes.txt").write_text("not a table")
    fails(tmp_path / "notes.txt", cache, "notes.txt", "not a parquet file")
    fails(write_table(tmp_path / "none.parquet", image=[], text=[]), cache, "none.parquet", "empty")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "dataset_info.json").write_text("{}")
    fails(tmp_path / "half", cache, tmp_path / "half")


def test_a_missing_column_names_those_that_exist(tmp_path, cache):
    path = write_table(tmp_path / "a.parquet", image=PICTURES, caption=WORDS)
    fails(path, cache, "a.parquet", "'text'", "data.caption_column", "image, caption")
    write_pictures(tmp_path / "set", {"metadata.jsonl": '{"file_name": "1.png", "words": "a fox"}'})
    fails(tmp_path / "set", cache, "metadata.jsonl", "'text'", "file_name, words")
