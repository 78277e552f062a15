"Splits that do not leak, true captions, a cache that can't be poisoned, and errors that name the thing."
import io
import itertools
import json
import multiprocessing
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageColor

from vqgen import cli
from vqgen.config import DataConfig, TrainConfig
from vqgen.data import datasets as built
from vqgen.data import mapped
from vqgen.data.avatars import (
    ATTRIBUTES,
    HELD_OUT,
    avatar_examples,
    caption_of,
    held_out_triples,
    make_avatar,
    sample_attributes,
)
from vqgen.data.datasets import (
    CaptionedImages,
    build_data,
    cache_dir,
    data_fingerprint,
    load_data,
    to_square,
)
from vqgen.data.report import _sheet_rows, contact_sheet, describe_data
from vqgen.data.styles import (
    color_name,
    describe_style,
    draw_style,
    held_out_looks,
    open_styles,
    style_attributes,
    style_examples,
)
from vqgen.errors import VQGenError
from vqgen.training.batches import batches


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VQGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    return tmp_path / "cache"


def png(color=(200, 30, 30), size=(40, 40)):
    "The bytes of a plain picture."
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return file.getvalue()


def write_table(path, count=20, **columns):
    shades = [png((10 * i, 0, 0)) for i in range(count)]
    columns = columns or {"image": shades, "text": [f"shade {i}" for i in range(count)]}
    pq.write_table(pa.table(columns), path)
    return DataConfig(source=str(path), image_size=16)


def fails(config, *words):
    "`load_data` raises one `VQGenError` with all of `words` in its message."
    with pytest.raises(VQGenError) as error: load_data(config)
    for word in words: assert str(word) in str(error.value), f"{word!r} not in: {error.value}"


# Avatars

def read_caption(caption):
    "What a caption states, found again by a reader who knows English but not the code that wrote it."
    values = {name: "|".join(options) for name, options in ATTRIBUTES.items()}
    patterns = {
        "skin": rf"\b({values['skin']}) skin\b", "mouth": rf"\b({values['mouth']}) mouth\b",
        "clothes": rf"\b({values['clothes']}) clothes\b",
        "background": rf"\b({values['background']}) background\b",
        "hat": rf"\b({values['hat'].replace('none', 'no')}) hat\b",
        "eyewear": r"\b(no glasses|sunglasses|glasses)\b",
        "hair_style": r"\b(long|short|curly)\b(?: \w+)? hair\b|\b(mohawk|pigtails)\b",
        "hair_color": rf"\b({values['hair_color']}) (?:hair|mohawk|pigtails)\b",
    }
    found = {}
    for name, pattern in patterns.items():
        matches = re.findall(pattern, caption)
        assert len(matches) <= 1, f"{name} is stated twice: {caption}"
        if matches: found[name] = "".join(matches[0]).replace("no glasses", "none")
    nouns = {"hair_style hair_color": "hair|mohawk|pigtails", "eyewear": "glasses|sunglasses",
             **{name: name for name in ["skin", "mouth", "clothes", "background", "hat"]}}
    for names, noun in nouns.items():
        spoken = bool(re.search(rf"\b({noun})\b", caption))
        assert spoken == any(name in found for name in names.split()), caption
    return {name: "none" if value == "no" else value for name, value in found.items()}


def test_captions_tell_the_truth_and_nothing_unstated():
    rng = random.Random(0)
    for _ in range(2000):
        face = sample_attributes(rng)
        caption, stated = caption_of(face, rng)
        assert read_caption(caption) == {name: face[name] for name in stated}, caption
        assert len(stated) >= 3 and re.fullmatch(r"[a-z]+(,? [a-z]+)*", caption), caption


def test_every_value_occurs_and_the_rare_ones_are_rare():
    rng = random.Random(0)
    faces = [sample_attributes(rng) for _ in range(3000)]
    for name, values in ATTRIBUTES.items(): assert {face[name] for face in faces} == set(values)
    share = {name: sum(face[name] == "none" for face in faces) / len(faces) for name in ("eyewear", "hat")}
    assert 0.6 < share["eyewear"] < 0.7 and 0.7 < share["hat"] < 0.9


