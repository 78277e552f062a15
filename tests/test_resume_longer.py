"More steps, another batch size, the best model: a training goes on where it is, and says what that means."
import functools
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from tiny import (
    CONFIG,
    SHORT,
    TREE,
    Stopping,
    changed,
    contents,
    fit_brain,
    fit_vqvae,
    load_step,
    one_sentence,
    refusal,
    splits,
    train_plain,
    weights,
)

from vqgen.config import load_config
from vqgen.experiment import save_tokenizer, train_prior_in, train_vqvae
from vqgen.priors.text import load_tokenizer
from vqgen.training.batches import batch_indices
from vqgen.training.checkpoints import (
    checkpoints,
    load_model,
    load_state,
    new_checkpoint,
    newest_state,
    read_description,
    save_state,
)
from vqgen.training.loop import train
from vqgen.training.optimizers import learning_rate_factor
from vqgen.vqvae.model import VQVAE


@pytest.fixture(scope="module")
def finished(own_caches, tmp_path_factory):
    "A training of nine steps."
    folder = tmp_path_factory.mktemp("finished")
    train_plain(folder)
    return folder


@pytest.fixture
def copy(finished, tmp_path): return Path(shutil.copytree(finished, tmp_path / "copy"))


# --- more steps ---

@pytest.mark.parametrize("fit", [fit_vqvae, fit_brain], ids=["vqvae", "brain"])   # AdamW alone, and with Muon
def test_longer_training_is_exact_when_interrupted(own_caches, tmp_path, capsys, fit):
    "From its end, and then from the middle: what is cut twice ends in the bits of what is not."
    for folder in ("whole", "parts"):
        fit(tmp_path / folder)
        capsys.readouterr()
        if folder == "parts":
            refusal(fit, tmp_path / folder, lambda data: Stopping(data, 3), steps=15)
            assert load_step(tmp_path / folder) == 12
        fit(tmp_path / folder, steps=15)
        [said] = [line for line in capsys.readouterr().out.splitlines() if "steps 9 -> 15" in line]
        assert one_sentence(said) and len(said) <= 240
        assert all(part in said for part in ("from step 9 ", "2 steps", "0.003", "at step 15")), said
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    for folder in ("whole", "parts"):
        if folder == "parts": refusal(fit, tmp_path / folder, lambda data: Stopping(data, 1), steps=20)
        fit(tmp_path / folder, steps=20)
    assert newest_state(tmp_path / "parts/state/train")[0]["courses"] == [(0, 9), (9, 15), (15, 20)]
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


def test_unfinished_training_can_be_made_longer(tmp_path):
    refusal(train_plain, tmp_path, lambda data: Stopping(data, 4))
    _, history = train_plain(tmp_path, steps=12)
    state, _ = newest_state(tmp_path / "state/train")
    assert history[-1]["step"] == 12 and state["courses"] == [(0, 9), (4, 12)]


def test_each_course_rises_and_falls():
    "The first is what it was without others; the second is another one of its length, moved."
    courses = [(0, 9), (9, 15)]
    found = [learning_rate_factor(step, 2, courses) for step in range(16)]
    assert found[:9] == [learning_rate_factor(step, 2, courses[:1]) for step in range(9)]
    assert found[9:15] == [learning_rate_factor(step, 2, [(0, 6)]) for step in range(6)]
    assert found[9:11] == [0.5, 1.0] and found[15] == 0 and all(0 < factor <= 1 for factor in found[:15])


def test_the_rate_of_a_longer_training_is_the_one_told(copy):
    _, history = train_plain(copy, steps=19)
    by_step = {record["step"]: record["learning_rate"] for record in history}
    assert by_step[9] == 0 and by_step[10] == pytest.approx(0.003) and by_step[19] == 0


@pytest.mark.parametrize("steps", [3, 8])
def test_fewer_steps_are_a_sentence(copy, steps):
    before = contents(copy)
    said = refusal(train_plain, copy, steps=steps)
    assert "step 9 of 9" in said and f"end at {steps}" in said and "9 steps or more" in said
    assert contents(copy) == before


def test_fewer_steps_than_planned_are_refused_also_before_they_are_done(tmp_path):
    refusal(train_plain, tmp_path, lambda data: Stopping(data, 2))
    assert "step 2 of 9" in refusal(train_plain, tmp_path, steps=5)


# --- the stages of a curriculum ---

def staged(**steps):
    section = CONFIG.cftn_v2
    return changed(CONFIG, cftn_v2=changed(section, **{stage: changed(getattr(section, stage), steps=count)
                                                       for stage, count in steps.items()}))


