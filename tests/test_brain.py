"CFTN v2: no code that is none, no look at what should be hidden, and the same picture from the same seed."
import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from tiny import generators, refusal

from vqgen.config import BrainConfig, PriorShape, StageConfig, TextConfig, VQVAEConfig
from vqgen.errors import VQGenError
from vqgen.priors.blocks import KVCache
from vqgen.priors.brain import (
    BiHemisphericBrain,
    cached_order,
    caption_logits,
    decisions_per_layer,
    entropy_order,
    image_context,
    suffix_mask,
    teacher_forced,
)
from vqgen.priors.build import new_prior
from vqgen.priors.sampling import halton_order
from vqgen.priors.text import BOS, EOS, PAD, Text, pad, tokenize, train_tokenizer
from vqgen.training.checkpoints import load_model, save_model
from vqgen.vqvae.model import VQVAE

K, SIDE = 12, 4
CAPTIONS = ["a red fox in the snow", "a cat", "two green birds", "the moon above a very quiet sea at night"]
DRAW = StageConfig()
BOTH = StageConfig(caption_weight=1.0, caption_share=1.0)


@pytest.fixture(scope="module")
def tokenizer(): return train_tokenizer(CAPTIONS * 4, TextConfig(vocab_size=128, max_length=16))


@pytest.fixture(scope="module")
def text(tokenizer): return tokenize(tokenizer, CAPTIONS)


def new(tokenizer, seed=0, **changes):
    "A brain with three bridges, so that something that leaks through one could come back through the next."
    torch.manual_seed(seed)
    sizes = {"width": 32, "heads": 2, "layers": 3, "bridge_ratio": 1.0, "caption_dropout": 0.1}
    shape = PriorShape(codebook_size=K, grid_size=SIDE, vocab_size=len(tokenizer), max_length=16)
    return BiHemisphericBrain(BrainConfig(**{**sizes, **changes}), shape).eval()


@pytest.fixture
def brain(tokenizer): return new(tokenizer)


def grids(count, seed=0):
    return torch.randint(K, (count, SIDE, SIDE), generator=torch.Generator().manual_seed(seed))


def rows(text, *numbers): return text.map(lambda part: part[list(numbers)])


def logits_for(brain, codes, text, hidden=None):
    "Logits (B, N, K), in the order of deciding, of a pass that decides `codes` (B, N); some may be in sight."
    return teacher_forced(brain, codes, text, codes >= 0 if hidden is None else hidden)[0]


def next_word(brain, codes, ids):
    "Logits (B, T, V) for the word after each of `ids` (B, T)."
    return caption_logits(brain, ids, image_context(brain, codes))


