"Splits that do not leak, true captions, a cache that can't be poisoned, and errors that name the thing."
import io
import json
import multiprocessing
import os
import random
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageColor

from vqgen.config import DataConfig
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
from vqgen.data.emoji import base_of, emoji_examples
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


# Emoji

def test_emoji_variants_stay_in_one_split_and_drawings_differ():
    bases, drawings = {"train": set(), "validation": set()}, []
    for split, picture, caption, attributes in emoji_examples(0.1):
        bases[split].add(base_of(attributes["code_points"]))
        drawings.append(picture.tobytes())
        assert caption == caption.lower() and attributes["category"] not in ("Flags", "Symbols")
    assert not bases["train"] & bases["validation"]
    assert len(drawings) == len(set(drawings)) > 1300


# The cache

def test_same_config_same_fingerprint_same_bytes(tmp_path, monkeypatch):
    config = DataConfig(count=60)
    first = {path.name: path.read_bytes() for path in build_data(config).iterdir()}
    monkeypatch.setenv("VQGEN_CACHE", str(tmp_path / "elsewhere"))
    assert {path.name: path.read_bytes() for path in build_data(config).iterdir()} == first
    assert sorted(first) == ["train.parquet", "validation.parquet"]


@pytest.mark.parametrize("change", [{"count": 61}, {"image_size": 64}, {"validation_fraction": 0.2},
                                    {"source": "emoji"}, {"style": "voxel-art"}])
def test_another_config_has_another_fingerprint(change):
    assert data_fingerprint(DataConfig(**{"count": 60, **change})) != data_fingerprint(DataConfig(count=60))


def test_what_does_not_shape_the_pictures_does_not_rebuild_them():
    assert data_fingerprint(DataConfig(flip=True, image_column="picture")) == data_fingerprint(DataConfig())


def test_a_changed_file_is_read_again(tmp_path):
    config = write_table(tmp_path / "a.parquet")
    assert len(load_data(config)) == 18
    write_table(tmp_path / "a.parquet", count=40)
    assert len(load_data(config)) == 36


def test_a_second_load_builds_nothing(monkeypatch):
    load_data(DataConfig(count=60))
    monkeypatch.setattr(pq, "write_table", lambda *arguments: pytest.fail("built again"))
    load_data(DataConfig(count=60), "validation")


def test_an_interrupted_build_does_not_poison_the_cache(monkeypatch):
    config, write = DataConfig(count=60), pq.write_table

    def die_half_way(table, path):
        write(table, path)
        with open(path, "r+b") as file: file.truncate(100)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", die_half_way)
        with pytest.raises(KeyboardInterrupt): build_data(config)
    folder = next((cache_dir() / "data").iterdir())
    assert not list(folder.iterdir())
    (folder / ".train.parquet.1").write_bytes(b"half")   # what a killed process would leave
    assert len(load_data(config)) + len(load_data(config, "validation")) == 60


def test_a_damaged_cache_file_is_named():
    path = build_data(DataConfig(count=60)) / "train.parquet"
    path.write_bytes(b"nonsense")
    fails(DataConfig(count=60), path, "delete")


def build_in(cache):
    os.environ["VQGEN_CACHE"] = cache
    return len(load_data(DataConfig(count=60)))


@pytest.mark.slow
def test_two_processes_may_build_at_once(cache):
    with multiprocessing.get_context("spawn").Pool(2) as pool: sizes = pool.map(build_in, [str(cache)] * 4)
    assert len(set(sizes)) == 1 and not list(cache.rglob(".*"))


def test_the_cache_is_a_table_that_datasets_shows_as_pictures(tmp_path):
    datasets = pytest.importorskip("datasets")
    path = build_data(DataConfig(count=60)) / "train.parquet"
    cache = str(tmp_path / "hf")
    row = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=cache)[0]
    assert row["image"].size == (32, 32) and row["caption"] and "stated" in json.loads(row["attributes"])


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

