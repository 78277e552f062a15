"The judge passes true faces, refuses what is like no face, and counts how free pictures of a caption are."
import random

import pytest
import torch

from vqgen.data.avatars import (
    ATTRIBUTES,
    choose_parts,
    complete_parts,
    draw_parts,
    part_values,
    redraw_attributes,
    sample_attributes,
)
from vqgen.evaluation.judge import Judge, distances, diversity, draw_seen
from vqgen.evaluation.metrics import entropy


class Knowing:
    "A classifier that recognises the pictures it was shown before."
    def __init__(self, images, faces): self.known = [(image, face) for image, face in zip(images, faces)]

    def read(self, images): return [self.nearest(image) for image in images]

    def nearest(self, image):
        distance = [float((known - image).square().sum()) for known, _ in self.known]
        return self.known[distance.index(min(distance))][1]


def named_faces():
    "Faces that name every part, and what their captions state."
    found = []
    for seed in range(40):
        rng = random.Random(seed)
        face = sample_attributes(rng)
        parts = choose_parts(face, rng)
        named = {name: parts.get(name, "none") for name in part_values()}
        found.append({**face, **named, "stated": rng.sample(list(ATTRIBUTES), 5)})
    return found


@pytest.fixture(scope="module")
def faces(): return named_faces()


def test_a_face_is_known_by_its_parts(faces):
    for face in faces[:10]:
        parts = {name: face[name] for name in part_values()}
        there = {name: value for name, value in parts.items() if value != "none"}
        drawn, again = (draw_parts(complete_parts(chosen)).tobytes() for chosen in (parts, there))
        assert drawn == again
    for name, values in part_values().items(): assert all(face[name] in values for face in faces)


def test_true_faces_pass_and_mosaics_do_not(faces):
    images = draw_seen(faces, 32)
    judge = Judge(Knowing(images, faces), 0.05)
    assert judge.accuracy(images, faces) == {"stated": 1.0, "in_range": 1.0, "accuracy": 1.0}
    mosaics = images.clone()
    mosaics[:, :, :, 16:] = images.roll(1, 0)[:, :, :, 16:]
    assert judge.accuracy(mosaics, faces)["in_range"] < 0.1
    moved = judge.accuracy(images.roll(1, 0), faces)
    assert moved["in_range"] == 1.0 and moved["stated"] < 0.2 and moved["accuracy"] <= moved["stated"]


def test_the_limit_lets_the_wanted_share_pass(faces):
    images = draw_seen(faces, 32)
    noisy = images + torch.rand(len(images), 1, 1, 1, generator=torch.Generator().manual_seed(0)) * 0.1
    judge = Judge.from_reconstructions(Knowing(images, faces), noisy, share=0.9)
    assert judge.accuracy(noisy, faces)["in_range"] == pytest.approx(0.9)
    assert distances(images[:1], images[:1] + 0.5).item() == pytest.approx(0.5)


def test_redrawn_faces_keep_what_is_stated_and_nothing_else(faces):
    rng = random.Random(0)
    for face in faces:
        others = [redraw_attributes(face, rng) for _ in range(60)]
        for name in face["stated"]: assert all(other[name] == face[name] for other in others)
        for name in {"skin", "mouth", "background"} - set(face["stated"]):
            assert len({other[name] for other in others}) > 1
        assert all(other["hat"] == "none" or other["hair_style"] in ("long", "short") for other in others)


def test_diversity_is_one_for_the_data_and_zero_for_one_face(faces):
    rng = random.Random(0)
    free = [[redraw_attributes(face, rng) for _ in range(40)] for face in faces]
    assert diversity(free, faces, random.Random(1)) == pytest.approx(1, abs=0.05)
    assert diversity([group[:1] * 40 for group in free], faces, random.Random(1)) == 0
    assert entropy([2, 2]) == pytest.approx(0.6931, abs=1e-3)
