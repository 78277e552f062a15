"""A reader's hour in JupyterLab: `make lab` in a clone, notebooks opened, run, played with and stopped.

Pictures of it, light and dark, are in the folder that VQGEN_SCREENSHOTS names.
"""
import contextlib
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from threading import Thread

import nbformat
import pytest
from browser import chromium, opened_page, picture_of
from paths import ROOT

pytestmark = pytest.mark.slow
BESIDE = ("Makefile", "settings.ini", "setup.py", "constraints.txt", "pyproject.toml", "README.md", "LICENSE",
          ".gitignore", ".gitattributes", ".gitconfig")
PLACES = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
PINK = ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']"      # errors look so, too
# JupyterLab complains of itself at the restart of a kernel, and where a bar is gone before it was shown.
ITS_OWN = ("Could not restore the debugger", "Canceled future for", "Comm not found")
PANEL = ".jp-NotebookPanel:not(.lm-mod-hidden)"
IDLE = f"{PANEL} .jp-Notebook-ExecutionIndicator[data-status=idle]"


def git(project, *words):
    "What git says to `words` in the `project`."
    name = ["-c", "user.name=reader", "-c", "user.email=reader@example.org"]
    command = ["git", *name, "-C", str(project), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A clone of this tree as it stands, with an environment in `.venv`: the one that these tests run in."
    project = tmp_path_factory.mktemp("clone") / "vqgen"
    shutil.copytree(ROOT / "nbs", project / "nbs", ignore=shutil.ignore_patterns(".*"))
    for name in BESIDE: shutil.copy(ROOT / name, project)
    git(project, "init", "-q")
    git(project, "add", ".")
    git(project, "commit", "-qm", "All")
    (project / ".venv").mkdir()
    (project / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    for stamp in ("python", "library", "dev"): (project / ".venv" / f".{stamp}").touch()
    return project


@contextlib.contextmanager
def served(project, scratch):
    """Inside the `with` block `make lab` runs in `project`, and keeps its own files in `scratch`.

    Gives the queue of the lines that it says, which ends with "".
    """
    outer = ("MAKE", "MFLAGS")                                 # of the make that runs these tests
    environment = {name: value for name, value in os.environ.items() if not name.startswith(outer)}
    environment |= dict.fromkeys(PLACES, str(scratch))
    # The make that runs these tests may have named another environment.
    command = ["make", "lab", "VENV=.venv", "ARGS=--no-browser --allow-root"]
    process = subprocess.Popen(command, cwd=project, env=environment, text=True, start_new_session=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    lines = queue.Queue()
    def read():
        for line in process.stdout: lines.put(line)
        lines.put("")
    reader = Thread(target=read, daemon=True)
    reader.start()
    try: yield lines
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)
        reader.join(60)                                        # kernels and all have let go of their output
        process.stdout.close()


@pytest.fixture(scope="module")
def address(project, tmp_path_factory):
    "The address that `make lab` has the browser open, while it runs."
    scratch = tmp_path_factory.mktemp("jupyter")
    with served(project, scratch) as lines:
        said = [lines.get(timeout=120)]
        while "To access the server" not in said[-1]:
            assert said[-1], f"make lab has ended: {''.join(said)}"
            said.append(lines.get(timeout=120))
        [page] = scratch.glob("*-file-to-run-*-open.html")
        yield re.search('url=([^"]*)"', page.read_text("utf-8"))[1]


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser: yield browser


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory):
    "Takes a picture of a page, named, in the light theme and in the dark one."
    folder = Path(os.environ.get("VQGEN_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    def take(page, name):
        for theme in ("Dark", "Light"):
            choose(page, "Settings", "Theme", f"JupyterLab {theme}")
            page.locator(f"body[data-jp-theme-name='JupyterLab {theme}']").wait_for(state="attached")
            page.locator("#jupyterlab-splash").wait_for(state="detached")
            page.screenshot(path=folder / f"{name}-{theme.lower()}.png")
    return take


@pytest.fixture
def page(browser):
    "A page without a network but for this machine: badges are empty pictures."
    with opened_page(browser, ITS_OWN, viewport={"width": 1440, "height": 900}) as page:
        nothing = {"status": 200, "content_type": "image/svg+xml",
                   "body": '<svg xmlns="http://www.w3.org/2000/svg" width="117" height="20"/>'}
        page.route(lambda url: "//localhost" not in url, lambda route: route.fulfill(**nothing))
        yield page


@pytest.fixture
def visit(page, address):
    "Opens the notebook of a name, alone, and waits for its kernel: before it is there nothing runs."
    def visit(name):
        page.goto(address.replace("index.ipynb", f"{name}.ipynb") + "&reset")
        page.get_by_text("| Idle").wait_for()
        page.locator(IDLE).wait_for()
        return page
    return visit


def choose(page, menu, *items):
    "Choose `items`, from a menu to its submenu, in the menu bar."
    page.get_by_role("menuitem", name=menu, exact=True).click()
    for item in items: page.locator(".lm-Menu-itemLabel").get_by_text(item, exact=True).click()


def save(page):
    choose(page, "File", "Save All")
    page.locator("#jp-main-dock-panel .lm-TabBar-tab.jp-mod-dirty").first.wait_for(state="detached")


def press(page, command):
    "Press the button of `command` in the toolbar."
    page.locator(f"{PANEL} [data-command='{command}']").click()


def cell(page, code):
    "The cell in which `code` stands."
    return page.locator(".jp-CodeCell", has=page.locator(".jp-InputArea-editor", has_text=code))


def run_cell(page, code):
    "Run the cell in which `code` stands, as a reader would: a click into it, then Shift and Enter."
    chosen = cell(page, code)
    chosen.locator(".cm-content").click()
    chosen.locator(".cm-editor.cm-focused").wait_for()
    page.keyboard.press("Shift+Enter")


def run_all(page, path):
    "Restart the kernel and run all cells, those of the notebook file `path`; none fails or writes to stderr."
    count = sum(found.cell_type == "code" for found in nbformat.read(path, as_version=4).cells)
    press(page, "notebook:restart-run-all")
    page.locator(".jp-Dialog .jp-mod-accept").click()
    page.wait_for_function("""([count, pink]) => {
        const prompts = [...document.querySelectorAll(".jp-CodeCell .jp-InputPrompt")];
        const ran = prompts.every(({textContent}) => textContent === "" || /\\d/.test(textContent));
        return document.querySelector(pink) || (prompts.length === count && ran); }""", arg=[count, PINK])
    page.locator(IDLE).wait_for()
    assert page.locator(PINK).all_text_contents() == []


def text_of(notebook): return [(found.id, found.cell_type, found.source) for found in notebook.cells]


def assert_only_outputs_differ(project, name):
    "Of the notebook `name`, saved in JupyterLab, text and metadata are as in git."
    path = f"nbs/{name}.ipynb"
    before = nbformat.reads(git(project, "show", f"HEAD:{path}"), as_version=4)
    after = nbformat.read(project / path, as_version=4)
    assert text_of(after) == text_of(before) and after.metadata == before.metadata
    git(project, "checkout", "-q", path)


PIXELS = """picture => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [picture.naturalWidth, picture.naturalHeight];
    canvas.getContext("2d").drawImage(picture, 0, 0);
    return canvas.toDataURL(); }"""


def shown(picture, old=None, wanted=None):
    "The pixels of `picture`, a locator, as a URL, once they are not `old`, and `wanted` if that is given."
    seen = f"picture.complete && picture.naturalWidth && ({PIXELS})(picture)"
    picture.page.wait_for_function(f"""([picture, old, wanted]) => {{
        const seen = {seen};
        return seen && seen !== old && (wanted === null || seen === wanted); }}""",
        arg=[picture.element_handle(), old, wanted])
    return picture.evaluate(PIXELS)


def test_the_index_is_opened_and_leads_on(page, address, project, screenshots):
    "To read, and to save what was read, changes nothing."
    assert "/lab/tree/nbs/index.ipynb" in address
    page.goto(address)
    page.get_by_role("heading", name="vqgen", exact=True).wait_for()
    page.locator(IDLE).wait_for()
    screenshots(page, "index")
    page.get_by_role("link", name="00_start").first.click()
    page.get_by_role("heading", name="Start here").wait_for()
    page.locator(IDLE).wait_for()
    screenshots(page, "00_start")
    save(page)
    assert git(project, "status", "--porcelain") == ""


def test_all_of_a_notebook_runs(visit, project, screenshots):
    page = visit("11_vqvae.quantizer")
    run_all(page, project / "nbs" / "11_vqvae.quantizer.ipynb")
    cell(page, "def seconds").scroll_into_view_if_needed()
    screenshots(page, "11_vqvae.quantizer")
    save(page)
    assert_only_outputs_differ(project, "11_vqvae.quantizer")


def test_widgets_follow_the_hand(visit, project, screenshots):
    "Type a caption, move a slider, mark patches and paint them anew."
    page = visit("51_widgets")
    run_all(page, project / "nbs" / "51_widgets.ipynb")
    widget = cell(page, "show(draw_widget(pipe))").locator(".jp-OutputArea-output")
    picture, caption = widget.locator("img"), widget.get_by_label("caption", exact=True)
    first, words = shown(picture), caption.input_value()
    caption.fill("")
    caption.press_sequentially("a person with a blue hat")
    typed = shown(picture, old=first)
    caption.fill(words)
    shown(picture, old=typed, wanted=first)                    # the same words, the same picture
    slider = widget.locator(".widget-slider", has_text="temperature")
    slider.locator(".noUi-handle").drag_to(slider.locator(".noUi-target"), target_position={"x": 1, "y": 1})
    shown(picture, old=first)
    assert slider.locator(".widget-readout").text_content() == "0.00"
    screenshots(page, "51_widgets-draw")
    paint_two_rows(cell(page, "show(painter)").locator(".jp-OutputArea-output"))
    screenshots(page, "51_widgets-paint")
    assert page.locator(PINK).count() == 0


def paint_two_rows(widget):
    "In the painting `widget` mark the two rows at the top and paint: the top changes, the bottom does not."
    picture, patches = widget.locator("img"), widget.locator(".widget-gridbox button")
    widget.get_by_role("button", name="clear").click()
    for place in range(16): patches.nth(place).click()
    widget.page.wait_for_function("""patches => patches.map(patch => patch.textContent).join("").trim()
        === "x".repeat(16)""", arg=patches.element_handles())
    widget.get_by_label("seed").fill("5")
    before = shown(picture)
    widget.get_by_role("button", name="paint").click()
    before, after = (picture_of(url) for url in (before, shown(picture, old=before)))
    bottom = (0, before.height * 7 // 8, before.width, before.height)
    assert before.crop(bottom).tobytes() == after.crop(bottom).tobytes()


def train_and_stop(page, code, before):
    "Run the training cell in which `code` stands, stop it when it is beyond step `before`; where it stopped."
    run_cell(page, code)
    output = cell(page, code).locator(".jp-OutputArea")
    page.wait_for_function("""([output, before, pink]) => {
        const found = /(\\d+)\\/1500/.exec(output.textContent);
        return !output.querySelector(pink) && found && Number(found[1]) > before; }""",
        arg=[output.element_handle(), before, PINK])
    press(page, "notebook:interrupt-kernel")
    said = output.locator(PINK).text_content()
    page.locator(IDLE).wait_for()
    return int(re.fullmatch(r"VQGenError: stopped at step (\d+) of 1500; .* goes on .*\n?", said)[1])


def test_a_training_is_stopped_and_goes_on(visit, screenshots):
    page, training = visit("15_train_vqvae"), "run = runs_folder()"
    for code in ("from vqgen.experiment import", "changes = {"):
        run_cell(page, code)
        cell(page, code).locator(".jp-InputPrompt", has_text=re.compile(r"\[\d+\]")).wait_for()
    first = train_and_stop(page, training, 0)
    screenshots(page, "15_train_vqvae-stopped")
    assert train_and_stop(page, training, first) > first
    assert page.locator(PINK).count() == 1                     # the one sentence
