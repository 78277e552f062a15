"The samplers draw what the prior's own probabilities say, keep what was given, and refuse what makes no sense."
import itertools
from types import SimpleNamespace

import pytest
import torch
from tiny import one_sentence

from vqgen.config import PriorShape
from vqgen.errors import VQGenError
from vqgen.priors.text import Text
from vqgen.priors.sampling import (GenerationMixin, MaskedSampling, Sampling, sample, gumbel, guidance_at,
                                   halton_order, mask_ratio, sample_autoregressive, filter_logits, masked,
                                   trim, with_unconditional)

DRAWS = 20_000
LIMITS = {1: 10.8, 2: 13.8, 3: 16.3, 4: 18.5, 5: 20.5, 15: 37.7, 23: 49.7, 80: 124.8}   # chance exceeds them once in a thousand


def generators(*seeds): return [torch.Generator().manual_seed(seed) for seed in seeds]


def words(count, length=3): return Text(torch.full((count, length), 5), torch.ones(count, length, dtype=torch.bool))


def chi_square(codes, probabilities):
    "The statistic of `codes`, and its degrees of freedom; a code of probability 0 must not occur."
    counts = codes.flatten().bincount(minlength=len(probabilities)).double()
    possible = probabilities > 0
    assert not counts[~possible].any(), "an impossible outcome was drawn"
    expected = probabilities[possible].double() * counts.sum()
    assert expected.min() > 4, "too few draws for the test"
    return ((counts[possible] - expected).square() / expected).sum().item(), int(possible.sum()) - 1


def agrees(codes, probabilities):
    statistic, freedom = chi_square(codes, probabilities)
    return statistic < LIMITS[freedom]


# --- one draw ---

TABLE = torch.tensor([0.4, 0.05, 0.3, 0.1, 0.15])


@pytest.mark.parametrize("options, expected", [
    ({}, TABLE),
    ({"temperature": 0.5}, TABLE ** 2 / (TABLE ** 2).sum()),
    ({"temperature": 2.0}, TABLE.sqrt() / TABLE.sqrt().sum()),
    ({"top_k": 2}, torch.tensor([4, 0, 3, 0, 0]) / 7),
    ({"top_p": 0.8}, torch.tensor([0.4, 0, 0.3, 0, 0.15]) / 0.85),
    ({"top_k": 4, "top_p": 0.9}, torch.tensor([0.4, 0, 0.3, 0.1, 0.15]) / 0.95),
    ({"temperature": 0.5, "top_k": 3, "top_p": 0.9}, torch.tensor([16, 0, 9, 0, 0]) / 25),   # 0.610, 0.343 and 0.051 * 0.936: two are enough
])
def test_a_draw_has_the_probabilities_asked_for(options, expected):
    scores = TABLE.log() + 3.0      # scores are free up to a constant
    codes = sample(scores.expand(4, DRAWS // 4, 5), generators(0, 1, 2, 3), **options)
    assert agrees(codes, expected), chi_square(codes, expected)


def test_temperature_zero_is_argmax_and_needs_no_generator():
    scores = torch.randn(3, 7, 11)
    assert sample(scores, [None] * 3, temperature=0).equal(scores.argmax(-1))


@pytest.mark.parametrize("temperature", [1e-4, 1e-30, 1e-300])
def test_a_tiny_temperature_is_nearly_argmax(temperature):
    scores = torch.tensor([1.0, 7.0, 3.0, 6.9]).expand(2, 50, 4)
    assert sample(scores, generators(0, 1), temperature).eq(1).all()


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -float("inf")])
def test_a_draw_from_broken_scores_is_still_a_code(value):
    scores = torch.randn(2, 5, 9)
    scores[0] = value
    scores[1, :, 3] = value
    for options in ({}, {"temperature": 0}, {"top_k": 2}, {"top_p": 0.5}):
        codes = sample(scores, generators(0, 1), **options)
        assert codes.min() >= 0 and codes.max() < 9


def test_cutting_keeps_what_it_should():
    ties = torch.zeros(1, 8)
    assert filter_logits(ties, top_k=3).isfinite().sum() == 3, "exactly k, even where all are alike"
    assert filter_logits(TABLE.log(), top_k=99).equal(TABLE.log()) and filter_logits(TABLE.log()).equal(TABLE.log())
    assert filter_logits(TABLE.log(), top_p=1e-9).isfinite().tolist() == [True, False, False, False, False], "the likeliest always stays"
    kept = filter_logits(torch.randn(2, 3, 50), top_k=7, top_p=0.9)
    assert kept.isfinite().sum(-1).le(7).all() and kept.isfinite().any(-1).all()


def test_noise_of_a_picture_is_its_own():
    together = gumbel(generators(3, 4), (5, 6))
    assert together[1].equal(gumbel(generators(4), (5, 6))[0]) and together.isfinite().all()


