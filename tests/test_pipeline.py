"Captions in, images out: what a pipeline gives, what it refuses, and that a compiled one gives the same."
import pytest
import torch
from tiny import CONFIG, coded, refusal, splits

from vqgen.config import section_key
from vqgen.pipeline import Pipeline, load_run, seeded_generators
from vqgen.priors.build import PRIORS, new_prior

CAPTIONS = ["a person with red hair", "a person with a blue hat and glasses"]


def pipeline(name):
    "An untrained prior over the codes of a tiny VQ-VAE."
    vqvae, tokenizer, data, _ = coded()
    shape = getattr(CONFIG, section_key(name)).model
    prior = new_prior(name, shape, vqvae, tokenizer, splits()[0].image_size, codes=data.codes)
    return Pipeline(vqvae, prior, tokenizer)


@pytest.mark.parametrize("name", PRIORS)
def test_image_i_has_seed_plus_i(name):
    "Alone or in a batch; and a PIL picture is the image."
    pipe = pipeline(name)
    images = pipe.images([CAPTIONS[0]] * 3, seed=5)
    assert images.shape == (3, 3, 16, 16) and images.dtype == torch.float32 and images.abs().max() <= 1
    assert torch.equal(pipe.codes([CAPTIONS[0]], seed=7)[0], pipe.codes([CAPTIONS[0]] * 3, seed=5)[2])
    pictures = pipe(CAPTIONS[0], num_images=3, seed=5)
    assert [picture.size for picture in pictures] == [(16, 16)] * 3
    assert pictures[2].tobytes() == pipe(CAPTIONS[0], seed=7)[0].tobytes()


@pytest.mark.parametrize("name", PRIORS)
def test_stream_ends_with_the_codes(name):
    frames = list(pipeline(name).stream(CAPTIONS, seed=1))
    assert frames[-1].shape == (2, 4, 4) and frames[-1].min() >= 0 and frames[-1].dtype == torch.int64
    assert frames[-1].equal(pipeline(name).codes(CAPTIONS, seed=1))


@pytest.mark.parametrize("call, part", [
    (lambda pipe: pipe(CAPTIONS[0], seed=-1), "seed"), (lambda pipe: pipe(CAPTIONS[0], seed=2**63), "seed"),
    (lambda pipe: pipe.caption(pipe(CAPTIONS[0])), "tensor"),
    (lambda pipe: Pipeline(pipe.vqvae, pipe.prior, pipe.tokenizer, device="nowhere"), "nowhere"),
    (lambda pipe: pipe(["a face"]), "one caption"), (lambda pipe: pipe(3), "one caption"),
    (lambda pipe: pipe("a face", num_images=0), "num_images"),
    (lambda pipe: pipe("a face", steps=0), "steps"),
    (lambda pipe: pipe("a face", temprature=1), "'temperature'"),
    (lambda pipe: pipe("a face", top_p=0), "top_p"),
    (lambda pipe: pipe.images("a face"), "list of strings"),
    (lambda pipe: pipe.images([]), "at least one"),
    (lambda pipe: pipe.codes([3]), "list of strings"),
    (lambda pipe: pipe.stream([["a face"]]), "list of strings"),
])
def test_what_makes_no_sense_ends_in_a_sentence(call, part): assert part in refusal(call, pipeline("cftn-v2"))


def test_only_some_priors_read():
    images = torch.zeros(2, 3, 16, 16)
    assert "cftn-v2" in refusal(pipeline("lstm").caption, images)
    pipe = pipeline("cftn-v2")
    assert len(pipe.caption(images)) == 2 and all(isinstance(words, str) for words in pipe.caption(images))
    assert pipe.caption(images, seed=3, temperature=1.0) == pipe.caption(images, seed=3, temperature=1.0)
    assert "16 x 16" in refusal(pipe.caption, torch.zeros(1, 3, 32, 32))


def test_load_run_gives_the_parts():
    vqvae, prior, tokenizer, encoder = load_run("avatars-hour", "lstm")
    assert type(prior) is PRIORS["lstm"].model and encoder is None
    assert len(tokenizer) == prior.shape.vocab_size
    assert not vqvae.training and not prior.training
    assert type(load_run("avatars-hour")[1]) is PRIORS["cftn-v2"].model
    assert "'lsmt'" in refusal(load_run, "avatars-hour", "lsmt")


def test_seeded_generators():
    assert [generator.initial_seed() for generator in seeded_generators(4, 3)] == [4, 5, 6]


@pytest.mark.slow
def test_a_compiled_pipeline_draws_the_same():
    "The same codes, and images equal up to rounding, for each kind of prior loop."
    for name in ("cftn-v2", "transformer"):
        pipe = pipeline(name)
        codes, images = pipe.codes(CAPTIONS, seed=2), pipe.images(CAPTIONS, seed=2)
        assert pipe.compile() is pipe
        assert torch.equal(pipe.codes(CAPTIONS, seed=2), codes)
        assert torch.allclose(pipe.images(CAPTIONS, seed=2), images, atol=1e-4)