def test_held_out_triples_never_meet_training():
    triples = {"train": set(), "validation": set()}
    for split, _, _, attributes in avatar_examples(300, validation_fraction=0.2):
        triples[split].add(tuple(attributes[name] for name in HELD_OUT))
    assert not triples["train"] & triples["validation"]
    held = held_out_triples(0.2)
    assert triples["validation"] <= held and not triples["train"] & held and len(held) == 30
    for place, name in enumerate(HELD_OUT):
        assert {triple[place] for triple in triples["train"]} == set(ATTRIBUTES[name])


def test_held_out_triples_are_balanced_and_grow_with_the_fraction():
    assert held_out_triples(0.1) < held_out_triples(0.2)
    for place, name in enumerate(HELD_OUT):
        counts = Counter(triple[place] for triple in held_out_triples(0.1))
        assert set(counts) == set(ATTRIBUTES[name]) and max(counts.values()) - min(counts.values()) <= 1


def test_an_avatar_shows_its_background_and_is_the_same_for_the_same_seed():
    face = {**sample_attributes(random.Random(1)), "background": "yellow", "hair_style": "short"}
    assert make_avatar(face).getpixel((0, 0)) == (0xff, 0xf1, 0x8a)
    assert make_avatar(face, seed=3).tobytes() == make_avatar(face, seed=3).tobytes()
    assert len({make_avatar(face, seed=seed).tobytes() for seed in range(8)}) > 4
    with pytest.raises(VQGenError, match="skin.*'purple'.*light, tan, brown"):
        make_avatar({**face, "skin": "purple"})


# Other drawing styles

@pytest.mark.slow
def test_every_open_style_draws_captions_and_fills_both_splits():
    styles = open_styles()
    assert len(styles) == 56
    assert {"lorelei", "voxel-art", "critters", "sprouts", "planets", "clay"} <= set(styles)
    for style in styles:
        names, held_out = held_out_looks(style)
        drawn = (draw_style(style, number, 8)[2] for number in range(10))
        looks = (tuple(attributes.get(name) for name in names) for attributes in drawn)
        assert names and next(looks) in held_out and any(look not in held_out for look in looks), style
        split, picture, caption, attributes = next(style_examples(1, 32, style))
        assert split == "validation" and picture.size == (32, 32) and attributes["stated"], style
        assert re.fullmatch(r"[a-z]+(,? [a-z]+)*", caption), (style, caption)
        known = style_attributes(style)
        assert all(attributes[name] in known[name] for name in known.keys() & attributes.keys()), style


def words_of(name, value):
    "The words in which a caption says the attribute `name`, and those that name it."
    said = set() if value in ("none", "yes") else set(value.split())
    return said, set(re.sub("([A-Z])", r" \1", name.removesuffix("Color")).lower().split())


def is_shown(style, number, picture, name, value, parts):
    "Whether a drawing of 64 x 64 pixels shows what is stated: its colour, its part, or that there is none."
    if name.endswith("Color"):
        return (np.asarray(picture) == ImageColor.getrgb(parts[name][0])).all(-1).any()
    if value == "none": return f"{name}Variant" not in parts
    return draw_style(style, number, 64, **{f"{name}Probability": 0})[0].tobytes() != picture.tobytes()


@pytest.mark.parametrize("style", ["voxel-art", "critters", "toon-head", "big-smile"])
def test_style_captions_tell_the_truth_and_nothing_unstated(style):
    for number, (_, picture, caption, attributes) in enumerate(style_examples(12, 64, style)):
        stated, parts = attributes["stated"], attributes["parts"]
        assert len(stated) >= 3 and len(set(stated)) == len(stated)
        words = set(re.findall(r"[a-z]+", caption))
        known = {*style.split("-"), *"a an no with on and drawing picture hair skin hat".split()}
        for name in stated:
            said, part = words_of(name, attributes[name])
            assert said <= words | part, (caption, name, attributes[name])
            known |= said | part
            assert is_shown(style, number, picture, name, attributes[name], parts), (caption, name)
        assert words <= known, (caption, words - known)


