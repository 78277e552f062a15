"The samplers draw what the prior's probabilities say, keep what was given, and refuse what makes no sense."
import itertools
from types import SimpleNamespace

import pytest
import torch
from tiny import generators, refusal

from vqgen.config import PriorShape
from vqgen.priors.sampling import (
    GenerationMixin,
    MaskedSampling,
    Sampling,
    darts,
    filter_logits,
    guidance_at,
    halton_order,
    hit,
    mask_ratio,
    sample,
    sample_autoregressive,
    sample_masked,
    trim,
    with_unconditional,
)
from vqgen.priors.text import Text, pad

DRAWS = 20_000
# by degrees of freedom, what chance exceeds once in a thousand
LIMITS = {1: 10.8, 2: 13.8, 3: 16.3, 4: 18.5, 5: 20.5, 15: 37.7, 23: 49.7, 80: 124.8}


def words(count, length=3): return pad([[5] * length] * count)


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
    ({"min_p": 0.3}, torch.tensor([0.4, 0, 0.3, 0, 0.15]) / 0.85),
    ({"min_p": 0.3, "temperature": 0.5}, torch.tensor([16, 0, 9, 0, 0]) / 25),     # 0.15 is 9/64 of 0.4
    ({"top_k": 4, "top_p": 0.9}, torch.tensor([0.4, 0, 0.3, 0.1, 0.15]) / 0.95),
    # 0.610, 0.343 and 0.051 * 0.936: two are enough
    ({"temperature": 0.5, "top_k": 3, "top_p": 0.9}, torch.tensor([16, 0, 9, 0, 0]) / 25),
])
def test_a_draw_has_the_probabilities_asked_for(options, expected):
    logits = TABLE.log() + 3.0      # logits are free up to a constant
    codes = sample(logits.expand(4, DRAWS // 4, 5), generators(0, 1, 2, 3), **options)
    assert agrees(codes, expected), chi_square(codes, expected)


def test_temperature_zero_is_argmax_and_needs_no_generator():
    logits = torch.randn(3, 7, 11)
    assert sample(logits, [None] * 3, temperature=0).equal(logits.argmax(-1))


@pytest.mark.parametrize("temperature", [1e-4, 1e-30, 1e-300])
def test_a_tiny_temperature_is_nearly_argmax(temperature):
    logits = torch.tensor([1.0, 7.0, 3.0, 6.9]).expand(2, 50, 4)
    assert sample(logits, generators(0, 1), temperature).eq(1).all()


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -float("inf")])
def test_a_draw_from_broken_logits_is_still_a_code(value):
    logits = torch.randn(2, 5, 9)
    logits[0] = value
    logits[1, :, 3] = value
    for options in ({}, {"temperature": 0}, {"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.5}):
        codes = sample(logits, generators(0, 1), **options)
        assert codes.min() >= 0 and codes.max() < 9


def test_cutting_keeps_what_it_should():
    ties = torch.zeros(1, 8)
    assert filter_logits(ties, top_k=3).isfinite().sum() == 3, "exactly k, even where all are alike"
    logits = TABLE.log()
    assert filter_logits(logits, top_k=99).equal(logits) and filter_logits(logits).equal(logits)
    kept = filter_logits(logits, top_p=1e-9).isfinite()
    assert kept.tolist() == [True, False, False, False, False], "the likeliest always stays"
    kept = filter_logits(logits, min_p=1.0).isfinite()
    assert kept.tolist() == [True, False, False, False, False], "the likeliest always stays"
    assert filter_logits(ties, min_p=1.0).isfinite().all(), "nothing is less probable"
    kept = filter_logits(torch.randn(2, 3, 50), top_k=7, top_p=0.9)
    assert kept.isfinite().sum(-1).le(7).all() and kept.isfinite().any(-1).all()


def test_darts_of_a_picture_are_its_own():
    together = darts(generators(3, 4), 50)
    assert together[1].equal(darts(generators(4), 50)[0]) and together.ge(0).all() and together.lt(1).all()


def test_what_has_no_piece_is_never_hit():
    "Not even by a dart at the very ends, nor where the sum of many pieces is rounded."
    ends = torch.tensor([[0.0, 1 - 2**-24]])
    assert hit(torch.tensor([0, 0.5, 0, 0.5, 0]).expand(1, 2, 5), ends).tolist() == [[1, 3]]
    pieces = torch.rand(1000, 4096, generator=torch.Generator().manual_seed(0)) * 3
    pieces[:, ::2], pieces[:, -9:] = 0, 0
    for dart in ends[0]:
        found = hit(pieces[None], dart.expand(1, 1000))
        assert pieces.gather(1, found.T).gt(0).all()


def test_a_code_is_hit_from_where_its_piece_begins_to_where_it_ends():
    pieces = torch.tensor([0.25, 0.5, 0.25]).expand(1, 4, 3)
    assert hit(pieces, torch.tensor([[0.2499, 0.25, 0.7499, 0.75]])).tolist() == [[0, 1, 1, 2]]
    assert hit(2 * pieces, torch.tensor([[0.2499, 0.25, 0.7499, 0.75]])).tolist() == [[0, 1, 1, 2]]


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
    "The first positions leave no large hole: after a quarter every block of 4 x 4 of 16 x 16 had its turn."
    early = (halton_order(16) < 64).view(4, 4, 4, 4).sum((1, 3))
    assert early.min() >= 3 and early.max() <= 5
    by_chance = (torch.randperm(256, generator=generators(0)[0]) < 64).view(4, 4, 4, 4).sum((1, 3))
    assert by_chance.min() < 3 or by_chance.max() > 5, "the control"


# --- toy priors whose every probability is known ---

class Toy(GenerationMixin, torch.nn.Module):
    def __init__(self, side, codebook_size, caption_dropout=0.1):
        super().__init__()
        self.shape = PriorShape(codebook_size=codebook_size, grid_size=side, vocab_size=10, max_length=8)
        self.config = SimpleNamespace(caption_dropout=caption_dropout)

    def prefill(self, text): return text


class Chain(Toy):
    "Autoregressive: row i of its table is what follows code i; the last row is the first code's."
    loop, defaults = sample_autoregressive, Sampling()

    def __init__(self, table, side):
        super().__init__(side, table.shape[1])
        self.table = table

    def decode_step(self, codes, state): return self.table[codes].log()


class Joint(Toy):
    "Masked: any distribution over all grids, (K,) * N, from which every conditional is computed exactly."
    loop, defaults = sample_masked, MaskedSampling()

    def __init__(self, table):
        super().__init__(round(table.ndim ** 0.5), table.shape[0])
        self.table = table

    def decode_step(self, canvas, state):
        rows = []
        for line in canvas.tolist():
            known = self.table
            for place, code in enumerate(line):
                if code < self.shape.codebook_size: known = torch.where(self.along(place) == code, known, 0.0)
            rows.append(torch.stack(margins(known)))
        return torch.stack(rows).log()

    def along(self, place):
        "The codes, along the dimension of `place`."
        shape = [-1 if d == place else 1 for d in range(self.table.ndim)]
        return torch.arange(self.shape.codebook_size).view(shape)


def margins(table):
    "The distribution (K,) of each place."
    return [table.sum([d for d in range(table.ndim) if d != place]) for place in range(table.ndim)]


class Guided(Toy):
    "Both kinds of prior: the caption has one table, the empty caption another."
    caption, empty = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5])

    def __init__(self, loop, defaults, **options):
        super().__init__(2, 3, **options)
        self.loop, self.defaults = loop.__get__(self), defaults

    def decode_step(self, codes, text):
        stated = text.attention_mask[:, 2:3]                     # [BOS] [EOS] is the null caption
        tables = torch.where(stated, self.caption, self.empty).log()
        return tables[:, None].expand(-1, 4, -1) if codes.ndim == 2 else tables


