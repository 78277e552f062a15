"The whole road at the command line, and what it says to someone who strays from it."
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image
from tiny import CONFIG, contents, error_line, interrupt, scraps, vqgen, write_config

from vqgen.config import dump_config, load_config, parse_config, preset_names
from vqgen.experiment import train_vqvae
from vqgen.files import fingerprint
from vqgen.training.checkpoints import load_model, read_description
from vqgen.vqvae.model import VQVAE


@pytest.fixture(scope="module")
def config(tmp_path_factory): return write_config(tmp_path_factory.mktemp("config") / "tiny.yaml")


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    "A run folder in which both models are trained."
    run = tmp_path_factory.mktemp("runs") / "tiny"
    for model in ("vqvae", "cftn-v2"):
        result = vqgen("train", model, "--config", config, "--run", run)
        assert result.returncode == 0, result.stderr
        assert result.stdout.splitlines()[-1] == f"saved in {run / model}"
    return run


@pytest.fixture
def copy(run, tmp_path): return Path(shutil.copytree(run, tmp_path / "copy"))


def test_help_lists_the_commands():
    result = vqgen("--help")
    assert result.returncode == 0
    for command in ("train", "demo", "generate", "caption", "config", "evaluate"):
        assert re.search(rf"\b{command}\b", result.stdout)


