"How many minutes the notebooks take to read: `python tools/minutes.py` writes the table of 00_start."
import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
WORDS, LINES = 200, 15     # read in a minute: of text, of code; assumed, not measured
SHORT_PATH = ("00_start", "10_vqvae.encoder", "11_vqvae.quantizer", "36_priors.cftn", "37_priors.brain",
              "41_one_shot")
CELL = "00a000f0"          # the cell of 00_start that holds the table


def words(text):
    "How many words there are in `text`; the bars of a table are none."
    return sum(any(letter.isalnum() for letter in word) for word in text.split())


def lines_of_code(text):
    "How many lines there are in `text` that are to be read: no import, no empty line, no `#|` line."
    lines = [line.strip() for line in text.splitlines()]
    return sum(bool(line) and not re.match(r"#\||import |from ", line) for line in lines)


def minutes(path, exported=True):
    "How many minutes it takes to read the notebook at `path`, with or without the cells that it exports."
    cells = nbformat.read(path, as_version=4).cells
    text = sum(words(cell.source) for cell in cells if cell.cell_type == "markdown")
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    code = [source for source in code if exported or not re.match(r"#\|\s*export", source)]
    return text / WORDS + sum(map(lines_of_code, code)) / LINES


def paths(root=ROOT):
    "For each notebook its name and its minutes on the two paths: a dict of `(short or None, long)`."
    found = sorted((root / "nbs").glob("[0-5]*.ipynb"))
    short = {path.stem: minutes(path, exported=False) for path in found if path.stem in SHORT_PATH}
    return {path.stem: (short.get(path.stem), minutes(path)) for path in found}


def table(rows):
    "The two paths as a table in Markdown."
    cells = [(f"[{name}]({name}.ipynb)", "" if short is None else f"{short:.0f}", f"{long:.0f}")
             for name, (short, long) in rows.items()]
    short, long = (sum(row[place] or 0 for row in rows.values()) / 60 for place in (0, 1))
    cells.append(("**together**", f"**{short:.1f} hours**", f"**{long:.1f} hours**"))
    head = ["| notebook | short path: minutes | long path: minutes |", "|---|---|---|"]
    return "\n".join(head + [f"| {' | '.join(row)} |" for row in cells])


def written(root=ROOT):
    "The notebook 00_start, and its cell with the table."
    notebook = nbformat.read(root / "nbs" / "00_start.ipynb", as_version=4)
    [cell] = [cell for cell in notebook.cells if cell.id == CELL]
    return notebook, cell


if __name__ == "__main__":
    notebook, cell = written()
    cell.source = table(paths())
    print(cell.source)
    nbformat.write(notebook, ROOT / "nbs" / "00_start.ipynb")