# --- schedules and orders ---

@pytest.mark.parametrize("schedule", ["cosine", "arccos"])
def test_fewer_and_fewer_codes_are_hidden(schedule):
    share = mask_ratio(torch.linspace(0, 1, 50).double(), schedule)
    assert share[0] == 1 and abs(share[-1]) < 1e-12 and share.diff().lt(0).all()


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_guidance_ends_where_it_was_asked_to(schedule):
    scales = guidance_at(torch.linspace(0.01, 1, 50), 3.0, schedule)
    assert scales[-1] == 3 and scales.diff().ge(0).all() and scales.ge(1).all()
    assert guidance_at(torch.linspace(0, 1, 5), 1.0, schedule).eq(1).all()


@pytest.mark.parametrize("side", [1, 2, 3, 7, 8, 9, 16, 27, 32])
def test_halton_order_visits_each_position_once(side):
    assert halton_order(side).sort().values.equal(torch.arange(side ** 2))


def test_halton_order_spreads():
    "The first of its positions leave no large hole: every 4 x 4 block of a 16 x 16 grid has had its turn after a quarter."
    early = (halton_order(16) < 64).view(4, 4, 4, 4).sum((1, 3))
    assert early.min() >= 3 and early.max() <= 5
    by_chance = (torch.randperm(256, generator=torch.Generator().manual_seed(0)) < 64).view(4, 4, 4, 4).sum((1, 3))
    assert by_chance.min() < 3 or by_chance.max() > 5, "the control"


# --- toy priors whose every probability is known ---

class Toy(GenerationMixin):
    def __init__(self, side, codebook_size, caption_dropout=0.1):
        self.shape = PriorShape(codebook_size=codebook_size, grid_size=side, vocab_size=10, max_length=8)
        self.config = SimpleNamespace(caption_dropout=caption_dropout)

    def start(self, text): return text


class Chain(Toy):
    "Autoregressive: row i of its table is what follows code i; the last row is the first code's."
    loop, defaults = sample_autoregressive, Sampling()

    def __init__(self, table, side): super().__init__(side, table.shape[1]); self.table = table

    def step(self, codes, state): return self.table[codes].log()


class Joint(Toy):
    "Masked: any distribution over all grids, (K,) * N, from which every conditional is computed exactly."
    loop, defaults = masked, MaskedSampling()

    def __init__(self, table): super().__init__(round(table.ndim ** 0.5), table.shape[0]); self.table = table

    def step(self, canvas, state):
        rows = []
        for line in canvas.tolist():
            known = self.table
            for place, code in enumerate(line):
                if code < self.shape.codebook_size: known = torch.where(self.along(place) == code, known, 0.0)
            rows.append(torch.stack([known.sum([d for d in range(known.ndim) if d != place]) for place in range(known.ndim)]))
        return torch.stack(rows).log()

    def along(self, place): return torch.arange(self.shape.codebook_size).view([-1 if d == place else 1 for d in range(self.table.ndim)])


class Guided(Toy):
    "Both kinds of prior: the caption has one table, the empty caption another."
    caption, empty = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5])

    def __init__(self, loop, defaults, **options): super().__init__(2, 3, **options); self.loop, self.defaults = loop.__get__(self), defaults

    def step(self, codes, text):
        tables = torch.where(text.attention_mask[:, 2:3], self.caption, self.empty).log()        # [BOS] [EOS] is empty
        return tables[:, None].expand(-1, 4, -1) if codes.ndim == 2 else tables


def numbers(codes, codebook_size):
    "Each grid as one number."
    return (codes.flatten(1) * codebook_size ** torch.arange(codes[0].numel() - 1, -1, -1)).sum(1)


RANDOM = torch.rand(3, 3, 3, 3, generator=torch.Generator().manual_seed(1)) + 0.05
RANDOM[0, 0, 0, 0] = RANDOM[1, 1, 1, 1] = 4.0       # neighbours depend on each other
RANDOM /= RANDOM.sum()


def test_the_ordered_loop_draws_from_the_joint_distribution():
    table = torch.tensor([[0.1, 0.6, 0.3], [0.2, 0.2, 0.6], [0.7, 0.1, 0.2], [0.5, 0.3, 0.2]])
    codes = Chain(table, 2).generate(words(DRAWS), generators(*range(DRAWS)))
    expected = torch.stack([torch.stack([table[3, a] * table[a, b] * table[b, c] * table[c, d]]) for a, b, c, d in itertools.product(range(3), repeat=4)])
    assert agrees(numbers(codes, 3), expected.flatten())


def test_the_masked_loop_in_halton_order_draws_from_the_joint_distribution():
    "As many steps as codes, one code a step."
    codes = Joint(RANDOM).generate(words(8000), generators(*range(8000)), steps=4, order="halton")
    assert agrees(numbers(codes, 3), RANDOM.flatten())


