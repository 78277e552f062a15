"One pass from a latent: what the latent costs, who learns from whom, and what is not forgotten meanwhile."
import copy

import pytest
import torch

from vqgen.config import BrainConfig, LatentConfig, PriorShape, TextConfig
from vqgen.one_shot import divergence, imagining, listening, one_shot_loss, posterior
from vqgen.priors.brain import BiHemisphericBrain
from vqgen.priors.text import Text, tokenize, train_tokenizer

K, SIDE = 12, 4
CAPTIONS = ["a red fox in the snow", "a cat", "two green birds", "the moon above a very quiet sea at night"]
TOKENIZER = train_tokenizer(CAPTIONS * 4, TextConfig(vocab_size=128, max_length=16))


@pytest.fixture
def brain():
    "A brain whose latent is heard."
    torch.manual_seed(0)
    config = BrainConfig(width=32, heads=2, layers=3, latent_dim=6, caption_dropout=0.0)
    brain = BiHemisphericBrain(config, PriorShape(codebook_size=K, side=SIDE, vocab_size=len(TOKENIZER), max_length=16)).eval()
    torch.nn.init.normal_(brain.from_latent.weight)
    return brain


@pytest.fixture(scope="module")
def text(): return tokenize(TOKENIZER, CAPTIONS)


def codes(seed=0): return torch.randint(K, (4, SIDE ** 2), generator=torch.Generator().manual_seed(seed))


def test_divergence_is_that_of_torch():
    torch.manual_seed(0)
    mean, log_std = torch.randn(5, 7), torch.randn(5, 7)
    expected = torch.distributions.kl_divergence(torch.distributions.Normal(mean, log_std.exp()), torch.distributions.Normal(0, 1)).sum(1)
    torch.testing.assert_close(divergence(mean, log_std), expected)


def test_posterior_sees_picture_and_caption_but_no_padding(brain, text):
    first, other, swapped = posterior(brain, codes(), text), posterior(brain, codes(1), text), posterior(brain, codes(), text.map(lambda part: part.flip(0)))
    assert not first[0].isclose(other[0]).all() and not first[0].isclose(swapped[0]).all()
    hidden = Text(torch.where(text.attention_mask, text.input_ids, 9), text.attention_mask)
    assert posterior(brain, codes(), hidden)[0].equal(first[0])


def test_free_nats_are_free_and_no_more(brain, text):
    "Below the allowance the latent's divergence has no gradient; above, each nat costs one, shared by the codes."
    def look(free):
        torch.manual_seed(1)
        return imagining(brain, codes(), text, free)
    loss, metrics = look(1e6)
    assert loss.item() == pytest.approx(metrics["imagining"].item() + 1e6 / SIDE ** 2)
    loss, metrics = look(0.0)
    assert loss.item() == pytest.approx((metrics["imagining"] + metrics["nats"] / SIDE ** 2).item())


def test_imagining_learns_through_the_latent(brain, text):
    imagining(brain, codes(), text, 0.0)[0].backward()
    for layer in (brain.to_latent, brain.from_latent): assert layer.weight.grad.abs().sum() > 0


class Certain:
    "A teacher who wants one code everywhere, with a given certainty."
    def __init__(self, code, certainty): self.code, self.certainty = code, certainty

    def draw(self, canvas, text):
        assert ((canvas >= 0) & (canvas <= K)).all() and (canvas == K).any(1).all(), "something is hidden in every picture"
        return torch.nn.functional.one_hot(torch.full_like(canvas, self.code), K).float() * self.certainty


def test_a_certain_teacher_is_obeyed_and_a_silent_one_changes_nothing(brain, text):
    loss, metrics = listening(brain, Certain(3, 1e4), text, 0.5)
    assert metrics["agreement"] < 0.6
    optimizer = torch.optim.Adam(brain.parameters(), lr=5e-3)
    for _ in range(60):
        loss, metrics = listening(brain, Certain(3, 1e4), text, 0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert metrics["agreement"] == 1
    assert listening(brain, Certain(5, 0.0), text, 0.5)[1]["agreement"] == 1, "a teacher without a preference leaves the student its own"


def test_only_the_student_learns(brain, text):
    teacher = copy.deepcopy(brain)
    listening(brain, teacher, text, 0.5)[0].backward()
    assert all(parameter.grad is None for parameter in teacher.parameters()) and brain.code_head.weight.grad.abs().sum() > 0


def test_what_a_stage_asks_for_is_what_is_counted(brain, text):
    grids = codes().view(4, SIDE, SIDE)
    def metrics(**options): return set(one_shot_loss(brain, copy.deepcopy(brain), grids, text, LatentConfig(**options))[1])
    assert {"imagining", "nats", "drawing", "gate/0/codes"} <= metrics() and not {"agreement", "reading"} & metrics()
    assert {"agreement", "reading"} <= metrics(listening_weight=0.5, caption_weight=0.1)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_loss_is_finite_for_any_batch(brain, text, count):
    for seed in range(10):
        torch.manual_seed(seed)
        few = text.map(lambda part: part[:count])
        stage = LatentConfig(caption_weight=0.1, listening_weight=1.0)
        loss, values = one_shot_loss(brain.train(), copy.deepcopy(brain).eval(), codes(seed)[:count].view(-1, SIDE, SIDE), few, stage)
        assert loss.isfinite() and all(torch.as_tensor(value).isfinite() for value in values.values())
