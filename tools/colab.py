"""Colab: `python tools/colab.py` writes the head of each notebook, with which it opens and runs there.

The head is a line of links (in all but the index, which is the README) and a cell that installs the package.
Notebooks that train in earnest have a cell `DRIVE`, too, where they need it, the same in all of them.

Links in the text stay relative: so they work in JupyterLab without a network, on GitHub and on the site. On
Colab they work in a notebook opened from GitHub (googlecolab/colabtools, issue 3877), not in a copy saved to
Drive. There the line at the head leads on: its addresses are in full.
"""
import hashlib
from configparser import ConfigParser
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
DRIVE = """#| slow
import os
import sys

drive_folder = "/content/drive/MyDrive/vqgen"
if "google.colab" in sys.modules:   # elsewhere runs stay where they are
    from google.colab import drive
    drive.mount("/content/drive")
    os.makedirs(drive_folder, exist_ok=True)
    os.chdir(drive_folder)"""


def repository():
    "The address of the repository and its branch, as settings.ini has them."
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]["git_url"], parser["DEFAULT"]["branch"]


def colab_address(name):
    "Where Colab opens the notebook `name`."
    url, branch = repository()
    on_colab = url.replace("https://github.com/", "https://colab.research.google.com/github/")
    return f"{on_colab}/blob/{branch}/nbs/{name}.ipynb"


def raw_address():
    "What the addresses of the repository's files begin with, as files."
    url, branch = repository()
    return f"{url.replace('https://github.com/', 'https://raw.githubusercontent.com/')}/{branch}"


def links(name, names):
    "The badge of the notebook `name`, and the way to its neighbours in the list `names`, on Colab."
    place = names.index(name)
    around = [("before", names[place - 1:place]), ("next", names[place + 1:place + 2])]
    ways = [f"{way}: [{found[0]}]({colab_address(found[0])})" for way, found in around if found]
    everything = f"[all notebooks]({colab_address('index')})"
    return f"{BADGE}({colab_address(name)}) On Colab: {' · '.join([*ways, everything])}"


def installation(name):
    "The cell of the notebook `name` that installs the package on Colab."
    url, branch = repository()
    extras = "distances,export" if "_export." in name else "distances"
    return f"""#| hide
import sys

if "google.colab" in sys.modules:   # elsewhere nothing is installed
    %pip install -q "vqgen[{extras}] @ git+{url}@{branch}\""""


def identifier(name, kind):
    "The id of a cell of the notebook `name` that this tool writes."
    return hashlib.sha256(f"{name} {kind}".encode()).hexdigest()[:8]


def head(name, names):
    "The cells with which the notebook `name`, one of `names` or the index, begins."
    folded = {"jupyter": {"source_hidden": True}}              # in JupyterLab, which has no use for it
    cells = [nbformat.v4.new_code_cell(installation(name), metadata=folded)]
    if name in names: cells.insert(0, nbformat.v4.new_markdown_cell(links(name, names)))
    for cell in cells: cell.id = identifier(name, cell.cell_type)
    return cells


def notebooks():
    "The notebooks by name, the index last."
    paths = sorted((ROOT / "nbs").glob("*.ipynb"), key=lambda path: (path.stem == "index", path.stem))
    return {path.stem: nbformat.read(path, as_version=4) for path in paths}


def written(notebook, name, names):
    "The cells that the `notebook` of that `name`, one of `names` or the index, should have."
    cells = head(name, names)
    made = {cell.id for cell in cells}
    body = [cell for cell in notebook.cells if cell.id not in made]
    for cell in body:
        if cell.id == identifier(name, "drive"): cell.source = DRIVE
    return [*cells, *body]


if __name__ == "__main__":
    found = notebooks()
    names = [name for name in found if name != "index"]
    for name, notebook in found.items():
        notebook.cells = written(notebook, name, names)
        nbformat.write(notebook, ROOT / "nbs" / f"{name}.ipynb")
