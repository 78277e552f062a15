"An interruption, a full disk or a damaged file costs a user minutes, never the training; and says so in one sentence."
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CONFIG, Stopping, interrupt, one_sentence, vqgen, write_config

from vqgen.config import StageConfig, TrainConfig, VQGenError, VQVAEConfig
from vqgen.curriculum import new_brain, train_stage
from vqgen.data import load_data
from vqgen.experiment import train_cftn_v2, train_vqvae
from vqgen.priors.brain import BiHemisphericBrain
from vqgen.priors.codes import CodedCaptions, encode_dataset
from vqgen.priors.text import train_tokenizer
from vqgen.training import load_model, load_state, save_model, train, write_atomically
from vqgen.vqvae.model import VQVAE

STEPS = dict(steps=9, batch_size=8, warmup_steps=2, learning_rate=3e-3, save_every=4)
SHORT = TrainConfig(**STEPS)


def changed(config, **changes): return config.model_copy(update=changes)


@pytest.fixture(scope="module")
def splits(own_cache): return load_data(changed(CONFIG.data, flip=True)), load_data(CONFIG.data, "validation")


@pytest.fixture(scope="module")
def coded(splits):
    "A VQ-VAE that has seen one batch, a tokenizer, and both splits as codes and captions."
    torch.manual_seed(0)
    vqvae = VQVAE(CONFIG.vqvae.model)
    vqvae.loss(splits[0].batch(range(32)))
    tokenizer = train_tokenizer(splits[0].captions, CONFIG.text)
    return vqvae.eval(), tokenizer, *(CodedCaptions(encode_dataset(vqvae, part), part.captions, tokenizer) for part in splits)


@pytest.fixture(params=["vqvae", "brain"])
def fit(request, splits, coded):
    "A function `fit(folder, wrap, **changes)` that trains a fresh model of the wanted kind; returns it and its history."
    def fit_vqvae(folder, wrap=lambda data: data, seed=0, **changes):
        torch.manual_seed(0)
        model = VQVAE(CONFIG.vqvae.model)
        return model, train(model, wrap(splits[0]), changed(SHORT, **changes), folder, validation=splits[1], seed=seed)

    def fit_brain(folder, wrap=lambda data: data, seed=0, **changes):
        vqvae, tokenizer, data, validation = coded
        model = new_brain(changed(CONFIG.cftn_v2.model, dropout=0.1), vqvae, tokenizer, splits[0].image_size)
        stage = StageConfig(caption_weight=0.2, pure_noise_share=0.3, gate_learning_rate=0.01, **{**STEPS, **changes})
        return model, train_stage(model, "train", stage, wrap(data), validation, folder, seed=seed)

    return {"vqvae": fit_vqvae, "brain": fit_brain}[request.param]


@pytest.fixture(scope="module")
def whole_run(own_cache, tmp_path_factory):
    "A run folder with both models trained."
    run = tmp_path_factory.mktemp("whole")
    train_vqvae(CONFIG, run)
    train_cftn_v2(CONFIG, run)
    return run


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def dates(folder): return {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*")}


def weights(folder): return (Path(folder) / "model.safetensors").read_bytes()


def refusal(call, *arguments, **options):
    "The sentence with which `call` refuses."
    with pytest.raises(VQGenError) as caught: call(*arguments, **options)
    assert one_sentence(caught.value), str(caught.value)
    return str(caught.value)


# --- interruption and resume ---

@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [3, 4])   # between two checkpoints, and on one
def test_resumed_weights_are_bit_identical(fit, tmp_path, number, at):
    model, _ = fit(tmp_path / "whole")
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    said = refusal(fit, tmp_path / "parts", lambda data: Stopping(data, at, number))
    assert f"step {at} of 9" in said and "the same command" in said and str(tmp_path / "parts") in said
    assert handlers == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    assert load_state(tmp_path / "parts/state/train.pt")["step"] == at
    resumed, history = fit(tmp_path / "parts")
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    assert all(value.equal(resumed.state_dict()[name]) for name, value in model.state_dict().items())
    assert history[-1]["step"] == 9 and [record["step"] for record in history] == sorted({record["step"] for record in history})


