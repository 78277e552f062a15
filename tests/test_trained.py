"The models that the package brings are whole, small, belong together, and obey."
from types import SimpleNamespace

import pytest
import torch
from paths import ROOT
from tiny import refusal

from vqgen.config import load_config
from vqgen.data.avatars import read_caption
from vqgen.data.datasets import data_fingerprint
from vqgen.errors import VQGenError
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
    assert sum(path.stat().st_size for path in paths if path.is_file()) <= 15e6


@pytest.mark.parametrize("name", PRIORS)
def test_each_prior_draws_what_captions_state(name, faces):
    "By the classifier that comes with them, in half precision as stored: nearly all that is stated is right."
    pipe = Pipeline.from_pretrained(RUN, name, "cpu")
    classifier = load_classifier(RUN, faces, pipe.vqvae)
    captions = [CAPTIONS[number // 4] for number in range(4 * len(CAPTIONS))]
    images, wanted = pipe.images(captions), list(map(read_caption, captions))
    assert all(wanted) and share_right(classifier.read(images), wanted) >= 0.8
    assert len(torch.unique(images[:4].flatten(1), dim=0)) == 4


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
