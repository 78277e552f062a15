"A line, a function and a class that fit the eye."
import ast

import nbformat
import pytest
from paths import NOTEBOOKS, ROOT

LINE, FUNCTION, CLASS = 110, 40, 60
FILES = sorted(path for folder in ("vqgen", "tests", "tools") for path in (ROOT / folder).rglob("*.py")
               if path.name != "_modidx.py")


def exported_names(tree):
    "The numbers of the lines of `__all__`, which nbdev writes."
    assignments = [node for node in tree.body if isinstance(node, ast.Assign)]
    lists = [node for node in assignments if getattr(node.targets[0], "id", "") == "__all__"]
    return {number for node in lists for number in range(node.lineno, node.end_lineno + 1)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module(path):
    text = path.read_text("utf-8")
    tree = ast.parse(text)
    ignored = exported_names(tree)
    long = [n for n, line in enumerate(text.splitlines(), 1) if len(line) > LINE and n not in ignored]
    assert not long, f"lines {long} are longer than {LINE}"
    for node in ast.walk(tree):
        count = getattr(node, "end_lineno", 0) - getattr(node, "lineno", 0) + 1
        if isinstance(node, ast.FunctionDef): assert count <= FUNCTION, f"{node.name} has {count} lines"
        if isinstance(node, ast.ClassDef): assert count <= CLASS, f"{node.name} has {count} lines"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "code": continue
        lines = cell.source.splitlines()
        longest = max(lines, key=len, default="")
        assert len(longest) <= LINE, f"a line of {len(longest)} characters: {longest}"
        limit = CLASS if any(line.startswith("class ") for line in lines) else FUNCTION
        assert len(lines) <= limit, f"a cell of {len(lines)} lines: {lines[1]}"
