"The ONNX files draw what the pipeline draws: same numbers, same codes, whatever the shape of the model."
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import CONFIG, changed, coded, contents, generators, refusal, splits

from vqgen.cli import app
from vqgen.pipeline import Pipeline
from vqgen.priors.build import new_prior
from vqgen.priors.text import tokenize
from vqgen.viz import paint

onnx = pytest.importorskip("onnx", reason="needs the extra `export`")
pytest.importorskip("onnxscript", reason="needs the extra `export`")
pytest.importorskip("onnxruntime", reason="needs the extra `export`")

from vqgen.export.onnx import (  # noqa: E402
    FILES,
    check_exportable,
    compare,
    draw_codes,
    export_onnx,
    exported_codes,
    halve,
    open_graph,
    place_numbers,
    run_graph,
)

SHAPES = {"an early bridge": {"layers": 4, "first_bridge": 0}, "one layer": {"layers": 1}}


def pipeline(**changes):
    torch.manual_seed(0)
    vqvae, tokenizer, *_ = coded()
    config = changed(CONFIG.cftn_v2.model, **changes)
    return Pipeline(vqvae, new_prior("cftn-v2", config, vqvae, tokenizer, splits()[0].image_size), tokenizer)


@pytest.fixture(scope="module", params=SHAPES.values(), ids=SHAPES)
def exported(request, tmp_path_factory):
    "A pipeline with random weights, and the folder it was exported to."
    pipe = pipeline(**request.param)
    return pipe, export_onnx(pipe, tmp_path_factory.mktemp("onnx"))


@pytest.mark.parametrize("captions", [["a hat"], ["", "a person with green hair"], ["a long face, " * 9] * 5])
def test_codes_and_pictures_are_those_of_the_pipeline(exported, captions):
    "With the numbers of its seeds, for any number of pictures and tokens."
    pipe, folder = exported
    text = tokenize(pipe.tokenizer, captions)
    numbers = place_numbers(pipe.prior, generators(*range(7, 7 + len(captions))))
    codes = exported_codes(open_graph(folder / "pass.onnx"), text, numbers, pipe.prior.defaults.temperature)
    assert codes.equal(pipe.codes(captions, seed=7))
    images = run_graph(open_graph(folder / "decoder.onnx"), codes=codes)
    torch.testing.assert_close(images, pipe.decode(codes), rtol=0, atol=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 1e-12, 0.3, 2.0])
def test_temperature_is_an_input(exported, temperature):
    pipe, folder = exported
    text = tokenize(pipe.tokenizer, ["a person with a red hat"] * 3)
    numbers = place_numbers(pipe.prior, generators(0, 1, 2))
    codes = exported_codes(open_graph(folder / "pass.onnx"), text, numbers, temperature)
    assert codes.equal(pipe.prior.generate(text, generators(0, 1, 2), temperature=temperature))
    assert (len(codes.unique(dim=0)) == 1) == (temperature < 0.1), "chance is where it is asked for"


def test_rounds_are_told_and_undecided_codes_are_grey(exported):
    pipe, folder = exported
    facts = json.loads((folder / "drawing.json").read_text("utf-8"))
    assert facts["max_length"] == pipe.tokenizer.model_max_length
    rounds = [*pipe.stream(["a hat"], seed=0)]
    assert len(rounds) == len(facts["rounds"])
    known = torch.full_like(rounds[-1].flatten(), -1)
    session = open_graph(folder / "decoder.onnx")
    for places, codes in zip(facts["rounds"], rounds):
        known[places] = rounds[-1].flatten()[places]
        assert known.equal(codes.flatten())
        images = run_graph(session, codes=codes)
        torch.testing.assert_close(images, paint(pipe.vqvae, codes), rtol=0, atol=1e-4)


def test_files_say_nothing_of_this_machine(exported):
    for name, data in contents(exported[1]).items():
        assert name in FILES and not any(place.encode() in data for place in ("site-packages", sys.prefix))


def test_half_is_smaller_and_draws(exported, tmp_path):
    pipe, folder = exported
    exact = [onnx.load(folder / name) for name in FILES[:2]]
    half = [halve(model) for model in exact]
    for name, model in zip(FILES, half): onnx.save(model, tmp_path / name)
    assert half[0].ByteSize() < exact[0].ByteSize()
    kinds = {table.name: table.data_type for table in half[0].graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds.values() and kinds["patches"] == onnx.TensorProto.FLOAT
    found = compare(pipe, tmp_path, ["a hat", "red hair"])
    assert found["codes"] > 0.9 and found["pixels"] < 0.02
    assert compare(pipe, folder, ["a hat"])["codes"] == 1


def test_no_number_hits_a_code_of_probability_0():
    logits = torch.tensor([-torch.inf, 0.0, 0.0, -torch.inf]).expand(1, 3, 4)
    numbers = torch.tensor([[0.0, 0.5, 1 - 2**-24]])
    assert draw_codes(logits, numbers, torch.tensor(1.0)).tolist() == [[1, 2, 2]]


def test_numbers_are_hit_as_often_as_they_should():
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(1, 1000, 4)
    numbers = torch.from_numpy((np.arange(1000, dtype=np.float32) + 0.5) / 1000)[None]
    drawn = draw_codes(logits, numbers, torch.tensor(1.0))
    assert drawn.flatten().bincount(minlength=4).tolist() == [100, 200, 300, 400]


def test_other_priors_and_frozen_encoders_are_refused(tmp_path):
    vqvae, tokenizer, *_ = coded()
    for name in ("lstm", "transformer", "cftn"):
        prior = new_prior(name, getattr(CONFIG, name).model, vqvae, tokenizer, splits()[0].image_size)
        said = refusal(export_onnx, Pipeline(vqvae, prior, tokenizer), tmp_path)
        assert "cftn-v2" in said and not contents(tmp_path)
    pipe = pipeline()
    pipe.prior.shape = changed(pipe.prior.shape, feature_dim=8)
    assert "text encoder" in refusal(check_exportable, SimpleNamespace(prior=pipe.prior))


def test_nothing_is_overwritten_unasked(tmp_path):
    (tmp_path / "drawing.json").write_text("mine")
    assert "drawing.json" in refusal(export_onnx, pipeline(), tmp_path)
    assert "is a file" in refusal(export_onnx, pipeline(), tmp_path / "drawing.json", overwrite=True)
    assert contents(tmp_path) == {"drawing.json": b"mine"}


def test_the_command_writes_and_compares(tmp_path, capsys):
    run, out = (str(tmp_path / name) for name in ("run", "out"))
    pipeline(layers=1).save_pretrained(run)
    app(["export", "onnx", run, out, "--half"], prog_name="vqgen", standalone_mode=False)
    said = capsys.readouterr().out
    assert all(name in said for name in FILES) and "% of the codes" in said and {*contents(out)} == {*FILES}
    tables = onnx.load(tmp_path / "out" / "pass.onnx").graph.initializer
    assert onnx.TensorProto.FLOAT16 in {table.data_type for table in tables}