def test_three_interruptions_in_a_row(fit, tmp_path):
    fit(tmp_path / "whole")
    for done in (1, 2, 6):
        refusal(fit, tmp_path / "parts", lambda data, at=done - load_step(tmp_path / "parts"): Stopping(data, at))
        assert load_step(tmp_path / "parts") == done
    fit(tmp_path / "parts")
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


def load_step(folder): return (load_state(folder / "state/train.pt") or {"step": 0})["step"]


class StoppingWhenLookedAt(Stopping):
    "The same for a validation split, which is read one picture at a time."
    def __getitem__(self, i):
        if self.batches == 0: signal.raise_signal(self.number)
        self.batches += 1
        return self.data[i]


def test_signal_during_validation_loses_no_step(splits, tmp_path):
    "A signal that comes late in step 3 must still be followed by a save."
    torch.manual_seed(0)
    said = refusal(train, VQVAE(CONFIG.vqvae.model), load_data(CONFIG.data), changed(SHORT, eval_every=3), tmp_path / "parts",
                   validation=StoppingWhenLookedAt(splits[1], 1))
    assert f"step {load_step(tmp_path / 'parts')} of 9" in said
    train_plain(tmp_path / "parts")
    train_plain(tmp_path / "whole")
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


def test_what_an_interruption_saves_can_be_used(fit, tmp_path):
    refusal(fit, tmp_path, lambda data: Stopping(data, 3))
    cls = type(fit(tmp_path / "other", steps=1)[0])
    assert all(value.isfinite().all() for value in load_model(tmp_path, cls).state_dict().values())
    assert json.loads((tmp_path / "config.json").read_text("utf-8"))["step"] == 3


def test_killed_training_goes_on_from_its_last_checkpoint(splits, tmp_path):
    "SIGKILL leaves no time to save: the process dies in step 6, and the checkpoint of step 4 is what is left."
    dying = ("import signal, sys, test_training as t\n"
             "t.train_plain(sys.argv[1], lambda data: t.Stopping(data, 6, signal.SIGKILL))")
    result = subprocess.run([sys.executable, "-c", dying, str(tmp_path / "parts")], cwd=Path(__file__).parent,
                            capture_output=True, timeout=120)
    assert result.returncode == -signal.SIGKILL, result.stderr.decode()
    assert load_step(tmp_path / "parts") == 4
    train_plain(tmp_path / "parts")
    train_plain(tmp_path / "whole")
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


def train_plain(folder, wrap=lambda data: data, **changes):
    "The shortest training of a VQ-VAE; a function of the module, so that another process can call it."
    torch.manual_seed(0)
    model = VQVAE(CONFIG.vqvae.model)
    return model, train(model, wrap(load_data(CONFIG.data)), changed(SHORT, **changes), folder)


def test_ctrl_c_and_sigterm_at_the_command_line(tmp_path):
    "Ctrl-C stops it, the same command goes on where it stopped, and SIGTERM stops that."
    long = ["train", "vqvae", "--config", write_config(tmp_path / "tiny.yaml"), "--run", tmp_path / "run",
            "--train.steps", 10**6, "--train.save_every", 10**6, "--train.eval_every", 10**6]
    steps = []
    for number in (signal.SIGINT, signal.SIGTERM):
        start = (steps or [0])[-1]
        code, out, err = interrupt(number, rf"\b(?!{start}/)[1-9]\d*/1000000 ", *long)
        last = err.replace("\r", "\n").strip().splitlines()[-1]
        found = re.fullmatch(r"error: stopped at step (\d+) of 1000000; (.*)", last)
        assert code == 1 and out == "" and found and "the same command goes on" in found[2] and "Traceback" not in err, err
        steps.append(int(found[1]))
        assert load_state(tmp_path / "run/vqvae/state/vqvae.pt")["step"] == steps[-1]
        assert re.search(rf"\b{start}/1000000 ", err), "the progress bar begins where the training does"
    assert 0 < steps[0] < steps[1]


