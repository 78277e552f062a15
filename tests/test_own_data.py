"Trainings on pictures of one's own: several captions, views, and a folder that is not where it was."
import os
import shutil
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from test_data import png, write_folder
from tiny import CONFIG, TREE, Stopping, changed, one_sentence, refusal, weights

from vqgen import cli, experiment
from vqgen.data.datasets import cache_dir, load_data
from vqgen.errors import VQGenError
from vqgen.experiment import encode_splits, open_tokenizer, train_model
from vqgen.pipeline import Pipeline
from vqgen.priors.text import load_tokenizer
from vqgen.training.batches import batches


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VQGEN_CACHE", str(tmp_path / "cache"))


def stop_in(monkeypatch, name, at):
    "Let the training split of the experiment be one that is stopped by Ctrl-C at batch number `at`."
    read = getattr(experiment, name)
    def stopping(*arguments):
        data, validation = read(*arguments)
        return [Stopping(data, at), validation]
    monkeypatch.setattr(experiment, name, stopping)


def with_data(data, **sections):
    return CONFIG.model_copy(update={"data": data, **sections})


# Several captions

@pytest.fixture
def several(tmp_path):
    "Forty pictures with one to three captions; only second captions have digits, only third ones a `q`."
    lists = [[f"shade {chr(97 + i % 26)}{'x' * (i // 26)}", f"it has number {i}", f"a queer {i}"][:1 + i % 3]
             for i in range(40)]
    pq.write_table(pa.table({"image": [png((6 * i, 0, 0)) for i in range(40)], "text": lists}),
                   tmp_path / "a.parquet")
    return changed(CONFIG.data, source=str(tmp_path / "a.parquet"))


def test_several_captions_train_to_the_bit(several, tmp_path, monkeypatch):
    config = with_data(several)
    train_model("vqvae", config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "twice")
    train_model("lstm", config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_in(patch, "encode_splits", 2)
        with pytest.raises(VQGenError, match="stopped at step 2"):
            train_model("lstm", config, tmp_path / "twice")
    train_model("lstm", config, tmp_path / "twice")
    assert weights(tmp_path / "whole" / "lstm") == weights(tmp_path / "twice" / "lstm")
    tokenizer = load_tokenizer(tmp_path / "whole" / "lstm")
    unknown = tokenizer.special_tokens_map["unk_token"]
    for words in load_data(several).all_captions(): assert unknown not in tokenizer.tokenize(words)
    pipeline = Pipeline.from_pretrained(tmp_path / "whole", "lstm")
    assert len(pipeline(["shade a", "a queer 5"])) == 2


def test_another_caption_is_drawn_in_another_epoch_and_validation_has_the_first(several, tmp_path):
    config = with_data(several)
    vqvae, _ = train_model("vqvae", config, tmp_path / "run")
    splits = load_data(several), load_data(several, "validation")
    tokenizer = open_tokenizer(tmp_path / "new", splits[0].all_captions(), config.text)
    data, validation = encode_splits(vqvae, splits, tokenizer)
    count, section = len(data), changed(config.lstm.train, batch_size=len(data))
    stream, epochs = iter(batches(data, section, seed=0)), []
    for _ in range(12):
        text = next(stream)[1]["text"]
        epochs.append({tokenizer.decode(ids, skip_special_tokens=True) for ids in text.input_ids})
    drawn = set().union(*epochs)
    assert drawn == set(splits[0].all_captions()) and len(drawn) > count
    assert len({frozenset(epoch) for epoch in epochs}) > 1 and all(len(epoch) == count for epoch in epochs)
    assert len(validation.rows) == len(splits[1])
    for i, ids in enumerate(validation.text(range(len(validation))).input_ids):
        assert tokenizer.decode(ids, skip_special_tokens=True) == splits[1].caption_lists[i][0]
    assert max(map(len, splits[1].caption_lists)) > 1, "else nothing was shown"


# Views

def test_a_prior_learns_from_codes_of_views(several, tmp_path):
    data = changed(several, views=3, flip=True, crop=0.2)
    config = with_data(data)
    train_model("vqvae", config, tmp_path / "run")
    train_model("transformer", config, tmp_path / "run")
    found = {path.name.split("-")[1]: np.load(path) for path in (cache_dir() / "codes").glob("*.npy")}
    train, held = len(load_data(data)), len(load_data(data, "validation"))
    assert len(found["train"]) == 3 * train and len(found["validation"]) == held
    plain = with_data(changed(several, views=1))
    assert "data.views" in refusal(train_model, "transformer", plain, tmp_path / "run")


# Another place

def run_command(capsys, *arguments):
    "`vqgen` with `arguments`, in this process: its exit code and what it said."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["vqgen", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught: cli.main()
    return caught.value.code or 0, capsys.readouterr().err.strip().splitlines()


def unpacked_again(source, target):
    "Copy the folder `source` as a new session does: other dates, another order, and what a Mac adds."
    target.mkdir()
    for name in sorted(os.listdir(source), reverse=True):
        (target / name).write_bytes((source / name).read_bytes())
        os.utime(target / name, (10**9, 10**9))
    for name in (".DS_Store", "._00.png", "Thumbs.db"): (target / name).write_bytes(b"\0\0\0\1Bud1")
    return target


@pytest.mark.parametrize("model, splits", [("vqvae", "load_splits"), ("lstm", "encode_splits")])
def test_a_training_goes_on_where_pictures_were_unpacked_again(tmp_path, monkeypatch, capsys, model, splits):
    write_folder(tmp_path / "first", 40)
    config = tmp_path / "own.yaml"
    config.write_text(yaml.safe_dump({**TREE, "data": {"source": "first", "image_size": 16}}), "utf-8")
    command = ["train", model, "--config", config]
    if model == "lstm":
        assert not run_command(capsys, "train", "vqvae", "--config", config, "--run", tmp_path / "whole")[0]
        shutil.copytree(tmp_path / "whole", tmp_path / "twice")
    assert not run_command(capsys, *command, "--run", tmp_path / "whole")[0]
    with monkeypatch.context() as patch:
        stop_in(patch, splits, 2)
        code, said = run_command(capsys, *command, "--run", tmp_path / "twice")
        assert code and "stopped at step 2" in said[-1]
    unpacked_again(tmp_path / "first", tmp_path / "second")
    shutil.rmtree(tmp_path / "first")
    shutil.rmtree(tmp_path / "cache")   # as on a new machine
    command += ["--run", tmp_path / "twice", "--data.source", tmp_path / "second"]
    assert not run_command(capsys, *command)[0]
    assert weights(tmp_path / "whole" / model) == weights(tmp_path / "twice" / model)
    (tmp_path / "second" / "07.png").write_bytes(png((1, 2, 3)))
    code, said = run_command(capsys, *command)
    assert code == 1 and "data" in said[-1] and one_sentence(said[-1].removeprefix("error: ")), said
