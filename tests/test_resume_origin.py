"A training that starts from another run's weights: what it takes along, what it refuses, what it tells."
import functools
import shutil
from pathlib import Path

import pytest
from PIL import Image
from tiny import CONFIG, Stopping, changed, contents, error_line, refusal, vqgen, weights, write_config

import vqgen.experiment as experiment
from vqgen.config import TextConfig
from vqgen.data.datasets import load_data
from vqgen.experiment import extend_tokenizer, load_splits, train_model
from vqgen.files import fingerprint
from vqgen.pipeline import Pipeline
from vqgen.priors.build import PRIORS
from vqgen.priors.text import UNK, load_tokenizer, train_tokenizer
from vqgen.training.checkpoints import load_model, read_description
from vqgen.vqvae.model import VQVAE


@pytest.fixture(scope="module")
def source(own_caches, tmp_path_factory):
    "A run with a VQ-VAE and two priors."
    run = tmp_path_factory.mktemp("source")
    for name in ("vqvae", "transformer", "cftn-v2"): train_model(name, CONFIG, run)
    return run


OTHER = changed(CONFIG, seed=7, data=changed(CONFIG.data, count=60))   # other data


@pytest.fixture(scope="module")
def begun(source, tmp_path_factory):
    "A run on other data whose VQ-VAE starts from that of `source`."
    run = tmp_path_factory.mktemp("begun")
    train_model("vqvae", OTHER, run, init_from=source)
    return run


@pytest.fixture
def run(begun, tmp_path): return Path(shutil.copytree(begun, tmp_path / "run"))


def unlike(one, other):
    "The summed squared difference of the weights of two networks."
    names = [name for name in one if "quantizer" not in name]   # which counts, and forgets
    return sum((one[name] - other[name]).square().sum().item() for name in names)


def test_the_vqvae_begins_where_the_other_ended(source, begun, tmp_path):
    "Four steps away, not as far as a fresh one; told by name and fingerprint."
    train_model("vqvae", OTHER, tmp_path)
    first, after, fresh = (load_model(run / "vqvae", VQVAE).state_dict() for run in (source, begun, tmp_path))
    assert 0 < unlike(first, after) < unlike(first, fresh)
    told = read_description(begun / "vqvae")
    assert told["init_from"] == str(source)
    assert told["init_fingerprint"] == fingerprint(load_model(source / "vqvae", VQVAE))
    assert "init_from" not in read_description(tmp_path / "vqvae")


@pytest.mark.parametrize("name", ["transformer", "cftn-v2"])
def test_a_prior_begins_where_the_other_ended(source, run, name, monkeypatch):
    "Its first step is taken from those weights, and it reads with that tokenizer; and it draws."
    cls, seen = PRIORS[name].model, []
    loss = cls.loss
    def noted(self, *arguments, **options):
        seen.append({key: value.clone() for key, value in self.state_dict().items()})
        return loss(self, *arguments, **options)
    monkeypatch.setattr(cls, "loss", noted)
    train_model(name, OTHER, run, init_from=source)
    wanted = load_model(source / name, cls).state_dict()
    assert all(value.equal(wanted[key]) for key, value in seen[0].items())
    old, new = (load_tokenizer(folder / name).get_vocab() for folder in (source, run))
    assert old == new and read_description(run / name)["init_from"] == str(source)
    assert len(Pipeline.from_pretrained(run, name)("a person with red hair", num_images=1)) == 1


def test_resume_does_not_need_the_other_run(source, tmp_path, monkeypatch):
    "Interrupted, its origin deleted, with or without the option: it ends as one in one go, and still tells."
    origin = Path(shutil.copytree(source, tmp_path / "origin"))
    train_model("vqvae", OTHER, tmp_path / "whole", init_from=origin)
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "load_splits", lambda config: (Stopping(load_data(config.data), 2),
                                                                 load_data(config.data, "validation")))
        for name in ("parts", "again"):
            refusal(train_model, "vqvae", OTHER, tmp_path / name, init_from=origin)
    shutil.rmtree(origin)
    train_model("vqvae", OTHER, tmp_path / "parts")
    train_model("vqvae", OTHER, tmp_path / "again", init_from=origin)
    for name in ("parts", "again"):
        assert weights(tmp_path / name / "vqvae") == weights(tmp_path / "whole/vqvae")
        assert read_description(tmp_path / name / "vqvae")["init_from"] == str(origin)