def test_parquet_folder_and_saved_set_give_the_same(tmp_path):
    import datasets
    pictures, words = [png((10 * i, 5, 5)) for i in range(20)], [f"shade {i}" for i in range(20)]
    table = write_table(tmp_path / "a.parquet", image=pictures, text=words)
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    names = [f"sub/{i:02}.png" for i in range(20)]
    for name, picture in zip(names, pictures): (folder / name).write_bytes(picture)
    listed = [json.dumps({"file_name": name, "text": word}) for name, word in zip(names, words)]
    expected = load_data(table)

    def check(source):
        found = load_data(table.model_copy(update={"source": str(source)}))
        assert found.captions == expected.captions and torch.equal(found.pixels, expected.pixels), source

    for name, word in zip(names, words): (folder / name).with_suffix(".txt").write_text(word + "\n")
    check(folder)
    for path in folder.rglob("*.txt"): path.unlink()
    (folder / "metadata.jsonl").write_text("\n".join([*listed, ""]))
    check(folder)
    (folder / "metadata.jsonl").unlink()
    lines = [f"{name},{word}" for name, word in zip(names, words)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,text", *lines, ""]))
    check(folder)
    rows = {"image": [{"bytes": picture, "path": None} for picture in pictures], "text": words}
    features = datasets.Features(image=datasets.Image(), text=datasets.Value("string"))
    saved = datasets.Dataset.from_dict(rows, features=features)
    saved.save_to_disk(str(tmp_path / "saved"))
    check(tmp_path / "saved")


def test_a_source_keeps_its_own_splits(tmp_path):
    for split, count in [("train", 6), ("test", 2)]:
        (tmp_path / "set" / split).mkdir(parents=True)
        for i in range(count):
            (tmp_path / "set" / split / f"{i}.png").write_bytes(png())
            (tmp_path / "set" / split / f"{i}.txt").write_text(f"{split} {i}")
    config = DataConfig(source=str(tmp_path / "set"))
    assert load_data(config, "validation").captions == ["test 0", "test 1"] and len(load_data(config)) == 6


def test_equal_captions_stay_on_one_side(tmp_path):
    words = ["A fox ", "a fox", "a  hen", "an owl", "a cat"] * 12
    config = write_table(tmp_path / "a.parquet", image=[png()] * 60, text=words)
    splits = [load_data(config, split).captions for split in ("train", "validation")]
    sides = [{caption.lower() for caption in captions} for captions in splits]
    assert not sides[0] & sides[1] and sides[0] | sides[1] == {"a fox", "a hen", "an owl", "a cat"}


def test_a_hub_set_is_asked_for_by_name(tmp_path, monkeypatch):
    import datasets
    rows = {"picture": [{"bytes": png(), "path": None}] * 20, "words": [f"shade {i}" for i in range(20)]}
    features = datasets.Features(picture=datasets.Image(), words=datasets.Value("string"))
    table = datasets.Dataset.from_dict(rows, features=features)
    known = {"who/what": datasets.DatasetDict(train=table)}
    monkeypatch.setattr(datasets, "load_dataset", known.__getitem__)
    assert len(load_data(DataConfig(source="who/what", image_column="picture", caption_column="words"))) == 18
    config = DataConfig(source="who/what", caption_column="words")
    fails(config, "who/what", "'image'", "data.image_column", "picture, words")


# Errors

def test_no_network_or_unknown_name(monkeypatch):
    import datasets

    def unreachable(name): raise ConnectionError("Couldn't reach 'who/nobody' on the Hub")
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    fails(DataConfig(source="who/nobody"), "who/nobody", "Couldn't reach", "network")
    fails(DataConfig(source="avatar"), "'avatar'", "avatars, emoji")


def test_bad_sources_are_named(tmp_path):
    fails(DataConfig(source=str(tmp_path / "nowhere")), tmp_path / "nowhere", "no such file or folder")
    fails(DataConfig(source="nothing.parquet"), "nothing.parquet", "no such file or folder")
    (tmp_path / "empty").mkdir()
    fails(DataConfig(source=str(tmp_path / "empty")), tmp_path / "empty", "metadata.jsonl", ".txt")
    (tmp_path / "notes.txt").write_text("not a table")
    fails(DataConfig(source=str(tmp_path / "notes.txt")), "notes.txt", "not a parquet file")
    fails(write_table(tmp_path / "none.parquet", image=[], text=[]), "none.parquet", "empty")
    (tmp_path / "empty" / "metadata.jsonl").write_text('{"file_name": "a.png", "words": "a fox"}')
    fails(DataConfig(source=str(tmp_path / "empty")), "metadata.jsonl", "'text'", "file_name, words")
    (tmp_path / "empty" / "metadata.jsonl").write_text('{"file_name": "a.png"')
    fails(DataConfig(source=str(tmp_path / "empty")), "metadata.jsonl", "can't be read")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "dataset_info.json").write_text("{}")
    fails(DataConfig(source=str(tmp_path / "half")), tmp_path / "half")
    with pytest.raises(VQGenError, match="tset.*train or validation"): load_data(DataConfig(count=60), "tset")


def test_missing_column_names_those_that_exist(tmp_path):
    config = write_table(tmp_path / "a.parquet", image=[png()] * 20, caption=["a fox"] * 20)
    fails(config, "a.parquet", "'text'", "data.caption_column", "image, caption")


def test_too_little_for_two_splits(tmp_path):
    config = write_table(tmp_path / "a.parquet", image=[png()] * 5, text=["a fox"] * 5)
    fails(config, "a.parquet", "train", "validation_fraction")


def test_a_few_unreadable_pictures_are_skipped_and_named_many_are_an_error(tmp_path):
    pictures, words = [png((i, 0, 0)) for i in range(200)], [f"shade {i}" for i in range(200)]
    pictures[17] = pictures[17][:40]
    config = write_table(tmp_path / "a.parquet", image=pictures, text=words)
    with pytest.warns(UserWarning, match="1 of 200 .*example 17"): data = load_data(config)
    assert len(data) + len(load_data(config, "validation")) == 199
    pictures[3], words[5] = b"not a picture", "  "
    config = write_table(tmp_path / "b.parquet", image=pictures, text=words)
    fails(config, "3 of 200", "b.parquet", "example 3", "no caption")


def test_a_picture_missing_from_a_folder_is_named(tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name,text\ngone.png,a fox\n")
    fails(DataConfig(source=str(tmp_path)), "gone.png")
