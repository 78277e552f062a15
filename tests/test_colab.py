"Colab: every notebook opens there, installs the package, and finds its runs."
import re

import pytest
from colab import BADGE, DRIVE, colab_address, identifier, installation, notebooks, raw_address, written
from paths import ROOT
from test_export_sync import settings

from vqgen.experiment import runs_folder

FOUND = notebooks()
NAMES = [name for name in FOUND if name != "index"]
TRAINING = ["15_train_vqvae", "39_train_priors", "40_priors.curriculum", "53_naruto"]


def text(name, kind="markdown"):
    "The cells of one kind of the notebook `name`, as one text."
    return "\n".join(cell.source for cell in FOUND[name].cells if cell.cell_type == kind)


@pytest.mark.parametrize("name", FOUND)
def test_head_is_current(name):
    "First the badge, then the cell that installs; the index, which is the README, has no badge."
    kept = [(cell.id, cell.source) for cell in FOUND[name].cells]
    fresh = [(cell.id, cell.source) for cell in written(FOUND[name], name, NAMES)]
    assert kept == fresh, "run `make export`"
    assert kept[0][1].startswith(f"{BADGE}({colab_address(name)}) ") or name == "index"
    assert kept[name != "index"][1] == installation(name)


def test_addresses_are_those_of_the_repository():
    ours = f"{settings()['user']}/{settings()['repo']}"
    branch = settings()["branch"]
    assert settings()["git_url"] == f"https://github.com/{ours}"
    assert colab_address("a") == f"https://colab.research.google.com/github/{ours}/blob/{branch}/nbs/a.ipynb"
    for name in FOUND:
        both = text(name) + text(name, "code")
        for address in re.findall(r"https://colab\.research\.google\.com/github/[^)\s]*", both):
            assert address in map(colab_address, FOUND), f"{name} links to {address}"
        for address in re.findall(r"https://raw\.githubusercontent\.com/[^\"\s]*", both):
            assert (ROOT / address.removeprefix(f"{raw_address()}/")).is_file(), f"{name} fetches {address}"


@pytest.mark.parametrize("name", FOUND)
def test_no_link_leads_to_a_place_in_the_same_notebook(name):
    "JupyterLab calls a heading otherwise than the site does: such a link is dead in one of them."
    assert "](#" not in text(name)


def test_badges_lead_through_all_notebooks_in_order():
    "From the first, `next` comes by each notebook to the last, and `before` comes back."
    def neighbour(name, way):
        line = FOUND[name].cells[0].source
        found = re.search(rf"{way}: \[(.*?)]\((.*?)\)", line)
        assert not found or found[2] == colab_address(found[1])
        return found and found[1]
    assert [neighbour(name, "next") for name in NAMES] == [*NAMES[1:], None]
    assert [neighbour(name, "before") for name in NAMES] == [None, *NAMES[:-1]]


@pytest.mark.parametrize("name", FOUND)
def test_nothing_is_looked_for_beside_the_notebooks(name):
    "On Colab a notebook is alone; 53_naruto fetches a file that is not there."
    cells = [cell.source for cell in FOUND[name].cells if cell.cell_type == "code"]
    code = "\n".join(source for source in cells if not source.startswith("#| export"))
    assert {*re.findall(r"Path\(f?\"(\.\./[^\"]*)", code)} <= {"../tests/naruto_standin.py"}


@pytest.mark.parametrize("name", TRAINING)
def test_trainings_are_kept_on_drive_and_say_what_they_take(name):
    "Once, before the first of them; the figures are those of the table in 53_naruto."
    cells = FOUND[name].cells
    [place] = [number for number, cell in enumerate(cells) if cell.id == identifier(name, "drive")]
    first = next(number for number, cell in enumerate(cells) if re.search(r"runs_folder\(\) /", cell.source))
    assert cells[place].source == DRIVE and place < first
    [told] = re.findall(r"\*\*([\d.]+) minutes and ([\d.]+) GB\*\*", cells[place - 1].source)
    outputs = sum((cell.get("outputs", []) for cell in FOUND["53_naruto"].cells), [])
    tables = [output.data["text/markdown"] for output in outputs if "text/markdown" in output.get("data", {})]
    rows = re.findall(r"^\| (\S+) \| .* \| ([\d.]+) \| ([\d.]+) \|$", "\n".join(tables), re.MULTILINE)
    assert {row[0]: row[1:] for row in rows}[name] == told


def test_runs_are_found_where_commands_put_them(tmp_path, monkeypatch):
    "Beside `nbs` in a clone, and here in any other folder, also in one of that name."
    for folder in ("clone/nbs", "other/nbs"): (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "clone" / "settings.ini").touch()
    places = {"clone/nbs": "clone/runs", "clone": "clone/runs", "other/nbs": "other/nbs/runs"}
    for folder, runs in places.items():
        monkeypatch.chdir(tmp_path / folder)
        assert runs_folder().resolve() == tmp_path / runs
