"Captions: every special token is the tokenizer's own, padding is never read, an encoder is asked once."
import copy
import warnings
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from tiny import generators, refusal
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    GPT2Config,
    GPT2Model,
    PreTrainedTokenizerFast,
    T5Config,
    T5Model,
)

from vqgen.config import BrainConfig, PriorShape, StageConfig, TextConfig, VQVAEConfig
from vqgen.priors.brain import BiHemisphericBrain, caption_logits, caption_loss, image_context, teacher_forced
from vqgen.priors.build import new_prior
from vqgen.priors.codes import CodedCaptions
from vqgen.priors.curriculum import train_stage
from vqgen.priors.sampling import apply_guidance
from vqgen.priors.text import (
    Text,
    cached_features,
    check_features,
    check_tokenizer,
    drop_captions,
    encode_rows,
    load_encoder,
    load_tokenizer,
    new_tokenizer,
    null_caption,
    null_captions,
    pretrained_tokenizer,
    text_shape,
    token_ids,
    tokenize,
)
from vqgen.training.devices import to_device
from vqgen.vqvae.model import VQVAE

CAPTIONS = ["a red fox in the snow", "a cat", "two green birds", "the moon above a very quiet sea at night"]
K, SIDE = 12, 4
# of five families: the special tokens in the order of their ids, how they enclose a caption, and their roles
FAMILIES = {
    "bert": (["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], "[CLS] $A [SEP]",
             dict(unk_token="[UNK]", sep_token="[SEP]", cls_token="[CLS]", pad_token="[PAD]")),
    "roberta": (["<s>", "<pad>", "</s>", "<unk>"], "<s> $A </s>",
                dict(unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>")),
    "clip": (["<unk>", "<start>", "<end>"], "<start> $A <end>",
             dict(unk_token="<unk>", bos_token="<start>", eos_token="<end>", pad_token="<end>")),
    "t5": (["<pad>", "</s>", "<unk>"], "$A </s>",
           dict(unk_token="<unk>", eos_token="</s>", pad_token="<pad>")),
    "gpt2": (["<unk>", "<|endoftext|>"], None,
             dict(unk_token="<unk>", bos_token="<|endoftext|>", eos_token="<|endoftext|>")),
}
family = pytest.mark.parametrize("name", FAMILIES)


def save_tokenizer(name, folder, captions=CAPTIONS):
    special, template, roles = FAMILIES[name]
    words = Tokenizer(models.WordLevel(unk_token=roles["unk_token"]))
    words.normalizer, words.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=special, show_progress=False)
    words.train_from_iterator(captions, trainer)
    if template:
        ids = [(token, special.index(token)) for token in special if token in template]
        words.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    PreTrainedTokenizerFast(tokenizer_object=words, **roles).save_pretrained(str(folder))
    return str(folder)


def save_encoder(name, folder, size, seed=0):
    torch.manual_seed(seed)
    tower = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    if name == "bert": model = BertModel(BertConfig(vocab_size=size, max_position_embeddings=40, **tower))
    if name == "t5":
        model = T5Model(T5Config(vocab_size=size, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2))
    if name == "gpt2":
        model = GPT2Model(GPT2Config(vocab_size=size, n_embd=16, n_layer=2, n_head=2, n_positions=40))
    if name == "clip":
        text = dict(vocab_size=size, max_position_embeddings=40, eos_token_id=2, **tower)
        vision = dict(image_size=16, patch_size=8, **tower)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    model.save_pretrained(str(folder))
    return str(folder)


@pytest.fixture(autouse=True)
def own_features(tmp_path, monkeypatch): monkeypatch.setenv("VQGEN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def bert(tmp_path):
    "A tokenizer and a tiny frozen encoder in one folder: (tokenizer, encoder, folder)."
    return pair("bert", tmp_path / "bert")


def pair(name, folder, seed=0):
    save_tokenizer(name, folder)
    tokenizer = new_tokenizer([], TextConfig(encoder=str(folder), max_length=16))
    save_encoder(name, folder, len(tokenizer), seed)
    return tokenizer, load_encoder(str(folder), tokenizer), folder


def new(tokenizer, encoder=None, **changes):
    torch.manual_seed(0)
    config = BrainConfig(**{**dict(width=32, heads=2, layers=3, bridge_ratio=1.0), **changes})
    shape = PriorShape(codebook_size=K, grid_size=SIDE, **text_shape(tokenizer, encoder))
    return BiHemisphericBrain(config, shape).eval()


def logits_of(brain, text, codes=None):
    "Logits (B, N, K) of a pass over a null canvas that decides `codes` (B, h, w), in the order of deciding."
    codes = (grids(len(text.input_ids)) if codes is None else codes).flatten(1)
    return teacher_forced(brain, codes, text, torch.ones_like(codes, dtype=torch.bool))[0]


def captioning(brain, codes, text):
    "The loss of writing `text`, given `codes` (B, N)."
    return caption_loss(caption_logits(brain, text.input_ids, image_context(brain, codes)), text)


def grids(count): return torch.randint(K, (count, SIDE, SIDE), generator=torch.Generator().manual_seed(0))


# --- whose special tokens? ---

@family
def test_captions_are_enclosed_by_the_tokenizers_own_tokens(name, tmp_path):
    tokenizer = pretrained_tokenizer(save_tokenizer(name, tmp_path), 16)
    special, template, roles = FAMILIES[name]
    ends = {"t5": ("<pad>", "</s>"), "gpt2": ("<|endoftext|>",) * 2}
    start, end = ends.get(name, template and template.split(" $A "))
    shape = text_shape(tokenizer)
    assert (special[shape["start_id"]], special[shape["end_id"]]) == (start, end)
    text = tokenize(tokenizer, [*CAPTIONS, ""])
    for row, real in zip(text.input_ids, text.attention_mask):
        row = row[real].tolist()
        assert row[0] == shape["start_id"] and row[-1] == shape["end_id"] and len(row) == real.sum() >= 2
    assert text.input_ids.shape[1] == 11, "padded to the longest"
    assert text.attention_mask.sum(1).tolist() == list(text.lengths) == [8, 4, 5, 11, 2]
    assert set(text.input_ids[~text.attention_mask].tolist()) == {tokenizer.pad_token_id}
    assert text.input_ids.max() < shape["vocab_size"]
    assert [tokenizer.decode(row, skip_special_tokens=True) for row in text.input_ids] == [*CAPTIONS, ""]


@family
def test_null_caption_is_what_the_tokenizer_makes_of_it(name, tmp_path):
    tokenizer = pretrained_tokenizer(save_tokenizer(name, tmp_path), 16)
    text, null = tokenize(tokenizer, CAPTIONS), null_caption(tokenizer)
    assert null.input_ids.equal(tokenize(tokenizer, [""]).input_ids)
    assert null.input_ids.equal(text.null.input_ids)
    half = null_captions(text, torch.tensor([True, False, True, False]))
    for i in (0, 2): assert half.input_ids[i, half.attention_mask[i]].equal(null.input_ids[0])
    for part, whole in zip(half, text): assert part[[1, 3]].equal(whole[[1, 3]])
    brain, nothing = new(tokenizer), tokenize(tokenizer, [""] * 4)
    dropped = logits_of(brain, drop_captions(text, 1.0))
    torch.testing.assert_close(dropped, logits_of(brain, nothing), rtol=1e-4, atol=1e-5)


@family
def test_saved_and_loaded(name, tmp_path):
    tokenizer = pretrained_tokenizer(save_tokenizer(name, tmp_path / "theirs"), 16)
    tokenizer.save_pretrained(str(tmp_path / "ours"))
    (tmp_path / "ours" / "config.json").write_text('{"model": "BiHemisphericBrain"}')   # as in a run folder
    again = load_tokenizer(tmp_path / "ours")
    assert text_shape(again) == text_shape(tokenizer)
    texts = (tokenize(kind, [*CAPTIONS, ""]) for kind in (again, tokenizer))
    assert all(a.equal(b) for a, b in zip(*texts))


@family
def test_long_caption_is_cut_and_still_ends(name, tmp_path):
    tokenizer = pretrained_tokenizer(save_tokenizer(name, tmp_path), 6)
    with pytest.warns(UserWarning, match="longer than 6 tokens, cut after 'the moon above a'"):
        text = tokenize(tokenizer, CAPTIONS[3:])
    assert text.input_ids.shape == (1, 6) and text.input_ids[0, -1] == text_shape(tokenizer)["end_id"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenize(tokenizer, ["a cat", ""])


@family
def test_brain_speaks_with_any_tokenizer(name, tmp_path):
    "It learns to write between the tokenizer's start and end, also where both, or end and padding, are one."
    tokenizer = pretrained_tokenizer(save_tokenizer(name, tmp_path), 16)
    brain, text = new(tokenizer), tokenize(tokenizer, CAPTIONS)
    optimizer = torch.optim.AdamW(brain.parameters(), lr=3e-3)
    stage = StageConfig(generation_weight=0.1, caption_weight=1.0, caption_share=1.0)
    for _ in range(70):
        loss, _ = brain.loss(grids(4), text, stage=stage)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert [tokenizer.decode(row) for row in brain.caption(grids(4))] == CAPTIONS


# --- padding and batches ---

@family
def test_padding_never_changes_what_a_prior_reads(name, tmp_path):
    tokenizer = pretrained_tokenizer(save_tokenizer(name, tmp_path), 16)
    brain, text = new(tokenizer), tokenize(tokenizer, CAPTIONS)
    other = Text(torch.where(text.attention_mask, text.input_ids, 7), text.attention_mask)
    assert logits_of(brain, text).equal(logits_of(brain, other))
    reading = [captioning(brain, grids(4).flatten(1), part).item() for part in (text, other)]
    assert reading[0] == reading[1], "nor what it must foretell"
    for i in range(4):
        alone = logits_of(brain, tokenize(tokenizer, CAPTIONS[i:i + 1]), grids(4)[i:i + 1])[0]
        torch.testing.assert_close(logits_of(brain, text)[i], alone, rtol=1e-4, atol=1e-5)


def test_text_moves_as_a_whole(bert):
    tokenizer, encoder, _ = bert
    text = tokenize(tokenizer, CAPTIONS, encoder)
    moved = to_device({"text": text}, "meta")["text"]
    assert all(part.device.type == "meta" for part in [*moved, *moved.null])
    assert moved.features.shape == text.features.shape and moved.lengths == text.lengths
    for chosen in (text.map(lambda part: part[1:3]), text.rows(slice(1, 3)), text.rows([1, 2])):
        assert len(list(chosen)) == 3 and chosen.input_ids.equal(text.input_ids[1:3])
        assert chosen.features.equal(text.features[1:3]) and chosen.null is text.null
    assert text.rows([2, 0]).lengths == (text.lengths[2], text.lengths[0])
    assert text.map(torch.clone).lengths is None, "whatever `change` does"
    assert len(list(tokenize(tokenizer, CAPTIONS))) == 2
    dropped = drop_captions(text, 0.5)
    assert dropped.null is text.null and dropped.lengths is None


# --- a frozen encoder ---

@pytest.mark.parametrize("name", ["bert", "clip", "t5", "gpt2"])
def test_encoder_ignores_padding(name, tmp_path):
    tokenizer, encoder, _ = pair(name, tmp_path / name)
    rows = token_ids(tokenizer, CAPTIONS)
    together = encode_rows(encoder, rows)
    for row, vectors in zip(rows, together):
        assert vectors.shape == (len(row), 16) == (len(row), text_shape(tokenizer, encoder)["feature_dim"])
        [alone] = encode_rows(encoder, [row])
        torch.testing.assert_close(alone, vectors, rtol=0, atol=4e-3)   # half precision
    assert not any(parameter.requires_grad for parameter in encoder.parameters()) and not encoder.training
    assert not torch.allclose(together[0][1:3], together[1][1:3], atol=0.1), "it reads words"


def test_features_do_not_depend_on_the_batch(bert):
    tokenizer, encoder, _ = bert
    together = tokenize(tokenizer, CAPTIONS, encoder)
    for i, caption in enumerate(CAPTIONS):
        alone = tokenize(tokenizer, [caption], encoder)
        length = alone.features.shape[1]
        assert alone.features[0].equal(together.features[i, :length])
        assert together.features[i, length:].eq(0).all()
    assert together.features.dtype == torch.float32


class Counted:
    "Counts the captions that `encoder` is asked for, and is interrupted at number `stop`."
    def __init__(self, encoder, stop=None):
        self.count, self.stop = 0, stop
        self.hook = encoder.register_forward_pre_hook(self.see, with_kwargs=True)

    def see(self, module, arguments, options):
        if self.stop is not None and self.count >= self.stop: raise KeyboardInterrupt
        self.count += len(options["input_ids"])

    def __enter__(self): return self

    def __exit__(self, *fault): self.hook.remove()


def test_each_caption_is_encoded_once(bert, tmp_path):
    tokenizer, encoder, folder = bert
    rows = token_ids(tokenizer, CAPTIONS * 3)
    with Counted(encoder) as counted:
        features = cached_features(encoder, rows)
        again = cached_features(load_encoder(str(folder), tokenizer), rows)
    assert counted.count == 4 and len(features) == 12
    for row, first, second in zip(rows, features, again):
        assert first.dtype == np.float16 and first.shape == (len(row), 16) and np.array_equal(first, second)
    for vectors, expected in zip(features, encode_rows(encoder, rows[:4])):
        assert np.array_equal(vectors, expected.numpy().astype(np.float16))


def test_features_change_with_all_they_depend_on(bert, tmp_path):
    tokenizer, encoder, _ = bert
    rows, files = token_ids(tokenizer, CAPTIONS), tmp_path / "cache" / "features"
    def count(encoder, rows):
        cached_features(encoder, rows)
        return len(list(files.iterdir()))
    assert [count(encoder, part) for part in (rows, rows, rows[:3], rows[::-1])] == [1, 1, 2, 3]
    other = copy.deepcopy(encoder)
    with torch.no_grad(): other.embeddings.LayerNorm.bias[0] += 1e-3
    assert count(other, rows) == 4
    other = copy.deepcopy(encoder)
    other.config.hidden_act = "relu"
    assert count(other, rows) == 5


def test_interrupted_encoding_of_captions_continues(bert):
    tokenizer, encoder, _ = bert
    words = " ".join(CAPTIONS).split()
    captions = [f"{a} {b}" for a, b in product(words, words)][:200]
    rows = token_ids(tokenizer, captions)
    unique = len(set(map(tuple, rows)))
    with Counted(encoder, stop=100) as counted, pytest.raises(KeyboardInterrupt):
        cached_features(encoder, rows)
    done = counted.count
    with Counted(encoder) as counted: cached_features(encoder, rows)
    assert done >= 100 and counted.count == unique - done


# --- a prior that reads features ---

def test_prior_reads_features(bert):
    tokenizer, encoder, _ = bert
    brain, text = new(tokenizer, encoder), tokenize(tokenizer, CAPTIONS, encoder)
    drawn = logits_of(brain, text)
    other_ids = replace(text, input_ids=text.input_ids.flip(0))
    assert logits_of(brain, other_ids).equal(drawn), "what it draws from are the features"
    other = replace(text, features=text.features + 1 - 2 * torch.rand_like(text.features))
    assert not logits_of(brain, other).isclose(drawn, atol=1e-3).all()
    noisy = torch.where(text.attention_mask[..., None], text.features, 9.0)
    assert logits_of(brain, replace(text, features=noisy)).equal(drawn), "and padding has none"
    nothing = tokenize(tokenizer, [""] * 4, encoder)
    dropped, unconditional = logits_of(brain, drop_captions(text, 1.0)), logits_of(brain, nothing)
    torch.testing.assert_close(dropped, unconditional, rtol=1e-4, atol=1e-5)
    guided = brain.generate(text, generators(*range(4)), temperature=0.0, guidance_scale=3.0)
    both = [logits_of(brain, some, guided) for some in (text, nothing)]
    assert apply_guidance(torch.cat(both), 3.0).argmax(-1).equal(guided.flatten(1)[:, brain.order])
    assert brain.generate(text, generators(*range(4)), steps=2, guidance_scale=2.0).shape == (4, SIDE, SIDE)


def test_writing_does_not_read_features(bert):
    "An encoder looks in both directions: its features of a word know the words that are to be foretold."
    tokenizer, encoder, _ = bert
    brain, text = new(tokenizer, encoder), tokenize(tokenizer, CAPTIONS, encoder)
    codes = grids(4).flatten(1)
    plain = Text(text.input_ids, text.attention_mask)
    assert captioning(brain, codes, text).equal(captioning(brain, codes, plain))
    assert len(brain.caption(grids(4))) == 4


def test_training_with_features(bert, tmp_path):
    "Data, collation, loop, saving: and the projection learns."
    tokenizer, encoder, _ = bert
    vqvae = VQVAE(VQVAEConfig(hidden_channels=8, residual_channels=4, codebook_size=K, code_dim=4))
    config = BrainConfig(width=32, heads=2, layers=3)
    brain = new_prior("cftn-v2", config, vqvae, tokenizer, 4 * SIDE, encoder=encoder)
    data = CodedCaptions(grids(8).numpy(), CAPTIONS * 2, tokenizer, encoder)
    batch = data.collate([data[i] for i in (1, 4)])
    expected = tokenize(tokenizer, [CAPTIONS[1], CAPTIONS[0]], encoder)
    assert all(a.equal(b) for a, b in zip(batch["text"], expected))
    assert all(a.equal(b) for a, b in zip(batch["text"].null, expected.null))
    projection = brain.text_tower.embedding.features[1]
    before = projection.weight.clone()
    config = StageConfig(steps=3, batch_size=4, caption_weight=0.5, warmup_steps=1, num_workers=1)
    history = train_stage(brain, "stage1", config, data, data, tmp_path / "run")
    assert history[-1]["step"] == 3 and not projection.weight.equal(before)


# --- what is refused ---

def test_missing_features_are_refused(bert):
    tokenizer, encoder, _ = bert
    with_features, without = tokenize(tokenizer, CAPTIONS, encoder), tokenize(tokenizer, CAPTIONS)
    assert "16" in refusal(new(tokenizer, encoder).generate, without, generators(*range(4)))
    assert "text.encoder" in refusal(logits_of, new(tokenizer), with_features)
    narrow = Text(with_features.input_ids, with_features.attention_mask, with_features.features[..., :8])
    assert all(part in refusal(check_features, narrow, new(tokenizer, encoder).shape) for part in ("16", "8"))


def test_tokenizer_and_prior_of_different_vocabularies(tmp_path):
    tokenizers = {name: pretrained_tokenizer(save_tokenizer(name, tmp_path / name), 16) for name in FAMILIES}
    for mine, tokenizer in tokenizers.items():
        shape = new(tokenizer).shape
        check_tokenizer(tokenizer, shape)
        for other in tokenizers.keys() - {mine}:
            assert "->" in refusal(check_tokenizer, tokenizers[other], shape)


def test_tokenizer_and_encoder_of_different_vocabularies(bert, tmp_path):
    _, _, folder = bert
    fewer = pretrained_tokenizer(save_tokenizer("bert", tmp_path / "fewer", CAPTIONS[:1]), 16)
    dogs = [caption.replace("cat", "dog") for caption in CAPTIONS]
    as_many = pretrained_tokenizer(save_tokenizer("bert", tmp_path / "other", dogs), 16)
    more = pretrained_tokenizer(save_tokenizer("bert", tmp_path / "more", ["one more", *CAPTIONS]), 16)
    for tokenizer in (fewer, as_many, more):
        assert str(folder) in refusal(load_encoder, str(folder), tokenizer)
    bare = save_encoder("bert", tmp_path / "bare", 10)   # weights alone: nothing to compare but the size
    assert "10" in refusal(load_encoder, bare, more)


def test_captions_longer_than_the_encoder_reads(bert):
    assert "40" in refusal(load_encoder, str(bert[2]), pretrained_tokenizer(str(bert[2]), 41))


@pytest.mark.parametrize("key", ["tokenizer", "encoder"])
@pytest.mark.parametrize("name", ["no-such-user-of-vqgen/no-such-model", "no-such-model-of-vqgen",
                                  "./no/such/folder", "not a name!"])
def test_unknown_name_or_no_network(key, name):
    config = TextConfig(**{key: name})
    calls = {"tokenizer": (new_tokenizer, [], config), "encoder": (load_encoder, name, None)}
    said = refusal(*calls[key])
    assert repr(name) in said and f"text.{key}" in said and "network" in said


@pytest.mark.parametrize("damage", ["nothing in it", "no tokenizer", "no weights", "damaged weights",
                                    "damaged config", "damaged tokenizer"])
def test_folder_that_cannot_be_read(bert, tmp_path, damage):
    tokenizer, _, folder = bert
    if damage == "nothing in it":
        folder = tmp_path / "empty"
        folder.mkdir()
    if damage == "no tokenizer": folder = save_encoder("bert", tmp_path / "bare", 10)
    if damage == "no weights": (folder / "model.safetensors").unlink()
    if damage == "damaged weights":
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:500])
    if damage == "damaged config": (folder / "config.json").write_text("{")
    if damage == "damaged tokenizer": (folder / "tokenizer.json").write_text("{}")
    call = pretrained_tokenizer, str(folder), 16
    if damage.endswith(("weights", "config")): call = load_encoder, str(folder), tokenizer
    assert str(folder) in refusal(*call)
