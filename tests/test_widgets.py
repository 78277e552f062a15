"Widgets are moved as by a hand, by values and clicks: pictures change as they should, and only so."
import io
import re
import subprocess
import sys
from types import ModuleType

import nbformat
import pytest
import torch
from packaging.requirements import Requirement
from paths import ROOT
from PIL import Image, ImageChops
from sentences import complaints
from test_export_sync import settings
from tiny import refusal

from vqgen.errors import VQGenError
from vqgen.pipeline import Pipeline, inpaint_codes

ipywidgets = pytest.importorskip("ipywidgets", reason="needs the extra `widgets`")

from vqgen import widgets  # noqa: E402
from vqgen.widgets import (  # noqa: E402
    control,
    guarded,
    one_sentence,
    part_still,
    parts,
    show,
    still,
    swap_code,
)

CAPTION = widgets.CAPTION
LONG = "a person with curly green hair, tan skin, a red hat and a yellow background"


@pytest.fixture(scope="module")
def pipe(): return Pipeline.from_pretrained("avatars-hour", device="cpu")


@pytest.fixture(scope="module")
def lstm(): return Pipeline.from_pretrained("avatars-hour", "lstm", "cpu")


@pytest.fixture
def points():
    chance = torch.Generator().manual_seed(0)
    clumps = torch.rand(6, 2, generator=chance) * 2 - 1
    points = clumps.repeat(100, 1) + 0.05 * torch.randn(600, 2, generator=chance)
    return points, torch.zeros(600, 3)


def shown(widget):
    "The bytes of the picture that `widget` shows."
    return next(part.value for part in parts(widget) if isinstance(part, ipywidgets.Image))


def picture(widget): return Image.open(io.BytesIO(shown(widget))).convert("RGB")


def buttons(widget):
    return next(part.children for part in parts(widget) if isinstance(part, ipywidgets.GridBox))


def said(widget):
    "The line below a widget, where faults are told."
    return part_still(widget.children[-1])


def changed_box(before, after):
    "The box, in pixels, in which two pictures differ by more than an eye may overlook; None where nowhere."
    return ImageChops.difference(before, after).convert("L").point(lambda value: 255 * (value > 12)).getbbox()


def test_the_same_controls_show_the_same_picture(pipe):
    widget = widgets.draw_widget(pipe)
    first = shown(widget)
    for name, value in {"seed": 9, "temperature": 2.0, "top_p": 0.05, "guidance_scale": 5.0, "steps": 16,
                        "candidates": 8, "pictures": 2, "caption": LONG}.items():
        before = control(widget, name).value
        control(widget, name).value = value
        assert shown(widget) != first, name
        control(widget, name).value = before
        assert shown(widget) == first and not said(widget), name


def test_pictures_are_of_seeds_that_follow(pipe):
    "The second of seed 0 is the first of seed 1, and what is shown is what the library draws."
    widget = widgets.draw_widget(pipe)
    width = (picture(widget).width - 6) // 4                          # 2 pixels of paper between two
    second = picture(widget).crop((width + 2, 0, 2 * width + 2, width))
    control(widget, "seed").value = 1
    assert picture(widget).crop((0, 0, width, width)).tobytes() == second.tobytes()
    assert second.resize((32, 32), 0).tobytes() == pipe(CAPTION, seed=1)[0].tobytes()


@pytest.mark.parametrize("name, missing", [("lstm", {"steps"}), ("transformer", {"steps"}), ("cftn", set())])
def test_sliders_are_those_of_the_prior(name, missing):
    prior = Pipeline.from_pretrained("avatars-hour", name, "cpu").prior
    sliders = widgets.option_sliders(prior)
    assert widgets.SLIDERS.keys() - sliders.keys() == missing
    for option, slider in sliders.items(): assert slider.value == getattr(prior.defaults, option)


def test_a_prior_that_cannot_be_guided_has_no_such_slider(pipe):
    prior = Pipeline.from_pretrained("avatars-hour", device="cpu").prior
    prior.config = prior.config.model_copy(update={"caption_dropout": 0.0})
    assert "guidance_scale" not in widgets.option_sliders(prior) and "top_p" in widgets.option_sliders(prior)


