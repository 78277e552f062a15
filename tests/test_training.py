"An interruption or another setting costs minutes, never the training; and a message says so in one sentence."
import functools
import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import (
    CONFIG,
    FITS,
    SHORT,
    Stopping,
    changed,
    contents,
    interrupt,
    load_step,
    refusal,
    splits,
    train_plain,
    weights,
    write_config,
)
from torch.utils._python_dispatch import TorchDispatchMode

from vqgen.data.datasets import load_data
from vqgen.errors import VQGenError
from vqgen.experiment import train_prior_in, train_vqvae
from vqgen.priors.text import train_tokenizer
from vqgen.training.checkpoints import checkpoints, load_model, newest_state, read_description
from vqgen.training.devices import choose_precision, precision_of, start_accelerator
from vqgen.training.loop import Meter, model_loss, new_state, train, train_step
from vqgen.vqvae.model import VQVAE


@pytest.fixture(params=FITS)
def fit(request, own_caches):
    "A function `fit(folder, wrap, **changes)` that trains a fresh model; returns it and its history."
    return FITS[request.param]


@pytest.fixture(scope="module")
def whole_run(own_caches, tmp_path_factory):
    "A run folder with both models trained."
    run = tmp_path_factory.mktemp("whole")
    train_vqvae(CONFIG, run)
    train_prior_in("cftn-v2", CONFIG, run)
    return run


def dates(folder): return {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*")}


# --- interruption and resume ---

@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [3, 4])   # between two checkpoints, and on one
def test_resumed_weights_are_bit_identical(fit, tmp_path, number, at):
    model, _ = fit(tmp_path / "whole")
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    said = refusal(fit, tmp_path / "parts", lambda data: Stopping(data, at, number))
    assert f"step {at} of 9" in said and "starting it again" in said and str(tmp_path / "parts") in said
    assert handlers == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    assert load_step(tmp_path / "parts") == at
    resumed, history = fit(tmp_path / "parts")
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    assert all(value.equal(resumed.state_dict()[name]) for name, value in model.state_dict().items())
    steps = [record["step"] for record in history]
    assert steps[-1] == 9 and steps == sorted(set(steps))


def test_three_interruptions_in_a_row(fit, tmp_path):
    fit(tmp_path / "whole")
    for done in (1, 2, 6):
        left = done - load_step(tmp_path / "parts")
        refusal(fit, tmp_path / "parts", functools.partial(Stopping, at=left))
        assert load_step(tmp_path / "parts") == done
    fit(tmp_path / "parts")
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


class StoppingWhenLookedAt(Stopping):
    "The same for a validation split, which is read one picture at a time."
    def __getitem__(self, i):
        if self.batches == 0: signal.raise_signal(self.number)
        self.batches += 1
        return self.data[i]


def test_signal_during_validation_loses_no_step(tmp_path):
    "A signal that comes late in step 3 must still be followed by a save."
    torch.manual_seed(0)
    said = refusal(train, VQVAE(CONFIG.vqvae.model), load_data(CONFIG.data), changed(SHORT, eval_every=3),
                   tmp_path / "parts", validation=StoppingWhenLookedAt(splits()[1], 1))
    assert f"step {load_step(tmp_path / 'parts')} of 9" in said
    train_plain(tmp_path / "parts")
    train_plain(tmp_path / "whole")
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


def test_what_an_interruption_saves_can_be_used(fit, tmp_path):
    refusal(fit, tmp_path, lambda data: Stopping(data, 3))
    cls = type(fit(tmp_path / "other", steps=1)[0])
    assert all(value.isfinite().all() for value in load_model(tmp_path, cls).state_dict().values())
    assert json.loads((tmp_path / "config.json").read_text("utf-8"))["step"] == 3


@pytest.mark.slow
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
        assert code == 1 and out == "" and found and "starting it again goes on" in found[2], err
        assert "Traceback" not in err and "vqvae (float32, cpu): " in err, err
        steps.append(int(found[1]))
        assert load_step(tmp_path / "run/vqvae", "vqvae") == steps[-1]
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


