"nbdev 3, in an environment of its own, makes the same modules of the notebooks, and runs them."
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from paths import ROOT

pytestmark = pytest.mark.slow
GENERATED = {path.name for path in (ROOT / "vqgen").rglob("*.py")} - {"__init__.py", "__main__.py"}
NOTEBOOKS = ("71_training.batches", "80_errors", "82_config")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    "The programs of an environment with nbdev 3, which finds everything else where the tests run."
    folder = tmp_path_factory.mktemp("nbdev3")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=300)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "nbdev>=3,<4"], check=True, timeout=600)
    packages = subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], check=True,
                              capture_output=True, text=True, timeout=60).stdout.strip()
    (Path(packages) / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n", "utf-8")
    return folder / "bin"


@pytest.fixture(scope="module")
def exported(environment, tmp_path_factory):
    "A copy of the project whose modules nbdev 3 has made."
    root = tmp_path_factory.mktemp("copy")
    for name in ("settings.ini", "pyproject.toml", "setup.py"): shutil.copy(ROOT / name, root)
    shutil.copytree(ROOT / "nbs", root / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    shutil.copytree(ROOT / "vqgen", root / "vqgen", ignore=lambda _, names: [name for name in names if name in GENERATED])
    subprocess.run([environment / "nbdev-export"], cwd=root, check=True, timeout=300)
    return root


def test_export_is_the_same(exported):
    made = {str(path.relative_to(exported)): path.read_bytes() for path in (exported / "vqgen").rglob("*.py")}
    made.pop("vqgen/_modidx.py")
    assert len(made) > 30 and made == {path: (ROOT / path).read_bytes() for path in made}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs(environment, exported, name):
    subprocess.run([environment / "nbdev-test", f"nbs/{name}.ipynb", "--n-workers", "0"], cwd=exported, check=True, timeout=300)