LOOPS = [(sample_autoregressive, Sampling()), (sample_masked, MaskedSampling(steps=4))]
either_loop = pytest.mark.parametrize("loop, defaults", LOOPS)


def numbers(codes, codebook_size):
    "Each grid as one number."
    return (codes.flatten(1) * codebook_size ** torch.arange(codes[0].numel() - 1, -1, -1)).sum(1)


RANDOM = torch.rand(3, 3, 3, 3, generator=torch.Generator().manual_seed(1)) + 0.05
RANDOM[0, 0, 0, 0] = RANDOM[1, 1, 1, 1] = 4.0       # neighbours depend on each other
RANDOM /= RANDOM.sum()


def test_the_ordered_loop_draws_from_the_joint_distribution():
    table = torch.tensor([[0.1, 0.6, 0.3], [0.2, 0.2, 0.6], [0.7, 0.1, 0.2], [0.5, 0.3, 0.2]])
    codes = Chain(table, 2).generate(words(DRAWS), generators(*range(DRAWS)))
    expected = torch.einsum("a,ab,bc,cd->abcd", table[3], *[table[:3]] * 3)
    assert agrees(numbers(codes, 3), expected.flatten())


def test_the_masked_loop_in_halton_order_draws_from_the_joint_distribution():
    "As many steps as codes, one code a step."
    codes = Joint(RANDOM).generate(words(8000), generators(*range(8000)), steps=4, order="halton")
    assert agrees(numbers(codes, 3), RANDOM.flatten())


