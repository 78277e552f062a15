"A run folder from anybody: what is no run is refused in one sentence, and nothing of it is executed."
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile import FILES, ROWS
from safetensors.torch import load_file, save_file
from tiny import CONFIG, changed, coded, contents, fit_prior, one_sentence, refusal, splits

from vqgen.config import TextConfig, dump_config, load_config
from vqgen.data import datasets
from vqgen.data.cache import cached_array
from vqgen.data.datasets import build_data, load_data
from vqgen.files import fingerprint, read_file, read_json
from vqgen.pipeline import load_run
from vqgen.priors.build import new_prior
from vqgen.priors.cftn import CFTN
from vqgen.priors.text import load_tokenizer, token_ids, train_tokenizer
from vqgen.training.checkpoints import (
    CHECKPOINT_FILES,
    _checksum,
    checkpoints,
    load_model,
    load_state,
    new_checkpoint,
    save_model,
    save_state,
)
from vqgen.vqvae.model import VQVAE


@pytest.fixture(scope="module")
def made(own_caches, tmp_path_factory):
    "A run with a VQ-VAE, a CFTN and its tokenizer, a checkpoint and an array of the cache."
    run = tmp_path_factory.mktemp("hostile") / "run"
    vqvae, tokenizer, *_ = coded()
    save_model(vqvae, run / "vqvae")
    prior = new_prior("cftn", CONFIG.cftn.model, vqvae, tokenizer, splits()[0].image_size)
    save_model(prior, run / "cftn", vqvae=fingerprint(vqvae))
    tokenizer.save_pretrained(run / "cftn")
    (run / "cftn/config.yaml").write_text(dump_config(CONFIG), "utf-8")
    fit_prior("lstm", run / "trained", steps=1)
    shutil.move(checkpoints(run / "trained/state/train")[-1], run / "checkpoint")
    cached_array(run / "codes.npy", ROWS.shape, ROWS.dtype, lambda rows: ROWS[rows])
    return run


