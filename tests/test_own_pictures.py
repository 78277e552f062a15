"What 52_own_pictures tells of files, keys and options is so: its tables are read, and the package is asked."
import ast
import re
import shlex
from itertools import chain

import nbformat
import pytest
import typer
from paths import ROOT

from vqgen.cli import app
from vqgen.config import config_model, load_config
from vqgen.data import sources

CELLS = nbformat.read(ROOT / "nbs" / "52_own_pictures.ipynb", as_version=4).cells
TEXT = "\n".join(cell.source for cell in CELLS if cell.cell_type == "markdown")
COMMANDS = typer.main.get_command(app).commands.values()
OPTIONS = set(chain.from_iterable(option.opts for option in chain.from_iterable(c.params for c in COMMANDS)))


def table(head):
    "The rows of the table whose first line begins with `head`, each as its cells."
    lines = TEXT.split(f"\n| {head} |")[1].split("\n")[2:]
    rows = [line.strip("| ").split(" | ") for line in lines[:lines.index("")]]
    assert len(rows) > 4, head
    return rows


def is_key(name):
    "Whether the dotted `name` is one of a config; one without a dot, of a section of training or of data."
    if "." not in name: return is_key(f"vqvae.train.{name}") or is_key(f"cftn_v2.model.{name}")
    part = config_model()
    for key in name.split("."):
        fields = getattr(part, "model_fields", {})
        part = fields[key].annotation if key in fields else None
    return part is not None


@pytest.mark.parametrize("head, column", [("what to do", 1), ("key", 0)])
def test_keys_and_options_exist(head, column):
    named = re.findall("`(.+?)`", " ".join(row[column] for row in table(head)))
    names = [re.split("[: ]", name)[0] for name in named if not name.startswith("vqgen ")]
    assert names
    missing = [name for name in names if not (name in OPTIONS if name[0] == "-" else is_key(name))]
    assert not missing, f"52_own_pictures names {missing}, which do not exist"


def test_files_it_names_are_read():
    formats = re.search("Pictures may be (.*?), of any size", TEXT)[1]
    names = {f".{name.lower()}" for name in re.split(", | or ", formats)}
    assert len(names) > 5 and names <= sources._PICTURES
    named = re.findall(r"`(\.\w+)`", " ".join(row[0] for row in table("your files")))
    assert len(named) > 2 and {*named} <= {*sources._LOADERS, ".tsv"}


def test_a_nonsense_key_would_be_found():
    assert is_key("data.image_size") and not is_key("data.image_sizes") and not is_key("steps.more")


def test_the_block_for_photographs_can_be_copied():
    "Its commands exist, its changes are those of the cell below it, and no tracker hears of the pictures."
    [block] = [part for part in TEXT.split("```") if part.startswith("\n%pip")]
    config, *others = [shlex.split(line[1:]) for line in block.splitlines() if line.startswith("!")]
    assert [words[1] for words in others] == ["data", "train", "train", "generate", "evaluate"]
    assert config[:3] == ["vqgen", "config", "naruto"] and config[-2:] == [">", "photos.yaml"]
    options = [name.removeprefix("--") for name in config[3:-2]]
    changes = dict(zip(options[::2], options[1::2]))
    [cell] = [cell.source for cell in CELLS if cell.source.startswith("changes = ")]
    told = ast.literal_eval(ast.parse(cell).body[0].value)
    assert changes == {name: str(value) for name, value in told.items()}
    assert load_config("naruto", changes).tracking.mode == "off"