def test_a_training_that_began_elsewhere_is_refused(source, begun, tmp_path):
    "By name and content: the same run at another place is the same."
    before = contents(begun)
    moved = Path(shutil.copytree(source, tmp_path / "moved"))
    train_model("vqvae", OTHER, begun, init_from=moved)
    said = refusal(train_model, "vqvae", OTHER, begun, init_from=begun)
    assert str(source) in said and "init_from" in said and "start over" in said
    assert "fresh weights" in refusal(train_model, "vqvae", CONFIG, source, init_from=begun)
    assert contents(begun) == before


def test_a_run_can_start_over_from_itself(source, tmp_path):
    run = Path(shutil.copytree(source, tmp_path / "run"))
    for name in ("vqvae", "transformer"): train_model(name, OTHER, run, fresh=True, init_from=run)
    assert read_description(run / "transformer")["init_from"] == str(run)


@pytest.mark.parametrize("name, part, change, named", [
    ("vqvae", "data", {"count": 90}, "count 60 -> 90"),
    ("vqvae", "data", {"num_proc": 2, "validation_fraction": 0.2}, "(validation_fraction 0.1 -> 0.2)")])
def test_other_data_are_named_by_their_settings(run, name, part, change, named):
    before = contents(run)
    config = changed(OTHER, **{part: changed(getattr(OTHER, part), **change)})
    assert named in refusal(train_model, name, config, run)
    assert contents(run) == before


@pytest.fixture
def reds(tmp_path):
    "A config of 40 pictures of our own, in a folder of their own."
    folder = tmp_path / "reds"
    folder.mkdir()
    for i in range(40):
        Image.new("RGB", (16, 16), (6 * i, 0, 0)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"number {i}")
    return changed(CONFIG, data=changed(CONFIG.data, source=str(folder)))


def test_other_pictures_in_the_same_place_are_told_as_such(reds, tmp_path):
    train_model("vqvae", reds, tmp_path / "run")
    (tmp_path / "reds/0.txt").write_text("another one")
    assert "other pictures or captions" in refusal(train_model, "vqvae", reds, tmp_path / "run")


