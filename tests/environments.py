"Environments of other Pythons and other versions, made by uv, which is much faster at it than pip."
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

from packaging.utils import canonicalize_name
from paths import ROOT

# uv takes what PyTorch needs to be there: Colab's builds, and those for CPUs, are not those of the index.
WITHOUT_CUDA = '[[dependency-metadata]]\nname = "torch"\nrequires-dist = []\n'


def settings():
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def requirements(key="requirements"):
    "What the package requires, or what an extra does, as settings.ini lists it under `key`."
    return settings()[key].split()


def colab_versions():
    "What a Colab runtime holds: a dict from names to versions, without what comes after a `+`."
    lines = (ROOT / "tests" / "data" / "colab.txt").read_text("utf-8").splitlines()
    pairs = [line.split("+")[0].split("==") for line in lines if line and line[0] != "#"]
    return {canonicalize_name(name): version for name, version in pairs}


def run(command, **options):
    "Run `command` to its end, or fail with what it printed; returns its output."
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def install_uv(folder):
    "The command uv, put into `folder` where there is none."
    if found := shutil.which("uv"): return found
    if not (folder / "bin" / "uv").exists():
        run([sys.executable, "-m", "pip", "install", "-q", "--target", folder, "uv"])
    return folder / "bin" / "uv"


def new_environment(uv, folder, python=sys.executable):
    "An empty environment in `folder`, with the command `vqgen` of this tree; returns its Python."
    run([uv, "venv", "-q", "--no-config", "--python", python, folder])
    python = folder / "bin" / "python"
    command = folder / "bin" / "vqgen"
    command.write_text(f"#!{python}\nimport sys\nfrom vqgen.cli import main\nsys.exit(main())\n")
    command.chmod(0o755)
    return python


def resolve_on_colab(uv, folder, wanted, *options):
    """The versions that `wanted` and all that it needs have on Colab, a dict by name.

    Fails where a version that Colab holds would have to change.
    """
    (folder / "held.txt").write_text("\n".join(map("==".join, colab_versions().items())))
    (folder / "uv.toml").write_text(WITHOUT_CUDA)
    options += ("--config-file", folder / "uv.toml", "-c", folder / "held.txt")
    text = run([uv, "pip", "compile", "-q", "--no-header", "--no-annotate", *options, "-"],
               input="\n".join(wanted))
    pairs = [line.split(" ")[0].split("==") for line in text.splitlines()]
    return {canonicalize_name(name): version for name, version in pairs}


def build_archives(tree, out):
    "Copy what git tracks to `tree`, an empty folder, and build source archive and wheel there, into `out`."
    listed = run(["git", "ls-files", "-z", "--cached"], cwd=ROOT).split("\0")
    for name in filter(None, listed):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    run([sys.executable, "-m", "build", "-o", out], cwd=tree)


def find_python(version):
    "A Python of `version`, such as '3.12', or None; one that only stands there in name does not count."
    named = shutil.which(f"python{version}")
    for path in [*sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python")), named]:
        if path is None: continue
        said = subprocess.run([path, "-V"], capture_output=True, text=True).stdout
        if re.match(rf"Python {re.escape(version)}\.", said): return path
    return None


def alone():
    "The environment variables without what would show this tree to another Python."
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def here(**more):
    "The environment variables under which another Python takes the package of this tree."
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **more}
