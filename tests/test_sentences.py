"Every sentence in the package says what is wrong and what to do; here they are collected from its code."
import ast
import itertools
import re

import pytest
from paths import ROOT
from sentences import LENGTH, complaints

from vqgen.errors import VQGenError

HOLE = "ten letters"                          # stands for what is filled in
FLAGS = re.compile(r"--(run|fresh|stage|prior)\b")
# a sentence tells a way out where it has one of these words, or says what has to be, or how to go on
WAY_OUT = re.compile(
    r"\b(add|ask|change|check|choose|convert|correct|decode|delete|describe|download|did you mean|divide|"
    r"encode|end|free|give|goes on|install|leave|log in|lower|make|mend|must|name|needs?|pass|pip|put|raise|"
    r"reads|remove|rename|restore|say|save|set|sets|start|stop|takes?|train|try|use|wait|write)\b")


def template(node):
    "The text of a sentence with `HOLE` for each thing filled in; None where the code does not show it."
    if isinstance(node, ast.Constant): return str(node.value)
    if isinstance(node, ast.JoinedStr): return "".join(template(part) for part in node.values)
    if isinstance(node, ast.FormattedValue): return HOLE
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (template(node.left) or HOLE) + (template(node.right) or HOLE)
    return None


def raised(path):
    "`(path, line, text)` of each sentence in the module at `path`."
    tree = ast.parse(path.read_text("utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args
             and getattr(node.func, "id", "") == "VQGenError"]
    return [(path.relative_to(ROOT), call.lineno, text) for call in calls if (text := template(call.args[0]))]


SENTENCES = list(itertools.chain.from_iterable(map(raised, sorted((ROOT / "vqgen").rglob("*.py")))))


@pytest.mark.parametrize("path, line, text", SENTENCES, ids=lambda value: str(value)[:60])
def test_a_sentence_is_short_and_says_what_to_do(path, line, text):
    assert not complaints(text), (text, complaints(text))
    whole = text.count(HOLE) * len(HOLE) < 0.6 * len(text)     # else what is filled in says it
    assert not whole or WAY_OUT.search(text), f"no way out: {text}"


@pytest.mark.parametrize("path, line, text", SENTENCES, ids=lambda value: str(value)[:60])
def test_a_sentence_of_the_library_names_no_flag_of_the_command(path, line, text):
    if path.name != "cli.py": assert not FLAGS.search(text), text


def test_sentences_are_found():
    assert len(SENTENCES) > 80


@pytest.mark.parametrize("text, part", [
    ("/a/b.png is damaged: restore /a/b.png, or choose another file", "twice"), ("KeyError", "characters"),
    ("two\nlines that say what to do about a fault", "one line"), ("choose " + "x" * LENGTH, "characters")])
def test_what_is_no_sentence_is_found_out(text, part): assert part in " ".join(complaints(text))


def test_a_long_path_counts_as_its_name():
    assert not complaints("/" + "long/" * 100 + "x.png is no picture: give a PNG or JPEG file")


def test_a_notebook_shows_the_sentence_alone():
    "What Jupyter shows of an error, as IPython 7 (Colab) and newer ones ask for it."
    assert VQGenError("give one")._render_traceback_() == ["VQGenError: give one"]
