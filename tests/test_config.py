"A fault in a config is found before training begins, and the message names it and the way out."
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from tiny import refusal

from vqgen.config import (
    BrainConfig,
    Config,
    DataConfig,
    Section,
    dump_config,
    load_config,
    parse_config,
    preset_names,
    with_absolute_paths,
)
from vqgen.errors import VQGenError

MISSPELT = {
    "naem": "name",
    "vqave": "vqvae",
    "cftnv2": "cftn_v2",
    "data.image_sise": "data.image_size",
    "data.validation_fracton": "data.validation_fraction",
    "vqvae.modle": "vqvae.model",
    "vqvae.model.codebok_size": "vqvae.model.codebook_size",
    "vqvae.train.learningrate": "vqvae.train.learning_rate",
    "cftn_v2.stage1.caption_wieght": "cftn_v2.stage1.caption_weight",
    "cftn_v2.model.with": "cftn_v2.model.width",
    "classifier.train.step": "classifier.train.steps",
    "tracking.mod": "tracking.mode",
}


def nested(key, value):
    "The dict tree with `value` at the dotted `key`."
    for part in reversed(key.split(".")): value = {part: value}
    return value


def keys(model=Config, prefix=""):
    "Every dotted key of the config, sections included, with its default."
    for name, field in model.model_fields.items():
        yield prefix + name, field.default
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from keys(field.annotation, f"{prefix}{name}.")


@pytest.mark.parametrize("wrong, right", MISSPELT.items())
def test_misspelt_key_names_the_right_one(tmp_path, wrong, right):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(nested(wrong, 1)), "utf-8")
    for said in (refusal(load_config, path), refusal(load_config, "avatars", {wrong: "1"})):
        assert f"unknown key {wrong!r}; did you mean {right!r}?" in said
    assert str(path) in refusal(load_config, path)


SLIPS = {"last letter lost": lambda name: name[:-1], "first letter lost": lambda name: name[1:],
         "one letter more": lambda name: name + "s",
         "two letters swapped": lambda name: name[:1] + name[2:3] + name[1:2] + name[3:]}


@pytest.mark.parametrize("slip", SLIPS.values(), ids=SLIPS)
def test_every_key_is_found_again_after_a_slip(slip):
    known = dict(keys())
    assert len(known) > 60
    for key in known:
        parents, _, name = key.rpartition(".")
        wrong = f"{parents}.{slip(name)}".lstrip(".")
        if wrong in known: continue                            # another key
        if slip(name) == "stage": continue                     # as near to stage1 as to stage2
        assert f"did you mean {key!r}?" in refusal(parse_config, nested(wrong, 1))


def test_a_file_of_an_earlier_version_is_read_where_it_means_the_same():
    tree = {"cftn": {"model": {"neighbours": False}}, "cftn_v2": {"model": {"neighbours": False}}}
    assert parse_config(tree) == parse_config({})
    assert "use that one" in refusal(parse_config, nested("cftn_v2.model.neighbours", True))
    assert "unknown key" in refusal(parse_config, nested("lstm.model.neighbours", False))


def test_all_faults_are_named_at_once():
    tree = {"data": {"coutn": 3, "image_size": 2}, "vqvae": {"train": {"steps": 0}}, "sead": 1}
    said = refusal(parse_config, tree)
    for part in ("'data.count'", "data.image_size", "vqvae.train.steps", "'seed'"): assert part in said


def test_key_like_nothing_known_gets_no_guess():
    said = refusal(parse_config, {"zzzzzz": 1})
    assert "'zzzzzz'" in said and "did you mean" not in said


@pytest.mark.parametrize("key, value, limit", [
    ("vqvae.train.steps", "many", "integer"), ("vqvae.train.steps", 0, "1"),
    ("vqvae.train.steps", 2.5, "integer"), ("classifier.train.steps", 0, "1"),
    ("data.image_size", 4, "8"), ("data.count", -3, "10"), ("data.validation_fraction", 1.5, "1"),
    ("data.flip", "perhaps", "boolean"), ("data.source", ["a"], "string"),
    ("vqvae.model.downsample", 3, "2, 4, 8 or 16"), ("vqvae.train.learning_rate", 0, "0"),
    ("vqvae.train.learning_rate", float("nan"), ""), ("vqvae.train.learning_rate", float("inf"), ""),
    ("vqvae.train.precision", "fp8", "'bf16'"), ("tracking.mode", "onlin", "'online'"),
    ("cftn_v2.model.dropout", 1, "1"), ("cftn_v2.stage1.gate_learning_rate", -1, "0"),
    ("cftn_v2.stage2.full_mask_share", 2, "1"), ("cftn_v2.stage1", [1], ""),
    ("name", "a/b", ""), ("name", "..", ""), ("seed", -1, "0"), ("seed", 2**32, str(2**32)),
    ("vqvae.train.batch_size", 10**20, str(2**20)), ("data", "avatars", ""), ("vqvae.train", None, ""),
])
def test_wrong_types_and_ranges(key, value, limit):
    said = refusal(parse_config, nested(key, value))
    assert key in said and limit in said, said


