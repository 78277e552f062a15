"""Run notebooks as on Colab: `python tests/alone.py [NAMES]`, or `make colab NB="NAMES"`.

Each runs in a folder with nothing else in it, in an environment that holds, in Colab's versions, those of its
packages that ours needs (PyTorch alone is that of this Python), and a stand-in for `google.colab`. The first
cell installs the package, here the wheel that is built from this tree. Cells that begin with `#| slow` or
`#| cuda` are left out. The environment is kept in _proc/colab.
"""
import re
import subprocess
import sys
import tempfile
from importlib.metadata import requires
from pathlib import Path

import nbformat
from environments import (
    alone,
    build_archives,
    colab_versions,
    install_uv,
    requirements,
    resolve_on_colab,
    run,
)
from lowest import ELSEWHERE, borrow_torch
from packaging.requirements import Requirement
from paths import NOTEBOOKS, ROOT

sys.path.append(str(ROOT / "tools"))
from colab import raw_address, repository  # noqa: E402

WORK = ROOT / "_proc" / "colab"
KERNEL = ["ipykernel", "ipywidgets", "nbclient", "pip"]
LEFT_OUT = re.compile(r"(#\|.*\n)*#\|\s*(slow|cuda)\b")


def colab_packages(uv, folder):
    "What of Colab's packages is needed here: lines for an installer, without PyTorch."
    beneath = {Requirement(text).name: Requirement(text) for text in requires("torch") if ";" not in text}
    wanted = [*requirements(), *beneath, *KERNEL]
    found = resolve_on_colab(uv, folder, wanted, "--python", sys.executable)
    held = {name: version for name, version in found.items() if name in colab_versions()}
    newer = {name: str(wish) for name, wish in beneath.items() if not wish.specifier.contains(held[name])}
    lines = [f"{name}=={version}" for name, version in held.items() if name not in newer]
    return [line for line in lines if not ELSEWHERE.match(line)] + [*newer.values()]


def colab_environment(folder):
    "A Python with those of Colab's packages that notebooks of this package need, made in `folder` once."
    python = folder / "new" / "bin" / "python"
    if (folder / "ready").exists(): return python
    folder.mkdir(parents=True, exist_ok=True)
    uv = install_uv(folder / "uv")
    run([uv, "venv", "-q", "--no-config", "--clear", "--python", sys.executable, folder / "new"])
    run([uv, "pip", "install", "-q", "--no-config", "--no-deps", "--python", python, "-r", "-"],
        input="\n".join(colab_packages(uv, folder)))
    borrow_torch(python)
    site = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())
    (site / "google" / "colab").mkdir(parents=True)
    (site / "google" / "colab" / "__init__.py").touch()
    (site / "sitecustomize.py").write_text("import google.colab\n")      # as a Colab kernel does
    (folder / "ready").touch()
    return python


def installed(python):
    "What is installed beside `python`: a set of `name==version`."
    return {*run([python, "-m", "pip", "list", "--format", "freeze"], env=alone()).split()}


def run_alone(path, python, wheel, folder):
    "Run the notebook at `path` in `folder`; returns what went wrong, or an empty string."
    url, branch = repository()
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if not LEFT_OUT.match(cell.source)]
    here = {f"git+{url}@{branch}": wheel.as_uri(), raw_address(): ROOT.as_uri()}
    for cell in notebook.cells:
        for address, local in here.items(): cell.source = cell.source.replace(address, local)
    nbformat.write(notebook, folder / path.name)
    command = [python.parent / "jupyter-execute", "--timeout=-1", path.name]
    done = subprocess.run(command, cwd=folder, env=alone(), capture_output=True, text=True)
    return done.stderr[-3000:] if done.returncode else ""


def main(names):
    python = colab_environment(WORK)
    run([python, "-m", "pip", "uninstall", "-q", "-y", "vqgen"], env=alone())
    before, failed = installed(python), []
    with tempfile.TemporaryDirectory() as work:
        build_archives(Path(work, "tree"), Path(work, "out"))
        [wheel] = Path(work, "out").glob("*.whl")
        for path in [path for path in NOTEBOOKS if not names or path.stem in names]:
            with tempfile.TemporaryDirectory() as folder: fault = run_alone(path, python, wheel, Path(folder))
            print(f"{path.stem:24} {'failed' if fault else 'passed'}", flush=True)
            print(fault, end="")
            if fault: failed.append(path.stem)
    if replaced := before - installed(python): sys.exit(f"The first cell has replaced {replaced}.")
    if failed: sys.exit(f"Failed: {' '.join(failed)}.")


if __name__ == "__main__": main(sys.argv[1:])