@pytest.fixture(scope="module")
def run(own_caches, tmp_path_factory):
    "A run folder with a VQ-VAE and stage 1 of CFTN v2."
    run = tmp_path_factory.mktemp("run")
    train_vqvae(CONFIG, run)
    train_prior_in("cftn-v2", CONFIG, run, stage="stage1")
    return run


def test_stages_made_longer(run, tmp_path):
    "Stage 1 as long as stage 2 has not begun, stage 2 always; a longer stage 1 would come to nothing then."
    run = Path(shutil.copytree(run, tmp_path / "run"))
    _, histories = train_prior_in("cftn-v2", staged(stage1=6), run)
    assert {name: history[-1]["step"] for name, history in histories.items()} == {"stage1": 6, "stage2": 3}
    _, histories = train_prior_in("cftn-v2", staged(stage1=6, stage2=5), run)
    assert histories["stage2"][-1]["step"] == 5
    before = contents(run)
    for only in (None, "stage1", "stage2"):
        said = refusal(train_prior_in, "cftn-v2", staged(stage1=8, stage2=5), run, stage=only)
        assert "stage 2 has begun" in said and "6" in said and "8" in said and "start over" in said, said
    assert contents(run) == before


# --- another batch size ---

def test_order_goes_on_in_batches_of_another_size():
    stream = batch_indices(10, 4, seed=3)
    order = sum((next(stream) for _ in range(10)), [])
    for size in (1, 2, 5, 8):
        parts = batch_indices(10, size, seed=3, seen=12)
        assert sum((next(parts) for _ in range(16 // size)), []) == order[12:12 + 16 // size * size]


class Noted(Stopping):
    "Notes which examples are read."
    def __init__(self, data):
        super().__init__(data, 0)
        self.seen = []

    def __getitems__(self, indices):
        self.seen += indices
        return self.data.__getitems__(indices)


def read_examples(folder, **changes):
    "The examples that a training reads, in order."
    noted = []
    def wrap(data): return noted.append(Noted(data)) or noted[0]
    train_plain(folder, wrap, **changes)
    return noted[0].seen


def test_resumed_with_another_batch_size_it_reads_the_next_examples(tmp_path, capsys):
    "Here across the end of an epoch, and in parts; and then once more as before."
    wanted = read_examples(tmp_path / "whole", steps=16)
    refusal(train_plain, tmp_path / "parts", lambda data: Stopping(data, 11), steps=16)
    capsys.readouterr()
    seen = read_examples(tmp_path / "parts", steps=16, batch_size=4, gradient_accumulation_steps=2)
    assert seen == wanted[88:88 + 20]
    [said] = [line for line in capsys.readouterr().out.splitlines() if "batch_size" in line]
    assert one_sentence(said) and "8 -> 4" in said and "88 examples" in said and "1 -> 2" in said
    assert newest_state(tmp_path / "parts/state/train")[0]["seen"] == 108
    assert read_examples(tmp_path / "parts", steps=17) == wanted[108:116]


# --- other places ---

def test_a_run_goes_on_from_another_working_directory(run, tmp_path, monkeypatch):
    "With the config that names a tokenizer beside it, and with the copy in the run folder; moved, too."
    run = Path(shutil.copytree(run, tmp_path / "run"))
    start = functools.partial(train_prior_in, "lstm", run=run)
    save_tokenizer(load_tokenizer(run / "cftn-v2"), tmp_path / "project/words")
    mine = tmp_path / "project/mine.yaml"
    mine.write_text(yaml.safe_dump({**TREE, "text": {**TREE["text"], "tokenizer": "words"}}), "utf-8")
    monkeypatch.chdir(tmp_path / "project")
    start(config=load_config("mine.yaml"))
    before = contents(run / "lstm")
    monkeypatch.chdir(tmp_path)
    for config in ("project/mine.yaml", "run/lstm/config.yaml"): start(config=load_config(config))
    start(config=load_config(mine.parent.rename(tmp_path / "moved") / "mine.yaml"))
    assert contents(run / "lstm") == before


# --- checkpoints of an older version ---

def age(folder):
    "Turn the newest checkpoint in `folder` into one that knows nothing of what came later."
    newest = checkpoints(folder)[-1]
    state = load_state(newest)
    for key in ("seen", "courses"): del state[key]
    for key in ("keep_best", "weight_decay", "config.revive_after"): del state["settings"][key]
    kept = contents(newest)
    with new_checkpoint(newest) as new:
        new.mkdir()
        for name in ("model.safetensors", "config.json"): (new / name).write_bytes(kept[name])
        save_state(new / "training.pt", state)


def test_old_checkpoint_goes_on(tmp_path):
    "To the bit, also longer; settings it does not know count as their default."
    for folder in ("old", "new"): refusal(train_plain, tmp_path / folder, lambda data: Stopping(data, 6))
    age(tmp_path / "old/state/train")
    assert "weight_decay 0.01 -> 0.5" in refusal(train_plain, tmp_path / "old", weight_decay=0.5)
    for folder in ("old", "new"): train_plain(tmp_path / folder)
    assert weights(tmp_path / "old") == weights(tmp_path / "new")
    age(tmp_path / "old/state/train")
    for folder in ("old", "new"): train_plain(tmp_path / folder, steps=12, batch_size=4)
    assert weights(tmp_path / "old") == weights(tmp_path / "new")


# --- the best model ---

LOSSES = {2: 0.5, 4: 0.1, 6: 0.4, 8: 0.3, 9: 0.2, 12: 0.6}   # of the validation split, by step


def fit_judged(folder, wrap=lambda data: data, **changes):
    "A VQ-VAE whose validation loss is as in `LOSSES`."
    torch.manual_seed(0)
    model = VQVAE(CONFIG.vqvae.model)
    steps = iter(step for step in LOSSES if step > load_step(folder))
    def loss(model, batch):
        value, metrics = model.loss(**batch)
        return (value, metrics) if model.training else (torch.tensor(LOSSES[next(steps)]), metrics)
    few = torch.utils.data.Subset(splits()[1], range(4))
    config = changed(SHORT, **{"eval_every": 2, "save_every": 100, **changes})
    return model, train(model, wrap(splits()[0]), config, folder, loss=loss, validation=few)


def assert_best(folder, model, step):
    saved = load_model(folder, VQVAE).state_dict()
    assert read_description(folder)["step"] == step and not model.training
    assert all(value.equal(saved[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("at", [2, 5, 8])   # before, after, and long after the best
def test_the_best_model_remains(own_caches, tmp_path, capsys, at):
    "In the folder and in the hand, interrupted or not; a checkpoint is there for it at whatever step it was."
    model, _ = fit_judged(tmp_path / "whole", keep_best=True)
    [said] = [line for line in capsys.readouterr().out.splitlines() if "lowest" in line]
    assert one_sentence(said) and "step 4" in said and "0.1" in said
    assert_best(tmp_path / "whole", model, 4)
    refusal(fit_judged, tmp_path / "parts", lambda data: Stopping(data, at), keep_best=True)
    model, _ = fit_judged(tmp_path / "parts", keep_best=True)
    assert_best(tmp_path / "parts", model, 4)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


def test_finished_training_with_and_without_its_best(own_caches, tmp_path):
    "Called again it writes nothing; asked otherwise it takes the other model; longer it goes on at its end."
    fit_judged(tmp_path, keep_best=True)
    before = contents(tmp_path)
    assert_best(tmp_path, fit_judged(tmp_path, keep_best=True)[0], 4)
    assert contents(tmp_path) == before
    assert_best(tmp_path, fit_judged(tmp_path)[0], 9)
    assert_best(tmp_path, fit_judged(tmp_path, keep_best=True)[0], 4)
    model, history = fit_judged(tmp_path, keep_best=True, steps=12, eval_every=12)
    assert history[-1]["step"] == 12
    assert_best(tmp_path, model, 4)


def test_each_stage_ends_with_its_best(run, tmp_path):
    "Stage 2 begins with the best of stage 1; called again, nothing of stage 1 comes back into the folder."
    run = Path(shutil.copytree(run, tmp_path / "run"))
    shutil.rmtree(run / "cftn-v2")
    section = CONFIG.cftn_v2
    best = {stage: changed(getattr(section, stage), keep_best=True, eval_every=1, learning_rate=0.1)
            for stage in ("stage1", "stage2")}
    config, before = changed(CONFIG, cftn_v2=changed(section, **best)), []
    for _ in range(2):
        model, histories = train_prior_in("cftn-v2", config, run)
        told = read_description(run / "cftn-v2")
        losses = {record["step"]: record["validation/loss"] for record in histories["stage2"]}
        assert told["stage"] == "stage2" and told["step"] == min(losses, key=losses.get)
        saved = load_model(run / "cftn-v2", type(model)).state_dict()
        assert all(value.equal(saved[name]) for name, value in model.state_dict().items())
        before.append(contents(run))
    assert before[0] == before[1]


def test_damaged_best_gives_way_to_the_next(own_caches, tmp_path):
    fit_judged(tmp_path, keep_best=True)
    (tmp_path / "state/train/step-00000004/model.safetensors").write_bytes(b"")
    model, _ = fit_judged(tmp_path, keep_best=True)
    assert_best(tmp_path, model, 9)


def test_best_needs_a_validation_split(tmp_path):
    assert "validation" in refusal(train_plain, tmp_path, keep_best=True)
    assert not any(tmp_path.iterdir())