@pytest.mark.parametrize("override", ["8", 8, " 8 "])
def test_overrides_are_read_as_yaml(override):
    assert load_config("avatars", {"vqvae.train.batch_size": override}).vqvae.train.batch_size == 8


@pytest.mark.parametrize("key, text, value", [
    ("vqvae.train.learning_rate", "1e-3", 1e-3), ("data.flip", "true", True),
    ("cftn_v2.stage1.gate_learning_rate", "null", None), ("classifier.train.steps", "7", 7),
    ("cftn-v2.model.bridge-ratio", "0.5", 0.5), ("name", "over.night-2", "over.night-2"),
    ("tracking.mode", "off", "off"), ("data.style", "no", "no"),   # YAML 1.1 reads both words as false
])
def test_overrides_a_user_would_type(key, text, value):
    config = load_config("avatars", {key: text})
    for part in key.replace("-", "_").split("."): config = getattr(config, part)
    assert config == value and type(config) is type(value)


def test_words_that_yaml_takes_for_booleans(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("tracking: {mode: off}\ndata: {flip: yes}\n", "utf-8")
    config = load_config(path)
    assert (config.tracking.mode, config.vqvae.train.precision, config.data.flip) == ("off", "auto", True)


@pytest.mark.parametrize("key", ["name", "data.source", "data.style", "text.tokenizer", "tracking.project"])
@pytest.mark.parametrize("text", ["2024", "1e3", "no", "true", "null", "010", "1:30", "2024-11-26"])
def test_a_string_is_taken_as_it_is_typed(tmp_path, key, text):
    "On the command line, and, but for null, which is nothing, in a file."
    if key == "name" and ":" in text: return
    sources = {"avatars": {key: text}}
    if text != "null":
        *parents, last = key.split(".")
        path = tmp_path / "mine.yaml"
        path.write_text("".join(f"{part}:\n  " for part in parents) + f"{last}: {text}\n", "utf-8")
        sources[path] = {}
    for source, overrides in sources.items():
        value = load_config(source, overrides)
        for part in key.split("."): value = getattr(value, part)
        assert value == text


@pytest.mark.parametrize("source", ["a: b", "#1", "{x}", "[1]", "'quoted'", "*.png", "- a", " a "])
def test_any_folder_can_be_named_on_the_command_line(source):
    assert load_config("avatars", {"data.source": source}).data.source == source


@pytest.mark.parametrize("text, steps", [("1e3", 1000), ("1_000", 1000), ("1.5e2", 150), ("0100", 100)])
def test_numbers_are_read_as_they_look(tmp_path, text, steps):
    path = tmp_path / "mine.yaml"
    path.write_text(f"vqvae: {{train: {{steps: {text}}}}}\n", "utf-8")
    for config in (load_config(path), load_config("avatars", {"vqvae.train.steps": text})):
        assert config.vqvae.train.steps == steps and type(config.vqvae.train.steps) is int


@pytest.mark.parametrize("text", ["1:30", "0x10", "1e", "--3", "2024-01-01", "1.5"])
def test_what_is_no_number_is_refused(text):
    assert "vqvae.train.steps" in refusal(load_config, "avatars", {"vqvae.train.steps": text})


@pytest.mark.parametrize("name, meant", [
    ("mine.yml", "mine.yaml"), ("mine", "mine.yaml"), ("min.yaml", "mine.yaml"), ("avatars.yml", "avatars"),
    ("emoij", "emoji")])
def test_missing_config_names_the_one_that_was_meant(tmp_path, monkeypatch, name, meant):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("seed: 1\n", "utf-8")
    said = refusal(load_config, name)
    assert f"{name!r} (did you mean {meant!r}?)" in said and len(said) <= 240


# --- relative paths ---

@pytest.fixture
def project(tmp_path):
    "A project with a config in one folder, and pictures and a tokenizer in others."
    folders = ("conf", "pictures", "tokenizer", "elsewhere/pictures")
    for folder in folders: (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "pictures/a.parquet").write_bytes(b"")
    tree = {"data": {"source": "../pictures"}, "text": {"tokenizer": "../tokenizer", "encoder": "who/knows"}}
    (tmp_path / "conf/mine.yaml").write_text(yaml.safe_dump(tree), "utf-8")
    return tmp_path


@pytest.mark.parametrize("here", [".", "elsewhere", "/"])
def test_paths_are_relative_to_the_file_where_they_are_not_there_from_here(project, monkeypatch, here):
    monkeypatch.chdir(project / here)
    config = load_config(project / "conf/mine.yaml")
    assert Path(config.data.source).samefile(project / "pictures")
    assert Path(config.text.tokenizer).samefile(project / "tokenizer") and config.text.encoder == "who/knows"


def test_what_is_there_from_here_comes_first(project, monkeypatch):
    monkeypatch.chdir(project / "elsewhere")
    path = project / "mine.yaml"
    for source, wanted in {"pictures": "pictures", "pictures/*.parquet": str(project / "pictures/*.parquet"),
                           "avatars": "avatars", "no/such": "no/such"}.items():
        path.write_text(yaml.safe_dump({"data": {"source": source}}), "utf-8")
        assert load_config(path).data.source == wanted
    (project / "avatars").mkdir()
    path.write_text("data: {source: avatars}\n", "utf-8")
    assert load_config(path).data.source == "avatars"


def test_an_override_is_relative_to_here(project, monkeypatch):
    monkeypatch.chdir(project / "conf")
    assert load_config("mine.yaml", {"data.source": "tokenizer"}).data.source == "tokenizer"


def test_the_copy_of_a_config_is_good_everywhere(project, monkeypatch):
    "It names what is there absolutely, and nothing else."
    monkeypatch.chdir(project / "conf")
    config = with_absolute_paths(load_config("mine.yaml"))
    copied = project / "copy.yaml"
    copied.write_text(dump_config(config), "utf-8")
    monkeypatch.chdir("/")
    again = load_config(copied)
    assert again == config and Path(again.data.source).is_absolute()
    assert Path(again.data.source).samefile(project / "pictures")
    assert again.text.encoder == "who/knows"
    (project / "avatars").mkdir()
    monkeypatch.chdir(project)
    assert with_absolute_paths(load_config("avatars")) == load_config("avatars")


def test_override_below_a_value_is_refused():
    assert "count" in refusal(load_config, "avatars", {"data.count.high": "3"})


@pytest.mark.parametrize("name", ["avatarz", "no/such/file.yaml", ".", ""])
def test_missing_file_names_the_presets(name):
    said = refusal(load_config, name)
    assert all(preset in said for preset in preset_names()) and repr(name) in said


@pytest.mark.parametrize("text", [
    "data: {count: 3", "data:\n\t count: 3", "a: b: c", "- data\n- vqvae", "just words",
    "data: *nobody", "--- {}\n--- {}", "seed: 1\nname: a\nseed: 2",
    "name: !!python/object/apply:os.getcwd []"])
def test_broken_yaml(tmp_path, text):
    path = tmp_path / "broken.yaml"
    path.write_text(text, "utf-8")
    assert str(path) in refusal(load_config, path)


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\x00\xff", b"name: caf\xe9"],
                         ids=["a picture", "latin-1"])
