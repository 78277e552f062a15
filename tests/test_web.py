"The page draws what Python draws: it is opened in Chromium, captions are typed, codes and pixels compared."
import functools
import json
import random
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
import torch
from browser import chromium, opened_page, picture_of
from tiny import refusal

from vqgen.config import DataConfig, TextConfig
from vqgen.data.datasets import load_data
from vqgen.pipeline import Pipeline
from vqgen.priors.text import token_ids, tokenize, train_tokenizer
from vqgen.viz import to_pil

pytest.importorskip("onnx", reason="needs the extra `export`")

from vqgen.export import web  # noqa: E402
from vqgen.export.onnx import PassGraph, exported_codes, open_graph, run_graph  # noqa: E402

HOSTILE = ["", " ", "  a  hat ", "A Person WITH Red HAIR", "red,hat!?$+<=>^`|~ (x) [y] {z}", "a\tb\nc",
           "\ufb01ne \uff46\uff55ll \u00bd \u00b2 \u2163", "İstanbul ΣΑΣ ẞ \u01c5",
           "[EOS] and [PAD]x[[BOS]]", "[bos]", "▁▁x▁", "日本語 の 顔", "e\u0301 é n\u0303 Å \u212b",
           "a" * 300, "hat, " * 60, "don’t «quote» — dash…",
           "no\u00a0break\u2003wide\u200bnone\ufeff", "\U0001f469\u200d\U0001f680 \U0001f3f4"]


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_): "Says nothing."


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser: yield browser


@pytest.fixture(scope="module")
def pipe(): return Pipeline.from_pretrained("vqgen/avatars-hour", "cftn-v2", device="cpu")


@pytest.fixture(scope="module")
def folder(browser, pipe, tmp_path_factory):
    return web.export_web(pipe, tmp_path_factory.mktemp("web") / "page")


@pytest.fixture(scope="module")
def address(folder):
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture
def page(browser, address):
    "The page when it has drawn for the first time; afterwards it must not have complained."
    with opened_page(browser) as page:
        page.goto(address)
        page.wait_for_selector("canvas[aria-label]")
        yield page


def typed(page, caption):
    "The codes, a list, after `caption` was typed, key by key, over what stood there, and was drawn."
    page.locator("#caption").fill("")
    page.locator("#caption").press_sequentially(caption)
    return drawn(page, caption)


def drawn(page, caption):
    "The codes, a list, when the picture of `caption` is there."
    page.locator(f"canvas[aria-label={json.dumps(caption)}]").wait_for()
    return codes_on(page)


def codes_on(page): return [int(code) for code in page.locator("#codes").text_content().split()]


def pixels(page):
    "What the canvas shows, (H, W, 3) uint8."
    return np.asarray(picture_of(page.evaluate("document.getElementById('picture').toDataURL()")))


def test_typed_captions_give_the_codes_and_pixels_of_python(page, pipe, folder):
    "With the same numbers: all codes of the same file, and nearly all of the exact weights."
    captions = load_data(DataConfig(count=600), "validation").captions[:6]
    sessions = [open_graph(folder / name) for name in ("pass.onnx", "decoder.onnx")]
    graph, same = PassGraph(pipe.prior), []
    temperature = pipe.prior.defaults.temperature
    page.locator("#seed").fill("4294967295")
    numbers = torch.from_numpy(web.uniform_numbers(2**32 - 1, len(pipe.prior.order)))[None]
    for caption in captions:
        text = tokenize(pipe.tokenizer, [caption])
        codes = exported_codes(sessions[0], text, numbers, temperature)
        assert typed(page, caption) == codes.flatten().tolist()
        drawn = np.asarray(to_pil(run_graph(sessions[1], codes=codes)[0])).astype(int)
        assert abs(drawn - pixels(page)).max() <= 1
        with torch.inference_mode():
            exact = graph(text.input_ids, text.attention_mask, numbers, torch.tensor(temperature))
        same += (exact == codes).flatten().tolist()
    assert np.mean(same) > 0.95


def test_each_key_draws(page):
    pictures, caption = set(), "a red hat"
    for place, key in enumerate(caption, start=1):
        page.locator("#caption").press("Space" if key == " " else key)
        pictures.add(tuple(drawn(page, caption[:place])))
    assert len(pictures) > 2


@pytest.mark.parametrize("control, value", [("seed", "5"), ("temperature", "2")])
def test_chance_is_in_the_hands_of_who_draws(page, control, value):
    before = page.locator("#codes").text_content()
    page.locator(f"#{control}").fill(value)
    page.wait_for_function("before => document.getElementById('codes').textContent !== before", arg=before)
    assert page.locator("#seed").input_value() == ("5" if control == "seed" else "0")


