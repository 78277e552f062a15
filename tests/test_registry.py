"A fifth prior takes one definition, a model and a section: config, commands and pipeline follow."
import pytest
import torch
import yaml
from pydantic import Field
from tiny import TREE, refusal

from vqgen.cli import app
from vqgen.config import (
    PRIOR_SECTIONS,
    Config,
    PriorShape,
    Section,
    TrainConfig,
    TransformerConfig,
    config_model,
    dump_config,
    load_config,
    parse_config,
    training_stages,
)
from vqgen.pipeline import Pipeline
from vqgen.priors.build import PRIORS, PriorKind, register_prior, unregister_prior
from vqgen.priors.transformer import TransformerPrior

BUILT_IN = ["lstm", "transformer", "cftn", "cftn-v2"]


class FifthConfig(TransformerConfig):
    "A Transformer's shape, and one key more."
    loudness: float = Field(1.0, gt=0)


class FifthSection(Section):
    "The fifth prior: its shape and its training."
    model: FifthConfig = FifthConfig()
    train: TrainConfig = TrainConfig()


class FifthPrior(TransformerPrior):
    "A Transformer whose loss is as loud as its section says."
    def __init__(self, config: FifthConfig, shape: PriorShape): super().__init__(config, shape)

    def loss(self, codes, text):
        loss, metrics = super().loss(codes, text)
        return self.config.loudness * loss, metrics


@pytest.fixture
def fifth():
    "The one definition."
    register_prior("fifth", PriorKind(FifthPrior, FifthSection))
    yield "fifth"
    unregister_prior("fifth")


def vqgen(*arguments): app([*map(str, arguments)], prog_name="vqgen", standalone_mode=False)


def test_config_has_a_section_for_it(fifth):
    config = parse_config({"fifth": {"model": {"loudness": 2}, "train": {"steps": 7}}})
    assert (config.fifth.model.loudness, config.fifth.train.steps, config.lstm) == (2, 7, Config().lstm)
    assert parse_config(yaml.safe_load(dump_config(config))) == config
    assert load_config("avatars", {"fifth.model.width": "64"}).fifth.model.width == 64
    assert training_stages(fifth) == ["train"]


def test_its_misspelt_keys_are_mended(fifth):
    for wrong, right in (("fith.train.steps", "fifth"), ("fifth.modle.width", "fifth.model"),
                         ("fifth.model.loudnes", "fifth.model.loudness"),
                         ("fifth.train.step", "fifth.train.steps")):
        assert f"did you mean {right!r}?" in refusal(load_config, "avatars", {wrong: "1"})
    assert "fifth.model.loudness" in refusal(load_config, "avatars", {"fifth.model.loudness": "0"})


def test_it_is_trained_and_draws(fifth, tmp_path, capsys):
    "By the command, with `--train.x` for its own section; the pipeline finds it as the run's last prior."
    path, run = tmp_path / "tiny.yaml", tmp_path / "run"
    like = TREE["transformer"]
    section = {"model": {**like["model"], "loudness": 3.0}, "train": like["train"]}
    path.write_text(yaml.safe_dump({**TREE, "fifth": section}), "utf-8")
    for model in ("vqvae", "transformer", fifth):
        overrides = ["--train.steps", 3, "--train.learning_rate=1e-4"]
        vqgen("train", model, "--config", path, "--run", run, *overrides)
    assert capsys.readouterr().out.splitlines()[-1] == f"saved in {run / fifth}"
    kept = load_config(run / fifth / "config.yaml")
    assert (kept.fifth.train.steps, kept.fifth.train.learning_rate, kept.fifth.model.loudness) == (3, 1e-4, 3)

    pipe = Pipeline.from_pretrained(run, device="cpu")
    assert type(pipe.prior) is FifthPrior and pipe.prior.config.loudness == 3
    captions = ["a person with red hair", "a hat"]
    codes = pipe.codes(captions, seed=3)
    assert codes.shape == (2, 4, 4) and codes.min() >= 0 and codes.max() < 16
    assert torch.equal(codes, Pipeline.from_pretrained(run, fifth, "cpu").codes(captions, seed=3))
    where = ["--run", run, "--prior", fifth, "--out", tmp_path / "hat.png"]
    vqgen("generate", "a hat", *where, "--num-images", 1)
    assert (tmp_path / "hat.png").is_file()
    assert "--stage" in refusal(vqgen, "train", fifth, "--config", path, "--run", run, "--stage", "stage1")


def test_it_is_forgotten(fifth, tmp_path):
    "Afterwards all is as it was before."
    assert config_model() is not Config and refusal(vqgen, "train", "fith").endswith("cftn-v2, fifth")
    unregister_prior(fifth)
    assert config_model() is Config and list(PRIORS) == list(PRIOR_SECTIONS) == BUILT_IN
    assert "'fifth'" in refusal(parse_config, {"fifth": {}})
    assert "'fifth'" in refusal(vqgen, "train", fifth)
    assert "'fifth'" in refusal(Pipeline.from_pretrained, "vqgen/avatars-hour", fifth)
    register_prior(fifth, PriorKind(FifthPrior, FifthSection))   # for the fixture


TAKEN = ["vqvae", "text", "classifier", "seed", "lstm", "cftn_v2", "copy", "a b/c", "Fifth"]


@pytest.mark.parametrize("name", TAKEN)
def test_a_name_that_is_taken_or_is_none_is_refused(name):
    assert repr(name) in refusal(register_prior, name, PriorKind(FifthPrior, FifthSection))
    assert list(PRIORS) == list(PRIOR_SECTIONS) == BUILT_IN


def test_both_tables_agree():
    assert {name: kind.section for name, kind in PRIORS.items()} == PRIOR_SECTIONS
    assert training_stages("cftn-v2") == ["stage1", "stage2"]