@pytest.mark.parametrize("order", ["halton", "confidence"])
def test_a_single_masked_step_draws_from_the_margins(order):
    codes = Joint(RANDOM).generate(words(8000), generators(*range(8000)), steps=1, order=order)
    margins = [RANDOM.sum([d for d in range(4) if d != place]) for place in range(4)]
    product = torch.einsum("a,b,c,d->abcd", *margins).flatten()
    assert agrees(numbers(codes, 3), product) and not agrees(numbers(codes, 3), RANDOM.flatten())


@pytest.mark.parametrize("order", ["halton", "confidence"])
@pytest.mark.parametrize("steps", [4, 100])
def test_orders_are_honest_where_certainty_tells_nothing(order, steps):
    "All orders of four codes are alike likely: at every step all open positions are equally certain."
    table = torch.zeros(4, 4, 4, 4)
    for order_of_codes in itertools.permutations(range(4)): table[order_of_codes] = 1 / 24
    codes = Joint(table).generate(words(3000), generators(*range(3000)), steps=steps, order=order)
    found = numbers(codes, 4)
    places = {int(numbers(torch.tensor([p]), 4)): i for i, p in enumerate(itertools.permutations(range(4)))}
    assert agrees(torch.tensor([places[int(number)] for number in found]), torch.full((24,), 1 / 24))


def test_order_by_confidence_sharpens():
    "It keeps likely draws and repeats the others; that is known, and why it is not the default."
    assert MaskedSampling().order == "halton"
    codes = Joint(RANDOM).generate(words(2000), generators(*range(2000)), steps=4, order="confidence")
    assert (numbers(codes, 3) == 0).float().mean() > RANDOM[0, 0, 0, 0] + 0.03


@pytest.mark.parametrize("loop, defaults", [(sample_autoregressive, Sampling()), (masked, MaskedSampling(steps=4))])
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0])
def test_guided_draws_have_guided_probabilities(loop, defaults, scale):
    prior = Guided(loop, defaults)
    expected = (prior.empty.log() + scale * (prior.caption.log() - prior.empty.log())).softmax(-1)
    codes = prior.generate(words(5000), generators(*range(5000)), guidance_scale=scale)
    assert agrees(codes, expected), chi_square(codes, expected)


@pytest.mark.parametrize("loop, defaults", [(sample_autoregressive, Sampling()), (masked, MaskedSampling(steps=4))])
def test_a_guidance_schedule_rises(loop, defaults):
    "Later codes obey more; guided from above 1, code 0, which the caption wants, gets likelier."
    prior = Guided(loop, defaults)
    codes = prior.generate(words(4000), generators(*range(4000)), guidance_scale=4.0, guidance_schedule="linear")
    order = torch.arange(4) if loop is sample_autoregressive else halton_order(2)
    shares = (codes.flatten(1) == 0).float().mean(0)[order.argsort()]
    assert shares.diff().gt(0).all()


# --- the loops ---

PRIORS = {"ordered": Chain(torch.rand(6, 5, generator=torch.Generator().manual_seed(0)).softmax(-1), 4),
          "masked": Guided(masked, MaskedSampling())}
every_prior = pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)


@every_prior
def test_a_stream_decides_more_and_more(prior):
    side = prior.shape.grid_size
    frames = list(prior.stream(words(3), generators(0, 1, 2)))
    assert all(frame.shape == (3, side, side) and frame.dtype == torch.int64 for frame in frames)
    for now, later in zip(frames, frames[1:]):
        assert later[now >= 0].equal(now[now >= 0]) and (later >= 0).sum() > (now >= 0).sum()
    assert frames[-1].min() >= 0 and frames[-1].equal(prior.generate(words(3), generators(0, 1, 2)))


@every_prior
def test_given_codes_stay_and_each_picture_may_have_others(prior):
    side, K = prior.shape.grid_size, prior.shape.codebook_size
    given = torch.randint(K, (4, side, side), generator=torch.Generator().manual_seed(0))
    given[0] = -1
    given[1, 0] = -1
    given[2, :, 1:] = -1                    # the last is given entirely
    drawn = prior.generate(words(4), generators(0, 1, 2, 3), given=given)
    assert drawn[given >= 0].equal(given[given >= 0]) and drawn.min() >= 0 and drawn.max() < K
    for frame in prior.stream(words(4), generators(0, 1, 2, 3), given=given, guidance_scale=2.0):
        decided = frame >= 0
        assert frame[decided & (given >= 0)].equal(given[decided & (given >= 0)])
    for i in range(4): assert prior.generate(words(1), generators(i), given=given[i:i + 1])[0].equal(drawn[i]), "whatever the batch"


