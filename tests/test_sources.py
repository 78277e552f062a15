"Pictures as people have them: read as they are meant, or refused in one sentence that names the file."
import base64
import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import hub_server, variables
from PIL import Image

from vqgen.config import DataConfig
from vqgen.data.datasets import prepare_picture, read_picture, to_square
from vqgen.data.sources import _own_splits, open_picture, read_source, why_unreadable
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
            caption = WORDS[i].encode()
            for name, data in [(f"._{i}.png", b"?"), (f"{i}.png", PICTURES[i]), (f"{i}.{suffix}", caption)]:
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


def noise(seed):
    "A picture that is another one once it is decoded and encoded again, the bytes of a JPEG."
    values = np.random.default_rng(seed).integers(0, 256, (33, 47, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "JPEG")
    return file.getvalue()


NOISE = [*map(noise, range(5)), noise(5)[:90]]   # the last one is broken


def noisy(path, column="image"):
    "A parquet file and a saved set, whose pictures the library would decode."
    rows = {column: [{"bytes": picture, "path": None} for picture in NOISE], "text": WORDS}
    features = datasets.Features({column: datasets.Image(), "text": datasets.Value("string")})
    table = datasets.Dataset.from_dict(rows, features=features)
    table.to_parquet(str(path / "a.parquet"))
    table.save_to_disk(str(path / "saved"))


def test_a_stream_gives_the_bytes_that_lie_in_the_source(tmp_path, cache, monkeypatch):
    for column in ["image", "jpg"]:
        noisy(tmp_path / column, column)
        for name in ["a.parquet", "saved"]:
            table = read(tmp_path / column / name, cache, streaming=True, image_column=column)[None]
            assert [row["image"]["bytes"] for row in table] == NOISE
    monkeypatch.setattr("test_sources.PICTURES", NOISE)
    table = read(tar(tmp_path / "a.tar", suffix="TXT"), cache, streaming=True)[None]
    assert [row["image"]["bytes"] for row in table] == NOISE


ASK_FOR_A_FOLDER = """
import hashlib, os
from vqgen.config import DataConfig
from vqgen.data.sources import read_source
for row in read_source(DataConfig(source="who/what", streaming=True))[None]:
    print(hashlib.sha256(row["image"]["bytes"]).hexdigest(), *row["captions"], sep=",")
"""


def test_a_folder_of_pictures_on_the_hub_is_streamed_as_it_lies_there(tmp_path):
    folder = tmp_path / "hub" / "datasets" / "who" / "what" / "train"
    folder.mkdir(parents=True)
    for i, picture in enumerate(NOISE): (folder / f"{i}.jpg").write_bytes(picture)
    lines = [json.dumps({"file_name": f"{i}.jpg", "text": word}) for i, word in enumerate(WORDS)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    command = [sys.executable, "-c", ASK_FOR_A_FOLDER]
    with hub_server(tmp_path / "hub") as server:
        environment = variables(tmp_path / "home", server.endpoint)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    rows = [f"{hashlib.sha256(picture).hexdigest()},{word}" for picture, word in zip(NOISE, WORDS)]
    assert done.stdout.splitlines() == rows, done.stderr


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
    fails("who/what", cache, "'image'", "data.image_column", "picture, words", caption_column="words")
    assert asked == [("who/what", "v1"), ("who/what", None)]


def test_no_network_or_unknown_name(cache, monkeypatch):
    faults = {"who/nobody": ConnectionError("Couldn't reach 'who/nobody' on the Hub"),
              "avatar": datasets.exceptions.DatasetNotFoundError("Dataset 'avatar' doesn't exist"),
              "who/many": ValueError("Config name is missing.\nPlease pick one among: ['en', 'de']")}

    def answer(name, **options): raise faults[name]
    hub(monkeypatch, answer)
    fails("who/nobody", cache, "who/nobody", "can't be reached", "network")
    fails("avatar", cache, "'avatar'", "avatars, emoji", "'v2'", "log in", revision="v2")
    fails("who/many", cache, "who/many", "Config name is missing", "clone")


ASK_THE_HUB = """
from vqgen.config import DataConfig
from vqgen.data.sources import read_source
from vqgen.errors import VQGenError
try: read_source(DataConfig(source="who/nobody"))
except VQGenError as fault: print(fault)
"""


def test_without_a_network_the_cache_is_asked_and_one_sentence_comes_out(tmp_path):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", ASK_THE_HUB]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert "HF_HUB_OFFLINE" in done.stdout and "who/nobody" in done.stdout and not done.stderr, done.stderr


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


# Captions, written as people write them

def one(folder, cache, texts, **options):
    "The captions of `a.png` in a `folder` with it and the files `texts`."
    write_pictures(folder, {"a.png": png(), **texts})
    found = {row["name"]: row["captions"] for row in read(folder, cache, **options)[None]}
    return found["a.png"]


@pytest.mark.parametrize("texts", [
    {"a.txt": "\ufeffa red, big thing\r\n"}, {"a.caption": "a red, big thing"},
    {"a.png.txt": "a red, big thing"}, {"A.TXT": "a red, big thing"},
    {"metadata.csv": '\ufefffile_name,text\r\na.png,"a red, big thing"\r\n'},
    {"metadata.csv": "\ufefffile_name;text\na.png;a red, big thing\n"},
    {"metadata.csv": "file_name\ttext\na.png\ta red, big thing\n"},
    {"metadata.csv": "sep=;\r\nfile_name;text\r\na.png;a red, big thing\r\n"},
    {"metadata.csv": 'text,file_name\n"a red, big thing", a.png\n\n'},
    {"metadata.csv": 'file_name,text\na.png,"a red, big thing"\n,\n , \n'},
    {"metadata.csv": 'file_name,text\na.png,"a red,\r\n  big thing"\n'},
    {"metadata.jsonl": '\ufeff{"file_name": "a.png", "text": "a red, big thing"}\r\n'},
])
def test_a_caption_is_read_whole_and_without_marks(texts, tmp_path, cache):
    assert " ".join(one(tmp_path / "set", cache, texts)[0].split()) == "a red, big thing"


def test_a_long_field_is_read_whole(tmp_path, cache):
    text = "x" * 200_000
    assert one(tmp_path / "set", cache, {"metadata.csv": f"file_name,text\na.png,{text}\n"}) == [text]


@pytest.mark.parametrize("encoding", ["utf-8", "utf_8_sig", "u8"])
def test_a_damaged_text_is_not_said_to_be_of_its_own_encoding(tmp_path, cache, encoding):
    write_pictures(tmp_path / "set", {"0.txt": b"caf\xe9"})
    fails(tmp_path / "set", cache, "0.txt", "perhaps to cp1252", "save it again", encoding=encoding)
    assert one(tmp_path / "zero", cache, {"a.txt": b"a fox\0 runs"}, encoding=encoding) == ["a fox\0 runs"]


@pytest.mark.parametrize("names, train, held", [
    (["dev", "train", "validation", "test"], "train", "validation"),
    (["valid", "val", "train"], "train", "valid"),
    (["Train", "train", "Test"], "train", "Test"), (["evaluation", "Training"], "Training", "evaluation")])
def test_of_several_splits_the_plainest_names_count(names, train, held):
    assert _own_splits(names) == {train: "train", held: "validation"}


def test_another_encoding_is_declared_or_refused(tmp_path, cache):
    texts = {"a.txt": "caf\u00e9".encode("latin-1")}
    assert one(tmp_path / "set", cache, texts, encoding="latin-1") == ["caf\u00e9"]
    fails(tmp_path / "set", cache, "a.txt", "utf-8", "data.encoding")
    fails(tmp_path / "set", cache, "utf-9", "data.encoding", encoding="utf-9")
    table = "file_name,text\na.png,caf\u00e9\n".encode("utf-16")
    assert one(tmp_path / "wide", cache, {"metadata.csv": table}, encoding="utf-16") == ["caf\u00e9"]
    fails(tmp_path / "wide", cache, "metadata.csv", "utf-16")
    for text in [b"a fox", b"even"]:   # any text of even length can be read as UTF-16
        fails(write_pictures(tmp_path / "no", {"0.txt": text}), cache, "to utf-8", encoding="utf-16")
    write_pictures(tmp_path / "le", {"0.txt": "a fox".encode("utf-16-le")})
    fails(tmp_path / "le", cache, "0.txt", "utf-16-le")
    table = "\ufefffile_name,text\na.png,caf\u00e9\n".encode("utf-16-le")
    assert one(tmp_path / "le2", cache, {"metadata.csv": table}, encoding="utf-16-le") == ["caf\u00e9"]
    fails(tmp_path / "le2", cache, "data.encoding", encoding="utf\0")
    words = [b"a", "caf\u00e9".encode("latin-1")]
    path = write_table(tmp_path / "b.parquet", image=PICTURES[:2], text=words)
    assert captions(path, cache, encoding="latin-1") == [["a"], ["caf\u00e9"]]
    fails(path, cache, "b.parquet row 1", "data.encoding")


@pytest.mark.parametrize("kind, text, words", [
    ("csv", "file_name,text\na.png,a hen\na.png,a red, big thing\n", ["row 3", "3 fields, 2 expected"]),
    ("csv", "file_name,text\na.png\n", ["row 2", "1 field, 2 expected"]),
    ("csv", 'file_name,text\na.png,"never closed\n', ["metadata.csv", "quotes"]),
    ("csv", "picture,text\na.png,a hen\n", ["no column 'file_name'", "picture, text"]),
    ("jsonl", '{"file_name": "a.png", "text": "a hen"}\n{"file_name": "a', ["line 2", "JSON"]),
    ("jsonl", "[" * 100_000, ["line 1", "JSON"]), ("jsonl", '["a.png", "a hen"]', ["line 1", "file_name"]),
    ("jsonl", '{"file_name": "a.png", "text": {"raw": "a hen"}}', ["line 1", "data.caption_column"]),
    ("jsonl", '{"file_name": "a.png", "text": "\\ud800"}', ["line 1", "half a character"]),
    ("jsonl", '{"file_name": "\\ud800.png", "text": "a hen"}', ["ud800", "rename"]),
    ("jsonl", '{"file_name": null, "text": "a hen"}', ["line 1", "file name", "delete"]),
    ("csv", "file_name,text,text\na.png,a hen,a cock\n", ["two columns 'text'"]),
    ("csv", "file_name,text\n../x.png,a hen\n", ["row 2", "'../x.png'", "outside"]),
    ("csv", "file_name,text\n/etc/passwd,a hen\n", ["row 2", "'/etc/passwd'", "outside"]),
    ("csv", "file_name,text\n", ["no captioned pictures"]),
])
def test_a_table_that_would_be_misread_is_refused(kind, text, words, tmp_path, cache):
    folder = write_pictures(tmp_path / "set", {"a.png": png(), f"metadata.{kind}": text})
    fails(folder, cache, *words)


# Several captions, labels, and none

def typed(path, feature, values):
    "A parquet file whose captions are `values` of type `feature`."
    rows = {"image": [{"bytes": picture, "path": None} for picture in PICTURES[:len(values)]], "text": values}
    features = datasets.Features(image=datasets.Image(), text=feature)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(path))
    return path


TEXT, LABEL = datasets.Value("string"), datasets.ClassLabel(names=["cat", "dog"])


@pytest.mark.parametrize("feature, values, expected", [
    (datasets.Sequence(TEXT), [["a fox", None, "a red fox"], [], None], [["a fox", "a red fox"], [""], [""]]),
    (LABEL, [1, 0, None, -1], [["dog"], ["cat"], [""], [""]]),
    (datasets.Value("float64"), [1.5, float("nan")], [["1.5"], [""]]),
    (datasets.Sequence(datasets.Value("float32")), [[float("nan"), 2]], [["2.0"]]),
    (datasets.Sequence(LABEL), [[1, 0]], [["dog", "cat"]]),
    (datasets.Value("int64"), [7, None], [["7"], [""]]), (datasets.Value("large_string"), ["a"], [["a"]]),
    (datasets.Value("binary"), [b"\xef\xbb\xbfa fox"], [["a fox"]]), (datasets.Value("null"), [None], [[""]]),
])
def test_every_kind_of_caption_becomes_a_list_of_strings(feature, values, expected, tmp_path, cache):
    path = typed(tmp_path / "a.parquet", feature, values)
    for streaming in (False, True): assert captions(path, cache, streaming=streaming) == expected


def test_records_are_no_captions(tmp_path, cache):
    for number, value in enumerate([{"raw": "a fox"}, [{"raw": "a fox"}], [["a fox"]]]):
        path = write_table(tmp_path / f"{number}.parquet", image=PICTURES[:1], text=[value])
        fails(path, cache, f"{number}.parquet", "'text'", "records", "data.caption_column")


def test_a_label_without_a_name_is_named(tmp_path, cache):
    table = pq.read_table(typed(tmp_path / "a.parquet", LABEL, [0, 1]))
    table = table.set_column(1, "text", pa.array([0, 5])).replace_schema_metadata(table.schema.metadata)
    pq.write_table(table, tmp_path / "a.parquet")
    fails(tmp_path / "a.parquet", cache, "a.parquet row 1", "label 5")


def test_a_saved_set_is_read_whatever_its_format(tmp_path, cache):
    rows = {"image": [{"bytes": PICTURES[0], "path": None}], "text": [[1, 0]]}
    features = datasets.Features(image=datasets.Image(), text=datasets.Sequence(LABEL))
    table = datasets.Dataset.from_dict(rows, features=features).with_format("numpy", columns=["text"])
    table.save_to_disk(str(tmp_path / "saved"))
    before = sorted((tmp_path / "saved").iterdir())
    for streaming in (False, True):
        assert captions(tmp_path / "saved", cache, streaming=streaming) == [["dog", "cat"]]
    assert sorted((tmp_path / "saved").iterdir()) == before   # and nothing is written there


def test_a_picture_in_several_rows_has_several_captions_and_one_without_text_an_empty_one(tmp_path, cache):
    rows = [("a.png", "a fox"), ("b.png", None), ("a.png", ["a fox", "a red fox"])]
    lines = [json.dumps({"file_name": name, "text": text}) for name, text in rows]
    write_pictures(tmp_path / "set", {"metadata.jsonl": "\n".join(lines)})
    assert captions(tmp_path / "set", cache) == [["a fox", "a red fox"], [""]]
    write_pictures(tmp_path / "texts", {"1.txt": "one"})
    assert captions(tmp_path / "texts", cache) == [[""], ["one"], [""], [""], [""], [""]]


# Files and folders

def test_what_systems_leave_behind_is_ignored(tmp_path, cache):
    noise = {"._0.png": b"?", "._0.txt": b"\xff", ".DS_Store": b"?", "Thumbs.db": b"?", "0.txt": "a fox"}
    folder = write_pictures(tmp_path / "set", noise)
    write_pictures(folder / "__MACOSX", {"0.txt": "?"})
    assert len(captions(folder, cache)) == 6


def test_names_of_all_kinds_and_links(tmp_path, cache):
    folder, real = tmp_path / "set: #1 [a]*", tmp_path / "real"
    write_pictures(real, {"0.txt": "zero"})
    (folder / "my pictures").mkdir(parents=True)
    (folder / "my pictures" / "\u00e9 1.PNG").write_bytes(png())
    (folder / "my pictures" / "e\u0301 1.TXT").write_text("accented")   # macOS writes it in two characters
    (folder / "x.jpeg").symlink_to(real / "0.png")
    (folder / "x.txt").symlink_to(real / "0.txt")
    (folder / "linked").symlink_to(real)
    (folder / "linked" / "loop").symlink_to(folder)
    found = {row["name"]: row["captions"] for row in read(folder, cache)[None]}
    assert found["my pictures/\u00e9 1.PNG"] == ["accented"]
    assert found["x.jpeg"] == found["linked/0.png"] == ["zero"]
    assert len(found) == 8
    (tmp_path / "link").symlink_to(folder)
    assert len(read(tmp_path / "link", cache)[None]) == 8


def test_a_row_finds_its_picture_however_its_path_is_written(tmp_path, cache):
    folder = tmp_path / "set"
    write_pictures(folder / "img", {"e\u0301.png": png(7)})
    (folder / "meta").mkdir()
    rows = ["../img/1.png,up", "..\\img\\2.png,windows", "../img/\u00e9.png,accent", "../img/gone.png,gone"]
    (folder / "meta" / "metadata.csv").write_text("\n".join(["file_name,text", *rows]))
    table = read(folder, cache)[None]
    assert table["name"][:] == ["img/1.png", "img/2.png", "img/e\u0301.png", "img/gone.png"]
    assert shades(table.select(range(3))) == [10, 20, 7]
    with pytest.raises(FileNotFoundError) as fault: open_picture(table[3]["image"])
    assert why_unreadable(fault.value) == "there is no such file"


@pytest.mark.parametrize("layout, splits", [
    (["train/0", "validation/0"], ["train", "validation"]),
    (["train/0", "val/0", "test/0"], ["train", "validation"]),
    (["Train/0", "Testing/0"], ["train", "validation"]),
    (["train/0", "extra/0"], [None]), (["cats/0", "test/0"], [None]),
])
def test_sub_folders_are_splits(layout, splits, tmp_path, cache):
    lines = ["file_name,text"]
    for name in layout:
        (tmp_path / "set" / name).parent.mkdir(parents=True)
        (tmp_path / "set" / f"{name}.png").write_bytes(png())
        lines.append(f"{name}.png,{name}")
    (tmp_path / "set" / "metadata.csv").write_text("\n".join(lines))   # one for all
    found = read(tmp_path / "set", cache)
    assert list(found) == splits and sum(map(len, found.values())) == 2
    for table in found.values():
        assert all(row["name"] == f"{row['captions'][0]}.png" for row in table)


def test_a_split_without_captions_is_named(tmp_path, cache):
    write_pictures(tmp_path / "set" / "train", {"metadata.csv": "file_name,text\n0.png,a fox\n"})
    write_pictures(tmp_path / "set" / "val")
    fails(tmp_path / "set", cache, tmp_path / "set" / "val", "captions")


@pytest.mark.parametrize("names, splits", [
    (["data/train-00000-of-00001", "data/test-00000-of-00001-ab12"], ["train", "validation"]),
    (["train", "valid"], ["train", "validation"]), (["Train", "TEST"], ["train", "validation"]),
    (["training/a", "dev/a"], ["train", "validation"]),
    (["faces", "retrain"], [None]),
])
def test_files_are_splits_by_their_names(names, splits, tmp_path, cache):
    for name in names: write_table(tmp_path / "set" / f"{name}.parquet")
    for streaming in (False, True): assert list(read(tmp_path / "set", cache, streaming=streaming)) == splits


CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: [data/a.parquet, "data/b*"]
  - split: test
    path: data/held.parquet
%s---
"""


def test_the_readme_of_a_cloned_set_says_which_files_are_which_split(tmp_path, cache):
    folder = tmp_path / "set"
    for name in ["a", "b1", "held", "spare"]: write_table(folder / "data" / f"{name}.parquet")
    (folder / "README.md").write_text(CARD % "")
    found = read(folder, cache)
    assert {split: len(table) for split, table in found.items()} == {"train": 12, "validation": 6}
    assert found["validation"]["name"][0] == "held.parquet row 0"
    (folder / "README.md").write_text(CARD % "- config_name: german\n")
    fails(folder, cache, "several", "default, german", "pattern")
    for text in ["# no card", "---\n: [\n---\n", "---\nconfigs: 7\n---\n"]:
        (folder / "README.md").write_text(text)
        assert len(captions(folder, cache)) == 24


def test_a_changed_file_is_read_again(tmp_path, cache):
    for words in (WORDS, WORDS[::-1]):
        path = write_table(tmp_path / "a.parquet", image=PICTURES, text=words)
        assert captions(path, cache) == [[word] for word in words]
    assert list((cache / "parquet").iterdir())


def test_files_of_no_use_are_named(tmp_path, cache):
    for name in ["a.parquet", "b.tar", "c.arrow"]:
        path = tmp_path / name
        path.write_bytes(b"nonsense")
        fails(path, cache, name)
    path = write_pictures(tmp_path / "mixed", {"a.parquet": b"", "b.tar": b""})
    fails(path, cache, "mixed", "parquet", "webdataset", "one kind")
    fails(tmp_path / "*.xyz", cache, "*.xyz", "no file")
    fails("x" * 5000, cache, "no such file")
    damaged = write_table(tmp_path / "d" / "train-00001-of-00002.parquet")
    write_table(tmp_path / "d" / "train-00000-of-00002.parquet")
    damaged.write_bytes(damaged.read_bytes()[:-10])
    fails(tmp_path / "d", cache, damaged.name)


@pytest.mark.parametrize("values, words", [
    (["https://example.org/1.png"], "a web address"), ([base64.b64encode(png()).decode()], "encoded bytes"),
    (["data:image/png;base64,iVBOR"], "encoded bytes"), (["A" * 14_000], "encoded bytes"),
])
def test_addresses_and_base64_are_no_pictures_yet(values, words, tmp_path, cache):
    path = write_table(tmp_path / "a.parquet", image=["0.png", *values], text=["a", "b"])
    fails(path, cache, "a.parquet row 1", words)


def test_file_names_in_a_table_count_from_its_folder(tmp_path, cache):
    write_pictures(tmp_path / "set" / "img")
    path = write_table(tmp_path / "set" / "a.parquet", image=["img/1.png", "img/2.png"], text=["a", "b"])
    for streaming in (False, True): assert shades(read(path, cache, streaming=streaming)[None]) == [10, 20]


@pytest.mark.parametrize("values", [[".\\img\\1.png", "img\\2.png"],
                                    [{"bytes": None, "path": "img/1.png"},
                                     {"bytes": PICTURES[2], "path": "x"}]])
def test_a_path_in_a_table_never_counts_from_where_we_are(values, tmp_path, cache, monkeypatch):
    write_pictures(tmp_path / "set" / "img")
    (tmp_path / "here" / "img").mkdir(parents=True)
    (tmp_path / "here" / "img" / "1.png").write_bytes(PICTURES[5])
    monkeypatch.chdir(tmp_path / "here")
    path = write_table(tmp_path / "set" / "a.parquet", image=values, text=["a", "b"])
    for streaming in (False, True): assert shades(read(path, cache, streaming=streaming)[None]) == [10, 20]


def test_one_column_is_not_both(tmp_path, cache):
    fails(write_table(tmp_path / "a.parquet"), cache, "both 'text'", "image, text", image_column="text")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123\n"


def test_files_that_git_has_not_fetched_are_named(tmp_path, cache):
    for name in ["train-00000-of-00001.parquet", "a.tar", "b.arrow"]:
        (tmp_path / name).write_bytes(POINTER)
        fails(tmp_path / name, cache, name, "git lfs pull")
    with pytest.raises(ValueError, match="git lfs pull"): open_picture({"bytes": POINTER, "path": None})


def test_a_picture_in_an_archive_of_the_hub_is_read(tmp_path, cache):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file: file.writestr("0.png", PICTURES[3])
    image = {"bytes": None, "path": f"zip://0.png::{tmp_path}/a.zip"}   # as it comes from `datasets`
    row = read(write_table(tmp_path / "a.parquet", image=[image], text=["a"]), cache)[None][0]
    assert prepare_picture(row["image"], 8)["digest"] == hashlib.sha256(PICTURES[3]).hexdigest()


def test_a_pipe_is_not_waited_for(tmp_path, cache):
    os.mkfifo(tmp_path / "pipe")
    write_pictures(tmp_path / "set", {"0.txt": "a fox"})
    (tmp_path / "set" / "9.png").symlink_to(tmp_path / "pipe")
    images = [row["image"] for row in read(tmp_path / "set", cache)[None]]
    assert [prepare_picture(image, 8)["fault"] for image in images] == [""] * 6 + ["it is a device or a pipe"]
    (tmp_path / "set" / "1.txt").symlink_to(tmp_path / "pipe")
    fails(tmp_path / "set", cache, "1.txt", "pipe")


def test_files_that_do_not_fit_together_say_so(tmp_path, cache):
    write_table(tmp_path / "a" / "1.parquet")
    write_table(tmp_path / "a" / "2.parquet", image=PICTURES, label=WORDS)
    fails(tmp_path / "a", cache, "columns differ", "pattern")
    with tarfile.open(tar(tmp_path / "b.tar"), "a") as file: file.addfile(tarfile.TarInfo("late.png"))
    assert len(captions(tmp_path / "b.tar", cache)) == 7
    with tarfile.open(tmp_path / "c.tar", "w") as file:
        for name in ["1.png", "1.txt", "2.jpg", "2.txt"]: file.addfile(tarfile.TarInfo(name))
    fails(tmp_path / "c.tar", cache, "c.tar", "1.jpg and 1.txt")
    with tarfile.open(tmp_path / "d.tar", "w") as file:
        for name, data in [("1.png", PICTURES[0]), ("1.txt", b"caf\xe9")]:
            note = tarfile.TarInfo(name)
            note.size = len(data)
            file.addfile(note, io.BytesIO(data))
    fails(tmp_path / "d.tar", cache, "d.tar", "utf-8", encoding="latin-1")


def test_other_columns_are_no_pictures(tmp_path, cache):
    for number, value in enumerate([1, [PICTURES[0]], {"pixels": [1, 2]}]):
        path = write_table(tmp_path / f"{number}.parquet", image=[value], text=["a fox"])
        fails(path, cache, f"{number}.parquet", "'image'", "no pictures", "data.image_column")


def test_a_stream_goes_on_where_it_stopped(tmp_path, cache):
    for coat in ["shards", "texts"]:
        table = read(COATS[coat](tmp_path), cache, streaming=True)[None]
        rows = iter(table)
        first = [next(rows)["name"] for _ in range(4)]
        state = table.state_dict()
        again = read(tmp_path / ("naruto" if coat == "shards" else coat), cache, streaming=True)[None]
        again.load_state_dict(state)
        assert len({*first, *(row["name"] for row in again)}) == 6 and len(list(again)) in (2, 6)


# Pictures of every kind

RAMP = np.tile(np.linspace(0, 1, 32), (32, 1))


@pytest.mark.parametrize("values", [RAMP.astype(np.float32), (RAMP * 255).astype(np.float32),
                                    (RAMP * 65535).astype(np.int32), (RAMP * 65535).astype(np.uint16),
                                    (RAMP * 255).astype(np.int32), (RAMP * 65535).astype(np.float32)])
def test_grey_pictures_are_scaled_by_their_range(values, tmp_path):
    Image.fromarray(values).save(tmp_path / "a.tif")
    square = np.asarray(to_square(Image.open(tmp_path / "a.tif"), 32)).astype(int)
    assert abs(square - (RAMP[..., None] * 255)).max() <= 1.5


@pytest.mark.parametrize("values", [RAMP - 0.5, RAMP * 1e6, np.where(RAMP > 0.5, np.nan, RAMP)])
def test_grey_pictures_of_no_known_range_are_refused(values, tmp_path):
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(VQGenError, match="a.tif.*its values go from"): read_picture(tmp_path / "a.tif", 16)


def test_colours_palettes_and_slivers_come_out_as_they_look(tmp_path):
    red = Image.new("RGB", (20, 20), (200, 0, 0))
    for name in ["a.jpg", "b.tif"]: red.convert("CMYK").save(tmp_path / name)
    for name in ["a.jpg", "b.tif"]:
        assert abs(np.asarray(to_square(Image.open(tmp_path / name), 8)).astype(int) - [200, 0, 0]).max() < 6
    half = Image.new("RGBA", (20, 20), (200, 0, 0, 255))
    half.paste((0, 0, 0, 0), (0, 0, 10, 20))
    half.quantize(4).save(tmp_path / "c.png")
    half.save(tmp_path / "d.webp", lossless=True)
    for name in ["c.png", "d.webp"]:
        square = to_square(Image.open(tmp_path / name), 20)
        assert square.getpixel((1, 1)) == (255, 255, 255) and square.getpixel((18, 1))[0] in range(195, 206)
    red.save(tmp_path / "e.gif", save_all=True, append_images=[Image.new("RGB", (20, 20), "blue")])
    assert to_square(Image.open(tmp_path / "e.gif"), 8).getpixel((4, 4))[0] > 190
    for size in [(1, 1), (1, 300), (300, 1)]:
        assert to_square(Image.new("RGB", size, "red"), 8).getcolors() == [(64, (255, 0, 0))]


def test_a_picture_that_can_not_be_read_says_why(tmp_path):
    def refused(name, *words):
        with pytest.raises(VQGenError) as fault: read_picture(tmp_path / name, 8)
        assert all(word in str(fault.value) for word in [name, *words]), fault.value
        assert len(str(fault.value).replace(str(tmp_path), "")) < 240
    whole = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(whole, "JPEG")
    (tmp_path / "half.jpg").write_bytes(whole.getvalue()[:1000])
    (tmp_path / "vector.png").write_text("<svg></svg>")
    (tmp_path / "program.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n")
    (tmp_path / "folder").mkdir()
    bomb = bytearray(png())
    bomb[16:24] = struct.pack(">II", 20_000, 20_000)   # what its header says of width and height
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    (tmp_path / "bomb.png").write_bytes(bomb)
    refused("half.jpg", "runcated")
    refused("vector.png", "no picture that Pillow knows")
    refused("program.png", "no picture that Pillow knows")   # never handed to another program
    refused("bomb.png", "million pixels")
    refused("folder", "folder")
    refused("gone.png", "no such file")
