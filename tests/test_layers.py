"The package is a house of floors: a module imports from its own floor and those below, never in a circle."
import ast
from graphlib import CycleError, TopologicalSorter

import pytest
from paths import ROOT

from vqgen import _MODULES

FLOORS = [{"errors", "files", "config", "placement"}, {"data", "vqvae", "viz"}, {"training"},
          {"priors", "evaluation"}, {"pipeline", "hub"}, {"experiment", "export", "pictures", "widgets"},
          {"cli", "__init__", "__main__"}]
ROOMS = {}
for number, rooms in enumerate(FLOORS): ROOMS |= dict.fromkeys(rooms, number)
PACKAGE = ROOT / "vqgen"
MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")
           if path.name != "_modidx.py" and (path.name != "__init__.py" or path.parent == PACKAGE)}


def lazily_imported(tree):
    "The modules behind `vqgen.Pipeline` and its like, wherever `tree` imports vqgen as a whole."
    aliases = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import): aliases += node.names
    whole = {alias.asname or "vqgen" for alias in aliases
             if alias.name == "vqgen" or alias.name.startswith("vqgen.") and not alias.asname}
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    names = {node.attr for node in attributes if getattr(node.value, "id", None) in whole}
    return {_MODULES[name] for name in names if name in _MODULES}


def imported(name, tree):
    "The modules of the package that `tree`, that of module `name`, imports anywhere, also inside functions."
    found = lazily_imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            parents = name.split(".")[:-node.level] if node.level else []
            path = (node.module or "").split(".")
            if not node.level and path[0] != "vqgen": continue
            base = [part for part in [*parents, *path] if part and part != "vqgen"]
            names = [alias.name for alias in node.names]
            if not base: names = [_MODULES.get(name, name) for name in names]   # such as vqgen.Pipeline
            found |= {".".join([*base, name]) for name in names} | {".".join(base)}
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            found |= {name.removeprefix("vqgen.") for name in names if name.startswith("vqgen.")}
    return {module for module in found if module in MODULES and module != name}


GRAPH = {name: imported(name, ast.parse(path.read_text("utf-8"))) for name, path in MODULES.items()}


def floor(module): return ROOMS[module.split(".")[0]]


def test_every_module_has_a_floor(): assert not {name.split(".")[0] for name in MODULES} - ROOMS.keys()


def test_the_graph_is_seen(): assert "errors" in GRAPH["config"] and "priors.brain" in GRAPH["priors.build"]


@pytest.mark.parametrize("source", ["from vqgen import Pipeline", "from .. import Pipeline",
                                    "import vqgen\nvqgen.Pipeline()", "import vqgen as v\nv.Pipeline()",
                                    "import vqgen.files\nvqgen.Pipeline()"])
def test_lazy_names_are_seen(source): assert "pipeline" in imported("data.cache", ast.parse(source))


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down(name):
    upward = sorted(module for module in GRAPH[name] if floor(module) > floor(name))
    assert not upward, f"{name} imports {upward}, which stand above it"


def test_no_circle_of_modules():
    try: TopologicalSorter(GRAPH).prepare()
    except CycleError as fault: pytest.fail(f"modules import each other in a circle: {fault.args[1]}")


def test_no_circle_of_rooms():
    rooms = {room: set() for room in ROOMS}
    for name, found in GRAPH.items():
        room = name.split(".")[0]
        rooms[room] |= {module.split(".")[0] for module in found} - {room}
    try: TopologicalSorter(rooms).prepare()
    except CycleError as fault: pytest.fail(f"rooms import each other in a circle: {fault.args[1]}")
