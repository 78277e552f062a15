"What contributors are told holds: the commands exist, CI runs them, and version and licence are the same."
import ast
import os
import re
import shlex

import pytest
import yaml
from paths import ROOT
from readme import LINK
from test_export_sync import settings
from test_limits import CLASS, FUNCTION, LINE

GITHUB = ROOT / ".github"
CONTRIBUTING = GITHUB / "CONTRIBUTING.md"
YAML = [*sorted(GITHUB.rglob("*.yml")), ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff"]
TARGETS = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)


def parsed(path): return yaml.safe_load(path.read_text("utf-8"))


def commands():
    "The lines of shell in CONTRIBUTING.md, each as a list of words, without comments."
    [block] = re.findall(r"```sh\n(.*?)```", CONTRIBUTING.read_text("utf-8"), re.DOTALL)
    return [shlex.split(line, comments=True) for line in block.splitlines()]


def exists(words):
    "Whether the command `words` can be given in a clone, after `make`."
    program, *arguments = words
    if program == "git": return arguments[:2] == ["clone", settings()["git_url"]]
    if program == "make":
        [target, *options] = arguments
        notebooks = [option.removeprefix("NB=") for option in options]
        return target in TARGETS and all((ROOT / "nbs" / f"{name}.ipynb").is_file() for name in notebooks)
    tool = program.removeprefix(".venv/bin/")
    return tool in settings()["dev_requirements"].split() or os.access(ROOT / program, os.X_OK)


def test_ci_runs_what_a_contributor_can_run():
    "One job: the tree, a Python that vqgen supports, and .ci/run; it ends even where a test hangs."
    workflow = parsed(GITHUB / "workflows" / "ci.yml")
    assert workflow[True] == ["push", "pull_request"]            # YAML 1.1 takes `on` for true
    [job] = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"] and exists([".ci/run"])
    assert 0 < job["timeout-minutes"] < 360                      # 360 is what GitHub grants unasked
    actions = [step["uses"].split("@") for step in job["steps"] if "uses" in step]
    assert [name for name, _ in actions] == ["actions/checkout", "actions/setup-python"]
    assert all(re.fullmatch(r"v\d+", version) for _, version in actions)
    [python] = [step["with"]["python-version"] for step in job["steps"] if "with" in step]
    assert python == "3.11"                                      # a string: 3.10 would be the number 3.1


def test_contributors_need_five_commands():
    assert len(commands()) == 5
    missing = [words for words in commands() if not exists(words)]
    assert not missing, f"CONTRIBUTING.md names {missing}, which do not exist"


def test_contributors_read_the_limits_and_find_the_files():
    text = CONTRIBUTING.read_text("utf-8")
    said = re.search(r"(\d+) characters, .* (\d+) lines, .* (\d+);", text)
    assert [*map(int, said.groups())] == [LINE, FUNCTION, CLASS]
    paths = [ROOT / path for path in re.findall(r"`((?:tests|nbs|vqgen|\.\w)[^` ]*)`", text)]
    paths += [GITHUB / match[2] for match in LINK.finditer(text)]
    assert len(paths) > 5 and not [path for path in paths if not path.exists()]


def test_citation_is_of_this_package():
    citation, ours = parsed(ROOT / "CITATION.cff"), settings()
    assert citation["cff-version"] == "1.2.0" and citation["message"]
    assert citation["version"] == ours["version"] and citation["repository-code"] == ours["git_url"]
    assert citation["authors"] == [{"name": ours["author"]}]
    licence = " ".join((ROOT / "LICENSE").read_text("utf-8").split())
    assert licence.startswith("Apache License Version 2.0")
    assert (ours["license"], citation["license"]) == ("apache2", "Apache-2.0")


def test_changelog_tells_of_the_version():
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert "## [Unreleased]" in text and settings()["version"] in text
    kinds = re.findall(r"^### (.*)", text, re.MULTILINE)
    assert kinds and {*kinds} <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_yaml_can_be_read(path): assert isinstance(parsed(path), dict)


def test_forms_ask_each_thing_once():
    "A form that GitHub cannot use is left out in silence."
    for path in GITHUB.glob("ISSUE_TEMPLATE/*.yml"):
        if path.name == "config.yml": continue
        form = parsed(path)
        assert form["name"] and form["description"], path.name
        assert {field["type"] for field in form["body"]} <= {"textarea", "input"}, path.name
        for names in ([field["id"] for field in form["body"]],
                      [field["attributes"]["label"] for field in form["body"]]):
            assert len({*names}) == len(names), path.name


def test_hooks_are_the_commands_of_the_project():
    [repository] = parsed(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local" and len(repository["hooks"]) == 2
    for hook in repository["hooks"]:
        assert hook["language"] == "system" and exists(shlex.split(hook["entry"])), hook["id"]


def test_no_pickle_is_loaded():
    "The package imports nothing that unpickles; torch.load and np.load are told to refuse pickles."
    for path in (ROOT / "vqgen").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            if isinstance(node, ast.ImportFrom): names = {node.module}
            assert not names & {"pickle", "cloudpickle", "dill", "joblib", "shelve"}, path.name
            if not isinstance(node, ast.Call): continue
            told = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
            called = ast.unparse(node.func)
            assert called != "torch.load" or told.get("weights_only") is True, path.name
            assert called != "np.load" or told.get("allow_pickle") is False, path.name
