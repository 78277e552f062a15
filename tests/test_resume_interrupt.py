"The stop button and Ctrl-C, in a notebook and in a terminal, in a step and before the first: one true line."
import functools
import os
import re
import signal
from pathlib import Path

import pytest
from jupyter_client.manager import start_new_kernel
from tiny import (
    CONFIG,
    SHORT,
    Stopping,
    interrupt,
    load_step,
    one_sentence,
    refusal,
    splits,
    train_plain,
    weights,
    write_config,
)

import vqgen.experiment as experiment
from vqgen.experiment import train_prior_in, train_vqvae

HERE = Path(__file__).parent


class Interrupted(Stopping):
    "Data during whose first look the stop button is pressed."
    def __len__(self):
        signal.raise_signal(signal.SIGINT)
        return len(self.data)


def assert_nothing_lost(said, folder):
    assert "no step was under way" in said and "starting it again goes on" in said and str(folder) in said
    assert len(said) <= 240 + len(str(folder)) and not any(word in said for word in ("--", "command"))


def test_ctrl_c_before_the_first_step(tmp_path):
    "In the loop itself, before it listens; nothing is locked or lost afterwards."
    assert_nothing_lost(refusal(train_plain, tmp_path / "parts", lambda data: Interrupted(data, 0)), tmp_path)
    train_plain(tmp_path / "parts")
    train_plain(tmp_path / "whole")
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="terminals do not say that they are closed")
def test_a_closed_terminal_loses_nothing(tmp_path):
    "What is done is saved first; under nohup the training does not even hear of it."
    stopping = functools.partial(Stopping, at=3, number=signal.SIGHUP)
    assert "stopped at step" in refusal(train_plain, tmp_path, stopping)
    assert load_step(tmp_path) >= 2
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try: train_plain(tmp_path, stopping)
    finally: signal.signal(signal.SIGHUP, before)
    assert load_step(tmp_path) == SHORT.steps


def test_ctrl_c_while_the_data_is_prepared(own_caches, tmp_path, monkeypatch):
    "Of a VQ-VAE and of a prior, new ones and such as go on."
    def pressed(config): signal.raise_signal(signal.SIGINT)
    train_vqvae(CONFIG, tmp_path)
    for name, start in (("vqvae", lambda: train_vqvae(CONFIG, tmp_path)),
                        ("lstm", lambda: train_prior_in("lstm", CONFIG, tmp_path))):
        with monkeypatch.context() as patch:
            patch.setattr(experiment, "load_splits", pressed)
            assert_nothing_lost(refusal(start), tmp_path / name)
        start()
    assert load_step(tmp_path / "lstm", "lstm") == 4


def test_a_prior_of_an_unfinished_vqvae_is_told(own_caches, tmp_path, monkeypatch, capsys):
    "It is in vain when the VQ-VAE goes on afterwards."
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "load_splits", lambda config: [Stopping(split, 2) for split in splits()])
        refusal(train_vqvae, CONFIG, tmp_path)
    train_prior_in("lstm", CONFIG, tmp_path)
    assert re.search("is at step [23] of 4: a prior that is trained now", capsys.readouterr().out)
    train_vqvae(CONFIG, tmp_path)
    train_prior_in("lstm", CONFIG, tmp_path, fresh=True)
    assert "trained now" not in capsys.readouterr().out


@pytest.mark.slow
def test_ctrl_c_in_the_command_before_the_first_step(tmp_path, monkeypatch):
    "While it draws the avatars: one line on the error stream, and the exit code of a fault."
    monkeypatch.setenv("VQGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    config = write_config(tmp_path / "tiny.yaml")
    code, out, err = interrupt(signal.SIGINT, r"[1-9]\d*/\d+", "train", "vqvae", "--config", config,
                               "--run", tmp_path / "run", "--data.count", 20000)
    last = err.replace("\r", "\n").strip().splitlines()[-1]
    assert code == 1 and out == "" and "Traceback" not in err, err
    assert last.startswith("error: ") and one_sentence(last) and "starting it again goes on" in last, err
    assert not (tmp_path / "run/vqvae/state").exists()


CELL = """
import tiny
class Announcing(tiny.Stopping):
    def __getitems__(self, indices):
        self.batches += 1
        if self.batches == 3: print("in the third batch", flush=True)
        return self.data.__getitems__(indices)
model, history = tiny.train_plain({folder!r}, lambda data: Announcing(data, 0), steps={steps})
print("done", history[-1]["step"])
"""


def run_cell(manager, client, code, pressed=False):
    "Run `code` in a kernel, and press the stop button when it prints something; returns its outputs."
    request, outputs = client.execute(code), []
    while True:
        message = client.get_iopub_msg(timeout=120)
        if message["parent_header"].get("msg_id") != request: continue
        kind, content = message["msg_type"], message["content"]
        if kind == "status" and content["execution_state"] == "idle": return outputs
        if kind == "stream" and "third batch" in content["text"] and pressed: manager.interrupt_kernel()
        if kind in ("stream", "error"): outputs.append((kind, content))


@pytest.mark.slow
def test_stop_button_in_a_training_cell(tmp_path):
    "The cell ends in one line that is true, and run again it goes on: with all of its steps in the end."
    environment = {**os.environ, "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(HERE), env=environment)
    try:
        cell = CELL.format(folder=str(tmp_path / "run"), steps=100_000)
        [*_, (kind, content)] = run_cell(manager, client, cell, pressed=True)
        assert kind == "error" and content["ename"] == "VQGenError"
        [line] = content["traceback"]
        step = load_step(tmp_path / "run")
        assert f"stopped at step {step} of 100000; starting it again goes on" in line and step >= 3
        assert len(line.splitlines()) == 1 and "--" not in line
        outputs = run_cell(manager, client, cell, pressed=True)
        found = re.search(r"stopped at step (\d+) of", outputs[-1][1]["traceback"][0])
        assert int(found[1]) > step
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
