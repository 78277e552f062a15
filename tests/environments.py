"Environments of other Pythons and other versions, made by uv, which is much faster at it than pip."
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

from paths import ROOT


def requirements():
    "What the package requires, as settings.ini lists it."
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]["requirements"].split()


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


def find_python(version):
    "A Python of `version`, such as '3.12', or None; one that only stands there in name does not count."
    named = shutil.which(f"python{version}")
    for path in [*sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python")), named]:
        if path is None: continue
        said = subprocess.run([path, "-V"], capture_output=True, text=True).stdout
        if re.match(rf"Python {re.escape(version)}\.", said): return path
    return None


def here(**more):
    "The environment variables under which another Python takes the package of this tree."
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **more}
