"A real browser for the tests: Chromium, as the system has it, driven by Playwright."
import base64
import contextlib
import io
import shutil

import pytest
from PIL import Image

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextlib.contextmanager
def chromium():
    "The browser, inside the `with` block; where none is installed, the test is skipped."
    if CHROMIUM is None: pytest.skip("there is no Chromium here: apt-get install chromium")
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def opened_page(browser, harmless=(), **options):
    """A new page of the `browser`, inside the `with` block; afterwards it must not have complained.

    What begins with one of `harmless`, a tuple of texts, is no complaint.
    """
    page, faults = browser.new_page(**options), []
    page.set_default_timeout(120_000)
    page.on("pageerror", lambda fault: faults.append(str(fault)))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    yield page
    page.close()
    faults = [fault for fault in faults if not fault.startswith(harmless)]
    assert not faults, faults                                  # said here: pytest looks into test files only


def picture_of(url):
    "The Pillow picture that `url`, which JavaScript's toDataURL gave, holds."
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")
