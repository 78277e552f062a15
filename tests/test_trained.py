"The models that the package brings are whole, small, belong together, and obey."
import json
import random
import warnings
from types import SimpleNamespace

import pytest
import torch
from paths import ROOT
from tiny import refusal

from vqgen.config import load_config
from vqgen.data.avatars import read_caption, render_svg
from vqgen.data.datasets import data_fingerprint
from vqgen.data.emoji import EMOJI_PARTS, emoji_caption, emoji_svg, emoji_triples, held_out_emoji
from vqgen.errors import VQGenError
from vqgen.evaluation.nearest import NearestJudge, emoji_captions_right
from vqgen.experiment import load_classifier
from vqgen.pipeline import Pipeline, find_run
from vqgen.priors.build import PRIORS

RUN = "avatars-hour"
CAPTIONS = ["a person with a green mohawk and sunglasses",
            "a person with long red hair, a purple background and a smiling mouth",
            "a person with brown skin, wearing a blue hat and yellow clothes",
            "a person with blond pigtails and a frowning mouth",
            "a person with short black hair, glasses and green clothes",
            "a person with curly brown hair, a sky blue background and light skin"]


@pytest.fixture(scope="module")
def faces():
    config = load_config(find_run(RUN) / "vqvae" / "config.yaml")
    return SimpleNamespace(fingerprint=data_fingerprint(config.data))


def share_right(faces, stated):
    "The share of `faces` of which something is `stated`, and all that is stated is right."
    right = [bool(words) and all(face[key] == value for key, value in words.items())
             for face, words in zip(faces, stated)]
    return sum(right) / len(right)


def test_they_take_little_room():
    paths = (ROOT / "vqgen" / "trained").rglob("*")
    assert sum(path.stat().st_size for path in paths if path.is_file()) <= 45e6


@pytest.mark.parametrize("name", PRIORS)
def test_each_prior_draws_what_captions_state(name, faces):
    "By the classifier that comes with them, in half precision as stored: nearly all that is stated is right."
    pipe = Pipeline.from_pretrained(RUN, name, "cpu")
    classifier = load_classifier(RUN, faces, pipe.vqvae)
    captions = [CAPTIONS[number // 4] for number in range(4 * len(CAPTIONS))]
    images, wanted = pipe.images(captions), list(map(read_caption, captions))
    assert all(wanted) and share_right(classifier.read(images), wanted) >= 0.8
    assert len(torch.unique(images[:4].flatten(1), dim=0)) == 4


def test_captions_by_hand_are_heard(faces):
    "Of the attributes that captions state that no rule made, nine in ten are drawn."
    captions, said = zip(*json.loads((ROOT / "tests" / "captions_by_hand.json").read_text("utf-8")))
    pipe = Pipeline.from_pretrained(RUN, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")   # of words never seen, of which there are some
        images = pipe.images(captions)
    seen = load_classifier(RUN, faces, pipe.vqvae).read(images)
    def heard(face, words): return [face[name] == value for name, value in words.items()]
    right = sum(map(heard, seen, said), [])
    assert sum(right) / len(right) > 0.9


def test_what_is_drawn_is_captioned_by_what_is_seen(faces):
    pipe = Pipeline.from_pretrained(RUN, device="cpu")
    images = pipe.images(CAPTIONS * 4)
    seen = load_classifier(RUN, faces, pipe.vqvae).read(images)
    assert share_right(seen, [read_caption(caption) for caption in pipe.caption(images)]) >= 0.8


def test_their_classifier_is_for_their_data_and_is_never_trained_over():
    pipe = Pipeline.from_pretrained(RUN, device="cpu")
    others = SimpleNamespace(fingerprint="that of other faces")
    assert "other data" in refusal(load_classifier, RUN, others, pipe.vqvae)


def test_a_folder_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_run(RUN).parent.name == "trained"
    (tmp_path / RUN / "vqvae").mkdir(parents=True)
    (tmp_path / RUN / "vqvae" / "config.json").touch()
    assert find_run(RUN).parent.name != "trained"
    with pytest.raises(VQGenError, match=f"vqgen demo.*{RUN}"): find_run("runs/none")


@pytest.fixture(scope="module")
def runners():
    "Who runs, in all tones and hands: images, their attributes, and which of them no training has seen."
    triples = [triple for triple in emoji_triples() if triple[0]["neutral"] == "person running"]
    faces = [{"role": thing["role"], "neutral": thing["neutral"], "tone": tone, "style": hand,
              "stated": [*EMOJI_PARTS]} for thing, tone, hand in triples]
    drawn = [render_svg(emoji_svg(hand, thing["tones"][tone]), 128) for thing, tone, hand in triples]
    pipe, held_out = Pipeline.from_pretrained("emoji", device="cpu"), held_out_emoji(0.1)
    new = [(face["role"], face["tone"], face["style"]) in held_out for face in faces]
    return SimpleNamespace(pipe=pipe, pictures=drawn, faces=faces, new=new)


def test_emoji_of_combinations_never_seen_are_drawn(runners):
    "The nearest of all runners is mostly the one that was asked for."
    pipe, asked = runners.pipe, [face for face, new in zip(runners.faces, runners.new) if new] * 4
    copies = [pipe.decode(pipe.encode([picture])) for picture in runners.pictures]
    judge = NearestJudge(copies, runners.faces, [not new for new in runners.new])
    captions = [emoji_caption(face, EMOJI_PARTS, random.Random(0)) for face in asked]
    found = judge.mark(judge.look(pipe.images(captions))[0], asked)
    assert len(asked) > 8 and found["style"] > 0.8 and found["accuracy"] > 0.4


def test_emoji_never_seen_are_captioned(runners):
    places = [place for place, new in enumerate(runners.new) if new]
    told = runners.pipe.caption([runners.pictures[place] for place in places])
    assert emoji_captions_right(told, [runners.faces[place] for place in places])["all"] > 0.7