@pytest.mark.parametrize("make", ["draw_widget", "rounds_widget", "codes_widget", "attention_widget",
                                  "inpaint_widget"])
def test_a_fault_is_told_in_the_widget_and_goes_away(pipe, make):
    "The old picture stays while something is wrong."
    widget = getattr(widgets, make)(pipe)
    if make == "inpaint_widget":
        for button in buttons(widget)[:24]: button.click()
    before = shown(widget)
    control(widget, "seed").value = -1
    if make == "inpaint_widget": control(widget, "paint").click()
    assert "seed -1" in said(widget) and not complaints(said(widget)) and shown(widget) == before
    control(widget, "seed").value = 3
    if make == "inpaint_widget": control(widget, "paint").click()
    assert not said(widget) and shown(widget) != before


def test_a_word_that_is_not_known_is_told(pipe):
    widget = widgets.draw_widget(pipe)
    control(widget, "caption").value = "a pirate <b>with</b> a hat"
    assert "pirate" in said(widget) and "<b>with" not in widget.children[-1].value
    control(widget, "caption").value = "a person with a hat"
    assert not said(widget)


def test_faults_of_ours_are_told_and_raised():
    note = ipywidgets.HTML()
    with pytest.raises(ZeroDivisionError): guarded(lambda: 1 / 0, note)()
    assert "ZeroDivisionError" in note.value
    guarded(lambda: None, note)()
    assert note.value == ""
    assert "<i>" not in one_sentence(VQGenError("name <i>another</i>\nfile"))
    assert len(one_sentence(VQGenError("one\ntwo")).splitlines()) == 1


def test_rounds_end_with_the_picture(pipe):
    widget = widgets.rounds_widget(pipe, CAPTION, 2)
    moment, codes = control(widget, "round"), list(pipe.stream([CAPTION], 2))
    assert moment.max == len(codes) == pipe.prior.rounds
    for number, decided in enumerate(codes, start=1):
        moment.value = number
        last = picture(widget)
        assert last.tobytes() == widgets.codes_and_picture(pipe, decided[0]).tobytes()
    right = last.crop((264, 0, 520, 256)).resize((32, 32), 0)
    assert right.tobytes() == pipe(CAPTION, seed=2)[0].tobytes()
    control(widget, "caption").value = LONG
    assert picture(widget).tobytes() != last.tobytes()


def test_rounds_of_a_prior_that_writes_code_after_code(lstm):
    widget = widgets.rounds_widget(lstm)
    assert control(widget, "round").max == 64


def test_a_code_is_swapped_and_put_back(pipe):
    widget = widgets.codes_widget(pipe, CAPTION)
    code, first = control(widget, "code"), picture(widget)
    codes = pipe.codes([CAPTION])[0]
    assert first.resize((32, 32), 0).tobytes() == pipe(CAPTION)[0].tobytes()
    row, column = 1, 6
    buttons(widget)[8 * row + column].click()
    assert code.value == codes[row, column] and picture(widget).tobytes() == first.tobytes()
    code.value = (code.value + 200) % 512
    expected = widgets.code_picture(pipe, swap_code(codes, row, column, code.value))
    assert picture(widget).tobytes() == expected.tobytes()
    box = changed_box(first, picture(widget))                         # 32 pixels of the picture to a code
    left, top, right, bottom = (edge / 32 for edge in box)
    assert left >= column - 2 and right <= column + 3 and top >= row - 2 and bottom <= row + 3
    assert left <= column + 0.5 <= right and top <= row + 0.5 <= bottom
    control(widget, "put all back").click()
    assert picture(widget).tobytes() == first.tobytes()


def test_swapping_copies():
    codes = torch.zeros(2, 2, dtype=torch.int64)
    assert swap_code(codes, 0, 1, 7).tolist() == [[0, 7], [0, 0]] and not codes.any()


