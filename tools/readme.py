"README.md is nbs/index.ipynb as Markdown: `python tools/readme.py` writes it, tests/test_export_sync.py compares it."
import os
import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
NOTE = "<!-- Made from nbs/index.ipynb by `make export`: edit that notebook, not this file. -->"
LINK = re.compile(r'(\]\(|src="|href=")(?![a-z]+:|#|/)([^)"#\s]+)')


def from_root(match):
    "A link that is relative to nbs/, made relative to the root."
    return match[1] + os.path.normpath(os.path.join("nbs", match[2]))


def _markdown(cell):
    "One cell as Markdown, empty where the cell is hidden."
    if cell.cell_type == "markdown": return LINK.sub(from_root, cell.source)
    lines = cell.source.splitlines()
    if not lines or any(re.match(r"#\|\s*(hide|export|default_exp)", line) for line in lines): return ""
    code = "\n".join(line for line in lines if not line.startswith("#|"))
    printed = "".join(output.text for output in cell.outputs if output.get("name") == "stdout")
    return f"```python\n{code}\n```" + (f"\n\n```\n{printed.rstrip()}\n```" if printed else "")


def readme_text(root=ROOT):
    "The text that README.md should have."
    notebook = nbformat.read(Path(root) / "nbs" / "index.ipynb", as_version=4)
    return "\n\n".join(part for part in [NOTE, *map(_markdown, notebook.cells)] if part) + "\n"


if __name__ == "__main__": (ROOT / "README.md").write_text(readme_text(), encoding="utf-8")