@pytest.fixture
def run(made, tmp_path): return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.mark.parametrize("script", ["hostile.py", "hostile_data.py"])
def test_damaged_files(made, tmp_path, request, script):
    """Of every kind, from fixed seeds: a sentence or success, in bounded memory, and no other file changes.

    What a file made the script run would leave something in the working folder, or in the home folder.
    """
    shutil.copytree(made, tmp_path / "run")
    count = request.config.getoption("--fuzz")
    command = [sys.executable, str(Path(__file__).parent / script), str(tmp_path), str(count)]
    here = {**os.environ, "HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=here)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert found["outcomes"].keys() <= {"read", "refused"} and found["outcomes"]["refused"] > count / 4, found
    assert not found["new"] and found["grown"] < 1000, found


# --- no regular file of a bearable size ---

def a_folder(path): path.mkdir()


def a_pipe(path): os.mkfifo(path)


def a_device(path): path.symlink_to("/dev/zero")


def a_circle(path): path.symlink_to(path)


def a_large_file(path):
    with open(path, "wb") as file: file.truncate(50 * 2**30)      # nothing, 50 GB of it


@pytest.mark.parametrize("make", [a_folder, a_pipe, a_device, a_circle, a_large_file])
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_file(run, name, make):
    (run / name).unlink()
    make(run / name)
    if name.endswith(".yaml"): refusal(load_config, run / name)
    elif name == "codes.npy":
        if make is not a_large_file: refusal(cached_array, run / name, ROWS.shape, ROWS.dtype, None)
    elif name.startswith("checkpoint"): refusal(load_state, run / "checkpoint")
    else: assert str(run) in refusal(load_run, run, "cftn")


@pytest.mark.parametrize("make", [a_folder, a_pipe, a_device, a_circle])
@pytest.mark.parametrize("end", ["partial", "lock"])
def test_what_is_no_file_to_write(tmp_path, make, end):
    make(tmp_path / f"codes.npy.{end}")
    assert f"codes.npy.{end}" in refusal(cached_array, tmp_path / "codes.npy", ROWS.shape, ROWS.dtype, None)


def test_link_to_a_file_of_somebody(tmp_path):
    (tmp_path / "letter.txt").write_text("Dear Ada")
    for end in ("lock", "partial"):
        link = tmp_path / f"codes.npy.{end}"
        link.symlink_to(tmp_path / "letter.txt")
        refusal(cached_array, tmp_path / "codes.npy", ROWS.shape, ROWS.dtype, None)
        link.unlink()
    assert (tmp_path / "letter.txt").read_text() == "Dear Ada"


# --- built data sets ---

@pytest.fixture
def built(tmp_path, monkeypatch):
    "A data set, built, and its folder."
    monkeypatch.setenv("VQGEN_CACHE", str(tmp_path / "kept"))
    return CONFIG.data, build_data(CONFIG.data)


@pytest.mark.parametrize("make", [a_folder, a_pipe, a_device, a_circle, a_large_file])
@pytest.mark.parametrize("name", ["pictures.arrow", "train.npy"])
def test_what_is_no_file_of_a_data_set(built, name, make):
    data, folder = built
    (folder / name).unlink()
    make(folder / name)
    assert "built again" in refusal(load_data, data)


@pytest.mark.parametrize("make", [a_device, a_large_file])
def test_facts_that_are_no_file(built, make):
    data, folder = built
    (folder / "facts.json").unlink()
    make(folder / "facts.json")
    if make is a_large_file: assert "built again" in refusal(load_data, data)
    else: assert len(load_data(data)) and (folder / "facts.json").is_file()       # that was made anew


def test_pictures_cut_short_while_they_are_read(built, monkeypatch):
    "To touch what is mapped, and gone, would end the process without a word."
    data, folder = built
    monkeypatch.setattr(datasets, "IN_MEMORY", 0)
    images = load_data(data)
    assert len(images.batch([0, len(images) - 1])) == 2
    os.truncate(folder / "pictures.arrow", 4096)
    assert "built again" in refusal(images.batch, [0, len(images) - 1])
    assert "built again" in refusal(pickle.loads(pickle.dumps(images)).batch, [len(images) - 1])


@pytest.mark.parametrize("change", [
    {"files": ["../../secret"]}, {"files": []}, {"files": 3}, {"rows": "9"}, {"rows": -1}, {"broken": [3]},
    {"splits": {}}, {"widths": [1]}, {"fingerprint": None}, {"broken": ["\ud800"]}, {"rows": True}], ids=str)
def test_facts_of_another_kind(built, change):
    data, folder = built
    edit_json(folder / "facts.json", lambda tree: tree.update(change))
    assert "built again" in refusal(load_data, data)


def test_nothing_in_a_data_set_is_executed(built, tmp_path):
    data, folder = built
    Canary.path = str(tmp_path / "exploded")
    np.save(folder / "train.npy", np.array([Canary()], object), allow_pickle=True)
    assert "built again" in refusal(load_data, data)
    (folder / "train.npy").write_bytes(pickle.dumps(Canary()))
    assert "built again" in refusal(load_data, data)
    source = tmp_path / "shots"
    source.mkdir()
    for name in ("shots.py", "state.pkl"): (source / name).write_text(f"import os; os.mkdir({Canary.path!r})")
    (source / "dataset_info.json").write_text('{"builder_name": "shots"}')
    refusal(load_data, changed(data, source=str(source)))
    assert not (tmp_path / "exploded").exists()


def test_files_are_named(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 10_000)
    assert "deep.json" in refusal(read_json, tmp_path / "deep.json") and "nested" in refusal(
        read_json, tmp_path / "deep.json")
    (tmp_path / "twice.json").write_text('{"a": 1, "a": 2}')
    assert "twice" in refusal(read_json, tmp_path / "twice.json")
    with pytest.raises(FileNotFoundError): read_file(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError): read_file(tmp_path / "twice.json" / "nothing")


def nine(i): return ", ".join([f"*a{i}"] * 9)


LAUGHS = "a0: &a0 [x, x]\n" + "\n".join(f"a{i}: &a{i} [{nine(i - 1)}]" for i in range(1, 12))
MERGES = "a0: &a0 {x: 1}\n" + "\n".join(f"a{i}: &a{i} {{<<: [{nine(i - 1)}]}}" for i in range(1, 12))


@pytest.mark.parametrize("text", [LAUGHS, MERGES, "[" * 10_000, "a: &a [*a]", "a: !!timestamp x",
                                  "a: 2024-13-45", "a: !!python/object/apply:os.mkdir [exploded]",
                                  "x" * 10**5])
def test_yaml(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text(text)
    refusal(load_config, "x.yaml")
    assert not (tmp_path / "exploded").exists()


def test_yaml_with_an_honest_alias(tmp_path):
    (tmp_path / "x.yaml").write_text("vqvae: {train: &t {steps: 7}}\nlstm: {train: *t}")
    assert load_config(tmp_path / "x.yaml").lstm.train.steps == 7


# --- models ---

def edit_json(path, change):
    tree = json.loads(path.read_text("utf-8"))
    change(tree)
    path.write_text(json.dumps(tree), "utf-8")


@pytest.mark.parametrize("part, key, value", [
    ("config", "layers", 10**6), ("config", "width", 10**9), ("config", "width", 8192),
    ("shape", "grid_size", 1000), ("shape", "grid_size", 256), ("shape", "vocab_size", 2**20),
    ("shape", "codebook_size", 10**12), ("config", "layers", 200)])
def test_sizes_that_are_not_those_of_the_weights(run, part, key, value):
    edit_json(run / "cftn/config.json", lambda tree: tree[part].update({key: value}))
    assert str(run / "cftn") in refusal(load_model, run / "cftn", CFTN)


@pytest.mark.parametrize("change", [
    lambda value: value.new_full(value.shape, float("nan")), lambda value: value / 0, lambda value: value[:0],
    lambda value: value.bool(), lambda value: value.long(), lambda value: value[None]],
    ids=["nan", "inf", "empty", "bool", "int", "one more axis"])
def test_weights_of_another_kind(run, change):
    weights = load_file(run / "cftn/model.safetensors")
    name = next(name for name in weights if "code_head.weight" in name)
    save_file({**weights, name: change(weights[name]).contiguous()}, run / "cftn/model.safetensors")
    assert name.split(".")[0] in refusal(load_model, run / "cftn", CFTN)


def test_weights_all_zero(run):
    weights = load_file(run / "vqvae/model.safetensors")
    zeros = {name: torch.zeros_like(value) for name, value in weights.items()}
    save_file(zeros, run / "vqvae/model.safetensors")
    assert "zero" in refusal(load_model, run / "vqvae", VQVAE)


def test_weights_in_half_precision_are_read(run):
    weights = load_file(run / "cftn/model.safetensors")
    half = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    save_file(half, run / "cftn/model.safetensors")
    assert next(load_model(run / "cftn", CFTN).parameters()).dtype == torch.float32


def test_order_that_is_no_permutation(tmp_path):
    from vqgen.priors.brain import BiHemisphericBrain
    vqvae, tokenizer, *_ = coded()
    brain = new_prior("cftn-v2", CONFIG.cftn_v2.model, vqvae, tokenizer, splits()[0].image_size)
    brain.order[0] = brain.order[1]
    save_model(brain, tmp_path)
    assert "permutation" in refusal(load_model, tmp_path, BiHemisphericBrain)


# --- tokenizers ---

SURPRISES = {
    "a letter doubled 40 times": lambda tree: tree.update(normalizer={"type": "Sequence", "normalizers": [
        {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40}),
    "a letter doubled twice": lambda tree: tree.update(normalizer={"type": "Sequence", "normalizers": [
        {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 2}),
    "100,000 special tokens": lambda tree: tree.update(added_tokens=[
        {**tree["added_tokens"][0], "id": i, "content": f"<{i}>"} for i in range(10**5)]),
    "a normalizer of another kind": lambda tree: tree.update(normalizer={"type": "Custom"}),
    "no post-processor": lambda tree: tree.update(post_processor=None),
    "no model": lambda tree: tree.pop("model"), "a model of text": lambda tree: tree.update(model="BPE"),
    "no vocabulary": lambda tree: tree["model"].pop("vocab"),
    "a number twice": lambda tree: tree["model"].update(vocab=dict.fromkeys(tree["model"]["vocab"], 5)),
    "a huge number": lambda tree: tree["model"]["vocab"].update(a=2**40),
    "tokens by chance": lambda tree: tree["model"].update(dropout=0.5)}


@pytest.mark.parametrize("name", SURPRISES)
def test_tokenizer_with_a_surprise(run, name):
    edit_json(run / "cftn/tokenizer.json", SURPRISES[name])
    assert str(run / "cftn") in refusal(load_run, run, "cftn")


@pytest.mark.parametrize("change", [
    {"model_max_length": 10**30}, {"pad_token": None}, {"pad_token": "no such token"}, {"unk_token": ["x"]},
    {"words": ["hat"]}],
    ids=str)
def test_what_is_said_of_a_tokenizer(run, change):
    edit_json(run / "cftn/tokenizer_config.json", lambda tree: tree.update(change))
    assert str(run / "cftn") in refusal(load_tokenizer, run / "cftn")


def test_alphabet_larger_than_the_vocabulary():
    "The vocabulary keeps to its size, and what has no token is spelled out in bytes: nothing is unknown."
    captions = [chr(0x4E00 + i) + " " + chr(0x4E00 + 7 * i % 5000) for i in range(5000)]
    first, again = (train_tokenizer(captions, TextConfig(vocab_size=512)) for _ in range(2))
    assert len(first) <= 512 and first.backend_tokenizer.to_str() == again.backend_tokenizer.to_str()
    rows = token_ids(first, captions + ["\U0001F98A fox"])
    assert not any(first.get_vocab()["[UNK]"] in row for row in rows)
    assert [first.decode(row, skip_special_tokens=True) for row in rows[:-1]] == captions
    assert "vocab_size" in refusal(train_tokenizer, captions, TextConfig(vocab_size=200))


def test_tokenizer_with_bytes_is_saved_and_loaded(tmp_path):
    made = train_tokenizer([chr(0x4E00 + i) for i in range(3000)], TextConfig(vocab_size=512))
    made.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path)("\u4e01 x")["input_ids"] == made("\u4e01 x")["input_ids"]


def test_transformers_reads_what_is_saved(run):
    from transformers import PreTrainedTokenizerFast
    theirs, ours = PreTrainedTokenizerFast.from_pretrained(str(run / "cftn")), load_tokenizer(run / "cftn")
    captions = [*splits()[0].captions[:50], "", "quizzical \u00e9t\u00e9 [EOS]"]
    assert theirs(captions)["input_ids"] == ours(captions)["input_ids"] and len(theirs) == len(ours)
    for row in ours(captions)["input_ids"]:
        for skip in (True, False): assert theirs.decode(row, skip) == ours.decode(row, skip)


def test_caption_that_is_no_text(run):
    assert "UTF-8" in refusal(load_tokenizer(run / "cftn"), "a \ud800 hat")


# --- states ---

@pytest.mark.parametrize("change", [
    {"step": "4"}, {"step": -1}, {"history": 3}, {"history": [3]}, {"history": [{"step": "x"}]},
    {"settings": []},
    {"model": torch.zeros(1).expand(10**6, 10**6)}], ids=str)
def test_state_of_another_kind(tmp_path, change):
    with new_checkpoint(tmp_path / "step-00000004") as new:
        save_model(VQVAE(CONFIG.vqvae.model), new)
        save_state(new / "training.pt", {"step": 4, "settings": {}, "history": [], **change})
    assert str(tmp_path) in refusal(load_state, tmp_path / "step-00000004")


@pytest.fixture(scope="module")
def trained(own_caches, tmp_path_factory):
    "A training of a CFTN, Muon and all, cut off after step 4."
    run = tmp_path_factory.mktemp("trained") / "run"
    fit_prior("cftn", run, steps=4, optimizer="muon")
    return run


STATES = {
    "no optimizer": lambda state: state.pop("optimizer"), "seen": lambda state: state.update(seen="4"),
    "text for an optimizer": lambda state: state.update(optimizer="adamw"),
    "numbers for a model": lambda state: state.update(model=3),
    "a list": lambda state: state.update(average=[]),
    "an average of texts": lambda state: state["average"].update(n_averaged="x"),
    "a schedule that is none": lambda state: state.update(schedule={"step": 3}),
    "courses": lambda state: state.update(courses=3), "no course": lambda state: state.update(courses=[]),
    "a course of texts": lambda state: state.update(courses=[("0", "9")]),
    "no steps": lambda state: state["settings"].pop("steps"),
    "steps in words": lambda state: state["settings"].update(steps="nine"),
    "a rate in words": lambda state: state["optimizer"]["adamw"]["param_groups"][0].update(lr="fast"),
    "a mean of another shape": lambda state: next(iter(state["optimizer"]["adamw"]["state"].values())).update(
        exp_avg=torch.zeros(3, 5, 7)),
    "a mean in words": lambda state: next(iter(state["optimizer"]["muon"]["state"].values())).update(
        momentum_buffer="x")}


@pytest.mark.parametrize("name", STATES)
def test_parts_of_a_state_of_another_kind(trained, tmp_path, name):
    "Nothing is lost: what lies in the folder stays as it is."
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    for checkpoint in checkpoints(run / "state/train"):
        state = load_state(checkpoint)
        STATES[name](state)
        save_state(checkpoint / "training.pt", state)
        sums = {file: _checksum(checkpoint / file) for file in CHECKPOINT_FILES}
        (checkpoint / "sha256.json").write_text(json.dumps(sums))
    before = contents(run)
    assert "start over" in refusal(fit_prior, "cftn", run, steps=9, optimizer="muon")
    assert contents(run) == before


def test_state_in_itself(tmp_path):
    laughs = ["x"]
    for _ in range(40): laughs = [laughs, laughs]
    with new_checkpoint(tmp_path / "step-00000004") as new:
        save_model(VQVAE(CONFIG.vqvae.model), new)
        save_state(new / "training.pt", {"step": 4, "settings": {"a": laughs}, "history": []})
    assert "parts" in refusal(load_state, tmp_path / "step-00000004")


def test_compressed_state(tmp_path):
    "A small file that would fill the memory."
    with new_checkpoint(tmp_path / "step-00000004") as new:
        save_model(VQVAE(CONFIG.vqvae.model), new)
        state = {"step": 4, "settings": {}, "history": [], "model": torch.zeros(10**7)}
        save_state(tmp_path / "plain.pt", state)
        with zipfile.ZipFile(tmp_path / "plain.pt") as plain, \
                zipfile.ZipFile(new / "training.pt", "w", zipfile.ZIP_DEFLATED) as packed:
            for name in plain.namelist(): packed.writestr(name, plain.read(name))
    assert "compressed" in refusal(load_state, tmp_path / "step-00000004")


# --- nothing is executed ---

class Canary:
    "Leaves a folder where it is unpickled."
    def __reduce__(self): return os.mkdir, (Canary.path,)


def test_nothing_in_a_run_is_executed(run, tmp_path):
    Canary.path = str(tmp_path / "exploded")
    (tmp_path / "module.py").write_text(f"import os; os.mkdir({Canary.path!r})")
    for part in ("vqvae", "cftn"):
        for name in ("pytorch_model.bin", "model.pt", "training.pt", "tokenizer.pkl"):
            (run / part / name).write_bytes(pickle.dumps(Canary()))
        shutil.copy(tmp_path / "module.py", run / part / "module.py")
        auto = {"auto_map": {"AutoModel": "module.Model"}}
        edit_json(run / part / "config.json", lambda tree, auto=auto: tree.update(auto))
    custom = {"tokenizer_class": "Custom", "auto_map": {"AutoTokenizer": ["module.Custom", None]}}
    edit_json(run / "cftn/tokenizer_config.json", lambda tree: tree.update(custom))
    (run / "checkpoint/training.pt").write_bytes(pickle.dumps(Canary()))
    load_run(run, "cftn")
    assert one_sentence(refusal(load_state, run / "checkpoint"))
    assert changed(CONFIG, seed=1) and not (tmp_path / "exploded").exists()