def test_package_is_the_command_too():
    command = [sys.executable, "-m", "vqgen", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and result.stdout.startswith("Usage: python -m vqgen ")
    assert result.stdout.partition("\n")[2] == vqgen("--help").stdout.partition("\n")[2]


def test_versions_are_said_without_loading_anything():
    said = vqgen("--version").stdout.strip()
    assert re.fullmatch(r"vqgen \d+\.\d+\.\d+, torch \d+\.\d+\.\d+\S*, Python 3\.\d+\.\d+\S*", said)


def test_help_names_every_model():
    "As the table of priors has them."
    said = " ".join(vqgen("train", "--help").stdout.split())
    assert "vqvae, which comes first, then lstm, transformer, cftn or cftn-v2" in said
    for command in ("generate", "evaluate"):
        assert "lstm, transformer, cftn or cftn-v2;" in " ".join(vqgen(command, "--help").stdout.split())


def test_config_is_written_out():
    result = vqgen("config", "avatars", "--data.count", "99", "--cftn-v2.stage1.learning_rate=1e-4")
    assert result.returncode == 0 and result.stderr == ""
    config = parse_config(yaml.safe_load(result.stdout))
    assert config == load_config("avatars", {"data.count": 99, "cftn_v2.stage1.learning_rate": 1e-4})
    assert dump_config(config) == result.stdout


# --- the road ---

def test_run_folder_holds_what_it_should(run):
    for model in ("vqvae", "cftn-v2"):
        found = {path.name for path in (run / model).iterdir()}
        assert {"config.yaml", "config.json", "model.safetensors", "state"} <= found
        assert load_config(run / model / "config.yaml") == CONFIG
    assert (run / "cftn-v2/tokenizer.json").is_file()
    assert not scraps(run), "scraps of unfinished writing"


def test_generate_draws_a_row_for_each_caption(run, tmp_path):
    "Into the file that was asked for, or one named after the caption; the same seed gives the same bytes."
    out = tmp_path / "deep" / "picture.png"
    ask = ["generate", "a ../face: of/me?", "somebody else", "--run", run, "--num-images", 3, "--steps", 4,
           "--temperature", 0.5, "--min-p", 0.1, "--guidance-scale", 2, "--seed", 7]
    result = vqgen(*ask, "--out", out)
    assert result.returncode == 0 and result.stdout.strip() == f"saved {out}"
    [warning] = result.stderr.splitlines()
    assert warning.startswith("warning: in training the model has never seen 'else', 'me', 'somebody': ")
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        width, height = picture.size   # pictures of 16 pixels, each shown at 128, with a little paper between
    assert 3 * 128 <= width <= 3 * 128 + 2 * 8 and 2 * 128 <= height <= 2 * 128 + 8
    assert vqgen(*ask).returncode == 0
    [sample] = (run / "samples").iterdir()
    assert re.fullmatch(r"[\w-]+\.png", sample.name) and sample.read_bytes() == out.read_bytes()


def test_caption_says_a_line_for_each_picture(run, tmp_path):
    "Of any size, file format and mode; the same seed says the same."
    paths = [tmp_path / "small.png", tmp_path / "wide.jpg"]
    Image.new("RGBA", (16, 16), (200, 0, 0, 0)).save(paths[0])
    Image.new("L", (90, 40), 99).save(paths[1])
    for options in ([], ["--temperature", 1.5, "--top-p", 0.9, "--seed", 3]):
        result, again = (vqgen("caption", *paths, "--run", run, *options) for _ in range(2))
        assert result.returncode == 0 and result.stderr == "", result.stderr
        assert [line.partition(": ")[0] for line in result.stdout.splitlines()] == list(map(str, paths))
        assert again.stdout == result.stdout


def test_caption_refuses_what_is_no_picture(run, tmp_path):
    path = run / "vqvae/config.json"
    said = error_line(vqgen("caption", path, "--run", run))
    assert str(path) in said and "PNG" in said
    assert str(tmp_path / "none.png") in error_line(vqgen("caption", tmp_path / "none.png", "--run", run))
    Image.new("L", (16, 16)).save(tmp_path / "grey.png")
    assert "top_p" in error_line(vqgen("caption", tmp_path / "grey.png", "--run", run, "--top-p", 0))


def test_prior_of_another_vqvae_is_refused(copy):
    "Its codes mean something else now; the message names both, and the way out."
    before = read_description(copy / "cftn-v2")["vqvae"]
    assert before == fingerprint(load_model(copy / "vqvae", VQVAE))
    after = fingerprint(train_vqvae(CONFIG.model_copy(update={"seed": 1}), copy, fresh=True)[0])
    said = error_line(vqgen("generate", "a face", "--run", copy))
    assert before in said and after in said and before != after and "train the prior again" in said


def test_fresh_loses_nothing_where_the_training_cannot_begin(copy, config):
    "A precision that this machine lacks, a batch of nothing: what was trained is still there."
    before = contents(copy / "vqvae")
    for wrong in (["--vqvae.train.precision", "fp16"], ["--vqvae.train.batch_size", "0"]):
        assert wrong[0][2:].split(".")[-1] in error_line(
            vqgen("train", "vqvae", "--config", config, "--run", copy, "--fresh", *wrong))
        assert contents(copy / "vqvae") == before


@pytest.mark.slow
def test_demo_ends_with_a_gallery_and_figures(run, config):
    "Interrupted while it measures, and started again: what is trained stays, what was half done is finished."
    weights = [run / model / "model.safetensors" for model in ("vqvae", "cftn-v2")]
    models = {path: path.stat().st_mtime_ns for path in weights}
    demo = ["demo", "--config", config, "--run", run, "--classifier.train.steps", 150]
    code, out, err = interrupt(signal.SIGINT, r"classifier \(.*: .* [1-9]\d*/\d+ ", *demo)
    assert code == 1 and "Traceback" not in err
    last = err.replace("\r", "\n").strip().splitlines()[-1]
    assert re.match(r"error: stopped at step \d+ of \d+; starting it again goes on", last), err
    assert not (run / "gallery.png").exists()

    result = vqgen(*demo)
    assert result.returncode == 0, result.stderr
    figures, place = result.stdout.strip().splitlines()[-2:]
    for part in (r"PSNR \d+\.\d dB", r"codebook usage \d+%", r"prompt accuracy \d+\.\d%",
                 r"\d+ ms per one-shot picture"):
        assert re.search(part, figures), figures
    assert place.startswith(str(run / "gallery.png"))
    with Image.open(run / "gallery.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 400
    assert models == {path: path.stat().st_mtime_ns for path in models}
    done = int(re.search(r"stopped at step \d+ of (\d+)", err)[1])
    assert read_description(run / "classifier")["step"] == done, "the classifier judges with half a training"
    assert done == 150


@pytest.mark.slow
def test_evaluate_prints_a_table(run):
    "Figures of the run and a line for each set of pictures; nothing but the judge's training is written."
    result = vqgen("evaluate", "--run", run, "--count", 6)
    assert result.returncode == 0, result.stderr
    names = [line[:18].strip() for line in result.stdout.splitlines()]
    for name in ("PSNR in dB", "codebook usage", "ms for a picture", "prompt accuracy",
                 "nats a picture", "its standard error", "bits a code",
                 "training pictures", "held-out pictures", "reconstructions", "drawings"):
        assert name in names, result.stdout
    assert "nearest, pixels" in result.stdout and "variety, pixels" in result.stdout
    assert "features" in result.stdout   # as columns, or in the sentence that says how to get them


# --- off the road ---

COMMANDS = ("config", "train", "generate", "caption", "inpaint", "reconstruct", "push", "evaluate", "trian")


@pytest.mark.parametrize("arguments, parts", [
    (["config", "avatarz"], ["'avatarz'", *preset_names()]),
    (["config", "avatars", "--data.image_sise", "32"], ["'data.image_sise'", "'data.image_size'"]),
    (["config", "avatars", "--data.image_size", "33"], ["33", "4"]),
    (["config", "avatars", "--data.count", "few"], ["data.count", "integer"]),
    (["config", "avatars", "--data.count"], ["--data.count", "value"]),
    (["config", "avatars", "loose"], ["'loose'", "--section.key"]),
    (["train", "vqvae", "--train.bach_size", "8"], ["bach_size'", "'vqvae.train.batch_size'"]),
    (["train", "vqvae", "--conifg", "tiny.yaml"], ["--conifg", "--config"]),
    (["generate", "a face", "--sede", "3"], ["--sede", "--seed"]),
    (["train", "vqvea"], ["'vqvea'", "vqvae", "cftn-v2"]),
    (["generate"], ["caption"]),
    (["generate", "a face", "--out", "face.gif"], ["face.gif", ".png", ".webp"]),
    (["generate", "a face", "--out", "tiny.yaml"], ["tiny.yaml", ".png"]),
    (["generate", "half \udce9"], ["half a character"]),
    (["reconstruct", "."], ["folder"]),
    (["inpaint", "nowhere.png", "a face", "--mask", "nowhere.png"], ["nowhere.png"]),
    (["push", "nowhere", "me/faces"], ["nowhere", "avatars-hour"]),
    (["caption"], ["pictures"]),
    (["caption", "face.png", "--run", "nowhere"], ["nowhere", "vqgen demo", "avatars-hour"]),
    (["trian", "vqvae"], ["trian", "train"]),
    (["generate", "a face", "--run", "nowhere"], ["nowhere", "vqgen demo", "avatars-hour"]),
    (["evaluate", "--run", "nowhere"], ["nowhere", "vqgen demo", "avatars-hour"]),
    (["evaluate", "--count", "1"], ["--count", "at least 2"]),
    (["train", "cftn-v2", "--run", "nowhere"], ["nowhere", "train it first"]),
    (["train", "cftn", "--stage", "stage1"], ["--stage", "cftn-v2"]),
    (["train", "cftn-v2", "--stage", "stage3"], ["stage3", "stage1, stage2"]),
], ids=lambda value: " ".join(value) if value[0] in COMMANDS else "")
def test_every_error_is_one_line(tmp_path, arguments, parts):
    said = error_line(vqgen(*arguments, cwd=tmp_path))
    assert all(part in said for part in parts), said
    assert not list(tmp_path.iterdir()), "a refused command leaves nothing behind"


@pytest.mark.parametrize("options, part", [(["--num-images", 0], "--num-images"),
                                           (["--out", "tiny.yaml/picture.png"], "tiny.yaml")])
def test_generate_refuses_what_cannot_be_done(run, config, options, part):
    assert part in error_line(vqgen("generate", "a face", "--run", run, *options, cwd=config.parent))


def test_run_folder_with_a_damaged_model(copy):
    path = copy / "cftn-v2/model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert str(copy / "cftn-v2") in error_line(vqgen("generate", "a face", "--run", copy))
