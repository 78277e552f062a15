"The models that the package brings are whole, small, belong together, and obey."
from types import SimpleNamespace

import pytest
import torch
from paths import ROOT

from vqgen.data.avatars import read_caption
from vqgen.config import load_config
from vqgen.errors import VQGenError
from vqgen.data.datasets import data_fingerprint
from vqgen.experiment import load_classifier
from vqgen.pipeline import Pipeline, find_run
from vqgen.priors.build import PRIORS

RUN = "avatars-hour"
CAPTIONS = ["a person with a green mohawk and sunglasses", "a person with long red hair, a purple background and a smiling mouth",
            "a person with brown skin, wearing a blue hat and yellow clothes", "a person with blond pigtails and a frowning mouth",
            "a person with short black hair, glasses and green clothes", "a person with curly brown hair, a sky blue background and light skin"]


@pytest.fixture(scope="module")
def faces(): return SimpleNamespace(fingerprint=data_fingerprint(load_config(find_run(RUN) / "vqvae" / "config.yaml").data))


def test_they_take_little_room():
    assert sum(path.stat().st_size for path in (ROOT / "vqgen" / "trained").rglob("*") if path.is_file()) <= 15e6


@pytest.mark.parametrize("name", PRIORS)
def test_each_prior_draws_what_captions_state(name, faces):
    "By the classifier that comes with them, and in half precision as stored: nearly every stated attribute is right."
    pipe = Pipeline.from_pretrained(RUN, name, "cpu")
    classifier = load_classifier(RUN, faces, pipe.vqvae)
    images = pipe.images([caption for caption in CAPTIONS for _ in range(4)])
    wanted = [read_caption(caption) for caption in CAPTIONS for _ in range(4)]
    right = [all(face[key] == value for key, value in stated.items()) for face, stated in zip(classifier.read(images), wanted)]
    assert all(wanted) and sum(right) / len(right) >= 0.8
    assert len(torch.unique(images[:4].flatten(1), dim=0)) == 4


def test_what_is_drawn_is_captioned_by_what_is_seen(faces):
    pipe = Pipeline.from_pretrained(RUN, device="cpu")
    images = pipe.images(CAPTIONS * 4)
    seen, said = load_classifier(RUN, faces, pipe.vqvae).read(images), [read_caption(caption) for caption in pipe.caption(images)]
    right = [bool(words) and all(face[key] == value for key, value in words.items()) for face, words in zip(seen, said)]
    assert sum(right) / len(right) >= 0.8


def test_their_oracle_is_for_their_data_and_is_never_trained_over():
    pipe = Pipeline.from_pretrained(RUN, device="cpu")
    with pytest.raises(VQGenError, match="other data"): load_classifier(RUN, SimpleNamespace(fingerprint="that of other faces"), pipe.vqvae)


def test_a_folder_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_run(RUN).parent.name == "trained"
    (tmp_path / RUN).mkdir()
    assert find_run(RUN).parent.name != "trained"
    with pytest.raises(VQGenError, match=f"vqgen demo.*{RUN}"): find_run("runs/none")