@every_prior
def test_nothing_touches_the_global_generator(prior):
    state = torch.random.get_rng_state()
    prior.generate(words(2), generators(0, 1), guidance_scale=2.0, top_p=0.9)
    assert state.equal(torch.random.get_rng_state())


@every_prior
def test_what_comes_out_can_be_trained_on(prior):
    "Not a tensor of inference mode, which autograd refuses, and not a view of the loop's own memory."
    frames = list(prior.stream(words(2), generators(0, 1)))
    assert not any(frame.is_inference() for frame in frames)
    kept = frames[-1].clone()
    frames[0][:] = -5
    assert frames[-1].equal(kept)


@pytest.mark.parametrize("steps, frames", [(1, 1), (3, 3), (4, 4), (50, 4)])
def test_no_more_steps_than_codes(steps, frames):
    assert len(list(PRIORS["masked"].stream(words(2), generators(0, 1), steps=steps))) == frames


def test_ordered_priors_hear_what_is_given():
    "After a given code comes what follows it."
    prior = Chain(torch.cat([torch.eye(5).roll(1, 1), torch.full((1, 5), 0.2)]) + 1e-30, 2)
    given = torch.tensor([[[3, -1], [-1, -1]], [[-1, -1], [1, -1]]])
    drawn = prior.generate(words(2), generators(0, 1), given=given)
    assert drawn[0].flatten().tolist() == [3, 4, 0, 1] and drawn[1, 1].tolist() == [1, 2]


# --- text ---

def test_trim_drops_only_columns_without_a_token():
    ids = torch.arange(12).view(2, 6)
    text = trim(Text(ids, torch.tensor([[True] * 2 + [False] * 4, [True] * 4 + [False] * 2])))
    assert text.input_ids.equal(ids[:, :4]) and text.attention_mask.sum(1).tolist() == [2, 4]


def test_with_empty_keeps_the_captions_above():
    text = words(2, 5)
    both = with_unconditional(text)
    assert both.input_ids[:2].equal(text.input_ids) and both.attention_mask[2:].sum(1).tolist() == [2, 2]


# --- what is refused ---

def refusal(call, *arguments, **options):
    with pytest.raises(VQGenError) as caught: call(*arguments, **options)
    assert one_sentence(caught.value), str(caught.value)
    return str(caught.value)


@every_prior
@pytest.mark.parametrize("options, part", [
    ({"temperature": -0.1}, "temperature"), ({"temperature": float("nan")}, "temperature"), ({"temperature": float("inf")}, "temperature"),
    ({"top_p": 0.0}, "top_p"), ({"top_p": 1.1}, "top_p"), ({"top_k": -1}, "top_k"), ({"top_k": 1.5}, "top_k"),
    ({"guidance_scale": -1.0}, "guidance_scale"), ({"guidance_schedule": "square"}, "guidance_schedule"), ({"tempreature": 1.0}, "'temperature'"),
])
def test_senseless_options(prior, options, part):
    for call in (prior.generate, prior.stream): assert part in refusal(call, words(1), generators(0), **options), "before the first code"


@pytest.mark.parametrize("options, part", [({"steps": 0}, "steps"), ({"steps": -3}, "steps"), ({"order": "spiral"}, "halton"), ({"schedule": "linear"}, "arccos")])
def test_senseless_options_of_masked_priors(options, part):
    assert part in refusal(PRIORS["masked"].generate, words(1), generators(0), **options)


def test_an_ordered_prior_has_no_steps():
    assert "steps" in refusal(PRIORS["ordered"].generate, words(1), generators(0), steps=4)


@every_prior
def test_given_codes_that_make_no_sense(prior):
    side, K = prior.shape.grid_size, prior.shape.codebook_size
    ask = lambda given: refusal(prior.generate, words(2), generators(0, 1), given=given)
    assert str(K) in ask(torch.full((2, side, side), K)) and "-2" in ask(torch.full((2, side, side), -2))
    assert "shape" in ask(torch.zeros(1, side, side, dtype=torch.long)) and "shape" in ask(torch.zeros(2, side + 1, side, dtype=torch.long))
    assert "whole" in ask(torch.zeros(2, side, side))


@every_prior
def test_a_generator_for_each_caption(prior):
    for count in (0, 1, 3): assert str(count) in refusal(prior.generate, words(2), generators(*range(count)))


@pytest.mark.parametrize("loop, defaults", [(sample_autoregressive, Sampling()), (masked, MaskedSampling())])
def test_guidance_needs_caption_dropout(loop, defaults):
    prior = Guided(loop, defaults, caption_dropout=0.0)
    assert "caption dropout" in refusal(prior.generate, words(1), generators(0), guidance_scale=2.0)
    assert prior.generate(words(1), generators(0)).shape == (1, 2, 2)
