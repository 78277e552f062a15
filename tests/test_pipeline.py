"Captions in, images out: what a pipeline gives, what it refuses, and that a compiled one gives the same."
import inspect
import io
import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import CONFIG, coded, refusal, splits

from vqgen.config import section_key
from vqgen.pictures import check_out
from vqgen.pipeline import Pipeline, find_run, load_run, mask_grid, read_captions, seeded_generators
from vqgen.priors.build import PRIORS, new_prior
from vqgen.viz import show_captioned

CAPTIONS = ["a person with red hair", "a person with a blue hat and glasses"]
PICTURE = Image.linear_gradient("L")      # 256 x 256, black above, white below
EDGE = PICTURE.point(lambda value: 255 * (value > 250))    # white at the very bottom


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


def cut_short():
    "A picture of whose file the end is missing."
    file = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(file, "PNG")
    return Image.open(io.BytesIO(file.getvalue()[:1500]))


@pytest.mark.parametrize("call, part", [
    (lambda pipe: pipe(CAPTIONS[0], seed=-1), "seed"), (lambda pipe: pipe(CAPTIONS[0], seed=2**63), "seed"),
    (lambda pipe: pipe.caption("face.png"), "tensor"), (lambda pipe: pipe.encode(["face.png"]), "Image.open"),
    (lambda pipe: pipe.encode(255 * torch.ones(1, 3, 16, 16)), "[-1, 1]"),
    (lambda pipe: pipe.encode(torch.full((1, 3, 16, 16), torch.nan)), "[-1, 1]"),
    (lambda pipe: pipe.encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)), "uint8"),
    (lambda pipe: pipe.decode(torch.full((1, 4, 4), -1)), "from 0 to 15"),
    (lambda pipe: pipe.decode([[0]]), "not list"),
    (lambda pipe: Pipeline(pipe.vqvae, pipe.prior, pipe.tokenizer, device="nowhere"), "nowhere"),
    (lambda pipe: pipe(3), "not int"), (lambda pipe: pipe([]), "at least one"),
    (lambda pipe: pipe(["a face", None]), "list of strings"),
    (lambda pipe: pipe("half a \ud83d face"), "surrogate"),
    (lambda pipe: pipe("a face", num_images=0), "num_images"),
    (lambda pipe: pipe("a face", num_images=1.5), "num_images"),
    (lambda pipe: pipe("a face", seed="x"), "seed"),
    (lambda pipe: pipe("a face", generator=3), "seed"),
    (lambda pipe: pipe("a face", num_images=2, generator=[torch.Generator()]), "2 images"),
    (lambda pipe: pipe("a face", callback=3), "callback"),
    (lambda pipe: pipe.to(torch.float16), "bfloat16"), (lambda pipe: pipe.to(dtype="half"), "torch.float32"),
    (lambda pipe: pipe.to("nowhere"), "nowhere"), (lambda pipe: pipe.to(1.5), "1.5"),
    (lambda pipe: pipe.to("meta"), "no numbers"),
    (lambda pipe: pipe.inpaint(PICTURE, Image.new("L", (9, 9)), "a face"), "white"),
    (lambda pipe: pipe.inpaint(PICTURE, "left", "a face"), "(4, 4)"),
    (lambda pipe: pipe.inpaint(PICTURE, torch.ones(4, 4), "a face"), "bool"),
    (lambda pipe: pipe.inpaint([PICTURE] * 2, PICTURE, "a face"), "one picture"),
    (lambda pipe: pipe.inpaint(PICTURE, PICTURE, ["a face"]), "one caption"),
    (lambda pipe: pipe.inpaint("a face", PICTURE, PICTURE), "the picture, the mask"),
    (lambda pipe: pipe.inpaint(Image.new("RGB", (8, 64)), EDGE, "a face"), "square in the middle"),
    (lambda pipe: pipe.inpaint(PICTURE, PICTURE, "a face", given=torch.zeros(1, 4, 4).long()), "given"),
    (lambda pipe: pipe.inpaint(PICTURE, PICTURE, "a face", strength=0.5), "strength"),
    (lambda pipe: pipe("a face", given=[[1]]), "tensor"),
    (lambda pipe: pipe("a face", num_inference_steps=4), "called steps"),
    (lambda pipe: pipe("a face", num_images_per_prompt=4), "called num_images"),
    (lambda pipe: pipe("a face", height=512), "training"),
    (lambda pipe: pipe.compile(mode="fast"), "mode=fast"), (lambda pipe: pipe.compile(speed=3), "speed"),
    (lambda pipe: pipe.save_pretrained(None), "None"), (lambda pipe: pipe.save_pretrained(""), "folder"),
    (lambda pipe: pipe("a face", steps=0), "steps"),
    (lambda pipe: pipe("a face", temprature=1), "'temperature'"),
    (lambda pipe: pipe("a face", top_p=0), "top_p"),
    (lambda pipe: pipe.images("a face"), "list of strings"),
    (lambda pipe: pipe.images([]), "at least one"),
    (lambda pipe: pipe.codes([3]), "list of strings"),
    (lambda pipe: pipe.stream([["a face"]]), "list of strings"),
    (lambda pipe: pipe.encode(torch.zeros(1, 3, 0, 0)), "(1, 3, 0, 0)"),
    (lambda pipe: pipe.encode(torch.zeros(1, 3, 16, 16, device="meta")), "meta"),
    (lambda pipe: pipe.encode(torch.zeros(1, 3, 16, 16).to_sparse()), "sparse"),
    (lambda pipe: pipe.decode(torch.zeros(1, 0, 0).long()), "nothing to decode"),
    (lambda pipe: pipe.decode(torch.zeros(1, 4, 4, device="meta").long()), "nothing to decode"),
    (lambda pipe: pipe.inpaint(PICTURE, Image.new("L", (0, 0)), "a face"), "mask"),
    (lambda pipe: pipe.inpaint(PICTURE, cut_short(), "a face"), "the mask cannot be read"),
    (lambda pipe: pipe.inpaint(PICTURE, np.array([["left"]]), "a face"), "(4, 4)"),
    (lambda pipe: pipe.save_pretrained("name" * 100), "too long"),
    (lambda pipe: pipe.save_pretrained("saved", captions=3), "captions"),
    (lambda pipe: pipe.save_pretrained("saved", captions=[]), "captions"),
])
def test_what_makes_no_sense_ends_in_a_sentence(call, part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert part in refusal(call, pipeline("cftn-v2"))
    assert not list(tmp_path.iterdir()), "nothing is left half done"


@pytest.mark.parametrize("name", ["cftn", "cftn-v2"])
def test_more_steps_than_codes_end_after_the_last_code(name):
    assert len(list(pipeline(name).stream(CAPTIONS, steps=10**6))) == 16


def test_a_mask_may_be_mirrored():
    mask = np.tri(4, dtype=bool)
    again = pipeline("cftn-v2").inpaint(PICTURE, mask[::-1].copy()[::-1], "a face")[0]
    assert again.tobytes() == pipeline("cftn-v2").inpaint(PICTURE, mask, "a face")[0].tobytes()


@pytest.mark.parametrize("name, part", [
    ("x" * 5000, "too long"), ("~nobody-of-this-name/run", "home"), ("two\nlines", "two lines"),
    ("https://huggingface.co/me/faces", "owner/name")])
def test_names_of_no_run_end_in_a_sentence(name, part): assert part in refusal(find_run, name)


@pytest.mark.parametrize("name", ["avatars-hour/", "vqgen/avatars-hour/"])
def test_a_slash_at_the_end_is_no_other_run(name): assert find_run(name) == find_run("vqgen/avatars-hour")


def test_a_name_too_long_for_the_disk(): assert "too long" in refusal(check_out, Path("y" * 300 + ".png"))


def test_only_some_priors_read():
    images = torch.zeros(2, 3, 16, 16)
    assert "cftn-v2" in refusal(pipeline("lstm").caption, images)
    pipe = pipeline("cftn-v2")
    assert len(pipe.caption(images)) == 2 and all(isinstance(words, str) for words in pipe.caption(images))
    assert pipe.caption(images, seed=3, temperature=1.0) == pipe.caption(images, seed=3, temperature=1.0)
    assert "16 x 16" in refusal(pipe.caption, torch.zeros(1, 3, 32, 32))
    assert len(pipe.caption(PICTURE)) == 1 and len(pipe.caption([PICTURE] * 3)) == 3


def test_a_list_of_captions_gives_a_list_of_pictures():
    "Caption by caption; image i has seed `seed + i`, as in `images`."
    pipe = pipeline("cftn-v2")
    pictures = pipe(CAPTIONS, num_images=2, seed=4)
    alone = [pipe(CAPTIONS[i // 2], seed=4 + i)[0] for i in range(4)]
    assert [picture.tobytes() for picture in pictures] == [picture.tobytes() for picture in alone]
    assert pipe(tuple(CAPTIONS))[1].tobytes() == pipe(CAPTIONS)[1].tobytes()


@pytest.mark.parametrize("size", [(300, 200), (100, 333), (7, 9)])
@pytest.mark.parametrize("mode", ["RGBA", "1", "P"])
def test_pictures_and_masks_of_any_size_and_mode_are_inpainted(size, mode):
    "Drawings have the size of the training; what is not under the mask keeps its codes."
    pipe, seen = pipeline("cftn-v2"), []
    mask = Image.new("L", (40, 40))
    mask.paste(255, (10, 10, 30, 30))
    picture = PICTURE.resize(size).convert(mode)
    for masked in (mask, mask.convert(mode)):
        [drawn] = pipe.inpaint(picture, masked, CAPTIONS[0], callback=lambda step, codes: seen.append(codes))
        assert drawn.size == (16, 16) and drawn.mode == "RGB"
    stays = ~mask_grid(mask, size, 4)
    assert stays.any() and torch.equal(seen[-1][:, stays], pipe.encode(picture)[:, stays])


def test_it_says_what_it_is():
    told = "Pipeline(LSTMPrior: 4 x 4 codes of 16 -> 16 x 16 pixels, torch.float32 on cpu)"
    assert repr(pipeline("lstm")) == told


def test_its_options_have_names():
    names = inspect.signature(pipeline("cftn").__call__).parameters
    drawing = {"steps", "temperature", "top_k", "top_p", "min_p", "guidance_scale"}
    assert drawing | {"generator", "seed"} <= names.keys()
    pipe = pipeline("cftn")
    assert pipe(CAPTIONS[0], steps=2)[0].tobytes() == pipe(CAPTIONS[0], steps=2, top_k=None)[0].tobytes()


def test_candidates_are_chosen_by_what_the_caption_costs():
    "The first is the picture without the others; alone or in a batch the same is kept, and codes stay."
    pipe = pipeline("cftn-v2")
    text = read_captions(pipe, CAPTIONS)
    plain = pipe.codes(CAPTIONS, seed=5)
    best = [pipe.codes(CAPTIONS, seed=5, candidates=count) for count in (1, 2, 6)]
    costs = torch.stack([pipe.prior.caption_nats(codes, text) for codes in best])
    assert best[0].equal(plain) and (costs.diff(dim=0) <= 1e-5).all() and (costs[2] < costs[0]).all()
    assert pipe.codes(CAPTIONS[1:], seed=6, candidates=6).equal(best[2][1:])
    given = plain.masked_fill(torch.eye(4, dtype=torch.bool), -1)
    kept = pipe.codes(CAPTIONS, seed=5, candidates=3, given=given)
    assert kept[given >= 0].equal(plain[given >= 0])
    for wrong in (0, 1.5, "all"): assert "candidates" in refusal(pipe.codes, CAPTIONS, candidates=wrong)
    assert "cftn-v2" in refusal(pipeline("cftn").codes, CAPTIONS, candidates=2)
    assert "callback" in refusal(pipe.codes, CAPTIONS, candidates=2, callback=print)


def test_a_generator_wins_over_the_seed():
    "It goes on from call to call; how many pictures are drawn with it does not change the first."
    pipe = pipeline("cftn-v2")
    def source(): return torch.Generator().manual_seed(9)
    one, more = pipe("a face", generator=source(), seed=1), pipe("a face", 3, generator=source(), seed=2)
    assert one[0].tobytes() == more[0].tobytes()
    going = source()
    first, second = pipe.codes(["a face"], generator=going), pipe.codes(["a face"], generator=going)
    assert not torch.equal(first, second)
    each = pipe("a face", 2, generator=[source(), source()])
    assert each[0].tobytes() == each[1].tobytes() == one[0].tobytes()


@pytest.mark.parametrize("name", ["transformer", "cftn", "cftn-v2"])
def test_the_callback_hears_each_round(name):
    pipe, heard = pipeline(name), []
    pipe("a face", num_images=2, callback=lambda step, codes: heard.append((step, codes)))
    frames = list(pipe.stream(["a face"] * 2))
    assert [step for step, _ in heard] == list(range(len(frames)))
    assert all(torch.equal(codes, frame) for (_, codes), frame in zip(heard, frames))


def test_pictures_go_in_and_out():
    pipe = pipeline("lstm")
    codes = pipe.encode([PICTURE, PICTURE.resize((40, 90)).convert("RGBA")])
    assert codes.shape == (2, 4, 4) and codes.dtype == torch.int64
    images = pipe.decode(codes)
    assert images.shape == (2, 3, 16, 16) and images.dtype == torch.float32
    assert pipe.encode(torch.zeros(1, 3, 24, 32)).shape == (1, 6, 8)      # a tensor stays as it is
    copies = pipe.reconstruct(PICTURE)
    assert copies[0].size == (16, 16) and torch.equal(pipe.reconstruct(torch.zeros(1, 3, 16, 16)),
                                                      pipe.decode(pipe.encode(torch.zeros(1, 3, 16, 16))))


@pytest.mark.parametrize("name", PRIORS)
def test_half_precision(name):
    "The prior and the decoder compute in it, the encoder does not; what comes out is float32; and back."
    pipe = pipeline(name)
    codes, steps = pipe.encode(PICTURE), list(pipe.stream(CAPTIONS))
    assert pipe.to(torch.bfloat16) is pipe and pipe.dtype == torch.bfloat16
    assert torch.equal(pipe.encode(PICTURE), codes)
    drawn = pipe.images(CAPTIONS, guidance_scale=2.0)
    assert drawn.dtype == torch.float32 and drawn.isfinite().all()
    assert len(list(pipe.stream(CAPTIONS))) == len(steps)
    if name == "cftn-v2": assert len(pipe.caption(PICTURE)) == 1
    pipe.to(dtype=torch.float32)
    assert pipe.dtype == torch.float32 and pipe.images(CAPTIONS).isfinite().all()


def test_white_of_any_size_opens_the_codes_it_touches():
    spot = Image.new("L", (32, 32))
    spot.putpixel((9, 17), 200)
    for side in (32, 64, 500): assert mask_grid(spot, (side, side), 4).nonzero().tolist() == [[2, 1]]
    wide = Image.new("1", (64, 32))                         # the left and right quarter are cropped away
    wide.paste(1, (0, 0, 17, 8))
    assert mask_grid(wide, (128, 64), 4).nonzero().tolist() == [[0, 0]]
    assert not mask_grid(Image.new("L", (8, 8), 127), (16, 16), 4).any()
    assert mask_grid(Image.new("RGB", (3, 5), "white"), (16, 16), 4).all()
    for value, is_white in ((65535, True), (40000, True), (300, False)):      # of 16 bits
        assert mask_grid(Image.fromarray(np.full((8, 8), value, np.uint16)), (16, 16), 4).all() == is_white


@pytest.mark.parametrize("name", ["cftn", "cftn-v2"])
def test_inpainting_changes_only_open_codes(name):
    pipe, mask = pipeline(name), torch.zeros(4, 4, dtype=torch.bool)
    mask[1:3, 1:] = True
    codes, seen = pipe.encode(PICTURE), []
    pictures = pipe.inpaint(PICTURE, mask, CAPTIONS[0], num_images=3, seed=2,
                            callback=lambda step, codes: seen.append(codes))
    assert len(pictures) == 3 and pictures[0].size == (16, 16)
    assert torch.equal(seen[-1][:, ~mask], codes.repeat(3, 1, 1)[:, ~mask]) and (seen[-1] >= 0).all()
    again = pipe.inpaint(PICTURE, mask, CAPTIONS[0], seed=4)[0]
    assert again.tobytes() == pictures[2].tobytes()
    below = Image.new("L", (7, 7), 0)
    below.paste(255, (0, 4, 7, 7))
    pipe.inpaint(PICTURE, below, CAPTIONS[0], callback=lambda step, codes: seen.append(codes))
    assert torch.equal(seen[-1][:, :2], codes[:, :2])


@pytest.mark.parametrize("name", ["lstm", "transformer"])
def test_only_some_priors_inpaint_and_take_steps(name):
    assert "cftn-v2" in refusal(pipeline(name).inpaint, PICTURE, PICTURE, "a face")
    assert "cftn-v2" in refusal(pipeline(name), "a face", steps=4)
    pipeline(name)("a face", steps=None)


def test_captions_of_which_nothing_is_known_are_named():
    pipe = pipeline("cftn-v2")
    with pytest.warns(UserWarning, match="knows nothing of the caption '日本'"): pipe(["a face", "日本"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe(["a face 日本", ""])      # it knows a part; and whoever says nothing knows that


def test_load_run_gives_the_parts():
    vqvae, prior, tokenizer, encoder = load_run("avatars-hour", "lstm")
    assert type(prior) is PRIORS["lstm"].model and encoder is None
    assert len(tokenizer) == prior.shape.vocab_size
    assert not vqvae.training and not prior.training
    assert type(load_run("avatars-hour")[1]) is PRIORS["cftn-v2"].model
    assert "'lsmt'" in refusal(load_run, "avatars-hour", "lsmt")


@pytest.mark.parametrize("part", ["vqvae", "lstm"])
def test_weights_that_are_no_numbers_are_refused(part, tmp_path):
    run = tmp_path / "run"
    for name in ("vqvae", "lstm"): shutil.copytree(find_run("avatars-hour") / name, run / name)
    weights = load_file(run / part / "model.safetensors")
    weights = {name: torch.full_like(weight, torch.nan) if weight.is_floating_point() else weight
               for name, weight in weights.items()}
    save_file(weights, run / part / "model.safetensors")
    assert f"run/{part}" in (sentence := refusal(Pipeline.from_pretrained, run)) and "NaN" in sentence


def test_what_counts_as_a_run(tmp_path, monkeypatch):
    "A folder with a trained VQ-VAE; nothing can hide the shipped run behind `vqgen/`."
    monkeypatch.chdir(tmp_path)
    shipped = find_run("avatars-hour")
    for name in ("avatars-hour", "vqgen/avatars-hour"):
        (tmp_path / name / "samples").mkdir(parents=True)
        assert find_run(name) == shipped
        (tmp_path / name / "vqvae").mkdir()
        (tmp_path / name / "vqvae" / "config.json").write_text("{}")
    assert str(find_run("avatars-hour")) == "avatars-hour" and find_run("vqgen/avatars-hour") == shipped
    (tmp_path / "mine").mkdir()
    assert "vqvae/config.json" in refusal(find_run, "mine")
    assert "avatars-hour" in refusal(find_run, "runs/none")
    assert "revision" in refusal(find_run, "avatars-hour", "main")
    for wrong in (None, "", 3): refusal(find_run, wrong)


def test_drawing_needs_few_libraries():
    script = ("import json, sys; from vqgen.pipeline import Pipeline; from vqgen.viz import image_grid; "
              "print(json.dumps([name for name in sys.argv[1:] if name in sys.modules]))")
    unwanted = ["datasets", "pyarrow", "wandb", "matplotlib", "accelerate", "pandas", "transformers",
                "huggingface_hub", "torchmetrics"]
    command = [sys.executable, "-c", script, *unwanted]
    assert json.loads(subprocess.run(command, capture_output=True, check=True).stdout) == []


def test_seeded_generators():
    assert [generator.initial_seed() for generator in seeded_generators(4, 3)] == [4, 5, 6]


@pytest.mark.slow
def test_a_compiled_pipeline_draws_the_same(tmp_path):
    "The same codes, and images equal up to rounding, for each kind of prior loop; it can be saved, too."
    for name in ("cftn-v2", "transformer"):
        pipe = pipeline(name)
        codes, images = pipe.codes(CAPTIONS, seed=2), pipe.images(CAPTIONS, seed=2)
        assert pipe.compile() is pipe
        assert torch.equal(pipe.codes(CAPTIONS, seed=2), codes)
        assert torch.allclose(pipe.images(CAPTIONS, seed=2), images, atol=1e-4)
        saved = Pipeline.from_pretrained(pipe.save_pretrained(tmp_path / name))
        assert torch.equal(saved.codes(CAPTIONS, seed=2), codes)


@pytest.mark.parametrize("caption", ["\u7dd1\u306e\u9aea", "\U000f1234 hat", "\U0001f600"])
def test_a_figure_with_captions_in_any_alphabet_warns_of_nothing(tmp_path, caption, recwarn):
    figure = show_captioned(torch.zeros(1, 3, 8, 8), [caption], title=caption)
    figure.savefig(tmp_path / "figure.png")
    assert not [warning for warning in recwarn if "lyph" in str(warning.message)]
