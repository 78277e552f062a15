"Each command by its help, its example and its files, with the run that the package brings."
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
import typer
from PIL import Image
from tiny import error_line, refusal, vqgen

from vqgen.cli import app
from vqgen.data.datasets import cache_dir
from vqgen.pictures import samples_folder
from vqgen.pipeline import find_run, shipped_runs

COMMANDS = ["train", "generate", "caption", "inpaint", "reconstruct", "evaluate", "data", "demo", "config",
            "push", "export"]
GROUP = typer.main.get_command(app)


def call(line, *arguments):
    "Run the command `line`; `arguments` follow as they are."
    app([*shlex.split(line), *map(str, arguments)], prog_name="vqgen", standalone_mode=False)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def face(here):
    call("generate 'a person with green hair' --run avatars-hour --num-images 1 --out face.png")
    return here / "face.png"


# --- help ---

def test_the_list_of_commands_fits_on_a_screen():
    lines = vqgen("--help").stdout.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 80 and not any("..." in line for line in lines[1:])
    listed = [line.split()[0] for line in lines[lines.index("Commands:") + 1:] if line.strip()]
    assert listed == COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_each_help_ends_in_an_example_that_the_command_understands(name):
    command = GROUP.commands[name]
    with click.Context(GROUP, info_name="vqgen") as parent:
        said = command.get_help(click.Context(command, info_name=name, parent=parent))
        example = said.splitlines()[-1].strip()
        assert example.startswith(f"Example: vqgen {name}") and len(example) <= 80
        given = shlex.split(example.partition(" > ")[0].removeprefix(f"Example: vqgen {name}"))
        context = command.make_context(name, given, parent=parent)
    rest = list(context.args)
    assert all(key.startswith("--") and "." in key for key in rest[::2]), "an option that does not exist"


@pytest.mark.parametrize("name", [*COMMANDS[1:6], "push", "export"])
def test_help_names_the_runs_that_the_package_brings(name):
    said = vqgen(name, "--help", env={**os.environ, "COLUMNS": "200"}).stdout
    [line] = [line for line in said.splitlines() if "The run folder" in line]
    assert all(run in line for run in shipped_runs())


# --- pictures ---

def test_a_film_shows_every_round(here):
    call("generate 'a person with green hair' --run avatars-hour --num-images 2 --film film.gif --seed 3")
    with Image.open("film.gif") as film:
        assert film.format == "GIF" and film.n_frames == 8
        film.seek(7)
        last = film.convert("RGB")
    [path] = (here / "samples/avatars-hour").iterdir()
    with Image.open(path) as drawn:
        assert drawn.size == last.size
        greys = [picture.convert("L").tobytes() for picture in (drawn, last)]
    assert max(abs(a - b) for a, b in zip(*greys)) < 40, "a GIF has 256 colours"


def test_single_gives_each_picture_a_file_of_its_own(here):
    call("generate 'red hair' 'a hat' --run avatars-hour --num-images 2 --single --out faces/x.webp")
    assert sorted(path.name for path in (here / "faces").iterdir()) == [f"x-{i}.webp" for i in range(4)]
    for path in (here / "faces").iterdir():
        with Image.open(path) as picture: assert picture.format == "WEBP" and picture.size == (32, 32)


def test_nothing_is_overwritten_unasked(face):
    before = face.read_bytes()
    line = "generate 'a person with a hat' --run avatars-hour --num-images 1 --out face.png"
    assert "face.png is there already" in refusal(call, line) and face.read_bytes() == before
    call(f"{line} --overwrite")
    assert face.read_bytes() != before


@pytest.mark.parametrize("caption", ["", "!!!", "\U0001f600", "../../etc/x", "a" * 300, "\u9854"])
def test_names_say_the_caption_and_never_hide_an_older_file(here, caption):
    for _ in range(2): call("generate --num-images 1 --run avatars-hour --prompt", caption)
    names = [path.name for path in (here / "samples/avatars-hour").iterdir()]
    assert len(names) == 2 and not any(name.startswith((".", "-")) for name in names)
    assert [path.name for path in here.iterdir()] == ["samples"]


@pytest.mark.parametrize("name, part", [
    ("x.tif", ".png, .jpg"), ("noend", ".png, .jpg"), ("folder.png", "is a folder")])
def test_files_that_cannot_be_written_are_refused_before_anything_is_drawn(here, name, part):
    (here / "folder.png").mkdir()
    for command in ("generate a", "reconstruct none.png", "inpaint none.png a --mask none.png"):
        assert part in refusal(call, f"{command} --run avatars-hour --out", name)
    assert part in refusal(call, "data --data.source none --out", name)


def test_a_film_is_another_file(here):
    line = "generate a --run avatars-hour --single --num-images 1"
    assert "name two files" in refusal(call, f"{line} --out x.png --film x-0.png")
    assert not list(here.iterdir())


@pytest.mark.parametrize("line", ["generate a", "caption none.png"])
def test_an_unknown_tracker_is_refused_before_anything_is_drawn(here, line):
    said = refusal(call, f"{line} --run avatars-hour --tracking.mode offline --tracking.tracker foo")
    assert "'foo'" in said and "wandb" in said and not list(here.iterdir())