def fit(brain, codes, text, steps, stage, rate=4e-3):
    "Train on one batch, and return the last metrics."
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(brain.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    brain.train()
    for _ in range(steps):
        loss, metrics = brain.loss(codes, text, stage=stage)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    brain.eval()
    return metrics


@pytest.fixture(scope="module")
def memory(tokenizer, text):
    "A brain that knows four grids and their captions by heart."
    brain = new(tokenizer)
    fit(brain, grids(4).repeat(4, 1, 1), Text(*(part.repeat(4, 1) for part in text)), 220, BOTH)
    return brain


@pytest.fixture(scope="module")
def wavering(tokenizer, text):
    "A brain after a few steps on many pictures of the same captions: what it draws depends on chance."
    brain = new(tokenizer)
    fit(brain, grids(32), Text(*(part.repeat(8, 1) for part in text)), 30, DRAW)
    return brain


# --- what comes out ---

@pytest.mark.parametrize("damage", ["none", "large", "huge", "mask embedding everywhere"])
def test_mask_is_never_emitted(tokenizer, text, damage):
    brain = new(tokenizer)
    with torch.no_grad():
        for parameter in brain.parameters():
            if damage == "large": parameter.normal_(std=30)
            if damage == "huge": parameter.normal_(std=1e15)   # logits overflow to infinity and NaN
        tokens = brain.code_embedding.tokens.weight
        if damage == "mask embedding everywhere": tokens[:] = 1e4 * tokens[-1]
    for steps in (1, 2, 5, SIDE**2, SIDE**2 + 4):
        for temperature in (0.0, 1.0, 1e4):
            for options in ({}, {"guidance_scale": 5.0}):
                options = {"steps": steps, "temperature": temperature, **options}
                codes = brain.generate(text, generators(0, 1, 2, 3), **options)
                assert codes.shape == (4, SIDE, SIDE) and codes.dtype == torch.int64
                assert 0 <= codes.min() and codes.max() < K, options


def test_no_head_has_a_logit_for_mask(brain, text):
    codes = grids(4).flatten(1)
    assert brain.mask_id == K and logits_for(brain, codes, text).shape == (4, SIDE**2, K)
    assert next_word(brain, codes, text.input_ids).shape == (*text.input_ids.shape, brain.shape.vocab_size)


def test_all_randomness_is_in_the_generators(wavering, text):
    torch.manual_seed(1)
    first = wavering.generate(text, generators(0, 1, 2, 3), steps=3, temperature=1.0)
    state = torch.random.get_rng_state()
    torch.manual_seed(2)
    assert first.equal(wavering.generate(text, generators(0, 1, 2, 3), steps=3, temperature=1.0))
    torch.random.set_rng_state(state)
    wavering.generate(text, generators(0, 1, 2, 3), steps=3, temperature=1.0)
    assert state.equal(torch.random.get_rng_state()), "drawing moved the global random state"


@pytest.mark.parametrize("options", [{}, {"guidance_scale": 2.0}, {"steps": 4, "temperature": 0.7},
                                     {"steps": 3, "guidance_scale": 2.0}])
def test_same_seed_same_picture_whatever_the_batch(wavering, tokenizer, options):
    "Alone, in a batch, in another order, and beside captions that make its own padding longer."
    together = wavering.generate(tokenize(tokenizer, CAPTIONS), generators(0, 1, 2, 3), **options)
    for i, caption in enumerate(CAPTIONS):
        alone = wavering.generate(tokenize(tokenizer, [caption]), generators(i), **options)
        assert alone[0].equal(together[i])
    backwards = wavering.generate(tokenize(tokenizer, CAPTIONS[::-1]), generators(3, 2, 1, 0), **options)
    assert backwards.flip(0).equal(together)


def test_another_seed_is_another_picture(wavering, tokenizer):
    same = tokenize(tokenizer, ["a cat"] * 16)
    for options in ({}, {"steps": 4, "temperature": 1.0}, {"guidance_scale": 1.5}):
        codes = wavering.generate(same, generators(*range(16)), **options)
        assert len({tuple(grid.flatten().tolist()) for grid in codes}) >= 12, options


@pytest.mark.parametrize("layers, first", [(1, 0), (2, 0), (3, 1), (12, 3), (12, 11)])
@pytest.mark.parametrize("count", [1, 16, 64, 1024])
@pytest.mark.parametrize("early_share", [0.5, 0.125])
def test_every_code_is_decided_once_and_none_before_words_are_heard(layers, first, count, early_share):
    numbers = decisions_per_layer(layers, first, count, early_share)
    assert len(numbers) == layers + 1 and numbers == sorted(numbers)
    assert set(numbers[:first + 1]) == {0} and numbers[-1] == count
    deciding = layers - 1 - first
    if deciding and count > layers:
        assert numbers[first + 1] >= 1 and numbers[-2] == max(deciding, round(early_share * count))


def test_a_brain_decides_the_share_early_that_its_config_says(tokenizer, text):
    brain = new(tokenizer, layers=4, bridge_ratio=0.5, early_share=0.25)
    found = [(codes >= 0).sum(dim=(1, 2)).tolist() for codes in brain.stream(text, generators(0, 1, 2, 3))]
    assert found[-2:] == [[SIDE**2 // 4] * 4, [SIDE**2] * 4]


def test_one_pass_is_one_pass(wavering, text):
    """Each layer of the image tower runs once, with every caption, guided or not.

    From a null canvas those below the first bridge run only once for all.
    """
    wavering.null_prefix.clear()
    runs = []
    hooks = [block.register_forward_hook(lambda *_, number=number: runs.append(number))
             for number, block in enumerate(wavering.image_tower.blocks)]
    given = grids(4).masked_fill(torch.arange(SIDE) > 0, -1)
    for options, wanted in ({}, [0, 1, 2]), ({"guidance_scale": 2.0}, [1, 2]), ({"given": given}, [0, 1, 2]):
        runs.clear()
        wavering.generate(text, generators(0, 1, 2, 3), **options)
        assert runs == wanted
    for hook in hooks: hook.remove()


CHANGES = ["a step of a training", "weights of another brain", "a buffer of weights swapped"]


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_kept_of_a_null_canvas_goes_with_the_weights(tokenizer, text, change, tmp_path):
    "After a change of weights a brain that has drawn before draws as one that has not."
    brain = new(tokenizer)
    before = brain.generate(text, generators(0, 1, 2, 3))
    weight = brain.image_tower.blocks[0].mlp[0].weight
    if change == CHANGES[0]: fit(brain, grids(32), text.map(lambda part: part.repeat(8, 1)), 30, DRAW)
    elif change == CHANGES[1]: brain.load_state_dict(new(tokenizer, seed=1).state_dict())
    else: weight.data = torch.randn_like(weight)
    after = brain.generate(text, generators(0, 1, 2, 3))
    save_model(brain, tmp_path)
    assert after.equal(load_model(tmp_path, BiHemisphericBrain).generate(text, generators(0, 1, 2, 3)))
    assert not after.equal(before)


def test_a_null_row_is_seen_as_alone(brain, text):
    "Null and other canvases in one batch, with and without gradients: each as if it were there alone."
    codes, hidden = grids(4).flatten(1), torch.ones(4, SIDE**2, dtype=torch.bool)
    hidden[[1, 3], :5] = False
    alone = [logits_for(brain, codes[[i]], rows(text, i), hidden[[i]]) for i in range(4)]
    both = logits_for(brain, codes, text, hidden), torch.cat(alone)
    assert torch.allclose(*both, atol=1e-5)
    weights = list(brain.image_tower.blocks[0].parameters())
    found = [torch.autograd.grad(logits.square().sum(), weights) for logits in both]
    assert all(torch.allclose(*pair, rtol=1e-3, atol=1e-3) for pair in zip(*found))
    with torch.inference_mode():
        given = codes.masked_fill(hidden, -1).view(4, SIDE, SIDE)
        drawn = brain.generate(text, generators(0, 1, 2, 3), given)
        for i in range(4): assert brain.generate(rows(text, i), generators(i), given[[i]])[0].equal(drawn[i])


def test_the_rows_of_a_training_pass_are_as_alone(brain, text):
    "Drawings from a shared null canvas, others with codes in sight, and captions: in a batch as one by one."
    brain, codes = open_gates(brain), grids(4).flatten(1)
    hidden = torch.ones_like(codes, dtype=torch.bool)
    hidden[3, :5] = False
    prompt = rows(text, 3, 2, 1, 0)
    drawn, read = teacher_forced(brain, codes, prompt, hidden, null_rows=3, captions=rows(text, 0, 1))
    for i in range(4):
        torch.testing.assert_close(drawn[[i]], logits_for(brain, codes[[i]], rows(prompt, i), hidden[[i]]))
    torch.testing.assert_close(read, next_word(brain, codes[:2], text.input_ids[:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stage", [DRAW, BOTH])
def test_a_training_step_looks_at_no_value(tokenizer, text, stage):
    "On tensors without values shapes are all there is, so none depends on the data."
    brain = new(tokenizer).train().to("meta")
    brain.loss(grids(4).to("meta"), text.to("meta"), stage)[0].backward()
    assert brain.feedback.grad.shape == brain.feedback.shape


def test_one_pass_asks_as_it_was_trained(wavering, text):
    "Asked for what it drew by the likeliest codes, it finds them likeliest, from nothing or a part."
    given = torch.where(wavering.rank < 5, grids(4, 3).flatten(1), -1)
    for seen in (torch.full_like(given, -1), given):
        options = {"given": seen.view(4, SIDE, SIDE), "temperature": 0.0}
        codes = wavering.generate(text, generators(0, 1, 2, 3), **options).flatten(1)
        with torch.no_grad(): found = logits_for(wavering, codes, text, seen < 0).argmax(-1)
        hidden = (seen < 0)[:, wavering.order]
        assert found[hidden].equal(codes[:, wavering.order][hidden])


def test_several_passes_are_single_passes_that_go_on(wavering, text):
    "Each begins with what the passes before have kept: by hand."
    by_hand = torch.full((4, SIDE, SIDE), -1)
    passes, kept = generators(0, 1, 2, 3), wavering.rank.view(SIDE, SIDE)
    for count in (2, 5, 10, 16):     # of 16 codes, by the cosine
        whole = wavering.generate(text, passes, given=by_hand)
        by_hand = torch.where((by_hand >= 0) | (kept < count), whole, by_hand)
    assert wavering.generate(text, generators(0, 1, 2, 3), steps=4).equal(by_hand)


def test_a_decision_is_heard_by_later_places_only(brain, text):
    "Change one true code, and logits of places decided with it or before stay; some later ones move."
    brain, codes = open_gates(brain), grids(4).flatten(1)
    numbers, order = brain.decided, brain.order
    with torch.no_grad():
        before = logits_for(brain, codes, text)
        for place in range(SIDE**2):
            changed = codes.clone()
            changed[:, order[place]] = (codes[:, order[place]] + 5) % K
            moved = (logits_for(brain, changed, text) != before).any(-1).any(0)
            end = next(end for end in numbers if end > place)
            assert not moved[:end].any() and moved[end:].any() == (end < SIDE**2), place


@pytest.mark.parametrize("first, decided",
                         [(0, [0, 1, 4, 8, 16]), (None, [0, 0, 2, 8, 16]), (2, [0, 0, 0, 8, 16])])
def test_deciding_begins_at_the_first_bridge_where_words_are_heard(tokenizer, text, first, decided):
    brain = open_gates(new(tokenizer, layers=4, bridge_ratio=0.5, first_bridge=first))
    assert brain.decided == decided
    with torch.no_grad():
        one, other = (logits_for(brain, grids(1).flatten(1), rows(text, row)) for row in (1, 2))
    assert (one != other).any(-1).all()


def test_probabilities_of_one_pass_sum_to_one(tokenizer, text):
    """What training calls the loss is the negative logarithm of a probability, and drawing follows it.

    Over all grids of 2 x 2 codes it adds up.
    """
    torch.manual_seed(0)
    shape = PriorShape(codebook_size=3, grid_size=2, vocab_size=len(tokenizer), max_length=16)
    brain = BiHemisphericBrain(BrainConfig(width=32, heads=2, layers=3, bridge_ratio=1.0), shape).eval()
    torch.nn.init.normal_(brain.code_head.weight, std=0.3)
    every = torch.cartesian_prod(*[torch.arange(3)] * 4)                                             # (81, 4)
    def captions(count): return text.map(lambda part: part[1:2].expand(count, -1))
    with torch.no_grad():
        shares = logits_for(brain, every, captions(81)).log_softmax(-1)                      # (81, 4, 3)
        chance = shares.gather(2, every[:, brain.order, None]).sum((1, 2)).exp()
    assert chance.sum().item() == pytest.approx(1, abs=1e-4)
    early = brain.order[:brain.decided[-2]]        # the last layer takes the likeliest: count the others
    drawn = brain.generate(captions(3000), generators(*range(3000)), min_p=0.0).flatten(1)
    expected, seen = torch.zeros(3 ** len(early)), torch.zeros(3 ** len(early))
    base = 3 ** torch.arange(len(early))
    expected.index_add_(0, every[:, early] @ base, chance)
    seen.index_add_(0, drawn[:, early] @ base, torch.ones(3000))
    chi_square = (((seen - 3000 * expected) ** 2) / (3000 * expected)).sum()
    assert chi_square < 3 * len(seen) + 12


def test_one_pass_streams_what_is_decided(wavering, text):
    rounds = list(wavering.stream(text, generators(0, 1, 2, 3)))
    counts = [int((codes >= 0).sum()) for codes in rounds]
    assert counts == [4 * number for number in wavering.decided if number]
    for before, after in zip(rounds, rounds[1:]): assert after[before >= 0].equal(before[before >= 0])


def test_one_pass_keeps_given_codes_and_heeds_them(wavering, text):
    given = torch.full((4, SIDE, SIDE), -1)
    given[:, :2] = grids(4, 3)[:, :2]
    codes = wavering.generate(text, generators(0, 1, 2, 3), given=given)
    free = wavering.generate(text, generators(0, 1, 2, 3))
    assert codes[:, :2].equal(given[:, :2]) and not codes[:, 2:].equal(free[:, 2:])


def test_hidden_are_the_places_that_the_sampler_decides_last():
    torch.manual_seed(0)
    order = torch.randperm(16)
    (hidden, null_rows), counts = suffix_mask(torch.zeros(3000, 16), order, 0.0), set()
    for row in hidden[:, order]:                                   # in the order of deciding
        assert row[16 - row.sum():].all(), "the last of the order, without a gap"
        counts.add(int(row.sum()))
    assert null_rows == 0 and counts == set(range(1, 17))
    assert suffix_mask(torch.zeros(5, 1), torch.zeros(1), 0.75)[0].all()
    hidden, null_rows = suffix_mask(torch.zeros(9, 16), order, 1.0)
    assert hidden.all() and null_rows == 9
    hidden, null_rows = suffix_mask(torch.zeros(3000, 16), order, 0.5)
    assert null_rows == 1500 and hidden[:1500].all()
    assert 0.55 < hidden.all(1).float().mean() < 0.67              # some more by chance


@pytest.mark.parametrize("rows, share", [(1, 0.75), (3, 0.5), (8, 0.3)])
def test_small_batches_hide_the_same_share_as_a_whole(rows, share):
    "Where the share of the batch is no whole number, chance has the rest."
    torch.manual_seed(0)
    masks = [suffix_mask(torch.zeros(rows, 400), torch.arange(400), share)[0] for _ in range(3000)]
    by_chance = (1 - share) * 0.045                                # the cosine schedule hides all 400, too
    assert torch.stack(masks).all(2).float().mean().item() == pytest.approx(share + by_chance, abs=0.02)


# --- the order ---

def test_what_follows_from_the_others_comes_last():
    "Four places are open; the others copy one of them, or follow from two of them together."
    rng = np.random.default_rng(0)
    first, second, third, fourth = (rng.integers(0, size, 4000) for size in (9, 7, 5, 3))
    pairs = (first + second) % 9, (third + fourth) % 5
    columns = [first, first, pairs[0], second, third, third, fourth, pairs[1], np.zeros(4000, int)]
    codes = np.stack(columns, 1)
    order = entropy_order(codes.reshape(-1, 3, 3)).tolist()
    assert sorted(order) == list(range(9)) and order[-1] == 8, "what is always the same tells nothing"
    early = set(order[:4])
    assert len(early & {0, 1, 2, 3}) == 2 and len(early & {4, 5, 6, 7}) == 2, order
    assert not early >= {0, 1} and not early >= {4, 5}, "a copy is not open"


def test_order_of_few_pictures_and_of_many_counts_each_place_once():
    codes = np.random.default_rng(0).integers(0, 300, (40, 5, 5)).astype(np.uint16)
    for some in (codes, codes[:1], codes[:2]): assert sorted(entropy_order(some).tolist()) == list(range(25))
    assert entropy_order(codes).equal(entropy_order(codes)), "the same pictures, the same order"
    assert entropy_order(codes, samples=10).equal(entropy_order(codes, samples=10))


def order_by_definition(codes, pairs):
    "The order as the notebook defines it, every entropy counted anew; of equals the first comes first."
    columns = codes.reshape(len(codes), -1).T.tolist()
    order = []
    def entropy(*places):
        counts = Counter(zip(*(columns[place] for place in places))).values()
        return -math.fsum(n / len(codes) * math.log(n / len(codes)) for n in counts)
    def left(place):
        known = [(), *((one,) for one in order), *itertools.combinations(order[:pairs], 2)]
        return min(entropy(place, *some) - (entropy(*some) if some else 0) for some in known)
    while len(order) < len(columns):
        rest = [place for place in range(len(columns)) if place not in order]
        order.append(max(rest, key=lambda place: (round(left(place), 9), -place)))
    return order


@pytest.mark.parametrize("grids, side, numbers, pairs", [
    (60, 3, 4, 24), (60, 3, 4, 3), (200, 4, 2, 5), (7, 3, 5, 24), (2, 3, 3, 24), (1, 3, 3, 24),
    (50, 1, 9, 24), (40, 3, 1, 24), (90, 3, 70_000, 24), (300, 3, 3, 0), (300, 3, 3, 1)])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int64])
def test_order_is_that_of_the_definition(grids, side, numbers, pairs, kind):
    "Also where places are alike, where one copies another, and where a code is a large number."
    if numbers > np.iinfo(kind).max: pytest.skip("such codes do not occur")
    for seed in range(3):
        codes = np.random.default_rng(seed).integers(0, numbers, (grids, side, side)).astype(kind)
        codes[:, -1, -1] = codes[:, 0, 0]
        if seed: codes[:, 0] = codes[:, 0] // 2 + codes[:, -1] // 3
        order = entropy_order(codes, pairs=pairs).tolist()
        assert order == order_by_definition(codes, pairs)


def test_order_is_kept_with_the_codes_and_damage_is_mended(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VQGEN_CACHE", str(tmp_path))
    codes = np.random.default_rng(0).integers(0, 5, (80, 4, 4)).astype(np.uint16)
    order = entropy_order(codes)
    assert cached_order(codes).equal(order)
    path, = (tmp_path / "codes").iterdir()
    kept, written = path.read_bytes(), path.stat().st_mtime_ns
    assert cached_order(codes.copy()).equal(order) and path.stat().st_mtime_ns == written, "read, not counted"
    assert not cached_order(codes[::-1] % 3).equal(order) and len(list(path.parent.iterdir())) == 2
    for damaged in (kept[:-1], kept[:90], b"", kept[:-40] + b"?" + kept[-39:], kept + b"?"):
        path.write_bytes(damaged)
        capsys.readouterr()
        assert cached_order(codes).equal(order) and path.read_bytes() == kept
        assert "is made anew" in capsys.readouterr().out
    np.save(path, order.numpy()[::-1])
    assert cached_order(codes).equal(order) and path.read_bytes() == kept, "a foreign file is not believed"
    path.unlink()
    path.mkdir()
    with pytest.raises(VQGenError, match="folder"): cached_order(codes)


def test_new_brain_takes_its_order_from_the_codes_and_keeps_it(tokenizer, tmp_path):
    vqvae = VQVAE(VQVAEConfig(hidden_channels=8, residual_channels=4, codebook_size=K, code_dim=4)).eval()
    codes = grids(50).numpy()
    config = BrainConfig(width=32, heads=2, layers=3)
    brain = new_prior("cftn-v2", config, vqvae, tokenizer, 4 * SIDE, codes=codes)
    assert brain.order.equal(entropy_order(codes)) and not brain.order.equal(halton_order(SIDE).argsort())
    save_model(brain, tmp_path)
    assert load_model(tmp_path, BiHemisphericBrain).order.equal(brain.order)


# --- who may look at what ---

def open_gates(brain):
    "Turn every bridge fully open, so that a leak would show."
    with torch.no_grad():
        for name, parameter in brain.named_parameters():
            if "gate" in name: parameter.fill_(3.0)
    return brain


def padded(text, ids, count):
    "`text` with `count` more positions that are not real, and hold `ids`."
    more = torch.full((len(text.input_ids), count), ids)
    return Text(torch.cat([text.input_ids, more], 1), torch.cat([text.attention_mask, more < 0], 1))


@pytest.mark.parametrize("count", [1, 3])
def test_padding_never_changes_results(brain, text, count):
    open_gates(brain)
    codes, length = grids(4).flatten(1), text.input_ids.shape[1]
    hidden = torch.rand(codes.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    real = text.attention_mask
    assert not real.all(), "some captions must be shorter than others"
    drawn, read = logits_for(brain, codes, text, hidden), next_word(brain, codes, text.input_ids)
    for ids in (PAD, EOS, 7):
        longer = padded(text, ids, min(count, 16 - length))
        torch.testing.assert_close(logits_for(brain, codes, longer, hidden), drawn, rtol=1e-4, atol=1e-5)
        found = next_word(brain, codes, longer.input_ids)[:, :length]
        torch.testing.assert_close(found[real], read[real], rtol=1e-4, atol=1e-5)
    other = Text(torch.where(real, text.input_ids, 9), real)   # other tokens under the padding
    assert logits_for(brain, codes, other, hidden).equal(drawn)
    assert next_word(brain, codes, other.input_ids)[real].equal(read[real])


def test_padding_gets_no_gradient(brain, text):
    open_gates(brain)
    heard = []

    def listen(module, inputs, output):
        output.retain_grad()
        heard.append(output)
    hook = brain.text_tower.embedding.tokens.register_forward_hook(listen)
    logits_for(brain, grids(4).flatten(1), text).square().sum().backward()
    hook.remove()
    gradient = heard[0].grad.abs().sum(-1)
    assert gradient[~text.attention_mask].eq(0).all() and gradient[text.attention_mask].gt(0).all()


def test_later_words_do_not_change_earlier_logits(brain, text):
    "Nor do they by way of the codes: with three open bridges a word could go there and back."
    open_gates(brain)
    codes, ids = grids(4).flatten(1), text.input_ids[3:].expand(4, -1)
    logits = next_word(brain, codes, ids)
    for position in range(1, ids.shape[1]):
        changed = ids.clone()
        changed[:, position:] = 5 + (ids[:, position:] + 7) % 20
        other = next_word(brain, codes, changed)
        assert other[:, :position].equal(logits[:, :position])
        assert not other[:, position:].isclose(logits[:, position:]).all()
        shorter = next_word(brain, codes, ids[:, :position])
        torch.testing.assert_close(shorter, logits[:, :position], rtol=1e-4, atol=1e-5)


def test_each_task_hears_the_other_side(brain, text):
    "The control: a caption changes what is drawn, a picture changes what is read."
    open_gates(brain)
    codes, swapped = grids(4).flatten(1), Text(*(part.flip(0) for part in text))
    assert not logits_for(brain, codes, text).isclose(logits_for(brain, codes, swapped), atol=1e-3).all()
    first, second = (next_word(brain, grids(4, seed).flatten(1), text.input_ids) for seed in (0, 1))
    assert not first.isclose(second, atol=1e-3).all()


def test_shut_gates_part_the_towers(brain, text):
    with torch.no_grad():
        for name, parameter in brain.named_parameters():
            if "gate" in name: parameter.zero_()
    codes, swapped = grids(4).flatten(1), Text(*(part.flip(0) for part in text))
    assert logits_for(brain, codes, text).equal(logits_for(brain, codes, swapped))
    first, second = (next_word(brain, grids(4, seed).flatten(1), text.input_ids) for seed in (0, 1))
    assert first.equal(second)


# --- learning ---

def test_memorised_grids_come_back_from_nothing(memory, text):
    "One forward pass, whatever the seed; and as well in several."
    for seed in (0, 100, 200):
        assert memory.generate(text, generators(*range(seed, seed + 4))).equal(grids(4))
    for options in ({"steps": 4}, {"steps": 8, "temperature": 0.1}):
        assert memory.generate(text, generators(0, 1, 2, 3), **options).equal(grids(4)), options


def test_memorised_captions_come_back(memory, tokenizer):
    rows = memory.caption(grids(4))
    assert [[BOS, *row, EOS] for row in rows] == tokenizer(CAPTIONS)["input_ids"]
    decoded = [tokenizer.decode(row, skip_special_tokens=True) for row in rows]
    assert decoded == CAPTIONS, "a caption that a person can read"
    assert all(not {BOS, EOS, PAD} & set(row) for row in rows)
    for i in range(4): assert memory.caption(grids(4)[i:i + 1]) == rows[i:i + 1]


def test_caption_ends_even_without_an_end(brain):
    with torch.no_grad(): brain.caption_head.bias[EOS] = -1e9
    assert {len(row) for row in brain.caption(grids(3))} == {brain.shape.max_length - 1}


@pytest.mark.parametrize("layers, bridge_ratio, first",
                         [(1, 1.0, None), (3, 1 / 3, None), (3, 1.0, None), (5, 0.6, None), (5, 0.4, 0),
                          (5, 0.4, 3)])
def test_word_by_word_is_as_all_at_once(tokenizer, text, layers, bridge_ratio, first):
    "With the picture looked at once and the words before in caches, wherever the bridges are."
    brain = open_gates(new(tokenizer, layers=layers, bridge_ratio=bridge_ratio, first_bridge=first))
    codes, ids = grids(4).flatten(1), text.input_ids[3:].expand(4, -1)
    with torch.no_grad():
        expected = next_word(brain, codes, ids)
        context, caches = image_context(brain, codes), [KVCache(16) for _ in range(layers)]
        for i in range(ids.shape[1]):
            logits = caption_logits(brain, ids[:, :i + 1], context, caches)[:, 0]
            torch.testing.assert_close(logits, expected[:, i], rtol=1e-4, atol=1e-4)


def test_captions_by_hand(wavering):
    "The likeliest word after those so far, again and again, all computed anew each time."
    ids = torch.full((4, 1), BOS)
    with torch.no_grad():
        while ids.shape[1] < wavering.shape.max_length:
            logits = next_word(wavering, grids(4).flatten(1), ids)
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
    by_hand = [row[1:row.index(EOS)] if EOS in row else row[1:] for row in ids.tolist()]
    assert wavering.caption(grids(4)) == by_hand


def test_what_captions_cost_by_hand(wavering):
    "Word by word, each given those before it and the picture; padding costs nothing."
    text = pad([[BOS, 5, 7, EOS], [BOS, 6, EOS], [BOS, EOS], [BOS, 4, 4, EOS]])
    with torch.no_grad(): chances = next_word(wavering, grids(4).flatten(1), text.input_ids).log_softmax(-1)
    rows = [row[:length] for row, length in zip(text.input_ids.tolist(), text.lengths)]
    by_hand = [-sum(chances[i, t, row[t + 1]] for t in range(len(row) - 1)) for i, row in enumerate(rows)]
    torch.testing.assert_close(wavering.caption_nats(grids(4), text), torch.stack(by_hand))


def test_drawn_captions_come_from_their_own_generators(wavering, memory):
    "Alone, in a batch, in another order, whether others are finished or not; and another seed says more."
    ways = [(wavering, {"temperature": 1.0}), (wavering, {"temperature": 1.5, "top_p": 0.8}),
            (memory, {"temperature": 3.0})]
    for brain, options in ways:
        together = brain.caption(grids(4), generators=generators(0, 1, 2, 3), **options)
        for i in range(4):
            assert brain.caption(grids(4)[[i]], generators=generators(i), **options) == together[i:i + 1]
        assert brain.caption(grids(4).flip(0), generators=generators(3, 2, 1, 0), **options) == together[::-1]
        assert brain.caption(grids(4), generators=generators(4, 5, 6, 7), **options) != together
    assert len({len(row) for row in together}) > 1, "some must end before others"


def test_the_few_likeliest_words_are_the_likeliest_word(wavering, memory):
    "A tiny top-p leaves one word, a tiny temperature is certain, and what is known by heart is drawn so."
    for brain in (wavering, memory):
        for options in ({"temperature": 1.0, "top_p": 1e-6}, {"temperature": 1e-6}):
            drawn = brain.caption(grids(4), generators=generators(0, 1, 2, 3), **options)
            assert drawn == brain.caption(grids(4)), options
    assert memory.caption(grids(4), 1.0, 0.7, generators(0, 1, 2, 3)) == memory.caption(grids(4))


def test_gates_learn_and_are_logged(brain, text):
    loss, metrics = brain.loss(grids(4), text, stage=BOTH)
    loss.backward()
    gates = {name: parameter for name, parameter in brain.named_parameters() if "gate" in name}
    assert len(gates) == 2 * 3
    assert all(gate.grad is not None and gate.grad.abs().sum() > 0 for gate in gates.values()), gates

    def openings(metrics):
        return {name: float(value) for name, value in metrics.items() if name.startswith("gate/")}

    logged = openings(metrics)
    assert len(logged) == len(gates) and all(-1 <= value <= 1 for value in logged.values())
    with torch.no_grad():
        for gate in gates.values(): gate.fill_(-2.0)
    assert openings(brain.loss(grids(4), text, stage=BOTH)[1]) != logged


def test_stage_two_does_not_read(brain, text):
    _, metrics = brain.loss(grids(4), text, stage=DRAW)
    assert "caption_loss" not in metrics and "code_loss" in metrics
    loss, metrics = brain.loss(grids(4), text, stage=BOTH)
    assert "caption_loss" in metrics and loss > metrics["code_loss"]
    brain.zero_grad()
    brain.loss(grids(4), text, stage=DRAW)[0].backward()
    gradients = [parameter.grad for parameter in brain.caption_head.parameters()]
    assert all(gradient is None or gradient.eq(0).all() for gradient in gradients)


@pytest.mark.parametrize("stage", [DRAW, BOTH, StageConfig(caption_weight=1.0, caption_share=0.01),
                                   StageConfig(full_mask_share=0), StageConfig(full_mask_share=1)])
def test_loss_is_finite_for_any_batch(brain, text, stage):
    "Even where the schedule hides next to nothing of a batch of one."
    for count in (1, 2, 4):
        for seed in range(20):
            torch.manual_seed(seed)
            loss, metrics = brain.loss(grids(count), Text(*(part[:count] for part in text)), stage=stage)
            assert torch.stack([loss, *metrics.values()]).isfinite().all(), (count, seed)


def test_loss_where_nothing_happens_to_be_hidden(tokenizer, text):
    "The schedule may hide no code at all: with a single code to a picture, it soon does."
    torch.manual_seed(0)
    shape = PriorShape(codebook_size=K, grid_size=1, vocab_size=len(tokenizer), max_length=16)
    brain = BiHemisphericBrain(BrainConfig(width=32, heads=2, layers=3), shape)
    for seed in range(50):
        torch.manual_seed(seed)
        for share in (0, 1):
            stage = StageConfig(full_mask_share=share)
            loss, _ = brain.loss(torch.zeros(1, 1, 1, dtype=torch.int64), rows(text, 0), stage)
            assert loss.isfinite(), seed


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_brain_of_a_codebook_that_collapsed(tokenizer, value):
    "All codes alike have no spread to divide by."
    vqvae = VQVAE(VQVAEConfig(hidden_channels=8, residual_channels=4, codebook_size=K, code_dim=4))
    vqvae.quantizer.codebook.fill_(value)
    brain = new_prior("cftn-v2", BrainConfig(width=32, heads=2, layers=3), vqvae, tokenizer, 16)
    assert all(parameter.isfinite().all() for parameter in brain.parameters())


# --- what is refused ---

@pytest.mark.parametrize("steps", [0, -1])
def test_steps_below_one(brain, text, steps):
    assert str(steps) in refusal(brain.generate, text, generators(0, 1, 2, 3), steps=steps)


@pytest.mark.parametrize("seeds", [[], [0], range(5)])
def test_a_generator_for_each_caption(brain, text, seeds):
    said = refusal(brain.generate, text, generators(*seeds))
    assert "4" in said and str(len(seeds)) in said


def test_guidance_needs_caption_dropout(tokenizer, text):
    brain = new(tokenizer, caption_dropout=0.0)
    assert "caption dropout" in refusal(brain.generate, text, generators(0, 1, 2, 3), guidance_scale=3.0)
    assert brain.generate(text, generators(0, 1, 2, 3)).shape == (4, SIDE, SIDE)


@pytest.mark.parametrize("temperature", [-1.0, float("nan")])
def test_temperature_below_zero(brain, text, temperature):
    assert "temperature" in refusal(brain.generate, text, generators(0, 1, 2, 3), temperature=temperature)


WRONG = [({"temperature": -1.0}, "temperature"), ({"top_p": 0.0}, "top_p"), ({"top_p": 1.5}, "top_p"),
         ({"temperature": 1.0}, "4 captions"), ({"temperature": 1.0, "generators": [0, 1]}, "not 2")]


@pytest.mark.parametrize("options, part", WRONG)
def test_captions_with_options_that_make_no_sense(brain, options, part):
    if "generators" in options: options = {**options, "generators": generators(*options["generators"])}
    assert part in refusal(brain.caption, grids(4), **options)