def test_what_a_mask_or_a_missing_hat_hides_is_not_said():
    faces = [attributes for *_, attributes in style_examples(60, 32, "big-smile")]
    masked = [attributes for attributes in faces if attributes["accessories"] == "face mask"]
    assert len(masked) >= 2 and not any("mouth" in attributes["stated"] for attributes in masked)
    for *_, attributes in style_examples(40, 64, "voxel-art"):
        hatted = attributes["top"] in ("cap", "beanie", "animal ears", "bunny ears")
        assert ("hatColor" in attributes) == hatted and ("hatColor" not in attributes["stated"] or hatted)


def test_a_style_is_split_by_combinations_alike_at_any_size_and_count():
    config = DataConfig(style="voxel-art", count=60, validation_fraction=0.2)
    names, held_out = held_out_looks("voxel-art", 0.2)
    assert len(names) == 3 and held_out_looks("voxel-art", 0.1)[1] < held_out
    for split in ["train", "validation"]:
        faces = load_data(config, split).attributes
        looks = {tuple(attributes[name] for name in names) for attributes in faces}
        assert looks and (looks <= held_out if split == "validation" else not looks & held_out)
    assert len(load_data(DataConfig(style="critters", count=10), "validation")) >= 1
    few, many = list(style_examples(5, 32, "critters")), list(style_examples(9, 96, "critters"))

    def known(examples):
        "Splits and attributes, but for what is stated, which depends on what can be seen."
        return [(split, {**attributes, "stated": None}) for split, _, _, attributes in examples]
    assert known(few) == known(many[:5])


HASH = """
import hashlib
from vqgen.data.styles import style_examples
examples = [(split, picture.tobytes(), *rest) for split, picture, *rest in style_examples(6, 32, 'toon-head')]
print(hashlib.sha256(repr(examples).encode()).hexdigest())
"""


def test_a_style_is_the_same_in_every_process():
    def run(seed):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        return subprocess.run([sys.executable, "-c", HASH], env=environment, check=True, capture_output=True,
                              text=True, timeout=120).stdout
    assert run("1") == run("2") != ""


def test_a_style_that_may_not_be_drawn_is_refused():
    fails(DataConfig(style="voxelart"), "'voxelart'", "did you mean 'voxel-art'?")
    licence = "'Free for personal and commercial use'"
    fails(DataConfig(style="bottts"), "'bottts'", licence, "choose one of", "lorelei")
    fails(DataConfig(style="../voxel-art/x"), "no DiceBear style")
    with pytest.raises(VQGenError) as error: describe_style("icons")
    message = str(error.value)
    assert "'MIT'" in message and "avataaars" not in message and "\n" not in message


def test_colours_go_by_everyday_names():
    names = {"#000000": "black", "#ffffff": "white", "#808080": "grey", "#de0f0d": "red", "#f76707": "orange",
             "#ffd43b": "yellow", "#40c057": "green", "#14b8a6": "teal", "#228be6": "blue",
             "#a06fb8": "purple", "#f472b6": "pink", "#8d5524": "brown", "#5a3825": "brown",
             "#cb9e6e": "tan", "#f5d0b0": "beige",
             "#172554": "dark blue", "#fda4af": "pink", "#ff9d9d": "pink"}
    assert {shade: color_name(shade) for shade in names} == names


# The cache

def test_same_config_same_fingerprint_same_bytes(tmp_path, monkeypatch):
    config = DataConfig(count=60)
    first = {path.name: path.read_bytes() for path in build_data(config).iterdir()}
    monkeypatch.setenv("VQGEN_CACHE", str(tmp_path / "elsewhere"))
    assert {path.name: path.read_bytes() for path in build_data(config).iterdir()} == first
    assert sorted(first) == ["facts.json", "pictures.arrow", "train.npy", "validation.npy"]


@pytest.mark.parametrize("change", [{"count": 61}, {"image_size": 64}, {"validation_fraction": 0.2},
                                    {"source": "emoji"}, {"source": "twemoji"}, {"style": "voxel-art"}])
def test_another_config_has_another_fingerprint(change):
    assert data_fingerprint(DataConfig(**{"count": 60, **change})) != data_fingerprint(DataConfig(count=60))