def test_started_again_after_the_end_does_nothing(fit, tmp_path):
    model, history = fit(tmp_path)
    before = dates(tmp_path)
    again, same = fit(tmp_path)
    assert dates(tmp_path) == before
    assert same == history and not again.training
    assert all(value.equal(again.state_dict()[name]) for name, value in model.state_dict().items())


def test_the_last_steps_are_in_the_history(tmp_path):
    "Also where their number is no multiple of ten and there is no validation split."
    _, history = train_plain(tmp_path)
    assert [record["step"] for record in history] == [9]
    assert len((tmp_path / "metrics-train.jsonl").read_text("utf-8").splitlines()) == 1


# --- other settings ---

@pytest.mark.parametrize("changes, difference", [
    ({"learning_rate": 0.001}, ["learning_rate", "0.003", "0.001"]), ({"steps": 12}, ["steps", "9", "12"]),
    ({"seed": 5}, ["seed", "0", "5"]), ({"batch_size": 4, "ema_decay": 0.5}, ["batch_size", "8", "4", "ema_decay", "0.99", "0.5"])])
def test_changed_settings_are_refused_with_the_difference(fit, tmp_path, changes, difference):
    refusal(fit, tmp_path, lambda data: Stopping(data, 2))
    before = contents(tmp_path)
    said = refusal(fit, tmp_path, **changes)
    assert all(part in said for part in difference) and "--fresh" in said
    assert contents(tmp_path) == before


def test_settings_that_do_not_change_the_result_may_change(fit, tmp_path):
    fit(tmp_path / "whole")
    refusal(fit, tmp_path / "parts", lambda data: Stopping(data, 2))
    fit(tmp_path / "parts", save_every=2, eval_every=3)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


def test_another_shape_is_refused(splits, tmp_path):
    train_plain(tmp_path, steps=2)
    before = contents(tmp_path)
    said = refusal(train, VQVAE(changed(CONFIG.vqvae.model, hidden_channels=16)), splits[0], changed(SHORT, steps=2), tmp_path)
    assert "--fresh" in said and contents(tmp_path) == before


def test_another_model_option_of_the_same_shape_is_refused(splits, tmp_path):
    "Half a training with one commitment weight and half with another is neither."
    with pytest.raises(VQGenError): train_plain(tmp_path, lambda data: Stopping(data, 2))
    other = VQVAE(changed(CONFIG.vqvae.model, commitment_weight=0.75))
    said = refusal(train, other, splits[0], SHORT, tmp_path)
    assert all(part in said for part in ("commitment_weight", "0.25", "0.75", "--fresh"))


def test_other_data_or_another_vqvae_is_refused(splits, tmp_path):
    "The codes of another VQ-VAE mean something else: a prior must not go on with them."
    def start(data, facts): train(VQVAE(CONFIG.vqvae.model), data, SHORT, tmp_path, facts=facts)
    refusal(start, Stopping(splits[0], 2), {"vqvae": "aaaa", "data": "cccc"})
    said = refusal(start, splits[0], {"vqvae": "bbbb", "data": "cccc"})
    assert all(part in said for part in ("vqvae", "aaaa", "bbbb", "--fresh")) and "cccc" not in said


def test_refused_settings_leave_the_run_alone(whole_run, tmp_path):
    "`config.yaml` says how the model in the folder was trained, and messages point at it; the tokenizer is the model's."
    run = Path(shutil.copytree(whole_run, tmp_path / "run"))
    refusal(train_vqvae, changed(CONFIG, seed=3), run)
    refusal(train_cftn_v2, changed(CONFIG, seed=3), run)
    refusal(train_cftn_v2, changed(CONFIG, text=changed(CONFIG.text, vocab_size=100)), run)
    assert contents(run) == contents(whole_run)