@pytest.mark.parametrize("command", ["data", "demo", "config"])
def test_steps_of_no_model_in_particular_are_for_train_alone(here, command):
    assert "--vqvae.train.steps" in refusal(call, f"{command} --train.steps 5")


def test_a_config_without_a_name_is_that_of_the_avatars(here, capsys):
    for line in ("config avatars --data.count 20", "config --data.count 20"):
        call(line)
        assert "\n  count: 20\n" in capsys.readouterr().out


def test_inpaint_keeps_what_is_not_white(face, here):
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 64, 26))
    mask.save("top.png")
    call("inpaint face.png 'a red hat' --mask top.png --run avatars-hour --num-images 3 --out new.png")
    call("reconstruct face.png --run avatars-hour --out copy.png")
    with Image.open("new.png") as row, Image.open("copy.png") as copies:
        assert row.width > 3 * 128
        old, new = copies.crop((0, 130, 128, 258)), row.crop((0, 0, 128, 128))
    lower, upper = ((box, new.crop(box).tobytes(), old.crop(box).tobytes())
                    for box in ((40, 104, 88, 124), (0, 0, 128, 50)))
    assert max(abs(a - b) for a, b in zip(*lower[1:])) < 20 < max(abs(a - b) for a, b in zip(*upper[1:]))


def test_reconstruct_shows_the_picture_and_its_copy(face):
    call("reconstruct face.png face.png --run avatars-hour --out copies.png")
    with Image.open("copies.png") as sheet: width, height = sheet.size
    assert 2 * 128 <= width <= 2 * 128 + 8 and 2 * 128 <= height <= 2 * 128 + 8


def test_reconstruct_needs_no_prior(face):
    "It is the first thing to look at when a VQ-VAE is trained."
    shutil.copytree(find_run("avatars-hour") / "vqvae", "run/vqvae")
    call("reconstruct face.png --run run --out alone.png")
    call("reconstruct face.png --run avatars-hour --out whole.png")
    assert Path("alone.png").read_bytes() == Path("whole.png").read_bytes()


@pytest.mark.parametrize("line", ["caption .", "reconstruct .", "inpaint . a --mask ."])
def test_a_folder_is_no_picture(here, line):
    assert "it is a folder" in refusal(call, f"{line} --run avatars-hour")


def test_samples_of_a_run_lie_in_it(tmp_path):
    (tmp_path / "vqvae").mkdir()
    assert samples_folder(tmp_path) == tmp_path / "samples"
    assert str(samples_folder("vqgen/avatars-hour")) == "samples/vqgen/avatars-hour"


# --- starting ---

def test_a_drawing_imports_nothing_that_it_does_not_need(here):
    code = ("import sys; from vqgen.cli import app; "
            "app(['generate', 'red hair', '--run', 'avatars-hour'], standalone_mode=False); "
            "print(*sys.modules)")
    heavy = {"pyarrow", "datasets", "transformers", "matplotlib", "wandb", "accelerate", "torchmetrics",
             "pandas", "sympy", "torch._dynamo", "scipy", "tqdm.notebook"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    loaded = done.stdout.splitlines()[-1].split()
    assert "torch" in loaded and not heavy & set(loaded), done.stderr


def test_a_reader_who_leaves_early_is_no_error():
    done = subprocess.run("vqgen config avatars | head -n 1", shell=True, capture_output=True, text=True)
    assert done.stdout == "name: avatars\n" and done.stderr == ""


@pytest.mark.parametrize("variable, value", [
    ("VQGEN_CACHE", "{file}"), ("VQGEN_CACHE", "{file}/x"), ("HOME", "/proc/none")])
def test_no_place_for_data_is_one_sentence(tmp_path, monkeypatch, variable, value):
    (tmp_path / "file").touch()
    for name in ("VQGEN_CACHE", "XDG_CACHE_HOME"): monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value.format(file=tmp_path / "file"))
    assert "VQGEN_CACHE" in error_line(vqgen("data", "--data.count", "50", "--out", tmp_path / "sheet.png"))


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("VQGEN_CACHE", "~/kept")
    assert cache_dir() == tmp_path / "kept"


def test_a_caption_of_unknown_words_is_said_in_one_line(tmp_path):
    done = vqgen("generate", "\u9854", "--run", "avatars-hour", "--out", tmp_path / "x.png")
    [line] = done.stderr.splitlines()
    assert done.returncode == 0 and line.startswith("warning: the tokenizer knows nothing of the caption")
    done = vqgen("generate", "a pirate, noto style", "--run", "avatars-hour", "--out", tmp_path / "y.png")
    [line] = done.stderr.splitlines()
    assert done.returncode == 0 and "never seen 'noto', 'pirate', 'style'" in line


@pytest.mark.parametrize("line, part", [
    ("export pdf avatars-hour out", "onnx, web"),
    ("export web avatars-hour out --half", "--half is for onnx"),
    ("export onnx avatars-hour out --runtime .", "--runtime is for web")])
def test_an_export_that_makes_no_sense_is_refused(here, line, part):
    assert part in refusal(call, line) and not list(here.iterdir())