def test_what_is_not_marked_keeps_its_code(pipe):
    codes, mask = pipe.codes([CAPTION], 7), torch.zeros(8, 8, dtype=torch.bool)
    mask[:3] = True
    painted = inpaint_codes(pipe, codes, mask, f"{CAPTION} and a blue hat", seed=0, num_images=4)
    assert painted.shape == (4, 8, 8) and (painted >= 0).all()
    assert torch.equal(painted[:, ~mask], codes.repeat(4, 1, 1)[:, ~mask])
    assert not torch.equal(painted[:1], codes)


def test_a_mask_is_painted_and_cleared(pipe):
    widget = widgets.inpaint_widget(pipe)
    caption, wish = (control(widget, name).value for name in ("caption", "wish"))
    first = picture(widget)
    for button in buttons(widget)[:24]: button.click()
    assert [bool(button.description.strip()) for button in buttons(widget)] == [True] * 24 + [False] * 40
    assert picture(widget).tobytes() == first.tobytes()
    control(widget, "paint").click()
    after, mask = picture(widget), torch.arange(64).view(8, 8) < 24
    codes = inpaint_codes(pipe, pipe.codes([caption], 7), mask, wish, 7)
    assert after.tobytes() == widgets.code_picture(pipe, codes[0]).tobytes()
    assert changed_box(first, after)[3] <= (3 + 2) * 32                # two codes below the mask at most
    buttons(widget)[3].click()
    assert not buttons(widget)[3].description.strip()
    control(widget, "clear").click()
    assert not any(button.description.strip() for button in buttons(widget))
    control(widget, "paint").click()
    assert "black everywhere" in said(widget) and picture(widget).tobytes() == after.tobytes()


def test_a_prior_that_cannot_says_so(lstm):
    widget = widgets.inpaint_widget(lstm)
    buttons(widget)[0].click()
    control(widget, "paint").click()
    assert "cftn-v2" in said(widget)
    assert "cftn-v2" in said(widgets.attention_widget(lstm))
    assert "cftn-v2" in refusal(widgets.watch_bridges, lstm, CAPTION)


def test_attention_is_a_share(pipe):
    "What a word reads of all places sums to one, and so does what a place hears of all words."
    tokens, bridges = len(widgets.token_names(pipe, LONG)), len(pipe.prior.bridges)
    codes, heard, read = widgets.watch_bridges(pipe, LONG, 3)
    assert heard.shape == read.shape == (bridges, tokens, 8, 8) and heard.min() >= 0 and read.min() >= 0
    torch.testing.assert_close(read.sum((2, 3)), torch.ones(bridges, tokens))
    torch.testing.assert_close(heard.sum(1), torch.ones(bridges, 8, 8))
    assert torch.equal(codes, pipe.codes([LONG], 3))
    assert torch.equal(widgets.watch_bridges(pipe, LONG, 5, given=codes)[0], codes)
    assert not any(bridge._forward_hooks for bridge in pipe.prior.bridges)


def test_the_hooks_go_when_the_pass_fails(pipe):
    refusal(widgets.watch_bridges, pipe, LONG, seed=-1)
    assert not any(bridge._forward_hooks for bridge in pipe.prior.bridges)


def test_a_word_is_clicked(pipe):
    "Light falls on a hat for its colour; another word, way or bridge lights other places."
    widget = widgets.attention_widget(pipe)
    word, names = control(widget, "word"), widgets.token_names(pipe, LONG)
    assert [name for name, _ in word.options] == names
    word.value = names.index("red")
    lit, seen = picture(widget).crop((264, 0, 520, 256)).convert("L"), [shown(widget)]
    assert lit.crop((0, 0, 256, 96)).resize((1, 1), 2).getpixel((0, 0)) > \
        lit.crop((0, 160, 256, 256)).resize((1, 1), 2).getpixel((0, 0))
    for name, value in [("show", 0), ("bridge", 2), ("word", names.index("yellow")), ("seed", 4)]:
        control(widget, name).value = value
        seen.append(shown(widget))
    assert len({*seen}) == len(seen)
    control(widget, "caption").value = CAPTION
    assert [name for name, _ in word.options] == widgets.token_names(pipe, CAPTION) and not said(widget)
    assert shown(widget) != seen[-1]