def test_what_does_not_shape_the_pictures_does_not_rebuild_them():
    assert data_fingerprint(DataConfig(flip=True, image_column="picture")) == data_fingerprint(DataConfig())


def test_a_changed_file_is_read_again(tmp_path):
    config = write_table(tmp_path / "a.parquet")
    assert len(load_data(config)) == 18
    write_table(tmp_path / "a.parquet", count=40)
    assert len(load_data(config)) == 36


def test_a_second_load_builds_nothing(tmp_path, monkeypatch):
    table = write_table(tmp_path / "a.parquet")
    for config in [DataConfig(count=60), table]: load_data(config)
    for name in ["read_source", "write_rows"]:
        monkeypatch.setattr(built, name, lambda *arguments: pytest.fail("built again"))
    for config in [DataConfig(count=60), table]: load_data(config, "validation")


def test_an_interrupted_build_does_not_poison_the_cache(monkeypatch):
    config, write = DataConfig(count=60), built.write_rows

    def die_half_way(rows, path, size):
        write(rows, path, size)
        with open(path, "r+b") as file: file.truncate(100)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(built, "write_rows", die_half_way)
        with pytest.raises(KeyboardInterrupt): build_data(config)
    pictures = cache_dir() / "pictures"
    assert not [path for path in pictures.iterdir() if path.is_dir()]
    name = build_data(config).name
    (pictures / f".{name}.1").mkdir()   # what a killed process would leave
    (pictures / name / "facts.json").unlink()
    assert len(load_data(config)) + len(load_data(config, "validation")) == 60
    assert [path.name for path in pictures.iterdir()] == [name]


@pytest.mark.parametrize("damage", [b"", b"nonsense", 100, -100])
@pytest.mark.parametrize("name", ["pictures.arrow", "train.npy", "facts.json"])
def test_a_damaged_cache_file_is_named(name, damage):
    path = build_data(DataConfig(count=20)) / name
    data = path.read_bytes()
    path.write_bytes(data[:damage] if isinstance(damage, int) else damage)
    fails(DataConfig(count=20), path.parent, "delete")


def build_in(cache):
    os.environ["VQGEN_CACHE"] = cache
    return len(load_data(DataConfig(count=60)))


@pytest.mark.slow
def test_two_processes_may_build_at_once(cache):
    with multiprocessing.get_context("spawn").Pool(2) as pool: sizes = pool.map(build_in, [str(cache)] * 4)
    assert len(set(sizes)) == 1 and not list(cache.rglob(".*"))


def test_the_cache_is_a_data_set_of_datasets():
    path = build_data(DataConfig(count=60)) / "pictures.arrow"
    row = datasets.Dataset.from_file(str(path))[0]
    assert len(row["pixels"]) == 3 * 32 * 32 and row["captions"][0]
    assert "stated" in json.loads(row["attributes"])


def test_what_does_not_fit_memory_is_read_from_the_map_and_is_the_same(tmp_path, monkeypatch):
    config = write_table(tmp_path / "a.parquet").model_copy(update={"num_proc": 2})
    monkeypatch.setattr(os, "environ", os.environ)   # `datasets` leaves a copy of it in its place
    small = load_data(config)
    monkeypatch.setattr(built, "IN_MEMORY", 0)
    large = load_data(config)
    assert isinstance(large.pixels, mapped.MappedPictures) and large.captions == small.captions
    assert large.image_size == 16 and len(large) == len(small)
    order = torch.randperm(len(small))
    assert torch.equal(large.batch(order), small.batch(order))
    assert torch.equal(large[3]["images"], small[3]["images"])
    for workers in (0, 1, 0):   # what is announced and left unread does no harm to those that follow
        settings = TrainConfig(batch_size=4, num_workers=workers)
        read = [itertools.islice(batches(data, settings), 9) for data in (small, large)]
        for (_, one), (_, other) in zip(*read): assert torch.equal(one["images"], other["images"])
        if workers: assert large.pixels.ahead.begun == {}, "they read ahead themselves"
        large.pixels.ahead.begun.clear()
    assert large.batch([]).shape == (0, 3, 16, 16)
    again = pickle.loads(pickle.dumps(large))   # as processes that load data get it
    assert torch.equal(again.batch(order), small.batch(order))


