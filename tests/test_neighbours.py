"A sense of place: rotary positions on a grid, and what places hear of those around them."
import itertools

import pytest
import torch

from vqgen.config import BrainConfig, CFTNConfig, PriorShape
from vqgen.errors import VQGenError
from vqgen.priors.blocks import Attention, AxialRotary, Block, Embedding, Neighbourhood
from vqgen.priors.brain import BiHemisphericBrain, teacher_forced
from vqgen.priors.cftn import CFTN
from vqgen.priors.text import Text

SHAPE = PriorShape(codebook_size=8, grid_size=4, vocab_size=20, max_length=8)
TEXT = Text(torch.tensor([[2, 7, 8, 3], [2, 9, 3, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]).bool())


def rows(seed, *shape): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_products_depend_on_the_distance_alone():
    rotary = AxialRotary(5, 12)
    query, key = rows(0, 1, 1, 1, 12), rows(1, 1, 1, 1, 12)
    queries, keys = (rotary(part.expand(1, 1, 25, 12))[0, 0].view(5, 5, 12) for part in (query, key))
    found = {}
    for a, b, c, d in itertools.product(range(5), repeat=4):
        found.setdefault((c - a, d - b), []).append((queries[a, b] @ keys[c, d]).item())
    for products in found.values(): assert max(products) - min(products) < 1e-4
    assert len({round(products[0], 3) for products in found.values()}) > 70     # of 81 distances


def test_turning_keeps_lengths_and_knows_its_places():
    rotary, x = AxialRotary(4, 8), rows(0, 2, 3, 16, 8)
    turned = rotary(x)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    places = torch.tensor([7, 0, 15])
    torch.testing.assert_close(rotary(x[:, :, places], places), turned[:, :, places])
    assert not AxialRotary(4, 8).state_dict()                    # nothing of it is saved


def test_a_block_that_computes_some_places_only():
    torch.manual_seed(0)
    block, x = Block(16, 2, rotary=AxialRotary(4, 8)), rows(0, 2, 16, 16)
    places = torch.tensor([3, 11, 4])
    torch.testing.assert_close(block(x, places=places), block(x)[:, places])
    plain = Attention(16, 2)
    plain.load_state_dict(block.attention.state_dict())
    assert (plain(x) - block.attention(x)).abs().max() > 1e-3


def test_neighbourhood_by_its_definition():
    torch.manual_seed(0)
    hears, x = Neighbourhood(3), rows(0, 2, 16, 3)
    grid, weights = x.view(2, 4, 4, 3), hears.weights.view(3, 8)
    steps = [step for step in itertools.product((-1, 0, 1), repeat=2) if step != (0, 0)]
    expected = torch.zeros(2, 4, 4, 3)
    for row, column in itertools.product(range(4), repeat=2):
        for number, (down, right) in enumerate(steps):
            if 0 <= row + down < 4 and 0 <= column + right < 4:
                expected[:, row, column] += grid[:, row + down, column + right] * weights[:, number]
    torch.testing.assert_close(hears(x).view(2, 4, 4, 3), expected)


def test_known_codes_are_heard_around_them_and_masks_are_not():
    torch.manual_seed(0)
    embedding = Embedding(9, 16, 12, is_grid=True)
    nothing = torch.full((1, 16), 8)
    one = nothing.clone()
    one[0, 5] = 3                                                # row 1, column 1
    moved = (embedding(one) - embedding(nothing))[0].abs().sum(-1).view(4, 4) > 1e-6
    assert moved.nonzero().tolist() == [list(place) for place in itertools.product(range(3), repeat=2)]
    plain = embedding.tokens(nothing) + embedding.positions
    torch.testing.assert_close(embedding(nothing), plain)


def brain(**changes):
    torch.manual_seed(0)
    config = BrainConfig(width=16, heads=2, layers=4, bridge_ratio=0.5, neighbours=True, **changes)
    return BiHemisphericBrain(config, SHAPE).eval()


def test_decisions_are_heard_by_the_layers_above_only():
    "The logits of a place change with the codes decided before it, and with no others."
    towers = brain()
    codes = torch.randint(8, (1, 16), generator=torch.Generator().manual_seed(0))
    hidden = torch.ones_like(codes, dtype=torch.bool)
    with torch.no_grad():
        before, _ = teacher_forced(towers, codes, TEXT.rows(slice(1)), hidden)
        for place in range(16):
            other = codes.clone()
            other[0, towers.order[place]] = (other[0, towers.order[place]] + 1) % 8
            after, _ = teacher_forced(towers, other, TEXT.rows(slice(1)), hidden)
            changed = (after - before)[0].abs().amax(-1) > 1e-6
            first_later = next((number for number in towers.decided if number > place), 16)
            assert not changed[:first_later].any() and changed[first_later:].all()


@pytest.mark.parametrize("steps", [1, 3])
def test_a_picture_depends_on_its_seed_not_on_its_company(steps):
    towers = brain()
    both = towers.generate(TEXT, [torch.Generator().manual_seed(seed) for seed in (1, 2)], steps=steps)
    alone = towers.generate(TEXT.rows(slice(1, 2)), [torch.Generator().manual_seed(2)], steps=steps)
    assert torch.equal(both[1], alone[0])


def test_every_weight_of_the_neighbourhood_learns():
    towers = brain().train()
    codes = torch.randint(8, (8, 4, 4), generator=torch.Generator().manual_seed(0))
    text = TEXT.map(lambda part: part.repeat(4, 1))
    torch.manual_seed(0)
    towers.loss(codes, text)[0].backward()
    assert towers.image_tower.embedding.around.weights.grad.abs().min() > 0
    for layer in range(towers.first_bridge, towers.top):
        if len(towers.places(layer)): assert towers.around[layer].weights.grad.abs().sum() > 0


def test_cftn_hears_its_neighbours():
    torch.manual_seed(0)
    prior = CFTN(CFTNConfig(width=16, heads=2, layers=2, text_layers=1, neighbours=True), SHAPE)
    codes = torch.randint(8, (2, 4, 4))
    prior.loss(codes, TEXT)[0].backward()
    assert prior.code_embedding.around.weights.grad.abs().sum() > 0
    drawn = prior.eval().generate(TEXT, [torch.Generator().manual_seed(seed) for seed in (1, 2)])
    assert drawn.shape == (2, 4, 4) and drawn.max() < 8


def test_without_it_nothing_is_added():
    plain = BiHemisphericBrain(BrainConfig(width=16, heads=2, layers=4), SHAPE)
    assert not any("around" in name for name in plain.state_dict())


@pytest.mark.parametrize("kind", [BrainConfig, CFTNConfig])
def test_heads_must_turn(kind):
    with pytest.raises(VQGenError, match="heads of 4, 8, 12, ... channels, not 6"):
        kind(width=24, heads=4, neighbours=True)