def test_fresh_starts_over(tmp_path):
    first, _ = train_vqvae(CONFIG, tmp_path)
    (tmp_path / "vqvae" / "leftover.txt").write_text("old", "utf-8")
    second, history = train_vqvae(changed(CONFIG, seed=3), tmp_path, fresh=True)
    assert not (tmp_path / "vqvae" / "leftover.txt").exists() and history[-1]["step"] == 4
    assert any(not value.equal(second.state_dict()[name]) for name, value in first.state_dict().items())
    train_vqvae(CONFIG, tmp_path, fresh=True)
    saved = load_model(tmp_path / "vqvae", VQVAE).state_dict()
    assert all(value.equal(saved[name]) for name, value in first.state_dict().items())


@pytest.mark.parametrize("lost", [["rectify"], ["stage2", "rectify"], ["stage1", "stage2", "rectify"]], ids="-".join)
def test_curriculum_resumes_in_the_stage_it_was_in(whole_run, tmp_path, lost):
    "What an interruption before the stages in `lost` would have left ends in the weights of a run in one go."
    run = Path(shutil.copytree(whole_run, tmp_path / "run"))
    for stage in lost: (run / f"cftn-v2/state/{stage}.pt").unlink()
    _, histories = train_cftn_v2(CONFIG, run)
    assert weights(run / "cftn-v2") == weights(whole_run / "cftn-v2")
    assert {name: history[-1]["step"] for name, history in histories.items()} == {"stage1": 4, "stage2": 3, "rectify": 3}


def test_finished_run_stays_as_it_is(whole_run, tmp_path):
    "All commands once more: no file changes, the tokenizer's neither."
    run = Path(shutil.copytree(whole_run, tmp_path / "run"))
    before = contents(run)
    train_vqvae(CONFIG, run)
    train_cftn_v2(CONFIG, run)
    assert contents(run) == before


def test_tokenizer_is_the_same_each_time(splits):
    "A second tokenizer with other numbers for the same words would turn the captions of a resumed training into noise."
    made = {train_tokenizer(splits[0].captions, CONFIG.text).backend_tokenizer.to_str() for _ in range(5)}
    assert len(made) == 1


# --- damaged files ---