def test_of_what_is_announced_the_newest_is_kept_and_read_once():
    read = []
    ahead = mapped.ReadAhead(lambda numbers: (read.append(tuple(numbers)), numbers[0])[1])
    for number in range(4): ahead.expect([number, 9])
    assert [ahead([number, 9]) for number in range(4)] == [0, 1, 2, 3]
    assert read.count((2, 9)) == read.count((3, 9)) == 1
    ahead.expect([5])
    assert pickle.loads(pickle.dumps(mapped.ReadAhead(abs)))(-5) == 5


# The fingerprint

def write_folder(folder, count=20):
    folder.mkdir()
    for i in range(count):
        (folder / f"{i:02}.png").write_bytes(png((10 * i, 0, 0)))
        (folder / f"{i:02}.txt").write_text(f"shade {i}")
    return DataConfig(source=str(folder), image_size=16)


def moved_to(config, path): return config.model_copy(update={"source": str(path)})


def test_the_fingerprint_is_of_content(tmp_path, monkeypatch):
    config = write_folder(tmp_path / "a")
    first = data_fingerprint(config)
    with monkeypatch.context() as patch:
        patch.setattr(built, "_build", lambda *arguments: pytest.fail("built again"))
        shutil.copytree(tmp_path / "a", tmp_path / "copy")
        (tmp_path / "link").symlink_to(tmp_path / "a")
        for name in ["copy", "link"]: assert data_fingerprint(moved_to(config, tmp_path / name)) == first
        (tmp_path / "copy" / "03.png").touch()
        os.utime(tmp_path / "copy" / "03.txt", (0, 0))
        scraps = [".DS_Store", "._03.png", "Thumbs.db", "notes.md"]
        for name in scraps: (tmp_path / "copy" / name).write_bytes(b"x")
        assert data_fingerprint(moved_to(config, tmp_path / "copy")) == first
    (tmp_path / "a" / "03.txt").write_text("another shade")
    changed = data_fingerprint(config)
    (tmp_path / "copy" / "03.png").write_bytes(png((1, 2, 3)))
    assert len({first, changed, data_fingerprint(moved_to(config, tmp_path / "copy"))}) == 3
    shutil.rmtree(cache_dir())   # as on a new machine
    assert data_fingerprint(config) == changed


def test_one_set_in_every_coat_has_one_fingerprint(tmp_path):
    config = write_table(tmp_path / "a.parquet")
    table = datasets.load_dataset("parquet", data_files=config.source, split="train")
    table.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes())
    write_folder(tmp_path / "folder")
    coats = ["a.parquet", "b.parquet", "saved", "folder"]
    assert len({data_fingerprint(moved_to(config, tmp_path / name)) for name in coats}) == 1
    others = [{"image_size": 24}, {"validation_fraction": 0.2}]
    assert len({data_fingerprint(config.model_copy(update=change)) for change in [{}, *others]}) == 3


def test_pictures_that_a_table_names_belong_to_it(tmp_path):
    write_folder(tmp_path / "a")
    names = [f"{i:02}.png" for i in range(20)]
    config = write_table(tmp_path / "a" / "t.parquet", image=names, text=[f"shade {i}" for i in range(20)])
    first = data_fingerprint(config)
    (tmp_path / "a").rename(tmp_path / "b")
    config = moved_to(config, tmp_path / "b" / "t.parquet")
    assert data_fingerprint(config) == first
    (tmp_path / "b" / "07.png").write_bytes(png((1, 2, 3)))
    assert data_fingerprint(config) != first


