"""The documentation site: `python tools/pages.py` writes it to _docs/ (tools/site says with what, and why).

Notebooks, as they are saved, become Markdown; each module gets a page, which mkdocstrings fills. Where npm
gives its runtime, a page that draws is added. Then the site is built, its formulas become MathML, and all its
links are checked.
"""
import base64
import html
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
from colab import BADGE, colab_address, repository

ROOT = Path(__file__).resolve().parent.parent
WORK, SITE = ROOT / "_proc" / "site", ROOT / "_docs"
BLOB = "/blob/".join(repository())
LINK = re.compile(r'(\]\()(?![a-z]+:|#|/)([^)#\s]+)')
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
FENCE = "`" * 8
RUN = "vqgen/avatars-hour"     # what the site draws with


def site_link(match):
    "A link of a notebook: to another page of the site, to a picture, or, beyond nbs/, to the repository."
    target = match[2]
    if target.startswith("../"): return f"{match[1]}{BLOB}/{target[3:]}"
    return match[1] + re.sub(r"\.ipynb$", ".md", target)


def output_text(data, name, pictures):
    "One output as Markdown, its best form only; a picture is added to `pictures` under `name`."
    if "image/svg+xml" in data:
        drawing = re.sub(r'(href="[\w.]+)\.ipynb"', r'\1.md"', data["image/svg+xml"])
        return '<div class="output">' + re.sub(r"\n\s*\n", "\n", drawing).strip() + "</div>"
    if "text/markdown" in data:
        return "\n".join(f"> {line}" for line in data["text/markdown"].splitlines())
    for kind in ("png", "jpeg"):
        if f"image/{kind}" in data:
            pictures[f"{name}.{kind}"] = base64.b64decode(data[f"image/{kind}"])
            return f"![What the cell above draws]({name}.{kind}){{ loading=lazy }}"
    return f"{FENCE}{{ .text .output }}\n{data['text/plain'].rstrip()}\n{FENCE}"


def code_text(cell, name, pictures):
    "A code cell as Markdown: code and outputs, folded where the notebook folds them."
    code = f"{FENCE}python\n{cell.source}\n{FENCE}"
    outputs = [{"text/plain": output.text} if output.output_type == "stream" else output.data
               for output in cell.outputs]
    parts = [output_text(data, f"{name}-{number}", pictures) for number, data in enumerate(outputs)
             if data.keys() != {"text/plain"} or data["text/plain"].strip()]
    if cell.metadata.get("cellView") != "form": return "\n\n".join([code, *parts])
    title = re.search(r"^(?:# @title )?([^#\n].*)", cell.source, re.MULTILINE)[1]   # or its first line
    shown = parts if "hide-input" in cell.metadata.get("tags", []) else []
    folded = "\n\n".join([code, *(part for part in parts if part not in shown)])
    return "\n\n".join([f'??? quote "{title}"\n\n' + textwrap.indent(folded, "    "), *shown])


def notebook_page(path):
    "A notebook as Markdown, and its pictures: their bytes by the name they have beside the page."
    parts, pictures = [], {}
    module = None
    for number, cell in enumerate(nbformat.read(path, as_version=4).cells):
        hidden = re.match(r"#\|\s*(?:hide\b|default_exp (\S+))", cell.source)
        if cell.source.startswith(BADGE): continue
        if hidden: module = hidden[1] or module
        elif cell.cell_type == "markdown": parts.append(LINK.sub(site_link, cell.source))
        elif cell.source: parts.append(code_text(cell, f"{path.stem}/{number}", pictures))
    where = f"[Notebook]({BLOB}/nbs/{path.name}) · [on Colab]({colab_address(path.stem)})"
    if module: where += f" · module [vqgen.{module}](reference/vqgen.{module}.md)"
    title, *rest = parts[0].split("\n", 1)
    return "\n\n".join([title, where, *rest, *parts[1:]]) + "\n", pictures


def modules():
    "The files of the package by the names of their modules."
    files = [path for path in (ROOT / "vqgen").rglob("*.py") if path.stem not in ("_modidx", "__main__")]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files]
    return dict(sorted((name.removesuffix(".__init__"), path) for name, path in zip(names, files)))


def module_page(name, path):
    "The page of a module: mkdocstrings puts in what stands in its docstrings."
    where = f"[Source]({BLOB}/{path.relative_to(ROOT)})"
    notebook = re.search(r"File to edit: \S*nbs/(\S+)\.ipynb", path.read_text("utf-8"))
    if notebook: where += f" · notebook [{notebook[1]}](../{notebook[1]}.md)"
    return f"# {name}\n\n{where}\n\n::: {name}\n"


def chapters():
    "The chapters of the index: its bold headings, each with the names of the notebooks below it."
    cells = nbformat.read(ROOT / "nbs" / "index.ipynb", as_version=4).cells
    text = next(cell.source for cell in cells if cell.source.startswith("## The notebooks"))
    parts = re.split(r"^\*\*(.+)\*\*$", text, flags=re.MULTILINE)
    rows = [re.findall(r"^\| \[.*?\]\((.+?)\.ipynb\)", part, re.MULTILINE) for part in parts[2::2]]
    return dict(zip(parts[1::2], rows))


