"A drawing of an emoji is named by the nearest true picture, and is right where its caption allows that."
import itertools
import random

import pytest
import torch

from vqgen.config import BrainConfig, load_config
from vqgen.errors import VQGenError
from vqgen.evaluation.nearest import (
    NearestJudge,
    emoji_captions_right,
    emoji_diversity,
    open_entropy,
    open_parts,
    parts_right,
    redraw_open,
    small_pixels,
)
from vqgen.experiment import load_judge, load_splits, measure, summary
from vqgen.pipeline import Pipeline
from vqgen.priors.build import new_prior
from vqgen.priors.text import new_tokenizer
from vqgen.vqvae.model import VQVAE

ALL = ["gender", "tone", "style"]
GENDERS = ("person running", "man running", "woman running")
TONES = ("yellow", "light", "dark")


def face(role="woman running", tone="dark", style="noto", stated=ALL):
    neutral = "person running" if role.endswith("running") else role
    return {"role": role, "neutral": neutral, "tone": tone, "style": style, "stated": stated}


def world():
    return [face(*kind) for kind in itertools.product(GENDERS, TONES, ("noto", "fluent"))]


@pytest.mark.parametrize("seen, wanted, wrong", [
    (face(), face(), []), (face("man running"), face(), ["role"]), (face("person running"), face(), ["role"]),
    (face("man running"), face("person running"), []),
    (face("man running"), face(stated=["tone", "style"]), []),
    (face("fox"), face(stated=[]), ["role"]), (face(tone="light"), face(), ["tone"]),
    (face(tone="light"), face(stated=["gender", "style"]), []), (face(style="fluent"), face(), ["style"]),
    (face(style="fluent", tone="light"), face(), ["tone", "style"]),
    (face(style="fluent"), face(stated=[]), [])])
def test_what_a_caption_allows(seen, wanted, wrong):
    assert [part for part, right in parts_right(seen, wanted).items() if not right] == wrong


def test_what_is_open():
    assert open_parts(face()) == [] and open_parts(face(stated=[])) == ALL
    assert open_parts(face("fox", "none", stated=[])) == ["style"]
    assert open_parts(face("person running", stated=["tone"])) == ["style"]   # the neutral name is its own


def some_images(count=18, size=8):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_the_nearest_and_the_nearest_of_training():
    images = some_images() * 2 - 1
    is_training = [place != 3 for place in range(18)]
    judge = NearestJudge(images.split(5), world(), is_training)
    drawn = images + 0.02 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    nearest, far, far_from_training = judge.look(drawn)
    assert nearest.tolist() == list(range(18))
    true = (small_pixels(drawn) - small_pixels(images)).norm(dim=1)
    torch.testing.assert_close(far, true, atol=1e-4, rtol=1e-2)
    assert far_from_training[3] > 10 * far[3]
    others = torch.arange(18) != 3
    torch.testing.assert_close(far[others], far_from_training[others])
    marks = judge.mark(nearest, [{**seen, "tone": "dark"} for seen in world()])
    assert marks == {"role": 1, "tone": pytest.approx(1 / 3), "style": 1, "accuracy": pytest.approx(1 / 3)}


def test_large_images_are_averaged_down():
    images = some_images(2, 128) * 2 - 1
    assert small_pixels(images).shape == (2, 3 * 64 * 64)
    flat = torch.full((1, 3, 128, 128), 0.5)
    assert (small_pixels(flat) - small_pixels(-flat)).norm().item() == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("stated", [["gender", "style"], ["tone", "style"], []])
def test_the_data_are_as_free_as_themselves(stated):
    rng, wanted = random.Random(0), [face(stated=stated)] * 40
    groups = [redraw_open(asked, world(), rng, 16) for asked in wanted]
    assert emoji_diversity(groups, wanted, world(), random.Random(1)) == pytest.approx(1, abs=0.06)
    same = [[group[0]] * 16 for group in groups]
    assert emoji_diversity(same, wanted, world(), random.Random(1)) == 0


def test_a_neutral_name_is_said_of_men_and_women_less_often():
    rng, wanted = random.Random(0), face(stated=["tone", "style"])
    seen = redraw_open(wanted, world(), rng, 2000)
    drawn = [face["role"] for face in seen]
    assert 0.55 < drawn.count("person running") / 2000 < 0.7   # 1 / 1.6
    assert all(face["tone"] == "dark" for face in seen)


def test_entropy_counts_only_what_is_open():
    groups = [[face(tone="light"), face(tone="dark")]]
    assert open_entropy(groups, [face(stated=["gender", "tone"])]) == 0
    assert open_entropy(groups, [face(stated=["gender", "style"])]) == pytest.approx(0.6931, abs=1e-3)


def test_no_diversity_where_nothing_is_open():
    with pytest.raises(VQGenError, match="captions that state less"):
        emoji_diversity([[face()]], [face()], world(), random.Random(0))


def test_a_name_for_things_without_tones_allows_any():
    "Of kisses only the neutral one has tones."
    kiss = {"role": "kiss", "neutral": "kiss", "tone": "yellow", "style": "noto"}
    asked = {**kiss, "role": "kiss man man", "tone": "none", "stated": ["tone", "style"]}
    assert all(parts_right(kiss, asked).values())


@pytest.mark.parametrize("caption, right", [
    ("woman running, dark skin, noto style", ["role", "tone", "style", "all"]),
    ("noto person running with dark skin", ["role", "tone", "style", "all"]),
    ("man running, dark skin, noto style", ["tone", "style"]),
    ("woman running, noto style", ["role", "style"]),
    ("woman running, medium dark skin, noto style", ["role", "style"]), ("", [])])
def test_which_captions_are_right(caption, right):
    marks = emoji_captions_right([caption], [face()])
    assert [part for part, share in marks.items() if share] == right


def test_a_thing_without_skin_needs_no_tone():
    assert emoji_captions_right(["fox in noto style"], [face("fox", "none")])["all"] == 1
    assert emoji_captions_right(["fox with dark skin in noto style"], [face("fox", "none")])["all"] == 0


def test_figures_of_a_run_on_emoji(tmp_path):
    "An untrained one: it draws what nobody asked for, but its copies are the nearest to themselves."
    sizes = {"data.image_size": 32, "vqvae.model.hidden_channels": 16, "vqvae.model.codebook_size": 256}
    config = load_config("emoji", sizes)
    data, validation = load_splits(config)
    torch.manual_seed(0)
    vqvae = VQVAE(config.vqvae.model)
    with torch.no_grad(): vqvae.loss(data.batch(range(0, 8000, 40)))   # begins the codebook
    vqvae.eval()
    tokenizer = new_tokenizer(data.captions[:500], config.text)
    brain = new_prior("cftn-v2", BrainConfig(width=16, heads=2, layers=3), vqvae, tokenizer, data.image_size)
    judge = load_judge(tmp_path, data, validation, vqvae)
    figures = measure(Pipeline(vqvae, brain, tokenizer), data, validation, judge, 20)
    assert figures["accuracy"] <= min(figures[part] for part in ("role", "tone", "style")) < 0.9
    assert figures["ceiling"] > 0.5 and figures["captions"] < 0.5 and figures["from_training"] > 0.01
    assert "prompt accuracy" in summary(figures) and not (tmp_path / "classifier").exists()