def test_a_set_of_the_hub_needs_no_network_once_it_is_built(tmp_path, monkeypatch):
    pictures = [{"bytes": png((i, 0, 0)), "path": None} for i in range(20)]
    rows = {"image": pictures, "text": list(map(str, range(20)))}
    features = datasets.Features(image=datasets.Image(), text=datasets.Value("string"))
    table = datasets.Dataset.from_dict(rows, features=features)
    config = DataConfig(source="who/what", image_size=16)
    with monkeypatch.context() as patch:
        patch.setattr(datasets, "load_dataset", lambda name, **options: datasets.DatasetDict(train=table))
        assert len(load_data(config)) == 18
    monkeypatch.setattr(datasets, "load_dataset", lambda *arguments, **options: pytest.fail("network"))
    assert load_data(config, "validation").fingerprint == data_fingerprint(config)


# What a model is given

def test_images_are_squares_in_range():
    data = load_data(DataConfig(count=60, image_size=48))
    assert data[0]["images"].shape == (3, 48, 48) and data[0]["images"].dtype == torch.float32
    batch = data.batch(range(len(data)))
    assert batch.shape == (len(data), 3, 48, 48) and batch.min() >= -1 and 0.9 < batch.max() <= 1
    assert len(data.captions) == len(data.attributes) == len(data)
    assert data.image_size == 48 and data.split == "train"
    loaded = next(iter(torch.utils.data.DataLoader(data, 8)))["images"]
    assert torch.equal(loaded, data.batch(range(8)))


def test_flip_only_in_training_and_never_where_the_caption_says_left_or_right():
    captions = ["a fox", "a hand pointing left", "Rightwards arrow", "a brightly lit, upright fox",
                "left-handed"]
    pixels = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    data = CaptionedImages(pixels, captions, [{}] * 5, flip=True)
    still = data.batch(range(5))
    mirrored = torch.zeros(5, dtype=torch.bool)
    torch.manual_seed(0)
    for _ in range(40):
        for i, item in enumerate(data.__getitems__(list(range(5)))):
            same = torch.equal(item["images"], still[i])
            assert same or torch.equal(item["images"], still[i].flip(-1))
            mirrored[i] |= not same
    assert mirrored.tolist() == [True, False, False, True, False]
    assert torch.equal(data.batch(range(5)), still)
    config = DataConfig(count=60, flip=True)
    assert load_data(config).flip and not load_data(config, "validation").flip


def test_flip_follows_the_seed():
    pixels = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8)
    data = CaptionedImages(pixels, ["a fox"] * 16, [{}] * 16, flip=True)

    def images(seed):
        torch.manual_seed(seed)
        return torch.stack([item["images"] for item in data.__getitems__(list(range(16)))])
    assert torch.equal(images(1), images(1))


def test_to_square_on_every_kind_of_picture():
    noise = np.random.default_rng(0).integers(0, 256, (30, 50, 4), dtype=np.uint8)
    for mode in ["RGBA", "RGB", "L", "LA", "P", "1", "CMYK", "I;16"]:
        deep = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
        picture = deep if mode == "I;16" else Image.fromarray(noise).convert(mode)
        assert to_square(picture, 16).mode == "RGB" and to_square(picture, 16).size == (16, 16)
    assert to_square(Image.new("RGBA", (20, 20)), 10).getpixel((5, 5)) == (255, 255, 255)
    grey = Image.fromarray(np.full((20, 20), 128 * 257, np.uint16))
    assert to_square(grey, 10).getpixel((5, 5)) == (128, 128, 128)
    sideways = Image.new("RGB", (40, 20), "red")
    sideways.paste("blue", (0, 0, 20, 20))
    sideways.getexif()[0x0112] = 6   # turn by 90 degrees: the blue half is on top
    upright = to_square(sideways, 20)
    assert upright.getpixel((10, 0))[2] > 200 and upright.getpixel((10, 19))[0] > 200


# Other sources


def test_equal_captions_stay_on_one_side(tmp_path):
    words = ["A fox ", "a fox", "a  hen", "an owl", "a cat"] * 12
    config = write_table(tmp_path / "a.parquet", image=[png()] * 60, text=words)
    splits = [load_data(config, split).captions for split in ("train", "validation")]
    sides = [{caption.lower() for caption in captions} for captions in splits]
    assert not sides[0] & sides[1] and sides[0] | sides[1] == {"a fox", "a hen", "an owl", "a cat"}


# Errors