def test_the_last_checkpoints_and_the_best_are_kept(tmp_path):
    validation_losses = iter([0.5, 0.1, 0.4, 0.3, 0.2])

    def loss(model, batch):
        value, metrics = model.loss(**batch)
        return (value, metrics) if model.training else (torch.tensor(next(validation_losses)), metrics)
    few = torch.utils.data.Subset(splits()[1], range(4))
    often = changed(SHORT, save_every=2, eval_every=2)
    train(VQVAE(CONFIG.vqvae.model), splits()[0], often, tmp_path, loss=loss, validation=few)
    found = checkpoints(tmp_path / "state/train")
    kept = {path.name: read_description(path)["validation_loss"] for path in found}
    assert kept == pytest.approx({"step-00000004": 0.1, "step-00000008": 0.3, "step-00000009": 0.2})
    assert load_model(tmp_path / "state/train/step-00000004", VQVAE).config == CONFIG.vqvae.model


# --- the same step, worked off otherwise ---

def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path):
    "Where the codebook does not learn (it would look at each part alone), parts change nothing but rounding."
    def fit(folder, **changes):
        torch.manual_seed(0)
        model = VQVAE(CONFIG.vqvae.model)
        model.loss(load_data(CONFIG.data).batch(range(64)))
        model.quantizer.eval().train = lambda mode=True: model.quantizer
        return train(model, load_data(CONFIG.data), changed(SHORT, ema_decay=0.0, **changes), folder)
    whole = [record["loss"] for record in fit(tmp_path / "whole")]
    parts = [record["loss"] for record in fit(tmp_path / "parts", gradient_accumulation_steps=4)]
    assert parts == pytest.approx(whole, abs=1e-5)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(one[name].allclose(other[name], atol=1e-4) for name in one)


def test_batch_that_has_no_equal_parts_is_refused(tmp_path):
    said = refusal(train_plain, tmp_path, gradient_accumulation_steps=3)
    assert "batch_size 8" in said and "3" in said


def test_processes_that_read_data_change_nothing(own_caches, tmp_path):
    "Nor does an interruption among them: what is mirrored depends on seed and step alone."
    FITS["vqvae"](tmp_path / "whole")
    FITS["vqvae"](tmp_path / "workers", num_workers=2)
    refusal(FITS["vqvae"], tmp_path / "parts", lambda data: StoppingInTheLoop(data, 5), num_workers=2)
    FITS["vqvae"](tmp_path / "parts", num_workers=1)
    assert weights(tmp_path / "whole") == weights(tmp_path / "workers") == weights(tmp_path / "parts")


class StoppingInTheLoop(Stopping):
    "The same where other processes read the data: the signal goes to the process that trains."
    def __getitems__(self, indices):
        self.batches += 1
        if self.batches == 2: os.kill(os.getppid(), signal.SIGINT)
        return self.data.__getitems__(indices)


COMPILED = pytest.param({"compile": True}, marks=pytest.mark.slow, id="compiled")
BF16 = pytest.param({"precision": "bf16"}, id="bf16")


@pytest.mark.parametrize("options", [COMPILED, BF16])
def test_faster_ways_train_too(tmp_path, options):
    "The loss ends where it does otherwise, and the model can be loaded as ever."
    first = train_plain(tmp_path / "plain")[1][-1]["loss"]
    assert train_plain(tmp_path / "other", **options)[1][-1]["loss"] == pytest.approx(first, rel=0.05)
    assert load_model(tmp_path / "other", VQVAE).config == CONFIG.vqvae.model


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can do it")
def test_precision_that_this_machine_lacks_is_refused(tmp_path):
    assert "fp16" in refusal(train_plain, tmp_path, precision="fp16")


