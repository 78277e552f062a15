"""The Naruto path on a stand-in of its set: from a clone, from a Hub on 127.0.0.1 and from the cache, and the
commands under the words of the original design."""
import json
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from hub_server import hub_server, variables
from naruto_standin import ID, SHARDS, naruto_row, write_standin
from paths import ROOT
from PIL import Image
from safetensors.torch import load_file

from vqgen.config import PRIOR_SECTIONS, load_config, section_key, training_stages
from vqgen.data.datasets import load_data
from vqgen.experiment import train_model
from vqgen.placement import best_device
from vqgen.training.checkpoints import read_description
from vqgen.training.devices import choose_precision

ROWS = 64
ROADS = ["hub", "cache", "clone"]
PROMPT = "Naruto in the hidden leaf village"
MODELS = ["vqvae", *PRIOR_SECTIONS]
NARROW = {"width": 16, "heads": 2, "layers": 2}
TINY = {"data.image_size": 32, "tracking.mode": "off", "vqvae.model.hidden_channels": 16,
        "vqvae.model.residual_channels": 8, "vqvae.model.residual_layers": 1, "vqvae.model.codebook_size": 32,
        "vqvae.train.num_workers": 0, "text.vocab_size": 200}
for prior in PRIOR_SECTIONS: TINY |= {f"{section_key(prior)}.model.{key}": NARROW[key] for key in NARROW}
SHORT = {"train.steps": 3, "train.batch_size": 8, "train.warmup_steps": 1, "train.eval_every": 3}
READ = """
import hashlib, json, sys
from vqgen.config import load_config
from vqgen.data.datasets import load_data
found = {}
for source in sys.argv[1:]:
    data = load_config("naruto", {"data.image_size": 32, "data.source": source}).data
    for split in ("train", "validation"):
        part = load_data(data, split)
        pixels = part.batch(range(len(part))).numpy().tobytes()
        found[f"{source} {split}"] = [hashlib.sha256(pixels).hexdigest(), list(part.captions)]
print(json.dumps(found))
"""
CLONE = """
import sys
from huggingface_hub import snapshot_download
snapshot_download(sys.argv[1], repo_type="dataset", local_dir="clone")
"""
RUN = """
import json, sys
from vqgen.cli import app
for line in json.loads(sys.argv[1]): app(line, prog_name="vqgen", standalone_mode=False)
"""


def python(program, *arguments, cwd, **environment):
    "The lines that `program`, run by itself, prints; its caches of built data are in `cwd`."
    result = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], cwd=cwd, timeout=300,
                            capture_output=True, text=True, env=variables(cwd / "hf", **environment)
                            | {"VQGEN_CACHE": str(cwd / "built")})
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def commands():
    "The commands that 53_naruto says for those of the original design, each as a list of words."
    cells = json.loads((ROOT / "nbs" / "53_naruto.ipynb").read_text("utf-8"))["cells"]
    [table] = [text for cell in cells if "## The commands" in (text := "".join(cell["source"]))]
    lines = re.findall(r"`vqgen ([^`]+)`", table.partition("## The commands")[2])
    return [[PROMPT if word == "..." else word for word in shlex.split(line)] for line in lines]


def walk(folder, *options, **environment):
    "What all commands print, in short and in `folder`; with `options` for those that train."
    short = [f"--{key}={value}" for key, value in (TINY | SHORT).items()]
    more = {"train": [*short, *options], "evaluate": ["--count", "4"]}
    (folder / "picture.png").write_bytes(naruto_row(0)["image"]["bytes"])
    lines = [[*line, *more.get(line[0], [])] for line in commands()]
    return python(RUN, json.dumps(lines), cwd=folder, **environment)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    "A Hub that has the stand-in."
    root = tmp_path_factory.mktemp("hub")
    write_standin(root / "datasets" / ID, ROWS)
    with hub_server(root) as server: yield server


@pytest.fixture(scope="module")
def standin(hub): return hub.root / "datasets" / ID


@pytest.fixture(scope="module")
def visit(hub, tmp_path_factory):
    "A folder with a clone and with caches in which the set is, loaded from the Hub; what was read and asked."
    folder = tmp_path_factory.mktemp("visit")
    before = len(hub.asked)
    read = json.loads(python(READ, ID, cwd=folder, endpoint=hub.endpoint)[-1])
    asked = hub.asked[before:]
    python(CLONE, ID, cwd=folder, endpoint=hub.endpoint)
    return folder, read, asked


@pytest.fixture(scope="module")
def walks(hub, visit, tmp_path_factory):
    "By road: a folder in which all commands ran on what came that way, and what they said."
    folders = {road: tmp_path_factory.mktemp(road) for road in ROADS}
    (folders["cache"] / "hf").symlink_to(visit[0] / "hf")
    clone = f"--data.source={visit[0] / 'clone'}"
    said = {"hub": walk(folders["hub"], endpoint=hub.endpoint),
            "cache": walk(folders["cache"], offline=True),
            "clone": walk(folders["clone"], clone, offline=True)}
    return {road: (folders[road], said[road]) for road in ROADS}


