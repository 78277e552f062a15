"Notebooks, package, README and settings say the same thing."
import ast
import json
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path

import nbformat
import pytest
from paths import NOTEBOOKS, ROOT
from readme import LINK, from_root, readme_text

by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def settings():
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def nbdev(command, folder):
    "Run an nbdev command in `folder`: nbdev 2 spells it nbdev_export, nbdev 3 nbdev-export."
    bin = Path(sys.executable).parent
    program = next((bin / f"nbdev{mark}{command}" for mark in "_-" if (bin / f"nbdev{mark}{command}").exists()), None)
    assert program, f"no nbdev_{command} beside {sys.executable}: run `make test`"
    subprocess.run([program], cwd=folder, check=True, timeout=300)


def modules(root):
    "The bytes of every module below `root`/vqgen, by name."
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted((root / "vqgen").rglob("*.py"))}


@pytest.fixture
def copy(tmp_path):
    "The tree without the package's modules; the version stands in vqgen/__init__.py, which nbdev 3 would make up."
    (tmp_path / "vqgen").mkdir()
    for name in ("settings.ini", "pyproject.toml", "setup.py", "vqgen/__init__.py"): shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "nbs", tmp_path / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    return tmp_path


def test_export_is_current(copy):
    "Exported anew into an empty package, the notebooks give every module as it stands, _modidx.py included."
    nbdev("export", copy)
    fresh, kept = modules(copy), modules(ROOT)
    assert sorted(kept) == sorted(fresh), "modules and notebooks do not pair up: run `make export`"
    stale = [name for name in fresh if fresh[name] != kept[name]]
    assert not stale, f"{stale} differ from their notebooks: edit the notebook, then run `make export`"


def test_notebooks_are_clean(copy):
    before = {path.name: json.loads(path.read_bytes()) for path in (copy / "nbs").glob("*.ipynb")}
    nbdev("clean", copy)
    dirty = [name for name in before if json.loads((copy / "nbs" / name).read_bytes()) != before[name]]
    assert not dirty, f"{dirty} hold what nbdev_clean removes: run `make export`"


def test_readme_is_current():
    assert (ROOT / "README.md").read_text("utf-8") == readme_text(), "README.md is stale: run `make export`"


def test_readme_links_exist():
    links = {match[2] for match in LINK.finditer(readme_text())}
    assert links, "the README links to nothing: the pattern is wrong"
    missing = sorted(link for link in links if not (ROOT / link).exists())
    assert not missing, f"the README links to {missing}, which do not exist"


def test_readme_links_are_rewritten():
    text = "[a](60_data.datasets.ipynb#top) ![b](images/b.png) [c](../LICENSE) [d](https://x.org/y) [e](#here) <img src=\"images/e.png\">"
    assert LINK.sub(from_root, text) == (
        "[a](nbs/60_data.datasets.ipynb#top) ![b](nbs/images/b.png) [c](LICENSE) [d](https://x.org/y) [e](#here) <img src=\"nbs/images/e.png\">")


def test_index_lists_every_notebook():
    index = (ROOT / "nbs" / "index.ipynb").read_text("utf-8")
    assert not [path.name for path in NOTEBOOKS if path.stem != "index" and f"({path.name})" not in index]


def test_test_flags_agree():
    "nbdev 2 reads them in settings.ini, nbdev 3 in pyproject.toml."
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    assert re.search(r'^tst_flags = "(.*)"$', text, re.MULTILINE)[1] == settings()["tst_flags"]


def test_version_agrees():
    import vqgen
    assert vqgen.__version__ == settings()["version"]


@by_name
def test_notebook_was_run(path):
    "Saved with what it prints and draws, without errors, and small."
    assert path.stat().st_size < 1_500_000, "larger than 1.5 MB: draw fewer or smaller pictures"
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert not any(output.output_type == "error" for output in outputs), "an error is saved in it"
    assert not any("application/vnd.jupyter.widget-view+json" in output.get("data", {}) for output in outputs), (
        "a progress bar is saved as a widget, which GitHub cannot show: run the notebook again, or hide the bar")
    assert outputs or path.stem == "index", f"saved without outputs: run `make notebooks NB={path.stem}`"


@by_name
def test_cells_are_short(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            count = len(cell.source.splitlines())
            assert count <= 40, f"a cell of {count} lines: {cell.source.splitlines()[1]}"


def test_import_is_light():
    "No module loads at import what only some commands need."
    heavy = ["transformers", "datasets", "wandb", "matplotlib"]
    code = f"""
import importlib, pkgutil, sys, vqgen
for name in ["vqgen", *(m.name for m in pkgutil.walk_packages(vqgen.__path__, "vqgen."))]:
    importlib.import_module(name)
    loaded = [h for h in {heavy} if h in sys.modules]
    if loaded: sys.exit(f"import {{name}} loads {{loaded}}: import them inside the functions that need them")
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr


def plain(name):
    "The name of a requirement, as the package index compares names."
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", name)[0]).lower()


def test_requirements_are_pinned():
    lines = [line for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if line and line[0] != "#"]
    assert all("==" in line for line in lines)
    wanted = (settings()["requirements"] + " " + settings()["dev_requirements"]).split()
    missing = sorted({plain(name) for name in wanted} - {plain(line) for line in lines})
    assert not missing, f"{missing} stand in settings.ini, but not in constraints.txt"


def test_imports_are_required():
    "What the package imports, at the top or inside a function, stands in settings.ini; what is of the extra `distances` may be missing here."
    required = set(map(plain, (settings()["requirements"] + " " + settings()["distances_requirements"]).split()))
    owners = packages_distributions()
    for path in (ROOT / "vqgen").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else \
                [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for top in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"vqgen"}:
                assert required & set(map(plain, owners.get(top, [top]))), f"{path.name} imports {top}, which settings.ini does not require"
