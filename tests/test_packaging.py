"What `pip install` puts on a machine is whole."
import ast
import email
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib import import_module
from importlib.metadata import entry_points, metadata
from pathlib import Path

import pytest
from environments import alone, build_archives, run, settings
from paths import ROOT

import vqgen

SUFFIXES = (".py", ".yaml", ".json", ".safetensors", ".typed", ".html", ".mjs")


def names(root):
    "What of the package is below `root`, by its path."
    paths = (root / "vqgen").rglob("*")
    return sorted(str(path.relative_to(root)) for path in paths if path.suffix in SUFFIXES)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "A folder with source archive and wheel (made from that archive), built from what git tracks alone."
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    build_archives(tree, out)
    return out


def said(wheel):
    "The METADATA of a wheel: its headers, and with `get_payload()` the description."
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


@pytest.mark.slow
def test_source_archive_is_whole(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {*names(ROOT), "setup.py", "settings.ini", "pyproject.toml", "README.md", "LICENSE"} <= held
    assert {"CHANGELOG.md", "CITATION.cff"} <= held


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["tar.gz", "whl"])
def test_what_was_built_can_be_installed(built, suffix, tmp_path):
    "Into an empty environment: every module, preset and weight arrives, and the command with them."
    [archive] = built.glob(f"*.{suffix}")
    venv.create(tmp_path / "new", with_pip=True)
    python = tmp_path / "new" / "bin" / "python"
    run([python, "-m", "pip", "install", "-q", "--no-deps", archive], cwd=tmp_path, env=alone())
    code = "import pathlib, vqgen; print(vqgen.__version__, pathlib.Path(vqgen.__file__).parent.parent)"
    version, site = run([python, "-c", code], cwd=tmp_path, env=alone()).split()
    assert version == vqgen.__version__ and Path(site).is_relative_to(tmp_path)
    assert names(Path(site)) == names(ROOT)
    assert {"vqgen/configs/avatars.yaml", "vqgen/trained/avatars-hour/cftn-v2/model.safetensors",
            "vqgen/py.typed", "vqgen/__main__.py"} <= {*names(Path(site))}
    assert (tmp_path / "new" / "bin" / "vqgen").exists()


@pytest.mark.slow
def test_package_page_reads_well(built):
    "`pip install` is the first command, nothing is relative to a clone, and the project's pages are named."
    metadata = said(next(built.glob("*.whl")))
    text = metadata.get_payload()
    assert re.search(r"```sh\n(.*)", text)[1] == "pip install vqgen"
    links = re.findall(r"\]\(([^)\s]*)|(?:src|href)=[\"']([^\"']*)", text)
    assert len(links) > 40 and not [link for link in map("".join, links) if not link.startswith("https://")]
    images = "https://raw.githubusercontent.com/vqgen/vqgen/main/nbs/images"
    found = re.findall(r"!\[[^]]*]\((.*?)\)", text)
    pictures = [address for address in found if not address.endswith("badge.svg")]
    assert pictures == [f"{images}/{name}" for name in ("one_pass.gif", "frontiers.png", "gallery.png")]
    pages = dict(page.split(", ") for page in metadata.get_all("Project-URL"))
    assert pages.keys() == {"Source", "Notebooks", "Issues"} and metadata["License-File"] == "LICENSE"
    assert "Typing :: Typed" in metadata.get_all("Classifier")


CARDS = [*(ROOT / "vqgen" / "trained").glob("*/README.md")]


@pytest.mark.parametrize("card", CARDS, ids=lambda path: path.parent.name)
def test_card_says_where_its_commands_are(card):
    "A reader of the installed package has neither `make` nor tools/."
    assert "In a clone of https://github.com/vqgen/vqgen" in card.read_text("utf-8").partition("`make")[0]


@pytest.mark.parametrize("name, module", [
    ("Pipeline", "pipeline"), ("VQVAE", "vqvae.model"), ("load_config", "config"),
    ("load_data", "data.datasets"), ("train", "training.loop")])
def test_first_names_stand_at_the_top(name, module):
    assert getattr(vqgen, name) is getattr(import_module(f"vqgen.{module}"), name)
    assert name in dir(vqgen) and name in vqgen.__all__


def test_the_top_is_light():
    "Importing the package loads none of its modules; a name that is not there is said to be missing."
    code = """
import sys, vqgen
assert vqgen.__doc__ and vqgen.__version__ and {"Pipeline", "train"} <= {*dir(vqgen)}
assert "torch" not in sys.modules and not [name for name in sys.modules if name.startswith("vqgen.")]
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
    with pytest.raises(AttributeError, match="'vqgen'.*'Pipelin'"): getattr(vqgen, "Pipelin")   # noqa: B009


def test_every_package_says_what_it_holds():
    for path in (ROOT / "vqgen").rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), path


def test_command_and_python_version():
    "The installed package has the command, and refuses a Python that is too old."
    [command] = entry_points(group="console_scripts", name="vqgen")
    assert command.value == "vqgen.cli:main"
    assert metadata("vqgen")["Requires-Python"] == f">={settings()['min_python']}" == ">=3.10"