def small(standin, **changes):
    "The preset, on the stand-in and with small models."
    return load_config("naruto", TINY | {"data.source": str(standin)} | changes)


def test_standin_is_like_the_set(standin, tmp_path):
    import datasets
    folder = standin
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*.*")]
    assert sorted(names) == [".gitattributes", "README.md", *SHARDS]
    table = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path))
    assert table.features == {"image": datasets.Image(), "text": datasets.Value("string")}
    assert len(table) == ROWS and str(ROWS) in (folder / "README.md").read_text("utf-8")
    pictures = table["image"]
    assert {picture.mode for picture in pictures} == {"RGB", "RGBA"}
    assert {picture.format for picture in pictures} == {"JPEG", "PNG"}
    assert (97, 143) in {picture.size for picture in pictures}
    assert all(text.startswith("a ") for text in table["text"]) and len(set(table["text"])) > ROWS / 2


@pytest.mark.parametrize("name, grid", [("naruto", 16), ("naruto-1024", 32)])
def test_preset_does_not_learn_by_heart(name, grid):
    "Best weights are kept, looked for often; no training sees a picture as often as the original's would."
    config = load_config(name)
    assert config.name == name and config.data.source == ID
    assert config.data.flip and config.data.crop > 0 and config.data.views > 1
    assert config.data.image_size // config.vqvae.model.downsample == grid
    for model in MODELS:
        section = getattr(config, section_key(model))
        for train in [getattr(section, stage) for stage in training_stages(model)]:
            assert train.keep_best and train.precision == "auto"
            assert train.steps / train.eval_every >= 15 and train.steps * train.batch_size < 250 * 1100
        assert model == "vqvae" or section.model.dropout > 0


@pytest.mark.slow
def test_hub(visit):
    "Both splits come from the two shards; each file is fetched once, by the commit that was found first."
    _, read, asked = visit
    assert sum(len(captions) for _, captions in read.values()) == ROWS
    fetched = [path.partition("/resolve/")[2] for method, path, _ in asked if method == "GET"]
    assert sorted(path.partition("/")[2] for path in fetched if path) == ["README.md", *SHARDS]


@pytest.mark.slow
def test_cache(visit, tmp_path):
    "Without a network the set comes from the cache of an earlier visit: the same pictures and captions."
    folder, read, _ = visit
    (tmp_path / "hf").symlink_to(folder / "hf")
    assert json.loads(python(READ, ID, cwd=tmp_path, offline=True)[-1]) == read


@pytest.mark.slow
def test_clone(visit, tmp_path):
    "A folder as `snapshot_download` leaves it, with a cache of its own, is read as the set on the Hub is."
    folder, read, _ = visit
    clone = folder / "clone"
    found = json.loads(python(READ, clone, cwd=tmp_path, offline=True)[-1])
    for split in ("train", "validation"): assert found[f"{clone} {split}"] == read[f"{ID} {split}"]


@pytest.mark.slow
@pytest.mark.parametrize("road", ROADS)
def test_the_originals_commands(walks, road):
    "Every model is trained a little, draws, captions and is measured, under the original's words."
    folder, said = walks[road]
    run = folder / "runs" / "naruto"
    trained = {model: read_description(run / model) for model in MODELS}
    assert trained["cftn-v2"]["stage"] == "stage2" and (run / "cftn-v2" / "state" / "stage1").is_dir()
    for model in MODELS: assert trained[model]["step"] == 3 and (run / model / "model.safetensors").is_file()
    drawn = [line.removeprefix("saved ") for line in said if line.endswith(".png")]
    *drawn, copy = drawn
    assert len(set(drawn)) == 4 and all("/Naruto-in-the-hidden-leaf-village-s0" in path for path in drawn)
    assert "/picture-s0" in copy and any((run / "vqvae" / "samples").glob("*.png"))
    widths = []
    for path in drawn:
        with Image.open(folder / path) as picture: widths.append(picture.width)
    assert widths[0] == widths[2] == widths[3] > widths[1] > 128      # four, two, four, four in a row
    assert any(line.startswith("picture.png: ") for line in said)
    for part in ("PSNR in dB", "nearest, pixels"): assert any(part in line for line in said)


def files(folder, pattern): return {path.name: path.read_bytes() for path in folder.glob(pattern)}


@pytest.mark.slow
def test_all_roads_lead_to_the_same_models(walks):
    "To the bit: the set is known by its content, wherever it lies."
    hub, cache, clone = (folder / "runs" / "naruto" for folder, _ in walks.values())
    for pattern in ("*/model.safetensors", "samples/*.png"):
        assert files(hub, pattern) == files(cache, pattern) == files(clone, pattern) != {}