@pytest.mark.parametrize("device, capability, chosen", [
    ("cuda", (9, 0), "bf16"), ("cuda", (8, 0), "bf16"), ("cuda:0", (8, 9), "bf16"),   # H100, A100, L4
    ("cuda", (7, 5), "fp16"), ("cuda", (7, 0), "fp16"), ("cuda:0", (6, 1), "fp16"),   # T4, V100, P40
    ("cpu", None, "float32"), ("mps", None, "float32")])
def test_precision_is_chosen_by_what_the_device_can_do(monkeypatch, device, capability, chosen):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)   # says a T4, and emulates
    assert choose_precision("auto", device) == choose_precision("auto", torch.device(device)) == chosen
    for named in ("float32", "bf16"): assert choose_precision(named, device) == named
    if device != "cpu": assert choose_precision("fp16", device) == "fp16"


def test_chosen_precision_is_what_the_loop_uses(monkeypatch):
    "On a device that this machine does not have, as far as Accelerate can be told of one."
    monkeypatch.setattr("vqgen.training.devices.choose_precision", lambda precision, device: "bf16")
    assert precision_of(start_accelerator(SHORT)) == "bf16"
    monkeypatch.undo()
    assert precision_of(start_accelerator(SHORT)) == "float32"


def test_precision_is_told_beside_the_model(tmp_path):
    train_plain(tmp_path / "auto", steps=1)
    train_plain(tmp_path / "named", steps=1, precision="bf16")
    assert read_description(tmp_path / "auto")["precision"] == "float32"
    assert read_description(tmp_path / "named")["precision"] == "bf16"


def test_auto_goes_on_in_the_precision_of_another_device(tmp_path, monkeypatch):
    "Begun where `auto` is bf16, resumed where it is float32: the settings are the same."
    with monkeypatch.context() as patch:
        patch.setattr("vqgen.training.devices.choose_precision", lambda precision, device: "bf16")
        refusal(train_plain, tmp_path, lambda data: Stopping(data, 4))
        assert read_description(tmp_path)["precision"] == "bf16"
    _, history = train_plain(tmp_path)
    assert history[-1]["step"] == 9 and read_description(tmp_path)["precision"] == "float32"


def test_a_scaler_is_kept_and_may_come_or_go():
    "From fp16 to fp16, to float32 (as from a T4 to a CPU), and from float32 to fp16."
    def state(scale):
        accelerator = start_accelerator(SHORT)
        new = new_state(VQVAE(CONFIG.vqvae.model), model_loss, SHORT, None, accelerator)
        if scale: new.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        return new
    begun = state(8.0)
    begun.step = 5
    resumed, without, fresh = (state(scale) for scale in (2.0, None, 2.0))
    for other in (resumed, without): other.load_state_dict(begun.state_dict())
    assert resumed.step == without.step == 5 and resumed.scaler.get_scale() == 8.0
    fresh.load_state_dict(state(None).state_dict())
    assert fresh.scaler.get_scale() == 2.0


class Looks(TorchDispatchMode):
    "Notes where a number is asked of a tensor: on a GPU that makes Python wait."
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function is torch.ops.aten._local_scalar_dense.default: self.seen.append(function)
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_no_step_asks_for_a_number(optimizer):
    "But the very first one, once; reports, checks and checkpoints may, too."
    class Line(torch.nn.Sequential):
        def loss(self, x):
            value = self(x).square().mean()
            return value, {"half": value.detach() / 2}
    config, accelerator = changed(SHORT, optimizer=optimizer), start_accelerator(SHORT)
    state = new_state(Line(torch.nn.Linear(4, 4)), model_loss, config, None, accelerator)
    meter = Meter(accelerator)
    stream = ((step, {"x": torch.randn(8, 4)}) for step in range(9))
    train_step(state, stream, meter, config, accelerator)
    with Looks() as looks:
        for _ in range(3): train_step(state, stream, meter, config, accelerator)
    assert looks.seen == [] and state.step == 4
    with looks: assert torch.ones(1).item() == 1
    assert len(looks.seen) == 1
    assert meter.means().keys() == {"data_wait", "loss", "half", "gradient_norm"}


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["auto", "bf16", "fp16", "float32"])
def test_every_precision_trains_on_a_gpu(tmp_path, precision):
    "And goes on there, and the model comes back with finite weights."
    refusal(train_plain, tmp_path, lambda data: Stopping(data, 4), precision=precision)
    state, _ = newest_state(tmp_path / "state/train")
    assert ("scaler" in state) == (read_description(tmp_path)["precision"] == "fp16")
    model, history = train_plain(tmp_path, precision=precision)
    assert history[-1]["step"] == 9 and all(value.isfinite().all() for value in model.state_dict().values())


