"""The Naruto path on a stand-in of its set: from a clone, from a Hub on 127.0.0.1 and from the cache, and the
commands under the words of the original design."""
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import hub_server, variables
from naruto_standin import ID, SHARDS, write_standin
from PIL import Image

from vqgen.config import PRIOR_SECTIONS, load_config, section_key, training_stages

ROWS = 64
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


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    "What a Hub serves: the stand-in."
    root = tmp_path_factory.mktemp("hub")
    write_standin(root / "datasets" / ID, ROWS)
    return root


@pytest.fixture(scope="module")
def visit(root, tmp_path_factory):
    "A folder with a clone and with caches in which the set is, loaded from the Hub; what was read and asked."
    folder = tmp_path_factory.mktemp("visit")
    with hub_server(root) as hub:
        read = json.loads(python(READ, ID, cwd=folder, endpoint=hub.endpoint)[-1])
        asked = [*hub.asked]
        python(CLONE, ID, cwd=folder, endpoint=hub.endpoint)
    return folder, read, asked


def test_standin_is_like_the_set(root):
    import datasets
    folder = root / "datasets" / ID
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*.*")]
    assert sorted(names) == [".gitattributes", "README.md", *SHARDS]
    table = datasets.load_dataset(str(folder), split="train", cache_dir=str(root / "cache"))
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
def test_the_originals_commands(visit):
    "Every model is trained a little, draws, captions and is measured, under the original's words."
    folder, _, _ = visit
    prompt, run = ["--prompt", "Naruto in the hidden leaf village"], ["--run", "runs/naruto"]
    short = [f"--{key}={value}" for key, value in (TINY | SHORT).items()]
    lines = [["train", model, "--config", "naruto", *short] for model in
             ["vqvae", "lstm", "transformer", "cftn", "cftn_v2"]]
    lines += [["generate", "--prior", "cftn", *prompt, "--steps", "12", "--num_samples", "4"],
              ["generate", "--prior", "transformer", *prompt, "--num_samples", "2", "--temp", "0.8"],
              ["generate", "--prior", "lstm", *prompt, "--num_samples", "1"],
              ["generate", "--prior", "cftn_v2", *prompt, "--num_samples", "1", "--top_p", "0.9"]]
    for line in lines[5:]: line += [*run, "--out", f"{line[2]}.png"]
    lines += [["caption", "cftn_v2.png", *run], ["evaluate", *run, "--count", "4"]]
    said = "\n".join(python(RUN, json.dumps(lines), cwd=folder, offline=True))
    widths = {}
    for prior in ("cftn", "transformer", "lstm", "cftn_v2"):
        with Image.open(folder / f"{prior}.png") as picture: widths[prior] = picture.width
    assert widths["cftn"] > widths["transformer"] > widths["lstm"] == widths["cftn_v2"] >= 32
    assert all(Path(folder, "runs/naruto", model, "model.safetensors").is_file() for model in MODELS)
    assert "cftn_v2.png: " in said and "PSNR in dB" in said and "nearest, pixels" in said