@pytest.mark.slow
def test_a_training_begun_with_the_hub_goes_on_with_a_clone(walks, visit, tmp_path):
    shutil.copytree(walks["hub"][0] / "runs", tmp_path / "runs")
    short = [f"--{key}={value}" for key, value in (TINY | SHORT | {"train.steps": 5}).items()]
    lines = [["train", "lstm", "--config", "naruto", *short, f"--data.source={visit[0] / 'clone'}"]]
    python(RUN, json.dumps(lines), cwd=tmp_path, offline=True)
    lstm = tmp_path / "runs" / "naruto" / "lstm"
    assert "step-00000005" in {path.name for path in (lstm / "state").rglob("step-*")}
    entries = map(json.loads, (lstm / "metrics-lstm.jsonl").read_text("utf-8").splitlines())
    assert [entry["step"] for entry in entries] == [3, 5]


@pytest.mark.slow
def test_a_run_is_shared(walks, hub):
    "Pushed, it draws by its name on the Hub what it draws here; the card names the set it was trained on."
    folder, _ = walks["hub"]
    runs = {"here.png": "runs/naruto", "there.png": "somebody/naruto"}
    lines = [["push", "runs/naruto", "somebody/naruto"],
             *(["generate", PROMPT, "--run", run, "--out", name] for name, run in runs.items())]
    said = python(RUN, json.dumps(lines), cwd=folder, endpoint=hub.endpoint, token="hf_mine")
    assert said == ["pushed runs/naruto to somebody/naruto", *(f"saved {name}" for name in runs)]
    assert len({(folder / name).read_bytes() for name in runs}) == 1
    pushed = hub.root / "models" / "somebody" / "naruto"
    assert {path.name for path in pushed.iterdir()} == {"README.md", "samples.png", "vqvae", "cftn-v2"}
    head, card = (pushed / "README.md").read_text("utf-8").split("---\n", 2)[1:]
    assert f"datasets:\n- {ID}\n" in head and f"https://huggingface.co/datasets/{ID}" in card


@pytest.mark.slow
def test_priors_are_trained_on_views(walks, standin):
    "The codes of all views of the training pictures were kept, and they differ; of the others there is one."
    count, folder = len(load_data(small(standin).data)), walks["hub"][0] / "built" / "codes"
    [train], [held] = folder.glob("*-train-*-4-True-0.1.npy"), folder.glob("*-validation-*.npy")
    codes = np.load(train).reshape(4, count, -1)
    assert len({view.tobytes() for view in codes}) == 4
    assert len(np.load(held)) == ROWS - count


def test_flips_and_crops_where_captions_allow(standin):
    config = small(standin).data
    data, held = load_data(config), load_data(config, "validation")
    spoken = torch.tensor(["left" in caption for caption in data.captions])
    assert 0 < spoken.sum() < len(data) / 2
    plain = data.batch(range(len(data)))
    views = torch.stack([data.view(range(len(data)), number) for number in range(config.views)])
    different = (views != plain).flatten(2).any(2)                                          # (views, N)
    assert not different[0].any() and not different[:, spoken].any() and different[1:, ~spoken].all()
    data.crop = 0.0
    mirrored = torch.stack([item["images"] for item in data.__getitems__(range(len(data)))])
    same, turned = ((mirrored == images).flatten(1).all(1) for images in (plain, plain.flip(-1)))
    assert (same | turned).all() and same[spoken].all() and not same.all() and same[~spoken].any()
    assert torch.equal(torch.stack([item["images"] for item in held]), held.batch(range(len(held))))


def test_the_best_on_validation_is_kept(standin, tmp_path):
    "A training that goes on until the set is known by heart ends with the weights of before."
    train = {"train.batch_size": 32, "train.learning_rate": 0.02, "train.eval_every": 10,
             "train.warmup_steps": 5, "train.ema_decay": 0.5}
    changes = {f"vqvae.{key}": train[key] for key in train} | {f"cftn.{key}": train[key] for key in train}
    by_heart = {"data.flip": False, "data.crop": 0.0, "data.views": 1, "cftn.model.dropout": 0.0}
    steps = {"vqvae.train.steps": 30, "cftn.train.steps": 70, "cftn.model.width": 48}
    config = small(standin, **changes, **by_heart, **steps)
    train_model("vqvae", config, tmp_path)
    prior, histories = train_model("cftn", config, tmp_path)
    losses = {entry["step"]: entry.get("validation/loss", np.inf) for entry in histories["cftn"]}
    best = min(losses, key=losses.get)
    told = read_description(tmp_path / "cftn")
    assert told["step"] == best < max(losses) and told["validation_loss"] == losses[best]
    saved = load_file(tmp_path / "cftn" / "model.safetensors")
    assert all(torch.equal(saved[name], weights) for name, weights in prior.state_dict().items())


def test_precision_is_that_of_the_device(standin, tmp_path):
    "And another where it is named; other precision, other weights."
    short = {f"vqvae.{key}": value for key, value in SHORT.items()}
    named, told = {"auto": {}, "bf16": {"vqvae.train.precision": "bf16"}}, {}
    for name, change in named.items():
        train_model("vqvae", small(standin, **short, **change), tmp_path / name)
        told[name] = read_description(tmp_path / name / "vqvae")["precision"]
        assert told[name] == choose_precision(name, best_device())
    auto, bf16 = (files(tmp_path / name, "vqvae/model.safetensors") for name in named)
    assert (auto == bf16) == (told["auto"] == told["bf16"])