# --- other settings ---

@pytest.mark.parametrize("changes, difference", [
    ({"learning_rate": 0.001}, ["learning_rate", "0.003", "0.001"]), ({"seed": 5}, ["seed", "0", "5"]),
    ({"batch_size": 4, "ema_decay": 0.5, "steps": 12}, ["ema_decay", "0.99", "0.5"])])
def test_changed_settings_are_refused_with_the_difference(fit, tmp_path, changes, difference):
    refusal(fit, tmp_path, lambda data: Stopping(data, 2))
    before = contents(tmp_path)
    said = refusal(fit, tmp_path, **changes)
    assert all(part in said for part in difference) and "start over" in said
    assert contents(tmp_path) == before


def test_settings_that_do_not_change_the_result_may_change(fit, tmp_path):
    fit(tmp_path / "whole")
    refusal(fit, tmp_path / "parts", lambda data: Stopping(data, 2))
    fit(tmp_path / "parts", save_every=2, eval_every=3, keep_checkpoints=5)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


def test_another_shape_is_refused(tmp_path):
    train_plain(tmp_path, steps=2)
    before = contents(tmp_path)
    wider = VQVAE(changed(CONFIG.vqvae.model, hidden_channels=16))
    said = refusal(train, wider, splits()[0], changed(SHORT, steps=2), tmp_path)
    assert "start over" in said and contents(tmp_path) == before


def test_another_model_option_of_the_same_shape_is_refused(tmp_path):
    "Half a training with one commitment weight and half with another is neither."
    with pytest.raises(VQGenError): train_plain(tmp_path, lambda data: Stopping(data, 2))
    other = VQVAE(changed(CONFIG.vqvae.model, commitment_weight=0.75))
    said = refusal(train, other, splits()[0], SHORT, tmp_path)
    assert all(part in said for part in ("commitment_weight", "0.25", "0.75", "start over"))


def test_other_data_or_another_vqvae_is_refused(tmp_path):
    "The codes of another VQ-VAE mean something else: a prior must not go on with them."
    def start(data, facts): train(VQVAE(CONFIG.vqvae.model), data, SHORT, tmp_path, facts=facts)
    refusal(start, Stopping(splits()[0], 2), {"vqvae": "aaaa", "data": "cccc"})
    said = refusal(start, splits()[0], {"vqvae": "bbbb", "data": "cccc"})
    assert all(part in said for part in ("vqvae", "aaaa", "bbbb", "start over")) and "cccc" not in said


def test_refused_settings_leave_the_run_alone(whole_run, tmp_path):
    "`config.yaml` says how the model was trained, and messages point at it; the tokenizer is the model's."
    run = Path(shutil.copytree(whole_run, tmp_path / "run"))
    refusal(train_vqvae, changed(CONFIG, seed=3), run)
    refusal(train_prior_in, "cftn-v2", changed(CONFIG, seed=3), run)
    refusal(train_prior_in, "cftn-v2", changed(CONFIG, text=changed(CONFIG.text, vocab_size=100)), run)
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


