"What `pip install` puts on a machine is whole."
import shutil
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import entry_points, metadata

import pytest
from paths import ROOT


@pytest.mark.parametrize("readme", [True, False], ids=["with README", "without README"])
def test_build_holds_modules_presets_and_weights(tmp_path, readme):
    tree, out = tmp_path / "tree", tmp_path / "out"
    shutil.copytree(ROOT / "vqgen", tree / "vqgen", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "settings.ini", "LICENSE") + ("README.md",) * readme: shutil.copy(ROOT / name, tree)
    subprocess.run([sys.executable, "setup.py", "-q", "build", "--build-base", out], cwd=tree, check=True, capture_output=True)

    def names(root): return sorted(str(path.relative_to(root)) for path in (root / "vqgen").rglob("*") if path.suffix in (".py", ".yaml", ".json", ".safetensors"))
    assert names(out / "lib") == names(ROOT)
    assert {"vqgen/configs/avatars.yaml", "vqgen/trained/avatars-hour/cftn-v2/model.safetensors"} <= {*names(out / "lib")}


def test_command_and_python_version():
    "The installed package has the command, and refuses a Python that is too old."
    assert [point.value for point in entry_points(group="console_scripts", name="vqgen")] == ["vqgen.cli:main"]
    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    assert metadata("vqgen")["Requires-Python"] == f">={settings['DEFAULT']['min_python']}" == ">=3.10"
