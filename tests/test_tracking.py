"What Weights & Biases is told, read back from its run file; and missing trackers, which cost nothing."
import functools
import importlib.util
import itertools
import json
import operator
import os
import struct
import sys
from pathlib import Path

import pytest
from tiny import CONFIG, FITS, Stopping, changed, refusal, vqgen, weights, write_config

from vqgen.config import TrackingConfig
from vqgen.experiment import train_prior_in, train_vqvae
from vqgen.training.checkpoints import load_model
from vqgen.vqvae.model import VQVAE

OFFLINE = TrackingConfig(mode="offline", project="tests")


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


def chunks(content):
    "The records in a run file: a log as LevelDB writes it, in blocks of 32 KiB, behind a header of 7 bytes."
    place, record = 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7: place += 32768 - place % 32768   # what is left of a block is padding
        length, kind = struct.unpack_from("<HB", content, place + 4)    # behind the checksum
        record += content[place + 7:place + 7 + length]
        place += 7 + length
        if kind in (1, 4):   # the whole record, or its last part
            yield record
            record = b""


def records(folder):
    "The records of each run file of wandb in `folder`, oldest first: a list of lists."
    from wandb.proto.wandb_internal_pb2 import Record
    paths = sorted(Path(folder).glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    return [[Record.FromString(chunk) for chunk in chunks(path.read_bytes())] for path in paths]


def values(items):
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def history(run):
    "What was logged, as one dict for each step."
    lines = {}
    for record in run:
        if record.WhichOneof("record_type") != "history": continue
        line = values(record.history.item)
        lines.setdefault(line["_step"], {}).update(line)
    return lines


def run_ids(runs):
    every = itertools.chain.from_iterable(runs)
    return [record.run.run_id for record in every if record.WhichOneof("record_type") == "run"]


def config_of(run):
    [start] = [record.run for record in run if record.WhichOneof("record_type") == "run"]
    updates = [record.config for record in run if record.WhichOneof("record_type") == "config"]
    return functools.reduce(operator.or_, [values(part.update) for part in [start.config, *updates]])


@pytest.fixture(scope="module")
def run(own_caches, tmp_path_factory):
    "A VQ-VAE and CFTN v2, both trained with wandb offline."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_SILENT", "true")
        folder = tmp_path_factory.mktemp("tracked")
        config = changed(CONFIG, tracking=OFFLINE)
        train_vqvae(config, folder)
        train_prior_in("cftn-v2", config, folder)
    return folder


def test_wandb_is_told_metrics_usage_config_and_pictures(run):
    [records_of_run] = records(run / "vqvae")
    lines = history(records_of_run)
    last = lines[CONFIG.vqvae.train.steps]
    assert last["vqvae/loss"] > 0 and 0 < last["vqvae/usage"] <= 1
    assert "vqvae/validation/psnr" in last and "vqvae/data_wait" in last
    settings = config_of(records_of_run)
    assert settings["batch_size"] == CONFIG.vqvae.train.batch_size and settings["config.codebook_size"] == 16
    assert settings["precision"] == "float32", "what `auto` chose on this device"
    assert last["vqvae/samples/_type"] == "images/separated"
    assert set(last["vqvae/samples/captions"]) == {"original", "from its codes"}
    [files] = (run / "vqvae/wandb").glob("offline-run-*/files")
    assert last["vqvae/samples/count"] == 16
    assert all((files / name).is_file() for name in last["vqvae/samples/filenames"])
    assert list((run / "vqvae/samples").glob("vqvae-*.png"))


def test_wandb_is_told_gates_and_captioned_drawings_of_each_stage(run):
    stages = {}
    for records_of_run in records(run / "cftn-v2"):
        lines = history(records_of_run)
        stage = next(iter(next(key for key in lines[max(lines)] if "/" in key).split("/")))
        stages[stage] = lines[max(lines)]
    assert set(stages) == {"stage1", "stage2"}
    for stage, last in stages.items():
        assert -1 <= last[f"{stage}/gate/0/image"] <= 1
        assert last[f"{stage}/samples/captions"][0].startswith("a ")


def test_wandb_is_told_what_is_drawn_and_captioned(tmp_path, monkeypatch):
    "By the commands: pictures with captions, seed and milliseconds, each time in a run of its own."
    monkeypatch.chdir(tmp_path)
    offline = ["--run", "avatars-hour", "--tracking.mode", "offline", "--tracking.project", "tests"]
    for words in (["generate", "a red hat", "green hair", "--num-images", 2, "--seed", 5, "--out", "x.png"],
                  ["caption", "x.png", "--seed", 6]):
        done = vqgen(*words, *offline)
        assert done.returncode == 0, done.stderr
    drawn, said = records(tmp_path / "samples/avatars-hour")
    assert len(set(run_ids([drawn, said]))) == 2
    [line] = history(drawn).values()
    assert line["generate/seed"] == 5 and line["generate/milliseconds"] > 0
    assert line["generate/pictures/captions"] == ["a red hat"] * 2 + ["green hair"] * 2
    [number] = run_ids([drawn])
    [files] = (tmp_path / "samples/avatars-hour").glob(f"wandb/offline-run-*-{number}/files")
    assert all((files / name).is_file() for name in line["generate/pictures/filenames"])
    assert config_of(drawn)["prior"] == "BiHemisphericBrain" and config_of(drawn)["run"] == "avatars-hour"
    [line] = history(said).values()
    assert line["caption/seed"] == 6 and line["caption/milliseconds"] > 0
    assert line["caption/pictures/captions"][0].startswith("a person")


def test_a_resumed_training_continues_the_same_run(own_caches, tmp_path):
    fit = FITS["vqvae"]
    refusal(fit, tmp_path, lambda data: Stopping(data, 5), tracking=OFFLINE)
    fit(tmp_path, tracking=OFFLINE)
    runs = records(tmp_path)
    ids = run_ids(runs)
    assert len(runs) == 2 and len(set(ids)) == 1
    assert max(history(runs[0])) == 5 and max(history(runs[1])) == 9


def test_tensorboard_by_name(own_caches, tmp_path):
    "With it installed its files are there; without it a line says so and the training goes on."
    fit = FITS["vqvae"]
    fit(tmp_path, tracking=TrackingConfig(mode="offline", tracker="tensorboard"))
    installed = importlib.util.find_spec("tensorboard") is not None
    assert bool(list(tmp_path.rglob("events.out.tfevents*"))) == installed
    assert (tmp_path / "model.safetensors").exists()


def test_unknown_tracker_is_refused(own_caches, tmp_path):
    said = refusal(FITS["vqvae"], tmp_path, tracking=TrackingConfig(mode="offline", tracker="wandbb"))
    assert "wandbb" in said


def test_a_tracker_that_breaks_is_left_out(own_caches, tmp_path, capsys):
    "Its folder is taken by a file: one line, and the training ends as ever."
    (tmp_path / "wandb").write_text("in the way", "utf-8")
    _, lines = FITS["vqvae"](tmp_path, tracking=OFFLINE)
    assert lines[-1]["step"] == 9


@pytest.mark.slow
def test_without_the_package_the_training_goes_on(own_caches, tmp_path):
    "A real process in which wandb cannot be imported."
    (tmp_path / "hidden/wandb").mkdir(parents=True)
    (tmp_path / "hidden/wandb/__init__.py").write_text("raise ImportError('not here')", "utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "hidden"), *sys.path])}
    config = write_config(tmp_path / "tiny.yaml")
    result = vqgen("train", "vqvae", "--config", config, "--run", tmp_path / "run",
                   "--tracking.mode", "online", env=environment)
    assert result.returncode == 0, result.stderr
    assert (result.stdout + result.stderr).count("tracking is off") == 1


@pytest.mark.slow
def test_wandb_offline_and_online_without_a_login(tmp_path):
    "Offline writes a run folder; online, with nobody logged in, says so in a line and does the same."
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "NETRC"))}
    for mode, options in {"offline": {"WANDB_MODE": "offline"}, "online": {}}.items():
        home = tmp_path / mode / "home"
        home.mkdir(parents=True)
        homes = dict.fromkeys(["HOME", "XDG_CONFIG_HOME", "WANDB_CONFIG_DIR"], str(home))
        config = write_config(tmp_path / "tiny.yaml")
        result = vqgen("train", "vqvae", "--config", config, "--run", tmp_path / mode,
                       "--tracking.mode", mode, env={**clean, **options, **homes})
        assert result.returncode == 0, result.stderr
        assert result.stdout.splitlines()[-1] == f"saved in {tmp_path / mode / 'vqvae'}"
        assert len(list((tmp_path / mode / "vqvae/wandb").glob("offline-run-*/*.wandb"))) == 1
        assert (result.stdout + result.stderr).count("wandb: no login found") == (mode == "online")
        assert load_model(tmp_path / mode / "vqvae", VQVAE) is not None
    assert weights(tmp_path / "offline/vqvae") == weights(tmp_path / "online/vqvae")
