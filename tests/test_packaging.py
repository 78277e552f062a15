"What `pip install` puts on a machine is whole."
import ast
import shutil
import subprocess
import sys
import tarfile
from configparser import ConfigParser
from importlib import import_module
from importlib.metadata import entry_points, metadata

import pytest
from paths import ROOT

import vqgen

SUFFIXES = (".py", ".yaml", ".json", ".safetensors", ".typed")


def names(root):
    "What of the package is below `root`, by its path."
    paths = (root / "vqgen").rglob("*")
    return sorted(str(path.relative_to(root)) for path in paths if path.suffix in SUFFIXES)


def build(tree, *arguments):
    command = [sys.executable, "setup.py", "-q", *map(str, arguments)]
    subprocess.run(command, cwd=tree, check=True, capture_output=True)


@pytest.mark.parametrize("readme", [True, False], ids=["with README", "without README"])
def test_build_holds_modules_presets_and_weights(tmp_path, readme):
    tree, out = tmp_path / "tree", tmp_path / "out"
    shutil.copytree(ROOT / "vqgen", tree / "vqgen", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "settings.ini", "LICENSE", "MANIFEST.in", "constraints.txt"):
        shutil.copy(ROOT / name, tree)
    if readme: shutil.copy(ROOT / "README.md", tree)
    build(tree, "build", "--build-base", out)
    assert names(out / "lib") == names(ROOT)
    assert {"vqgen/configs/avatars.yaml", "vqgen/trained/avatars-hour/cftn-v2/model.safetensors",
            "vqgen/py.typed", "vqgen/__main__.py"} <= {*names(out / "lib")}

    build(tree, "sdist", "--dist-dir", out)
    with tarfile.open(next(out.glob("*.tar.gz"))) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {*names(ROOT), "setup.py", "settings.ini"} <= held, "the source archive is not whole"


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
    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    assert metadata("vqgen")["Requires-Python"] == f">={settings['DEFAULT']['min_python']}" == ">=3.10"