def write_draw(folder):
    "Write the page that draws into `folder`, or say that npm is not to be had; returns whether it is there."
    from vqgen.errors import VQGenError
    from vqgen.export.web import export_web, fetch_runtime
    from vqgen.pipeline import Pipeline
    with tempfile.TemporaryDirectory() as runtime:
        try: fetch_runtime(runtime)
        except VQGenError as error:
            print(f"the site is built without the page that draws: {error}")
            return False
        export_web(Pipeline.from_pretrained(RUN, "cftn-v2", "cpu"), folder, runtime)
    return True


def navigation(draw):
    "The pages in their order, as MkDocs takes them; `draw` says whether the one that draws is among them."
    def entry(name):
        cells = nbformat.read(ROOT / "nbs" / f"{name}.ipynb", as_version=4).cells
        title = next(cell.source for cell in cells if cell.source.startswith("# ")).split("\n")[0]
        return {f"{name[:2]} {title[2:]}": f"{name}.md"}
    books = [{chapter: [*map(entry, names)]} for chapter, names in chapters().items()]
    drawing = [{"Draw": "draw/index.html"}] if draw else []
    return [{"Overview": "index.md"}, *drawing, {"Notebooks": [entry("00_start"), *books]},
            {"Reference": [{name: f"reference/{name}.md"} for name in modules()]},
            {"GitHub": repository()[0]}]


def write_sources(folder):
    "Everything that the site is built from, into `folder`, which is made anew."
    docs = folder / "docs"
    shutil.rmtree(folder, ignore_errors=True)
    (docs / "reference").mkdir(parents=True)
    for path in sorted((ROOT / "nbs").glob("*.ipynb")):
        text, pictures = notebook_page(path)
        (docs / f"{path.stem}.md").write_text(text, "utf-8")
        if pictures: (docs / path.stem).mkdir()
        for name, picture in pictures.items(): (docs / name).write_bytes(picture)
    for name, path in modules().items():
        (docs / "reference" / f"{name}.md").write_text(module_page(name, path), "utf-8")
    shutil.copytree(ROOT / "nbs" / "images", docs / "images")
    shutil.copy(ROOT / "tools" / "site" / "site.css", docs)
    pages = navigation(write_draw(docs / "draw"))
    config = (ROOT / "tools" / "site" / "mkdocs.yml").read_text("utf-8")
    config = config.replace("../..", str(ROOT))
    (folder / "mkdocs.yml").write_text(f"{config}nav: {json.dumps(pages)}\n", "utf-8")   # JSON is YAML


def with_mathml(text):
    "A page whose formulas, TeX so far, are MathML: browsers show it without a script."
    from latex2mathml.converter import convert

    def formula(match):
        tex = html.unescape(match[2]).strip().replace(r"\arg", r"\operatorname{arg}")    # it knows no \arg
        made = convert(tex, display="inline" if match[1] == "span" else "block")
        if "\\" in made: sys.exit(f"latex2mathml cannot set all of {tex}")
        return made
    return FORMULA.sub(formula, text)


class Targets(HTMLParser):
    "What a page links to, and the names that can be linked to on it."

    def __init__(self, text):
        super().__init__()
        self.links, self.names = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        told = dict(attributes)
        self.links |= {told[key] for key in ("href", "src") if told.get(key)}
        self.names |= {told[key] for key in ("id", "name") if told.get(key)}


def broken_links(site):
    "Links, pictures, styles and scripts of the pages of `site` that lead nowhere in it, each with its page."
    pages = {path: Targets(path.read_text("utf-8")) for path in sorted(site.rglob("*.html"))}
    broken = []
    for path, page in pages.items():
        if path.name == "404.html": continue                         # its links begin at the root of the host
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc: continue
            target = Path(os.path.normpath(path.parent / unquote(parts.path))) if parts.path else path
            if target.is_dir(): target /= "index.html"
            known = pages[target].names if target in pages else set()
            if not target.is_file() or parts.fragment and unquote(parts.fragment) not in {*known, "__top"}:
                broken.append(f"{path.relative_to(site)}: {link}")
    return broken


def build(folder):
    "Build the site in `folder`; its pages are in `folder`/site. A link that leads nowhere ends it."
    write_sources(folder)
    program = Path(sys.executable).with_name("zensical")
    command = [program, "build", "--strict", "-f", folder / "mkdocs.yml"]
    if code := subprocess.run(command).returncode: sys.exit(code)         # it has said what is wrong
    site = folder / "site"
    for path in site.rglob("*.html"): path.write_text(with_mathml(path.read_text("utf-8")), "utf-8")
    if broken := broken_links(site): sys.exit("Links that lead nowhere:\n" + "\n".join(broken))
    return site


if __name__ == "__main__":
    built = build(WORK)
    shutil.rmtree(SITE, ignore_errors=True)
    shutil.move(built, SITE)
