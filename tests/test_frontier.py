"The frontier holds what no other point beats; a trial marks what is drawn for its captions."
import itertools
import math
import random

import pytest
import torch
from matplotlib.figure import Figure
from test_judge import Knowing, named_faces

from vqgen.evaluation.frontier import (
    EmojiTrial,
    FaceTrial,
    accuracy_at,
    frontier,
    opened,
    show_frontiers,
    sweep,
)
from vqgen.evaluation.judge import Judge, draw_seen
from vqgen.evaluation.nearest import NearestJudge, open_parts, redraw_open

HANDS, TONES = ("twemoji", "noto", "fluent"), ("yellow", "light", "dark")
ROLES = ("person running", "man running", "woman running", "person surfing", "man surfing", "woman surfing")


class Set:
    "Captions and their attributes, as a split of the data has them."
    def __init__(self, captions, attributes): self.captions, self.attributes = captions, attributes


def emoji():
    "All combinations, each with a caption and a picture of random pixels."
    faces = [{"role": role, "neutral": f"person {role.split()[1]}", "tone": tone, "style": hand,
              "stated": ["gender", "tone", "style"]}
             for role, tone, hand in itertools.product(ROLES, TONES, HANDS)]
    images = torch.rand(len(faces), 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    captions = [f"{face['role']}, {face['tone']} skin, {face['style']} style" for face in faces]
    return faces, images, captions


@pytest.mark.parametrize("seed", range(20))
def test_nothing_beats_the_frontier_and_it_beats_the_rest(seed):
    rng = random.Random(seed)
    points = [(rng.choice([0.1, 0.2, 0.5, 0.7]), round(rng.random(), 1)) for _ in range(12)]
    border = frontier(points)
    assert border == sorted(border) and set(border) <= set(points)
    for free, right in points:
        above = [point for point in border if point[0] >= free and point[1] >= right]
        assert above and ((free, right) in border) == (above == [(free, right)])


def test_accuracy_between_points_and_beyond_them():
    points = [(0.4, 0.9), (0.8, 0.5), (0.5, 0.2)]
    assert accuracy_at(0.6, points) == pytest.approx(0.7)
    assert accuracy_at(0.1, points) == 0.9 and accuracy_at(0.8, points) == pytest.approx(0.5)
    assert math.isnan(accuracy_at(0.81, points))


def test_each_open_caption_leaves_one_part_open():
    rng, left = random.Random(0), set()
    for face in emoji()[0]:
        caption, asked = opened(face, rng)
        parts = open_parts(asked)
        assert len(parts) <= 1
        if "style" in parts: assert not any(hand in caption for hand in HANDS)
        if "tone" in parts: assert "skin" not in caption
        left.update(parts)
    assert left == {"gender", "tone", "style"}


def test_a_trial_of_emoji_knows_right_free_and_always_the_same():
    faces, images, captions = emoji()
    judge = NearestJudge([images], faces, [True] * len(faces))
    trial = EmojiTrial(judge, Set(captions, faces), captions=30, pictures=12, second=judge)
    asked = dict(zip(captions, faces)) | dict(zip(trial.open, trial.asked))

    def freely(captions, seed):
        rng = random.Random(seed)
        drawn = [redraw_open(asked[caption], faces, rng, 1)[0] for caption in captions]
        return images[[faces.index(face) for face in drawn]]
    marks = trial(freely)
    assert marks["accuracy"] == marks["accuracy_2"] == 1 and 0.7 < marks["diversity"] < 1.3
    assert set(trial.columns) == set(marks) and marks["from_training"] < 1e-3
    same = trial(lambda captions, seed: images[:1].expand(len(captions), -1, -1, -1))
    assert same["diversity"] == 0 and same["accuracy"] == pytest.approx(1 / 30)
    assert trial.of_captions(captions, faces) == 1


@pytest.fixture(scope="module")
def face_trial():
    faces = named_faces()
    images = draw_seen(faces, 32)
    judge = Judge(Knowing(images, faces), 0.05)
    captions = [f"face {number}" for number in range(len(faces))]
    return images, FaceTrial(judge, Set(captions + captions, faces * 2), captions=8, pictures=5)


def test_a_trial_of_faces_draws_each_caption_as_often(face_trial):
    images, trial = face_trial
    asked = []

    def truly(captions, seed):
        asked.extend(captions)
        return images[[int(caption.split()[1]) for caption in captions]]
    marks = trial(truly)
    assert asked == [f"face {number // 5}" for number in range(40)]
    assert marks["accuracy"] == 1 and marks["diversity"] == 0 and set(trial.columns) == set(marks)


class Hot:
    "It draws faces, and errs and varies the more, the hotter it is."
    def __init__(self, pictures): self.pictures = pictures

    def images(self, captions, seed, temperature, guidance_scale, top_p):
        rng, heat = random.Random(seed), temperature / guidance_scale * top_p
        own = [int(caption.split()[1]) for caption in captions]
        return self.pictures[[rng.randrange(30) if rng.random() < heat else place for place in own]]


def test_a_sweep_turns_both_knobs(face_trial):
    images, trial = face_trial
    rows = [*sweep(trial, Hot(images), (0.0, 1.0), (1.0, 4.0), top_p=0.9)]
    knobs = [(row["temperature"], row["guidance_scale"]) for row in rows]
    assert knobs == [(0.0, 1.0), (0.0, 4.0), (1.0, 1.0), (1.0, 4.0)]
    assert rows[0]["accuracy"] == rows[1]["accuracy"] == 1 and rows[0]["diversity"] == 0
    assert rows[2]["accuracy"] < rows[3]["accuracy"] < 1 and rows[2]["diversity"] > rows[3]["diversity"] > 0


def test_legend_speaks_as_the_readme_does():
    "Not in the names of figures.json; a name that is nobody else's stays."
    rows = [{"diversity": 0.5, "accuracy": 0.9}, {"diversity": 0.7, "accuracy": 0.6}]
    axis = Figure().subplots()
    show_frontiers(axis, {"one_pass": rows, "transformer": rows, "mine": rows})
    told = [text.get_text() for text in axis.get_legend().get_texts()]
    assert told == ["CFTN v2, one pass", "Transformer", "mine"]
