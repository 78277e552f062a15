"Captions as people type them: true, unambiguous, of all lengths; those written by hand; words never seen."
import json
import random
import re
import warnings
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from vqgen import Pipeline
from vqgen.config import DataConfig, TextConfig, load_config
from vqgen.data.avatars import (
    ATTRIBUTES,
    HELD_OUT,
    _composed,
    _slip,
    _typed,
    avatar_examples,
    caption_of,
    casual_caption,
    casual_phrases,
    choose_parts,
    held_out_triples,
    read_caption,
    read_phrases,
    sample_attributes,
)
from vqgen.data.datasets import data_fingerprint, load_data
from vqgen.errors import VQGenError
from vqgen.experiment import extend_tokenizer
from vqgen.pipeline import find_run
from vqgen.priors.build import PRIORS
from vqgen.priors.text import WORDS_LIMIT, caption_words, load_tokenizer, train_tokenizer, unseen_words

BY_HAND = json.loads((Path(__file__).parent / "captions_by_hand.json").read_text("utf-8"))
MEANINGS = dict(casual_phrases())


def some_faces(count):
    "Pairs of a face and the random numbers for its caption."
    for i in range(count):
        rng = random.Random(f"words {i}")
        yield sample_attributes(rng), rng


# --- the table ---

def test_each_phrase_has_one_meaning():
    assert len(MEANINGS) == len(casual_phrases())
    for name, values in ATTRIBUTES.items():
        assert all({name: value} in MEANINGS.values() for value in values)
    assert MEANINGS["shades"] == {"eyewear": "sunglasses"} and MEANINGS["ginger"] == {"hair_color": "red"}
    assert MEANINGS["fair hair"] == {"hair_color": "blond"} and MEANINGS["fair skin"] == {"skin": "light"}
    assert not {"dark", "fair", "red", "dark hair", "top"} & MEANINGS.keys()   # these need a noun, or another


# --- captions ---

def test_captions_state_what_they_say():
    counts = Counter()
    for face, rng in some_faces(4000):
        text, stated = _composed(face, rng)
        assert read_caption(text) == {name: face[name] for name in stated}, text
        for said in read_phrases(text): assert said.items() <= face.items(), text   # none contradicts another
        assert stated == [name for name in ATTRIBUTES if name in stated]
        counts[len(stated)] += 1
    assert counts.keys() == set(range(1, 7)) and min(counts.values()) > 200


def test_captions_vary():
    "In order, case, articles, form, and in whether there is a person."
    face = {**sample_attributes(random.Random(0)), "hat": "red", "hair_style": "long", "eyewear": "none"}
    texts = [casual_caption(face, random.Random(i))[0] for i in range(2000)]
    assert len(set(texts)) > 1200
    for pattern in (r"hat.*background", r"background.*hat", r"^[A-Z][a-z]", r"^[A-Z ,;:+.-]+$",
                    r"\ba red hat", r"(?<!a )red hat", r"^she .*\. she", r"woman with",
                    r"^red beanie", r"; ", r"\bwithout glasses", r" \+ "):
        assert any(re.search(pattern, text) for text in texts), pattern


def test_slips_make_no_other_word():
    "One word of five letters or more changes, by one letter at most; what comes out is no word of the table."
    words = set(re.findall("[a-z]+", " ".join(MEANINGS)))
    kinds = Counter()
    for face, rng in some_faces(3000):
        meant, _ = _composed(face, rng)
        typed = _slip(meant, rng)
        pairs = list(zip(re.findall("[a-z]+", typed), re.findall("[a-z]+", meant), strict=True))
        changes = [(slip, word) for slip, word in pairs if slip != word]
        assert len(changes) <= 1
        for slip, word in changes:
            assert slip not in words and len(word) >= 5 and set(slip) <= set(word)
            kinds[len(slip) - len(word)] += 1
    assert kinds.keys() == {-1, 0, 1} and min(kinds.values()) > 500


def test_what_is_missing_stands_last():
    "'no hat and glasses' would be another face."
    for face, rng in some_faces(3000):
        assert not re.search(r"\bno \w+ and (?!no\b|has\b|is\b|wears\b)", _composed(face, rng)[0])


def test_no_slip_swears():
    assert all(_slip("a shirt", random.Random(seed)) != "a shit" for seed in range(200))


def test_a_fifth_has_slips():
    texts = [(_composed(face, rng)[0], rng) for face, rng in some_faces(3000)]
    assert 0.15 < sum(_typed(text, rng).lower() != text for text, rng in texts) / 3000 < 0.21


def test_captions_are_a_function_of_their_random_numbers():
    face = sample_attributes(random.Random(3))
    first, again = ([casual_caption(face, random.Random(i)) for i in range(50)] for _ in range(2))
    assert first == again


# --- the data set ---

def test_training_faces_have_four_captions():
    "The plain caption first, the very one without; a validation face has it alone."
    plain, casual = list(avatar_examples(60)), list(avatar_examples(60, casual=True))
    for (split, picture, caption, facts), (split_2, picture_2, captions, facts_2) in zip(plain, casual):
        assert (split, facts) == (split_2, facts_2) and picture.tobytes() == picture_2.tobytes()
        if split == "validation": assert captions == caption
        else: assert captions[0] == caption and len(captions) == 4 == len(set(captions))
    assert {split for split, *_ in plain} == {"train", "validation"}