@pytest.mark.parametrize("lost", [["stage2"], ["stage1", "stage2"]], ids="-".join)
def test_curriculum_resumes_in_the_stage_it_was_in(whole_run, tmp_path, lost):
    "What an interruption before the stages in `lost` would have left ends in the weights of a run in one go."
    run = Path(shutil.copytree(whole_run, tmp_path / "run"))
    for stage in lost: shutil.rmtree(run / "cftn-v2/state" / stage)
    _, histories = train_prior_in("cftn-v2", CONFIG, run)
    assert weights(run / "cftn-v2") == weights(whole_run / "cftn-v2")
    assert {name: history[-1]["step"] for name, history in histories.items()} == {"stage1": 4, "stage2": 3}


def test_stage_two_without_stage_one_names_two_ways_out(whole_run, tmp_path):
    run = Path(shutil.copytree(whole_run, tmp_path / "run"))
    shutil.rmtree(run / "cftn-v2")
    start = functools.partial(train_prior_in, "cftn-v2", CONFIG, run)
    said = refusal(start, stage="stage2")
    assert "leave out stage" in said and "start over" in said
    assert list(start(stage="stage1")[1]) == ["stage1"] and not (run / "cftn-v2/state/stage2").exists()
    start(stage="stage2")
    assert weights(run / "cftn-v2") == weights(whole_run / "cftn-v2"), "stage after stage is as both at once"
    assert list(start(fresh=True, stage="stage2")[1]) == ["stage2"]
    assert weights(run / "cftn-v2") != weights(whole_run / "cftn-v2")
    assert list(start(stage="stage2")[1]) == ["stage2"], "what began alone goes on alone"
    before = weights(run / "cftn-v2")
    for stage in (None, "stage1"): assert "trained alone" in refusal(start, stage=stage)
    assert weights(run / "cftn-v2") == before


def test_finished_run_stays_as_it_is(whole_run, tmp_path):
    "All commands once more: no file changes, the tokenizer's neither."
    run = Path(shutil.copytree(whole_run, tmp_path / "run"))
    before = contents(run)
    train_vqvae(CONFIG, run)
    train_prior_in("cftn-v2", CONFIG, run)
    assert contents(run) == before


def test_tokenizer_is_the_same_each_time(own_caches):
    "A second tokenizer with other numbers for the words would turn a resumed training's captions into noise."
    made = {train_tokenizer(splits()[0].captions, CONFIG.text).backend_tokenizer.to_str() for _ in range(5)}
    assert len(made) == 1


# --- numbers that run away ---

def runaway(kind, at):
    "The loss of a VQ-VAE, except that call number `at` goes wrong."
    calls = []

    def loss(model, batch):
        calls.append(1)
        value, metrics = model.loss(**batch)
        nothing = 0 * sum(weight.sum() for weight in model.parameters())
        steep = nothing.sqrt()   # the root of 0 is 0, its slope infinite
        faults = {"infinite loss": float("inf"), "NaN loss": float("nan"), "infinite slope": steep}
        if len(calls) == at: value = value + faults[kind]
        return value, metrics
    return loss


@pytest.mark.parametrize("kind", ["infinite loss", "NaN loss", "infinite slope"])
@pytest.mark.parametrize("at", [2, 4, 6, 9])   # checkpoints are due at steps 4, 8 and 9
def test_runaway_numbers_keep_the_last_good_state(tmp_path, kind, at):
    torch.manual_seed(0)
    said = refusal(train, VQVAE(CONFIG.vqvae.model), load_data(CONFIG.data), SHORT, tmp_path / "parts",
                   loss=runaway(kind, at))
    assert "not finite" in said and re.search(rf"step {at}\b", said), said
    assert load_step(tmp_path / "parts") == (at - 1) // 4 * 4, "the last checkpoint before the fault"
    assert_finite(tmp_path / "parts")
    train_plain(tmp_path / "parts")
    train_plain(tmp_path / "whole")
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


def assert_finite(folder):
    state, _ = newest_state(folder / "state/train")
    if state is None: return
    assert all(value.isfinite().all() for value in state["model"].values())
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
