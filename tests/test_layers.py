"The package is a house of floors: a module imports from its own floor and from those below, and never in a circle."
import ast
from graphlib import CycleError, TopologicalSorter

import pytest
from paths import ROOT

FLOORS = [{"errors", "files", "config", "placement", "cpu"}, {"data", "vqvae", "viz"}, {"training"}, {"priors", "evaluation"},
          {"pipeline"}, {"experiment"}, {"cli", "__init__", "__main__"}]
ROOMS = {room: number for number, floor in enumerate(FLOORS) for room in floor}
PACKAGE = ROOT / "vqgen"
MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")
           if path.name not in ("_modidx.py",) and not (path.name == "__init__.py" and path.parent != PACKAGE)}


def imported(name):
    "The modules of the package that module `name` imports anywhere, also inside functions."
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            parents = name.split(".")[:-node.level] if node.level else []
            absolute = [*parents, *(node.module or "").split(".")] if node.level else (node.module or "").split(".")
            if not node.level and absolute[0] != "vqgen": continue
            base = [part for part in absolute if part and part != "vqgen"]
            found |= {".".join([*base, alias.name]) for alias in node.names} | {".".join(base)}
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("vqgen.") for alias in node.names if alias.name.startswith("vqgen.")}
    return {module for module in found if module in MODULES and module != name}


GRAPH = {name: imported(name) for name in MODULES}


def floor(module): return ROOMS[module.split(".")[0]]


def test_every_module_has_a_floor(): assert not {name.split(".")[0] for name in MODULES} - ROOMS.keys()


def test_the_graph_is_seen(): assert "errors" in GRAPH["config"] and "priors.brain" in GRAPH["priors.build"]


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down(name):
    upward = sorted(module for module in GRAPH[name] if floor(module) > floor(name))
    assert not upward, f"{name} imports {upward}, which stand above it"


def test_no_circle_of_modules():
    try: TopologicalSorter(GRAPH).prepare()
    except CycleError as fault: pytest.fail(f"modules import each other in a circle: {fault.args[1]}")


def test_no_circle_of_rooms():
    rooms = {room: {module.split(".")[0] for name in MODULES if name.split(".")[0] == room for module in GRAPH[name]} - {room}
             for room in ROOMS}
    try: TopologicalSorter(rooms).prepare()
    except CycleError as fault: pytest.fail(f"rooms import each other in a circle: {fault.args[1]}")
