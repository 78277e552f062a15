"The front door, 00_start: short, its links lead somewhere, and its map can be read on any page."
from xml.etree import ElementTree

import nbformat
from colab import installation
from paths import ROOT
from readme import LINK

NBS = ROOT / "nbs"
CELLS = nbformat.read(NBS / "00_start.ipynb", as_version=4).cells
SVG = "{http://www.w3.org/2000/svg}"


def drawing():
    "The map: what the notebook shows, by its MIME type, and the drawing, parsed."
    outputs = sum((cell.get("outputs", []) for cell in CELLS), [])
    [found] = [output.data for output in outputs if "image/svg+xml" in output.get("data", {})]
    return found, ElementTree.fromstring(found["image/svg+xml"])


def test_code_is_short():
    "But for the cell that installs, which every notebook has."
    cells = [cell.source for cell in CELLS if cell.cell_type == "code"]
    code = "\n".join(source for source in cells if source != installation("00_start"))
    assert sum(bool(line.strip()) for line in code.split("\n")) < 80


def test_links_exist():
    text = "\n".join(cell.source for cell in CELLS if cell.cell_type == "markdown")
    links = {match[2] for match in LINK.finditer(text)}
    assert len(links) > 30 and not [link for link in links if not (NBS / link).exists()]


def test_boxes_of_the_map_link_to_the_notebooks_they_name():
    boxes = {link.get("href"): [*link.itertext()] for link in drawing()[1].iter(f"{SVG}a")}
    assert len(boxes) > 10
    for href, text in boxes.items(): assert (NBS / href).is_file() and text[-1] == href.removesuffix(".ipynb")


def test_map_is_read_on_dark_and_on_narrow_pages():
    "It brings its paper; a width of its own would be cut off; untrusted, JupyterLab shows the PNG alone."
    shown, tree = drawing()
    [paper, *_] = tree.iter(f"{SVG}rect")
    assert [paper.get(side) for side in ("width", "height")] == tree.get("viewBox").split()[2:]
    assert paper.get("fill") and not tree.get("width") and "image/png" in shown