@pytest.mark.parametrize("order", ["halton", "confidence"])
def test_a_single_masked_step_draws_from_the_margins(order):
    codes = Joint(RANDOM).generate(words(8000), generators(*range(8000)), steps=1, order=order)
    product = torch.einsum("a,b,c,d->abcd", *margins(RANDOM)).flatten()
    assert agrees(numbers(codes, 3), product) and not agrees(numbers(codes, 3), RANDOM.flatten())


@pytest.mark.parametrize("order", ["halton", "confidence"])
@pytest.mark.parametrize("steps", [4, 100])
def test_orders_are_honest_where_certainty_tells_nothing(order, steps):
    "All orders of four codes are alike likely: at every step all open positions are equally certain."
    table = torch.zeros(4, 4, 4, 4)
    for order_of_codes in itertools.permutations(range(4)): table[order_of_codes] = 1 / 24
    codes = Joint(table).generate(words(3000), generators(*range(3000)), steps=steps, order=order)
    possible = numbers(torch.tensor(list(itertools.permutations(range(4)))), 4)       # (24,), in rising order
    found = torch.searchsorted(possible, numbers(codes, 4))
    assert possible[found].equal(numbers(codes, 4)) and agrees(found, torch.full((24,), 1 / 24))


def test_order_by_confidence_sharpens():
    "It keeps likely draws and repeats the others; that is known, and why it is not the default."
    assert MaskedSampling().order == "halton"
    codes = Joint(RANDOM).generate(words(2000), generators(*range(2000)), steps=4, order="confidence")
    assert (numbers(codes, 3) == 0).float().mean() > RANDOM[0, 0, 0, 0] + 0.03


@either_loop
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0])
def test_guided_draws_have_guided_probabilities(loop, defaults, scale):
    prior = Guided(loop, defaults)
    expected = (prior.empty.log() + scale * (prior.caption.log() - prior.empty.log())).softmax(-1)
    codes = prior.generate(words(5000), generators(*range(5000)), guidance_scale=scale)
    assert agrees(codes, expected), chi_square(codes, expected)


@either_loop
def test_a_guidance_schedule_rises(loop, defaults):
    "Later codes obey more; guided from above 1, code 0, which the caption wants, gets likelier."
    prior = Guided(loop, defaults)
    rising = {"guidance_scale": 4.0, "guidance_schedule": "linear"}
    codes = prior.generate(words(4000), generators(*range(4000)), **rising)
    order = torch.arange(4) if loop is sample_autoregressive else halton_order(2)
    shares = (codes.flatten(1) == 0).float().mean(0)[order.argsort()]
    assert shares.diff().gt(0).all()


# --- the loops ---

PRIORS = {"ordered": Chain(torch.rand(6, 5, generator=generators(0)[0]).softmax(-1), 4),
          "masked": Guided(sample_masked, MaskedSampling())}
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
    for i in range(4):
        alone = prior.generate(words(1), generators(i), given=given[i:i + 1])[0]
        assert alone.equal(drawn[i]), "whatever the batch"


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
    prior = PRIORS["masked"]
    assert len(list(prior.stream(words(2), generators(0, 1), steps=steps))) == frames
    given = torch.tensor([[[1, -1], [-1, 2]], [[0, 1], [2, -1]]])
    given_frames = list(prior.stream(words(2), generators(0, 1), given=given, steps=steps))
    assert len(given_frames) == min(frames, 2), "two codes are open at most"
    assert given_frames[-1].min() >= 0