def test_a_prior_is_measured_on_the_data_that_it_knows(reds, tmp_path):
    "Here of half the size that its VQ-VAE was trained on, and moved since."
    train_model("vqvae", reds, tmp_path / "run")
    small = changed(reds, data=changed(reds.data, image_size=reds.data.image_size // 2))
    train_model("cftn", small, tmp_path / "run")
    (tmp_path / "run/cftn/config.yaml").rename(tmp_path / "run/cftn/recipe.yaml")   # as it may be without
    assert "PSNR" in vqgen("evaluate", "--run", tmp_path / "run", "--count", 4,
                           "--data.image_size", small.data.image_size).stdout
    (tmp_path / "run/cftn/recipe.yaml").rename(tmp_path / "run/cftn/config.yaml")
    (tmp_path / "reds").rename(tmp_path / "moved")
    result = vqgen("evaluate", "--run", tmp_path / "run", "--count", 4, "--data.source", tmp_path / "moved")
    assert not result.stderr.count("Traceback") and "PSNR" in result.stdout, result.stderr


def test_a_vqvae_trained_further_names_the_priors_first(source, tmp_path, capsys):
    run = Path(shutil.copytree(source, tmp_path / "run"))
    train_model("vqvae", CONFIG, run)
    assert "will not fit" not in capsys.readouterr().out, "it is done, and stays as it is"
    longer = changed(CONFIG.vqvae.train, steps=CONFIG.vqvae.train.steps + 2)
    train_model("vqvae", changed(CONFIG, vqvae=changed(CONFIG.vqvae, train=longer)), run)
    assert f"transformer, cftn-v2 in {run} will not fit" in capsys.readouterr().out
    said = refusal(train_model, "transformer", CONFIG, run)
    assert "another VQ-VAE" in said and str(run / "transformer") in said
    train_model("transformer", CONFIG, run, fresh=True)


def test_a_vqvae_that_knows_other_data_is_told_when_a_prior_is_trained(source, tmp_path, capsys):
    run = Path(shutil.copytree(source, tmp_path / "run"))
    train_model("cftn-v2", CONFIG, run)
    assert "other data" not in capsys.readouterr().out
    train_model("cftn-v2", OTHER, run, fresh=True)
    assert f"the VQ-VAE in {run / 'vqvae'} was trained on other data (count " in capsys.readouterr().out


def test_without_its_description_a_training_goes_on_from_its_checkpoint(source, tmp_path):
    run = Path(shutil.copytree(source, tmp_path / "run"))
    (run / "vqvae/config.json").unlink()
    train_model("vqvae", CONFIG, run)
    assert weights(run / "vqvae") == weights(source / "vqvae")


@pytest.mark.parametrize("name, section, change, named", [
    ("vqvae", "vqvae", {"hidden_channels": 16}, "hidden_channels 8 -> 16"),
    ("transformer", "transformer", {"width": 32}, "width 16 -> 32"),
    ("cftn-v2", "cftn_v2", {"layers": 4}, "layers 3 -> 4")])
def test_another_shape_is_named(source, run, name, section, change, named):
    part = getattr(OTHER, section)
    config = changed(OTHER, **{section: changed(part, model=changed(part.model, **change))})
    target = run.with_name("other") if name == "vqvae" else run
    said = refusal(train_model, name, config, target, init_from=source)
    assert named in said and str(source) in said


def test_a_shorter_caption_is_another_shape(source, run):
    config = changed(OTHER, text=changed(OTHER.text, max_length=32))
    assert "max_length 64 -> 32" in refusal(train_model, "transformer", config, run, init_from=source)


@pytest.mark.parametrize("init_from", ["nowhere", "."])
def test_no_run_there(tmp_path, init_from, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refusal(train_model, "vqvae", OTHER, tmp_path / "run", init_from=init_from)
    assert not (tmp_path / "run").exists()


# --- the tokenizer ---

def test_tokenizer_learns_what_it_does_not_know():
    "Old tokens keep their ids, captions of old characters theirs, new characters are read and written back."
    old = train_tokenizer(["a red hat", "a green hat"] * 3, TextConfig(vocab_size=64))
    new = extend_tokenizer(old, ["a caf\u00e9, 2\u20ac", "\u732b"])
    assert old.get_vocab().items() < new.get_vocab().items()
    assert new("a red hat")["input_ids"] == old("a red hat")["input_ids"]
    assert sorted(new.get_vocab().values()) == list(range(len(new.get_vocab())))
    for caption in ("a caf\u00e9 2\u20ac", "\u732b hat"):
        ids = new(caption)["input_ids"]
        assert UNK not in ids and new.decode(ids, skip_special_tokens=True) == caption
        assert UNK in old(caption)["input_ids"]
    assert extend_tokenizer(old, ["a hat"]) is old
    assert new.model_max_length == old.model_max_length and new.pad_token_id == old.pad_token_id


@pytest.mark.parametrize("name", ["transformer", "cftn-v2"])
def test_embeddings_of_old_tokens_are_kept(source, run, name, monkeypatch):
    "With captions of new characters the model has rows for them, at the end; also when it is resumed."
    def foreign(config):
        splits = load_splits(config)
        for split in splits:
            split.captions = [f"{caption} \u732b\u20ac" for caption in split.captions]
            split.caption_lists = [[caption] for caption in split.captions]
        return splits
    monkeypatch.setattr(experiment, "load_splits", foreign)
    cls, seen = PRIORS[name].model, []
    loss = cls.loss
    def noted(self, *arguments, **options):
        seen.append({key: value.clone() for key, value in self.state_dict().items()})
        return loss(self, *arguments, **options)
    monkeypatch.setattr(cls, "loss", noted)
    start = functools.partial(train_model, name, OTHER, run)
    start(init_from=source)
    wanted, grown = load_model(source / name, cls), load_model(run / name, cls)
    more = len(load_tokenizer(run / name).get_vocab()) - len(load_tokenizer(source / name).get_vocab())
    assert more >= 2 and grown.shape.vocab_size == wanted.shape.vocab_size + more
    longer = {key for key, value in wanted.state_dict().items() if seen[0][key].shape != value.shape}
    assert longer and all("token" in key or "embedding" in key or "head" in key for key in longer)
    for key, value in wanted.state_dict().items():
        assert seen[0][key][:len(value)].equal(value) if value.ndim else seen[0][key].equal(value)
    before = contents(run)
    start()
    assert contents(run) == before


@pytest.mark.slow
def test_command(source, tmp_path):
    "Its sentences name its options."
    config = write_config(tmp_path / "tiny.yaml")
    arguments = ["train", "vqvae", "--config", config, "--run", tmp_path / "run", "--init-from", source,
                 "--data.count", "60"]
    assert vqgen(*arguments).returncode == 0
    assert read_description(tmp_path / "run/vqvae")["init_from"] == str(source)
    said = error_line(vqgen(*arguments, "--seed", "5"))
    assert "seed 0 -> 5" in said and "start over (--fresh)" in said