def test_codes_follow_points(points):
    "More codes come nearer; with a smaller decay they move more; the same call gives the same ways."
    cloud, _ = points
    state = torch.random.get_rng_state()
    error, moves = {}, {}
    for size in (2, 6, 24):
        ways = widgets.follow_codes(cloud, size, 0.9)
        assert ways.shape == (61, size, 2)
        error[size] = torch.cdist(cloud, ways[-1]).min(1).values.mean()
    for decay in (0.0, 0.9, 0.99):
        moves[decay] = widgets.follow_codes(cloud, 6, decay)[-20:].diff(dim=0).norm(dim=-1).mean()
    assert error[2] > error[6] > error[24] and moves[0.0] > moves[0.9] > moves[0.99]
    assert torch.equal(widgets.follow_codes(cloud, 6, 0.5), widgets.follow_codes(cloud, 6, 0.5))
    assert torch.equal(torch.random.get_rng_state(), state)           # nobody else's chance is touched


def test_k_and_decay_are_moved(points):
    widget = widgets.codebook_widget(*points)
    first = shown(widget)
    for name, value in [("K", 20), ("decay", 0.1)]:
        before = control(widget, name).value
        control(widget, name).value = value
        assert shown(widget) != first
        control(widget, name).value = before
        assert shown(widget) == first


def test_colour_points_are_pixels():
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    cloud, colours = widgets.colour_points(images, 50)
    pixels = images.movedim(1, -1).flatten(0, 2)
    assert cloud.shape == (50, 2) and all((pixels == colour).all(1).any() for colour in colours)
    assert (cloud - colours[:, [0, 2]]).abs().max() < 0.3


def test_a_control_that_is_not_there_is_named(pipe):
    sentence = refusal(control, widgets.draw_widget(pipe), "guidance")
    assert "guidance" in sentence and "temperature" in sentence


@pytest.mark.parametrize("reader", ["JPY_SESSION_NAME", "VSCODE_PID"])
def test_a_reader_gets_the_widget_and_a_file_a_still(pipe, monkeypatch, reader):
    for name in widgets.READERS: monkeypatch.delenv(name, raising=False)
    widget = widgets.draw_widget(pipe)
    assert isinstance(show(widget), Image.Image)
    monkeypatch.setenv(reader, "a session")
    assert show(widget) is widget


def test_a_reader_on_colab_gets_the_widget(monkeypatch):
    for name in widgets.READERS: monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    assert show(widget := ipywidgets.VBox()) is widget


def test_without_ipywidgets_it_is_said_what_to_install():
    code = "import sys; sys.modules['ipywidgets'] = None; import vqgen.widgets"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "VQGenError" in result.stderr and "`pip install ipywidgets`" in result.stderr.splitlines()[-1]


def test_the_extra_takes_what_colab_has():
    [wanted] = map(Requirement, settings()["widgets_requirements"].split())
    listed = (ROOT / "tests" / "data" / "colab.txt").read_text("utf-8")
    held = re.search(rf"^{wanted.name}==(.*)$", listed, re.MULTILINE)
    assert wanted.specifier.contains(held[1])


def test_a_still_is_of_now(pipe):
    widget = widgets.codes_widget(pipe)
    first = still(widget)
    control(widget, "code").value = 3
    second = still(widget)
    buttons(widget)[0].click()
    assert len({image.tobytes() for image in (first, second, still(widget))}) == 3
    colour = bytes(first.getpixel((12, 12))).hex()                    # of the button in the upper left corner
    assert buttons(widget)[0].style.button_color == f"#{colour}"


def test_the_saved_notebook_holds_pictures_and_no_widget():
    "Neither the state of one nor a view without a state: each cell that shows one holds a picture."
    notebook = nbformat.read(ROOT / "nbs" / "51_widgets.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    showing = [cell for cell in cells if cell.source.splitlines()[-1].startswith("show(")]
    assert len(showing) >= 7 and "widgets" not in notebook.metadata
    for cell in showing: assert {*cell.outputs[-1].data} <= {"image/png", "image/jpeg", "text/plain"}