def test_another_split_is_refused():
    with pytest.raises(VQGenError, match="tset.*train or validation"): load_data(DataConfig(count=60), "tset")


def test_too_little_for_two_splits(tmp_path):
    config = write_table(tmp_path / "a.parquet", image=[png()] * 5, text=["a fox"] * 5)
    fails(config, "a.parquet", "train", "validation_fraction")


@pytest.mark.parametrize("count, limit, allowed", [(30, None, 3), (400, None, 4), (30, 0, 0), (30, 5, 5)])
def test_a_few_unreadable_pictures_are_named_many_are_an_error(tmp_path, capsys, count, limit, allowed):
    pictures = [png((i % 250, i // 250, 0)) for i in range(count)]
    for broken in [allowed, allowed + 1]:
        for i in range(broken): pictures[7 + i] = pictures[7 + i][:40]
        words = [str(i) for i in range(count)]
        config = write_table(tmp_path / f"{broken}.parquet", image=pictures, text=words)
        config = config.model_copy(update={"max_broken": limit})
        if broken > allowed:
            fails(config, f"{broken} of {count}", f"{broken}.parquet row 7", "data.max_broken")
        elif broken:
            data, said = load_data(config), capsys.readouterr().out
            assert f"{count} examples" in said and f"skipped   {broken}.parquet row 7" in said
            assert said.count("skipped") == 3 and (f"and {broken - 3} more" in said) == (broken > 3)
            assert len(data) + len(load_data(config, "validation")) == count - broken


def test_broken_pictures_count_whenever_less_are_allowed(tmp_path):
    config = write_table(tmp_path / "a.parquet", image=[png((i, 0, 0)) for i in range(19)] + [b"?"],
                         text=[str(i) for i in range(20)])
    load_data(config)
    fails(config.model_copy(update={"max_broken": 0}), "row 19", "now 0")


def test_a_picture_missing_from_a_folder_is_named(tmp_path):
    rows = [f"{i}.png,a fox" for i in range(4)]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,text", *rows]))
    fails(DataConfig(source=str(tmp_path)), "0.png", "no such file")


# Captions

def test_null_captions_are_kept_counted_and_on_both_sides(tmp_path, capsys):
    words = [None if i % 2 else f"shade {i}" for i in range(40)]
    config = write_table(tmp_path / "a.parquet", image=[png((i, 0, 0)) for i in range(40)], text=words)
    splits = [load_data(config, split).captions for split in ("train", "validation")]
    assert sum(splits, []).count("") == 20 and len(splits[1]) == 4
    assert "20 without words" in capsys.readouterr().out


def test_several_captions_are_all_kept(tmp_path):
    words = [[f"shade  {i}\n", f"a dark {i}"][:1 + i % 2] for i in range(20)]
    pictures = [png((i, 0, 0)) for i in range(20)]
    data = load_data(write_table(tmp_path / "a.parquet", image=pictures, text=words))
    for first, captions in zip(data.captions, data.caption_lists):
        number = first.removeprefix("shade ")
        assert captions == [f"shade {number}", f"a dark {number}"][:1 + int(number) % 2]


# Views

def test_crop_is_a_function_of_the_seed_and_leaves_places_alone():
    pixels = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    data = CaptionedImages(pixels, ["a fox", "an owl", "a hat at the top"], [{}] * 3, crop=0.3)
    torch.manual_seed(0)
    first, second = (torch.stack([item["images"] for item in data.__getitems__([0, 1, 2])]) for _ in range(2))
    plain = data.batch(range(3))
    assert not torch.equal(first[:2], plain[:2]) and not torch.equal(first[:2], second[:2])
    assert torch.equal(first[2], plain[2]) and first.abs().max() <= 1
    assert torch.equal(data.view([2], 1), plain[2:])                        # where none of a batch may be cut
    torch.manual_seed(0)
    assert torch.equal(torch.stack([item["images"] for item in data.__getitems__([0, 1, 2])]), first)


def test_views_are_functions_of_index_and_number():
    pixels = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    data = CaptionedImages(pixels, ["a fox"] * 8, [{}] * 8, flip=True, crop=0.2, views=3)
    plain, one, two = (data.view(range(8), number) for number in range(3))
    assert torch.equal(plain, data.batch(range(8)))
    assert not torch.equal(one, plain) and not torch.equal(one, two)
    assert torch.equal(data.view([5, 3], 1), one[[5, 3]])


def test_views_that_do_not_differ_are_refused():
    fails(DataConfig(count=20, views=2), "data.flip", "data.crop")


# The report

def test_the_report_says_what_was_found_and_the_sheet_shows_it(tmp_path, capsys):
    pictures, words = [png((i, 0, 0), (12, 30)) for i in range(39)], [f"shade {i}" for i in range(39)]
    config = write_table(tmp_path / "a.parquet", image=[*pictures, b"?"], text=[*words, "a fox"])
    report = describe_data(config)
    for words in ["40 examples", "35 train, 4 validation, by the captions' hash", "width 12; height 30",
                  "39 different", "39 smaller, enlarged", "a.parquet row 39"]: assert words in report
    assert describe_data(config) == report and not capsys.readouterr().out
    assert contact_sheet(config, 12).size[0] > 1000
    shown = [words.split()[-1] for words in _sheet_rows(load_data(config), 20)[1]]
    assert len(set(shown)) == 20 and {"0", "1"} & set(shown) and {"36", "37", "38"} & set(shown)
    (tmp_path / "moved").mkdir()
    (tmp_path / "a.parquet").rename(tmp_path / "moved" / "a.parquet")
    moved = config.model_copy(update={"source": str(tmp_path / "moved" / "a.parquet")})
    assert describe_data(moved) == report.replace(config.source, moved.source) and not capsys.readouterr().out


def report_on(folder, **options):
    "The report on the pictures in `folder`."
    return describe_data(DataConfig(source=str(folder), image_size=16, validation_fraction=0.3, **options))


def test_the_report_counts_all_captions_and_pictures_as_they_stand(tmp_path):
    pictures = [png((i, 0, 0), (12, 30)) for i in range(9)]
    words = [[f"a {i}", f"the red {i}", ""] for i in range(9)]
    config = write_table(tmp_path / "a.parquet", image=[*pictures, None], text=[*words, ["lost"]])
    report = describe_data(config)
    assert "2 to 3, median 3 words; 18 different" in report and "row 9: there is no picture" in report
    write_folder(tmp_path / "turned")
    for path in (tmp_path / "turned").glob("*.png"):
        exif = Image.Exif()
        exif[0x112] = 6
        Image.open(path).resize((40, 20)).save(path, exif=exif)
    assert "width 20; height 40" in report_on(tmp_path / "turned")


def test_the_report_says_what_it_left_out(tmp_path):
    folder = tmp_path / "own"
    write_folder(folder)
    assert "left out" not in report_on(folder)
    for name in ["phone.txt", "notes.caption"]: (folder / name).write_text("a fox")
    (folder / "phone.heic").write_bytes(b"?")
    assert "left out  texts beside no picture: 2, such as notes.caption" in report_on(folder)
    Path(os.fsdecode(os.fsencode(folder) + b"/A caf\xe9.txt")).write_text("of an old zip file")
    assert "left out  texts beside no picture: 3, such as A caf" in report_on(folder)
    rows = [f"{i:02}.png,shade {i}" for i in range(18)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,text", *rows]))
    report = report_on(folder)
    assert "pictures of no table, or of a split that is not read: 2, such as 18.png" in report
    assert "texts" not in report


def test_equal_captions_can_not_be_split(tmp_path):
    fails(write_table(tmp_path / "a.parquet", image=[png((i, 0, 0)) for i in range(9)], text=["a fox"] * 9),
          "all have one caption")


def test_the_command_says_where_the_sheet_is(tmp_path, capsys, monkeypatch):
    write_folder(tmp_path / "own")
    monkeypatch.chdir(tmp_path)
    arguments = ["vqgen", "data", "--data.source", "own", "--data.image_size", "16", "--name", "mine"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit): cli.main()
    out = capsys.readouterr().out
    assert "20 examples" in out and "runs/mine/data.png" in out
    assert Image.open("runs/mine/data.png").width > 1000
