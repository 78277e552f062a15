"Likelihoods: the probabilities of all pictures sum to one, and a picture costs the same in any company."
import itertools
import math

import numpy as np
import pytest
import torch
from tiny import CONFIG, coded, refusal, splits

from vqgen.config import PriorShape
from vqgen.evaluation.likelihood import likelihood, nats_per_picture
from vqgen.priors.brain import decided_per_pass
from vqgen.priors.build import PRIORS, new_prior
from vqgen.priors.codes import CodedCaptions
from vqgen.priors.text import text_shape

EXACT = {"lstm": {}, "transformer": {}, "cftn-v2": {}}
WAYS = [("lstm", {}), ("transformer", {}), *[("cftn-v2", {"steps": steps}) for steps in (1, 2, 4)]]
CAPTIONS = ["a person with red hair", "a person"]


def sure_of_itself(prior):
    "`prior` with logits that are far from alike."
    torch.manual_seed(1)
    torch.nn.init.normal_(prior.code_head.weight, std=0.5)
    return prior.eval()


def smallest(name, **changes):
    "A prior over two codes on 2 x 2 places."
    shape = PriorShape(codebook_size=2, grid_size=2, **text_shape(coded()[1]))
    config = getattr(CONFIG, name.replace("-", "_")).model
    torch.manual_seed(0)
    prior = sure_of_itself(PRIORS[name].model(config.model_copy(update=changes), shape))
    # An order in which rank and place are told apart: Halton's on 2 x 2 is its own inverse.
    if name == "cftn-v2": prior.order.copy_(torch.tensor([2, 0, 3, 1]))
    return prior


def every_picture(caption):
    "All 16 pictures of two codes on 2 x 2 places, each with the same caption."
    grids = np.array(list(itertools.product(range(2), repeat=4))).reshape(16, 2, 2)
    return CodedCaptions(grids, [caption] * 16, coded()[1])


def tiny_prior(name):
    "A prior for the codes of `coded`."
    vqvae, tokenizer, *_ = coded()
    section = getattr(CONFIG, name.replace("-", "_")).model
    return sure_of_itself(new_prior(name, section, vqvae, tokenizer, splits()[0].image_size))


@pytest.mark.parametrize("name, options", WAYS)
@pytest.mark.parametrize("caption", CAPTIONS)
def test_the_probabilities_of_all_pictures_sum_to_one(name, options, caption):
    nats = nats_per_picture(smallest(name), every_picture(caption), **options)
    assert nats.shape == (16,) and nats.std() > 0.3
    assert (-nats.double()).exp().sum().item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("layers", [2, 4, 6])
def test_they_do_in_any_number_of_rounds(layers):
    brain = smallest("cftn-v2", layers=layers)
    for steps in (1, 2, 3, 4):
        nats = nats_per_picture(brain, every_picture(CAPTIONS[0]), steps=steps)
        assert (-nats.double()).exp().sum().item() == pytest.approx(1, abs=1e-4), (brain.decided, steps)


def test_the_caption_is_heard():
    for name in EXACT:
        one, other = (nats_per_picture(smallest(name), every_picture(caption)) for caption in CAPTIONS)
        assert not torch.allclose(one, other, atol=1e-3), name


def test_passes_share_what_the_first_decides():
    "Two passes decide two codes and two: the first two as one pass does, the others from those in sight."
    brain, data = smallest("cftn-v2"), every_picture(CAPTIONS[0])
    assert decided_per_pass(4, 2) == [2, 4]
    early = torch.from_numpy(data.codes.reshape(16, 4))[:, brain.order[:2]] @ torch.tensor([2, 1])
    one, two = (nats_per_picture(brain, data, steps=steps) for steps in (1, 2))
    shares = [torch.zeros(4).index_add_(0, early, (-nats).exp()) for nats in (one, two)]
    assert torch.allclose(*shares, atol=1e-5) and not torch.allclose(one, two, atol=1e-2)


def test_no_more_passes_than_codes():
    brain, data = smallest("cftn-v2"), every_picture(CAPTIONS[0])
    assert nats_per_picture(brain, data, steps=9).equal(nats_per_picture(brain, data, steps=4))
    assert "steps" in refusal(nats_per_picture, brain, data, steps=0)


@pytest.mark.parametrize("name, options", [*WAYS[:2], ("cftn-v2", {"steps": 1}), ("cftn-v2", {"steps": 3})])
def test_company_does_not_matter(name, options):
    "Captions of different lengths, in batches of 1, 3 and all."
    prior, data = tiny_prior(name), coded()[3]
    assert len(data) > 6 and len(set(map(len, data.rows))) > 1
    alone, some, all_at_once = (nats_per_picture(prior, data, batch_size=size, **options)
                                for size in (1, 3, len(data)))
    assert alone.std() > 0.1
    torch.testing.assert_close(some, alone, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(all_at_once, alone, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("name", EXACT)
def test_mean_error_and_bits(name):
    prior, data = tiny_prior(name), coded()[3]
    nats, found = nats_per_picture(prior, data).tolist(), likelihood(prior, data)
    mean = sum(nats) / len(nats)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in nats) / (len(nats) - 1))
    assert found["nats"] == pytest.approx(mean, rel=1e-5)
    assert found["nats_error"] == pytest.approx(deviation / math.sqrt(len(nats)), rel=1e-4)
    assert found["bits_per_code"] == pytest.approx(mean / 16 / math.log(2), rel=1e-5)    # 4 x 4 codes
    codes = torch.from_numpy(data.codes.astype(np.int64))
    bits = prior.bits_per_code(codes, data.text(range(len(data))))
    assert bits.mean().item() == pytest.approx(found["bits_per_code"], rel=1e-4)


def test_one_picture_has_no_error():
    single = CodedCaptions(coded()[3].codes[:1], ["a person"], coded()[1])
    found = likelihood(tiny_prior("lstm"), single)
    assert math.isfinite(found["nats"]) and math.isnan(found["nats_error"])


def test_cftn_has_none():
    assert "lstm, transformer or cftn-v2" in refusal(likelihood, tiny_prior("cftn"), coded()[3])