def test_file_that_is_no_utf8_text(tmp_path, content):
    path = tmp_path / "picture.yaml"
    path.write_bytes(content)
    assert str(path) in refusal(load_config, path)


def test_broken_override():
    assert "data.count" in refusal(load_config, "avatars", {"data.count": "{"})


def test_odd_keys_are_refused_in_a_sentence(tmp_path):
    path = tmp_path / "odd.yaml"
    path.write_text("1: 2\nnull: 3\n", "utf-8")
    assert str(path) in refusal(load_config, path)


def test_empty_file_is_the_default(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing yet\n", "utf-8")
    assert load_config(path) == Config()


def test_picture_size_must_divide():
    said = refusal(load_config, "avatars", {"data.image_size": "33"})
    assert "33" in said and "4" in said and "data.image_size" in said and "vqvae.model.downsample" in said


def test_heads_must_divide_width():
    said = refusal(load_config, "avatars", {"cftn_v2.model.width": "130", "cftn_v2.model.heads": "4"})
    assert "130" in said and "4" in said


def test_bridges_must_have_layers():
    wrong = {"cftn_v2.model.layers": "6", "cftn_v2.model.first_bridge": "5"}
    assert "first_bridge can be 4 at most" in refusal(load_config, "avatars", wrong)
    assert BrainConfig(layers=6, first_bridge=4).bridged_layers == range(4, 6)
    assert BrainConfig(layers=6).bridged_layers == range(2, 4)


def test_every_preset_loads_and_round_trips(tmp_path):
    assert {"avatars", "avatars-hour", "emoji", "naruto"} <= set(preset_names())
    for name in preset_names():
        config = load_config(name)
        assert config.name == name
        path = tmp_path / f"{name}.yaml"
        path.write_text(dump_config(config), "utf-8")
        assert load_config(path) == config
        written = dump_config(config)
        missing = [key for key, _ in keys() if f"{key.rpartition('.')[2]}:" not in written]
        assert not missing, f"{missing} are missing from the dump"


def test_config_cannot_be_changed():
    with pytest.raises(ValidationError): Config().data.count = 3


def test_a_section_made_in_python_names_every_fault():
    message = refusal(DataConfig, count=-1, image_sise=64)
    assert message.startswith("DataConfig: count = -1:") and "did you mean 'image_size'" in message


def test_a_notebook_shows_the_sentence_alone():
    "IPython asks an exception for the lines to show, in version 7 (Colab) as in newer ones."
    assert VQGenError("give one")._render_traceback_() == ["VQGenError: give one"]
