"The documentation site: nothing is left out, and no link leads nowhere."
import re

import pytest
from pages import (
    LINK,
    broken_links,
    build,
    chapters,
    module_page,
    modules,
    navigation,
    notebook_page,
    site_link,
    with_mathml,
    write_draw,
)
from paths import NOTEBOOKS, ROOT

TOOLS = "the tools of the site are not installed: make docs"


def test_every_notebook_is_in_a_chapter():
    "But for the two that stand before them; the chapters are in the order of the numbers."
    listed = sum(chapters().values(), [])
    assert listed == [path.stem for path in NOTEBOOKS if path.stem not in ("00_start", "index")]


def test_every_module_has_a_page():
    assert {"vqgen", "vqgen.cli", "vqgen.vqvae", "vqgen.vqvae.losses"} <= modules().keys()
    page = module_page("vqgen.vqvae.losses", modules()["vqgen.vqvae.losses"])
    assert "../13_vqvae.losses.md" in page and "::: vqgen.vqvae.losses" in page


def test_links_lead_to_pages_and_beyond_the_notebooks_to_the_repository():
    text = "[a](41_one_shot.ipynb#b) [c](../LICENSE) ![d](images/d.png) [e](https://f.org/g.ipynb) [h](#i)"
    assert LINK.sub(site_link, text) == (
        "[a](41_one_shot.md#b) [c](https://github.com/vqgen/vqgen/blob/main/LICENSE) "
        "![d](images/d.png) [e](https://f.org/g.ipynb) [h](#i)")


def test_page_holds_what_was_saved():
    "Code, outputs and pictures; answers are folded, and of the map's code only the map is seen."
    text, pictures = notebook_page(ROOT / "nbs" / "00_start.ipynb")
    assert text.startswith("# Start here\n") and '??? quote "Answer 1"\n\n    ```' in text
    assert pictures and all(f"]({name})" in text for name in pictures)
    assert '\n<div class="output"><' in text and 'href="10_vqvae.encoder.md"' in text


def test_formulas_become_mathml():
    pytest.importorskip("latex2mathml", reason=TOOLS)
    page = with_mathml('<span class="arithmatex">\\(a &lt; b\\)</span> '
                       '<div class="arithmatex">\\[c\\]</div>')
    assert page.count("<math") == page.count("</math>") == 2 and page.count('display="block"') == 1
    assert "arithmatex" not in page and "<mo>&#x0003C;</mo>" in page


def test_broken_links_are_found(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "index.html").write_text('<p id="here"><a href="../#no"></a><a href="#here"></a>')
    (tmp_path / "index.html").write_text('<a href="b/#here"></a><img src="c.png"><a href="//d.org"></a>')
    assert broken_links(tmp_path) == ["b/index.html: ../#no", "index.html: c.png"]


def test_without_npm_the_site_does_not_draw(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not write_draw(tmp_path / "draw") and not (tmp_path / "draw").exists()
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("the site is built without the page that draws: npm")
    assert {"Draw": "draw/index.html"} in navigation(True)
    assert [page for page in navigation(True) if "Draw" not in page] == navigation(False)


@pytest.mark.slow
def test_site_is_whole(tmp_path, capfd):
    """Built, which checks its links, it has every page, no formula in TeX, and takes nothing from elsewhere.

    Where npm gives the runtime, it draws, and each page leads there.
    """
    for name in ("zensical", "latex2mathml"): pytest.importorskip(name, reason=TOOLS)
    site = build(tmp_path / "work")
    pages = {path.parent.relative_to(site).as_posix(): path.read_text("utf-8")
             for path in site.rglob("index.html")}
    wanted = {path.stem for path in NOTEBOOKS} - {"index"} | {f"reference/{name}" for name in modules()}
    assert not wanted - pages.keys()
    for name, page in pages.items():
        assert 'class="arithmatex"' not in page, name
        assert not re.search(r'<(script|img)[^>]* src="https?:|"stylesheet"[^>]* href="https?:', page), name
    assert "psnr" in (site / "search.json").read_text("utf-8")
    draws = "without the page that draws" not in capfd.readouterr().out
    assert (site / "draw" / "pass.onnx").is_file() == draws
    assert ('href="../draw/index.html"' in pages["00_start"]) == draws
