"Emoji: what is drawn, what a caption says of it, and what no training sees."
import itertools
import random
from collections import Counter

import numpy as np
import pytest

from vqgen.data.avatars import render_svg
from vqgen.data.emoji import (
    EMOJI_PARTS,
    HANDS,
    base_of,
    emoji_caption,
    emoji_examples,
    emoji_svg,
    emoji_things,
    emoji_triples,
    held_out_emoji,
    read_emoji_caption,
    twemoji_examples,
)


def test_emoji_variants_stay_in_one_split_and_drawings_differ():
    bases, drawings = {"train": set(), "validation": set()}, []
    for split, picture, caption, attributes in twemoji_examples(0.1):
        bases[split].add(base_of(attributes["code_points"]))
        drawings.append(picture.tobytes())
        assert caption == caption.lower() and attributes["category"] not in ("Flags", "Symbols")
    assert not bases["train"] & bases["validation"]
    assert len(drawings) == len(set(drawings)) > 1300


def test_each_drawing_in_three_hands_and_its_triple_held_out_or_not():
    triples, held_out = emoji_triples(), held_out_emoji(0.1)
    kinds = [(thing["role"], tone, hand) for thing, tone, hand in triples]
    assert len(set(kinds)) == len(kinds) > 8700 and held_out < set(kinds)
    assert {hand for *_, hand in kinds} == set(HANDS)
    whole = {role for role, _, _ in held_out}
    assert all(sum(kind[0] == role for kind in kinds) == 18 for role in whole)
    counts = Counter(role for role, *_ in kinds)
    assert 0.09 < len(held_out) / sum(counts[role] == 18 for role, *_ in kinds) < 0.11


def test_a_hand_gives_no_drawing_twice():
    drawn = [emoji_svg(hand, thing["tones"][tone]) for thing, tone, hand in emoji_triples()]
    assert None not in drawn and len(set(drawn)) == len(drawn)


@pytest.mark.parametrize("size", [16, 33, 128])
@pytest.mark.parametrize("hand", HANDS)
def test_emoji_in_any_size_fill_the_middle_of_white_paper(hand, size):
    pixels = np.asarray(render_svg(emoji_svg(hand, "1F98A"), size))
    assert pixels.shape == (size, size, 3) and (pixels[0, 0] == 255).all()
    assert 0.3 < (pixels < 250).any(-1).mean() < 0.9


@pytest.mark.parametrize("role, neutral", [
    ("woman running", "person running"), ("man firefighter", "firefighter"), ("firefighter", "firefighter"),
    ("bald man", "bald person"), ("woman with red hair", "person with red hair"), ("trumpet", "trumpet"),
    ("women wrestling", "people wrestling"), ("deaf woman", "deaf person"), ("woman's boot", "woman's boot")])
def test_what_a_name_without_gender_allows(role, neutral):
    assert {thing["role"]: thing["neutral"] for thing in emoji_things()}[role] == neutral


def test_emoji_captions_say_what_they_state_and_nothing_else():
    rng, told = random.Random(0), Counter()
    for thing, tone, hand in emoji_triples()[::3]:
        attributes = {"role": thing["role"], "neutral": thing["neutral"], "tone": tone, "style": hand}
        for stated in (EMOJI_PARTS, ("style",), ("tone", "gender"), ()):
            caption = emoji_caption(attributes, stated, rng)
            said = {"role": thing["role" if "gender" in stated else "neutral"]}
            said |= {part: attributes[part] for part in ("tone", "style")
                     if part in stated and attributes[part] != "none"}
            assert read_emoji_caption(caption) == said, caption
            told[caption.count(",")] += 1
    assert min(told[0], told[1], told[2]) > 500   # sentences and lists


@pytest.mark.parametrize("caption, said", [
    ("", {}), ("a fox with dark skin", {"tone": "dark"}), ("noto", {"style": "noto"}),
    ("medium light skin, woman running", {"role": "woman running", "tone": "medium light"}),
    ("WOMAN RUNNING", {}), ("woman running running", {})])
def test_what_is_read_from_other_captions(caption, said): assert read_emoji_caption(caption) == said


def test_emoji_have_several_captions_and_held_out_ones_say_all():
    examples = list(itertools.islice(emoji_examples(8), 2500))
    assert {len(captions) for split, _, captions, _ in examples if split == "validation"} == {1}
    train = [(captions, attributes) for split, _, captions, attributes in examples if split == "train"]
    assert {len(captions) for captions, _ in train} == {6}
    toned = [captions for captions, attributes in train if attributes["tone"] not in ("none", "yellow")]
    unsaid = np.mean([["skin" not in caption for caption in captions] for captions in toned])
    assert 0.1 < unsaid < 0.2
    for split, _, captions, attributes in examples:
        if split == "validation":
            said = read_emoji_caption(captions[0])
            assert {key: attributes[key] for key in said} == said and len(said) == 3