def test_ordered_priors_hear_what_is_given():
    "After a given code comes what follows it."
    prior = Chain(torch.cat([torch.eye(5).roll(1, 1), torch.full((1, 5), 0.2)]) + 1e-30, 2)
    given = torch.tensor([[[3, -1], [-1, -1]], [[-1, -1], [1, -1]]])
    drawn = prior.generate(words(2), generators(0, 1), given=given)
    assert drawn[0].flatten().tolist() == [3, 4, 0, 1] and drawn[1, 1].tolist() == [1, 2]


# --- text ---

def test_trim_drops_only_columns_without_a_token():
    text = pad([[5] * 6, [6] * 2, [7] * 4])
    short = trim(text.rows([1, 2]))
    assert short.input_ids.tolist() == [[6, 6, 0, 0], [7, 7, 7, 7]]
    assert short.attention_mask.sum(1).tolist() == [2, 4] and short.lengths == (2, 4)
    unknown = Text(text.input_ids[1:], text.attention_mask[1:])
    assert trim(unknown).input_ids.equal(unknown.input_ids), "nothing is looked up on a device"


def test_null_captions_come_below():
    text = pad([[2, 5, 6, 7, 3]] * 2, null=pad([[2, 3]]))
    both = with_unconditional(text)
    assert both.input_ids[:2].equal(text.input_ids) and both.attention_mask[2:].sum(1).tolist() == [2, 2]
    assert both.lengths == (5, 5, 2, 2) and with_unconditional(words(2, 5)).lengths is None


# --- what is refused ---

@every_prior
@pytest.mark.parametrize("options, part", [
    *(({"temperature": value}, "temperature") for value in (-0.1, float("nan"), float("inf"))),
    ({"top_p": 0.0}, "top_p"), ({"top_p": 1.1}, "top_p"), ({"top_k": -1}, "top_k"), ({"top_k": 1.5}, "top_k"),
    ({"min_p": -0.1}, "min_p"), ({"min_p": 1.1}, "min_p"),
    ({"guidance_scale": -1.0}, "guidance_scale"), ({"guidance_schedule": "square"}, "guidance_schedule"),
    ({"tempreature": 1.0}, "'temperature'"),
])
def test_senseless_options(prior, options, part):
    for call in (prior.generate, prior.stream):
        assert part in refusal(call, words(1), generators(0), **options), "before the first code"


@pytest.mark.parametrize("options, part", [
    ({"steps": 0}, "steps"), ({"steps": -3}, "steps"), ({"order": "spiral"}, "halton"),
    ({"schedule": "linear"}, "arccos"),
])
def test_senseless_options_of_masked_priors(options, part):
    assert part in refusal(PRIORS["masked"].generate, words(1), generators(0), **options)


def test_an_ordered_prior_has_no_steps():
    assert "steps" in refusal(PRIORS["ordered"].generate, words(1), generators(0), steps=4)


@every_prior
def test_given_codes_that_make_no_sense(prior):
    side, K = prior.shape.grid_size, prior.shape.codebook_size
    bad = {str(K): torch.full((2, side, side), K), "-2": torch.full((2, side, side), -2),
           "whole": torch.zeros(2, side, side), "shape": torch.zeros(1, side, side, dtype=torch.long),
           f"{side + 1}": torch.zeros(2, side + 1, side, dtype=torch.long)}
    for part, given in bad.items():
        assert part in refusal(prior.generate, words(2), generators(0, 1), given=given)


@every_prior
def test_a_generator_for_each_caption(prior):
    for count in (0, 1, 3): assert str(count) in refusal(prior.generate, words(2), generators(*range(count)))


@either_loop
def test_guidance_needs_caption_dropout(loop, defaults):
    prior = Guided(loop, defaults, caption_dropout=0.0)
    assert "caption dropout" in refusal(prior.generate, words(1), generators(0), guidance_scale=2.0)
    assert prior.generate(words(1), generators(0)).shape == (1, 2, 2)
