"A line, a function and a class that fit the eye, and a line that does one thing."
import ast
from itertools import chain

import nbformat
import pytest
from paths import NOTEBOOKS, ROOT

LINE = 110
FUNCTION, CLASS = 40, 60
FOLDERS = ("vqgen", "tests", "tools")
FILES = [path for path in sorted(chain.from_iterable((ROOT / folder).rglob("*.py") for folder in FOLDERS))
         if path.name != "_modidx.py"]
ONE_VALUE = (ast.Call, ast.Attribute, ast.Name, ast.Subscript, ast.BinOp, ast.GeneratorExp)


def crowded_assignments(tree):
    "Assignments of three or more values to as many names; one value may be unpacked."
    assignments = [node for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    several = [node for node in assignments if not isinstance(node.value, ONE_VALUE)]
    return [node.lineno for node in several if any(len(getattr(t, "elts", ())) > 2 for t in node.targets)]


def double_comprehensions(tree):
    "Comprehensions with two or more `for`."
    return [node.lineno for node in ast.walk(tree) if len(getattr(node, "generators", ())) > 1]


def nested_ternaries(tree):
    "A conditional expression within another."
    ternaries = [node for node in ast.walk(tree) if isinstance(node, ast.IfExp)]
    return [node.lineno for node in ternaries
            if sum(isinstance(part, ast.IfExp) for part in ast.walk(node)) > 1]


RULES = (crowded_assignments, double_comprehensions, nested_ternaries)


def exported_names(tree):
    "The numbers of the lines of `__all__`, which nbdev writes."
    assignments = [node for node in tree.body if isinstance(node, ast.Assign)]
    lists = [node for node in assignments if getattr(node.targets[0], "id", "") == "__all__"]
    return set().union(*(range(node.lineno, node.end_lineno + 1) for node in lists))


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


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_line_does_one_thing(path):
    tree = ast.parse(path.read_text("utf-8"))
    for rule in RULES:
        lines = rule(tree)
        assert not lines, f"lines {lines}: {rule.__doc__}"


@pytest.mark.parametrize("rule, crowded, plain", [
    (crowded_assignments, "a, b, c = x, y, z", "a, b, c = x.shape"),
    (crowded_assignments, "a, b, c = (1, 2, 3) if x else (4, 5, 6)", "for a, b, c in x: d, e = a, b"),
    (double_comprehensions, "[a for b in c for a in b]", "[[a for a in b] for b in c]"),
    (nested_ternaries, "a if b else c if d else e", "[a if b else c, d if e else f]")])
def test_rules_tell_crowded_from_plain(rule, crowded, plain):
    assert rule(ast.parse(crowded)) == [1] and rule(ast.parse(plain)) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "code": continue
        lines = cell.source.splitlines()
        longest = max(lines, key=len, default="")
        assert len(longest) <= LINE, f"a line of {len(longest)} characters: {longest}"
        limit = CLASS if any(line.startswith("class ") for line in lines) else FUNCTION
        assert len(lines) <= limit, f"a cell of {len(lines)} lines: {lines[1]}"