def test_rounds_go_from_grey_to_the_picture(page, pipe):
    whole, grey = pixels(page), {}
    for number in (1, pipe.prior.rounds):
        page.locator("#round").fill(str(number))
        page.locator(f"canvas[title='round {number} of {pipe.prior.rounds}']").wait_for()
        grey[number] = (pixels(page) == 223).all(-1).mean()
    assert grey[1] > 0.5 and (pixels(page) == whole).all()


def test_the_film_begins_with_the_first_round_and_ends_with_the_picture(page, pipe):
    page.evaluate("""() => {
        const picture = document.getElementById("picture");
        window.seen = [];
        const watch = new MutationObserver(() => seen.push(picture.title));
        watch.observe(picture, { attributes: true, attributeFilter: ["title"] }); }""")
    first, last = (f"round {number} of {pipe.prior.rounds}" for number in (1, pipe.prior.rounds))
    page.locator("#play").click()
    page.wait_for_function("last => seen.at(-1) === last", arg=last)
    assert page.evaluate("seen[0]") == first


def test_it_draws_without_a_network(page):
    "Once it is there: whatever is typed stays on the machine."
    page.context.set_offline(True)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    assert typed(page, "a person with green hair") != typed(page, "a person with black hair")
    assert not asked
    page.context.set_offline(False)


def test_numbers_are_the_same_to_the_bit(page, pipe):
    for seed in (0, 1, 12345, 2**31, 2**32 - 1):
        script = "async seed => Array.from((await import('./draw.mjs')).uniformNumbers(seed, 300))"
        assert page.evaluate(script, seed) == web.uniform_numbers(seed, 300).tolist()


def texts():
    "Captions that somebody, or nobody, would type."
    chance = random.Random(0)
    letters = "abcdehirstABZ  ,.-'▁[]éßİΣ½ﬁ日\u00a0\u0301\U0001f600"
    return HOSTILE + ["".join(chance.choices(letters, k=chance.randrange(1, 40))) for _ in range(200)]


@pytest.mark.parametrize("size", [None, 384])
@pytest.mark.filterwarnings("ignore:caption longer")
def test_tokens_are_the_same(page, pipe, size):
    "For the tokenizer of the run, and for one that spells rare letters in bytes."
    tokenizer = pipe.tokenizer
    if size: tokenizer = train_tokenizer([*texts(), *map(chr, range(0x4e00, 0x5000))],
                                         TextConfig(vocab_size=size, max_length=32))
    tree = json.loads(tokenizer.backend_tokenizer.to_str())
    assert tree["model"]["byte_fallback"] == bool(size)
    script = """async ([tree, longest, texts]) => {
        const { CaptionTokenizer } = await import("./draw.mjs");
        const tokenizer = new CaptionTokenizer(tree, longest);
        return texts.map(text => tokenizer.encode(text)); }"""
    found = page.evaluate(script, [tree, tokenizer.model_max_length, texts()])
    wanted = token_ids(tokenizer, texts())
    assert not [ascii(text) for text, ids, python in zip(texts(), found, wanted) if ids != python]


def test_the_page_is_small(folder):
    own = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "runtime"]
    assert sum(path.stat().st_size for path in own) < 6e6


def test_a_missing_file_is_named(browser, folder, address):
    (folder / "decoder.onnx").rename(folder / "gone")
    page = browser.new_page()
    try:
        page.goto(address)
        page.get_by_text("decoder.onnx is missing").wait_for(timeout=120_000)
    finally:
        page.close()
        (folder / "gone").rename(folder / "decoder.onnx")


# --- no browser needed ---

def test_a_tokenizer_that_the_page_cannot_read_is_refused():
    from tokenizers import normalizers
    tokenizer = train_tokenizer(["a hat"], TextConfig())
    web.check_page_tokenizer(tokenizer)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFD()
    assert "tokenizer" in refusal(web.check_page_tokenizer, tokenizer)


def test_the_runtime_is_taken_from_a_folder(tmp_path):
    assert "onnxruntime-web" in refusal(web.read_runtime, tmp_path)
    (tmp_path / "dist").mkdir()
    for name in web.RUNTIME_FILES: (tmp_path / "dist" / name).write_bytes(name.encode())
    assert web.read_runtime(tmp_path) == {name: name.encode() for name in web.RUNTIME_FILES}


def test_without_npm_a_sentence_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "npm" in refusal(web.read_runtime)
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho no network >&2\nexit 1\n")
    npm.chmod(0o755)
    assert "no network" in refusal(web.read_runtime)


def test_nothing_is_fetched_for_a_folder_that_is_in_use(pipe, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "index.html").write_text("mine")
    assert "index.html" in refusal(web.export_web, pipe, tmp_path)
