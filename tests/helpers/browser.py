"""A page of `fastmaker page` in a process's threads, and a Chromium that looks at it."""

import atexit
import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from fastmaker.jobs.page import server

SECONDS = int(os.environ.get("FASTMAKER_BROWSER_SECONDS", "60"))  # for whatever a page is waited for
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDE, NARROW = (1280, 900), (390, 844)  # pixels of a window: a desk's and a phone's


@contextlib.contextmanager
def served(source, examples=(), corrections=None, **options) -> Iterator[str]:
    """The URL of a page that asks `source`."""
    os.environ.setdefault("GRADIO_TEMP_DIR", tempfile.mkdtemp())  # one for all pages of this process
    atexit.register(shutil.rmtree, os.environ["GRADIO_TEMP_DIR"], ignore_errors=True)
    with server.running(source, examples, corrections, **options) as url:
        yield url


@contextlib.contextmanager
def chromium() -> Iterator:
    """Playwright's browser, by the Chromium on PATH."""
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, BROWSERS)))
    options = ["--no-sandbox", "--use-fake-device-for-media-stream"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=options)
        try:
            yield browser
        finally:
            browser.close()


class Tab:
    """A tab of a browser that keeps what the page logs as an error, and the hosts that it asks."""

    def __init__(self, browser, url: str, size=WIDE, **options):
        self.context = browser.new_context(viewport=dict(zip(("width", "height"), size, strict=True)), **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(SECONDS * 1000)
        self.errors: list[str] = []
        self.hosts: set[str] = set()
        self.page.on("console", lambda line: line.type == "error" and self.errors.append(line.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self._note(request.url))
        self.page.goto(url)
        self.page.get_by_text("There is no image yet.").wait_for()

    def _note(self, url: str) -> None:
        if not url.startswith(("data:", "blob:")):
            self.hosts.add(url.split("/")[2])

    def upload(self, *files, into: str = "One image") -> None:
        """Give files, as paths or (name, type, bytes), to the first input of a tab."""
        self.page.get_by_role("tab", name=into).click()
        panel = self.page.get_by_role("tabpanel").filter(visible=True)
        given = [
            {"name": file[0], "mimeType": file[1], "buffer": file[2]} if isinstance(file, tuple) else file
            for file in files
        ]
        panel.locator("input[type=file]").first.set_input_files(given)

    def said(self, text: str):
        """Wait until a text stands on the page, and return its element."""
        found = self.page.get_by_text(text).filter(visible=True).first
        found.wait_for()
        return found

    def close(self) -> None:
        self.context.close()


def png(size=(48, 40), colour="red") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG")
    return stream.getvalue()


def screenshot(page, file: Path) -> Path:
    """Write a small PNG of a whole page."""
    image = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    image.quantize(64).save(file, "PNG", optimize=True)
    return file