@pytest.mark.parametrize("damage", ["half", "empty", "text", "another dict", "no dict"])
def test_damaged_state_is_one_sentence(tmp_path, damage):
    train_plain(tmp_path, steps=2)
    path = tmp_path / "state/train.pt"
    content = path.read_bytes()
    if damage == "another dict": torch.save({"anything": 1}, path)
    elif damage == "no dict": torch.save([1, 2], path)
    else: path.write_bytes({"half": content[:len(content) // 2], "empty": b"", "text": b"hello"}[damage])
    said = refusal(train_plain, tmp_path, steps=2)
    assert str(path) in said and "--fresh" in said


class Bomb:
    "Runs code when a careless reader unpickles it."
    def __reduce__(self): return os.mkdir, (Bomb.path,)


def test_state_file_cannot_run_code(tmp_path):
    Bomb.path = str(tmp_path / "exploded")
    (tmp_path / "state").mkdir()
    torch.save(Bomb(), tmp_path / "state/train.pt")
    refusal(train_plain, tmp_path)
    assert not (tmp_path / "exploded").exists()


@pytest.fixture(scope="module")
def trained(own_cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    train_plain(folder, steps=2)
    return folder


@pytest.fixture
def copy(trained, tmp_path): return Path(shutil.copytree(trained, tmp_path / "copy"))


@pytest.mark.parametrize("damage", ["half", "empty", "text", "missing", "other weights", "other shapes"])
def test_damaged_weights_are_one_sentence(copy, damage):
    path = copy / "model.safetensors"
    content = path.read_bytes()
    if damage == "missing": path.unlink()
    elif damage == "other weights": save_file({"weight": torch.zeros(3)}, path)
    elif damage == "other shapes": save_file(VQVAE(VQVAEConfig(hidden_channels=16)).state_dict(), path)
    else: path.write_bytes({"half": content[:len(content) // 2], "empty": b"", "text": b"hello"}[damage])
    assert str(copy) in refusal(load_model, copy, VQVAE)


@pytest.mark.parametrize("text", [
    '{"model": "VQV', "", "[1, 2]", '{"model": "VQVAE"}', '{"model": "VQVAE", "config": 5}',
    '{"model": "VQVAE", "config": {"downsample": 3}}', '{"model": "VQVAE", "config": {"depth": 3}}', b"\xff\xfe\x00"])
def test_damaged_description_is_one_sentence(copy, text):
    (copy / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert str(copy) in refusal(load_model, copy, VQVAE)


def test_the_model_of_another_class_is_refused(trained):
    said = refusal(load_model, trained, BiHemisphericBrain)
    assert "VQVAE" in said and "BiHemisphericBrain" in said


def test_no_model_at_all(tmp_path): assert "train it first" in refusal(load_model, tmp_path / "nothing", VQVAE)


def test_saved_and_loaded_is_the_same(trained, tmp_path):
    model = load_model(trained, VQVAE)
    save_model(model, tmp_path)
    assert weights(tmp_path) == weights(trained) and not model.training
    assert load_model(tmp_path, VQVAE).config == model.config


# --- folders that cannot be written ---

def test_failed_write_leaves_the_old_file_and_no_scraps(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old", "utf-8")

    def run_out(temporary):
        temporary.write_text("half of the n", "utf-8")
        raise OSError(28, "No space left on device")
    assert "No space left" in refusal(write_atomically, path, run_out)
    assert path.read_text("utf-8") == "old" and list(tmp_path.iterdir()) == [path]


def test_folder_that_cannot_be_made(tmp_path):
    "A file stands where the folder should be; root meets this, too."
    (tmp_path / "file").write_text("in the way", "utf-8")
    for folder in ("file", "file/deeper"):
        assert str(tmp_path / "file") in refusal(train_plain, tmp_path / folder)
        assert str(tmp_path / "file") in refusal(train_vqvae, CONFIG, tmp_path / folder)
    assert (tmp_path / "file").read_text("utf-8") == "in the way"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_that_may_not_be_written(tmp_path):
    train_plain(tmp_path / "run", steps=2)
    before = contents(tmp_path)
    for folder in (tmp_path / "run", tmp_path / "run/state"): folder.chmod(0o500)
    try: assert "cannot write" in refusal(train_plain, tmp_path / "run", lambda data: Stopping(data, 1))
    finally:
        for folder in (tmp_path / "run", tmp_path / "run/state"): folder.chmod(0o700)
    assert contents(tmp_path) == before


def test_full_disk_keeps_the_previous_checkpoint(tmp_path):
    "No file may grow beyond a few KB, as if the disk were full: one sentence, the old checkpoint whole, and it goes on later."
    refusal(train_plain, tmp_path / "parts", lambda data: Stopping(data, 3))
    before = contents(tmp_path)
    child = ("import resource, sys, test_training as t\n"
             "from vqgen.config import VQGenError\n"
             "data, model = t.load_data(t.CONFIG.data), t.load_model(sys.argv[1], t.VQVAE)\n"
             "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
             "for write in (lambda: t.train_plain(sys.argv[1]), lambda: t.save_model(model, sys.argv[1])):\n"
             "    try: write()\n"
             "    except VQGenError as error: print(error)")
    result = subprocess.run([sys.executable, "-c", child, str(tmp_path / "parts")], cwd=Path(__file__).parent,
                            capture_output=True, text=True, timeout=120)
    said = result.stdout.splitlines()
    assert result.returncode == 0 and len(said) == 2, result.stderr
    assert all(one_sentence(line) and "cannot write" in line and "File too large" in line for line in said)
    assert str(tmp_path / "parts/state/train.pt") in said[0] and contents(tmp_path) == before
    train_plain(tmp_path / "parts")
    train_plain(tmp_path / "whole")
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


# --- numbers that run away ---

def runaway(kind, at):
    "The loss of a VQ-VAE, except that call number `at` goes wrong."
    calls = []

    def loss(model, batch):
        calls.append(1)
        value, metrics = model.loss(**batch)
        steep = (0 * sum(weight.sum() for weight in model.parameters())).sqrt()   # the root of 0 is 0, its slope infinite
        faults = {"infinite loss": float("inf"), "NaN loss": float("nan"), "infinite slope": steep}
        if len(calls) == at: value = value + faults[kind]
        return value, metrics
    return loss


@pytest.mark.parametrize("kind", ["infinite loss", "NaN loss", "infinite slope"])
@pytest.mark.parametrize("at", [2, 4, 6, 9])   # checkpoints are due at steps 4, 8 and 9
def test_runaway_numbers_keep_the_last_good_state(tmp_path, kind, at):
    torch.manual_seed(0)
    said = refusal(train, VQVAE(CONFIG.vqvae.model), load_data(CONFIG.data), SHORT, tmp_path / "parts", loss=runaway(kind, at))
    assert re.search("loss|gradient|finite|NaN", said)
    assert load_step(tmp_path / "parts") == (at - 1) // 4 * 4, "the state of the last checkpoint before the fault"
    assert_finite(tmp_path / "parts")
    train_plain(tmp_path / "parts")
    train_plain(tmp_path / "whole")
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


def assert_finite(folder):
    if not (folder / "state/train.pt").exists(): return
    assert all(value.isfinite().all() for value in load_state(folder / "state/train.pt")["model"].values())
    assert all(value.isfinite().all() for value in load_file(folder / "model.safetensors").values())


class Poisoned(Stopping):
    "A data set whose batch number `at` holds an infinite pixel."
    def __getitems__(self, indices):
        self.batches += 1
        examples = self.data.__getitems__(indices)
        if self.batches == self.at: examples[0]["images"][0, 0, 0] = float("inf")
        return examples


def test_infinite_pixel_keeps_the_last_good_state(tmp_path):
    refusal(train_plain, tmp_path, lambda data: Poisoned(data, 6))
    assert load_step(tmp_path) == 4
    assert_finite(tmp_path)


# --- Weights & Biases ---

def test_wandb_offline_and_online_without_a_login(splits, tmp_path):
    "Offline writes a run folder; online, with nobody logged in, says so in a line and does the same. Neither stops the training."
    clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB") and key != "NETRC"}
    for mode, options in {"offline": {"WANDB_MODE": "offline"}, "online": {}}.items():
        home = tmp_path / mode / "home"
        home.mkdir(parents=True)
        environment = {**clean, **options, "HOME": str(home), "XDG_CONFIG_HOME": str(home), "WANDB_CONFIG_DIR": str(home)}
        result = vqgen("train", "vqvae", "--config", write_config(tmp_path / "tiny.yaml"), "--run", tmp_path / mode,
                       "--tracking.mode", mode, env=environment)
        assert result.returncode == 0, result.stderr
        assert result.stdout.splitlines()[-1] == f"saved in {tmp_path / mode / 'vqvae'}"
        assert len(list((tmp_path / mode / "vqvae/wandb").glob("offline-run-*/*.wandb"))) == 1
        assert (result.stdout + result.stderr).count("wandb: no login found") == (mode == "online")
        assert load_model(tmp_path / mode / "vqvae", VQVAE) is not None
    assert weights(tmp_path / "offline/vqvae") == weights(tmp_path / "online/vqvae")