def test_fingerprints_without_casual_captions_stay():
    assert data_fingerprint(DataConfig()) == "eea91393082105d0"
    assert data_fingerprint(DataConfig(count=500)) == "0fd98a0ad196ff77"
    assert data_fingerprint(DataConfig(source="twemoji", image_size=64)) == "4153bda30f90ecf9"  # once emoji
    assert data_fingerprint(DataConfig(source="emoji", image_size=64)) != "4153bda30f90ecf9"
    assert data_fingerprint(DataConfig(style="voxel-art")) == "92f9b6c8e305214b"
    assert data_fingerprint(DataConfig(casual_captions=True)) != "eea91393082105d0"


def test_data_with_casual_captions(tmp_path, monkeypatch):
    monkeypatch.setenv("VQGEN_CACHE", str(tmp_path))
    config = DataConfig(count=60, casual_captions=True)
    data, held_out = load_data(config, "train"), load_data(config, "validation")
    assert {*map(len, data.caption_lists)} == {4} and {*map(len, held_out.caption_lists)} == {1}
    assert data.captions == load_data(DataConfig(count=60), "train").captions
    assert len(data.all_captions()) == 4 * len(data)


@pytest.mark.parametrize("other", [{"source": "emoji"}, {"source": "pictures"}, {"style": "voxel-art"}],
                         ids=str)
def test_casual_captions_are_for_avatars(other):
    with pytest.raises(VQGenError, match="data.casual_captions is for avatars"):
        DataConfig(casual_captions=True, **other)


# --- captions written by hand ---

def test_captions_by_hand():
    "200 different ones, of values that there are and that can stand together, as many short ones as long."
    assert len(BY_HAND) == 200 == len({caption.lower() for caption, _ in BY_HAND})
    for caption, said in BY_HAND:
        assert said and all(value in ATTRIBUTES[name] for name, value in said.items()), caption
        under_hat = said.get("hair_style", "long") in ("long", "short")
        assert under_hat or said.get("hat", "none") == "none", caption
    counts = Counter(min(len(said) + 1, 6) // 2 for _, said in BY_HAND)   # 1-2, 3-4, 5 and more
    assert min(counts.values()) >= 60


# --- words never seen ---

CAPTIONS = ["A Red hat, 12 hats", "a red hat; don't: sunglasses!", "zum Gruß, naïve t-shirt", "戴帽子 帽"]


@pytest.mark.parametrize("size", [40, 2048])
def test_unseen_words_are_exact(size, tmp_path):
    "Whatever the vocabulary has room for: a word seen once is known, a piece of another is not."
    tokenizer = train_tokenizer(CAPTIONS, TextConfig(vocab_size=64 + size))
    tokenizer.save_pretrained(tmp_path)
    for reader in (tokenizer, load_tokenizer(tmp_path)):
        assert unseen_words(reader, [*CAPTIONS, "RED HATS!", "", "t 7 x2 ...", "帽子戴"]) == []
        others = unseen_words(reader, ["a sun hat", "Gru", "hats red shirts", "don"])
        assert others == ["don", "gru", "shirts", "sun"]


def test_words_are_learned_and_limited(tmp_path):
    "A tokenizer that goes on learns them; where there are too many to be saved, none are known."
    tokenizer = train_tokenizer(CAPTIONS, TextConfig(vocab_size=64))
    for more in (["a purple hat"], ["a φ hat φίλος"]):
        tokenizer = extend_tokenizer(tokenizer, more)
        assert unseen_words(tokenizer, more) == []
    assert unseen_words(tokenizer, ["a purple φίλος", "cat"]) == ["cat"]
    tokenizer.words = {"x" * (WORDS_LIMIT // 2), "y" * (WORDS_LIMIT // 2)}
    tokenizer.save_pretrained(tmp_path)
    assert unseen_words(load_tokenizer(tmp_path), ["cat"]) == []


def test_a_tokenizer_that_folds_nothing_knows_its_words():
    tokenizer = train_tokenizer(CAPTIONS, TextConfig(vocab_size=64))
    tokenizer.backend_tokenizer.normalizer = None
    assert unseen_words(tokenizer, [CAPTIONS[1], "a Purple cat"]) == ["Purple", "cat"]


@cache
def training_captions(count, casual):
    "All captions of the training faces among `count`, without the faces."
    captions, held = [], held_out_triples()
    for i in range(count):
        rng, typing = random.Random(f"face {i}"), random.Random(f"casual {i}")
        face = sample_attributes(rng)
        choose_parts(face, rng)
        if tuple(face[name] for name in HELD_OUT) in held: continue
        captions.append(caption_of(face, rng)[0])
        captions += [casual_caption(face, typing)[0] for _ in range(3 * casual)]
    return captions


@pytest.mark.parametrize("name", PRIORS)
def test_shipped_tokenizers_know_their_words(name):
    "Exactly those of the captions they were trained on."
    folder = find_run("avatars-hour") / name
    config, tokenizer = load_config(folder / "config.yaml").data, load_tokenizer(folder)
    captions = training_captions(config.count, config.casual_captions)
    assert tokenizer.words == caption_words(captions, tokenizer.backend_tokenizer.normalizer)


def test_pipeline_names_words_never_seen():
    "Five of them, once for all captions; none where all were seen."
    pipe = Pipeline.from_pretrained("avatars-hour", device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe(["A RED HAT, shades, ginger girl with a beanie", ""])
    with pytest.warns(UserWarning, match="never seen") as said:
        pipe(["zebra", "a zebra man with cats, dogs"])
    assert len(said) == 1 and "'cats', 'dogs', 'zebra':" in str(said[0].message)
    with pytest.warns(UserWarning, match="'aa', 'bb', 'cc', 'dd', 'ee' and 2 more:"):
        pipe("ff gg aa bb cc dd ee")
