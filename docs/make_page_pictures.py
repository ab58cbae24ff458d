"""Write docs/page-wide.png and docs/page-narrow.png: ``python docs/make_page_pictures.py``.

It needs Chromium, and what `make test-page` installs into .venv/page.
"""

import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from fastmaker.jobs import files
from fastmaker.jobs.clients import sources
from fastmaker.jobs.digits import write_digits
from fastmaker.jobs.page import server
from fastmaker.jobs.page.corrections import Corrections

FOLDER = Path(__file__).parent
SIZES = {"wide": (1280, 900), "narrow": (390, 844)}  # pixels of a desk's window and a phone's
COLOURS = 64  # of a picture


def train(folder: Path) -> Path:
    """Train on scikit-learn's digits; return the bundle."""
    write_digits(folder / "digits")
    words = ["--train", folder / "digits", "--arch", "convnet", "--epochs", "5", "--model-dir", folder / "model"]
    command = [sys.executable, files.SOURCE / "entry_point.py", *words, "--output-data-dir", folder / "output"]
    subprocess.run([*map(str, command)], check=True)
    return folder / "model"


def photograph(browser, url: str, image: Path, size: tuple[int, int], picture: Path) -> None:
    """Ask about an image on the page and write what the window then shows as a PNG."""
    page = browser.new_page(viewport={"width": size[0], "height": size[1]})
    page.goto(url)
    page.get_by_text("There is no image yet.").wait_for()
    page.locator("input[type=file]").first.set_input_files(image)
    page.get_by_text("bytes sent").wait_for()
    if (looked := page.get_by_role("button", name="Show where the network looked")).is_visible():
        looked.click()
        page.get_by_text("Where the network looked for").wait_for()
    page.wait_for_timeout(1000)
    shot = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    shot.quantize(COLOURS).save(picture, "PNG", optimize=True)
    page.close()
    print(f"wrote {picture}, {picture.stat().st_size // 1024} KB")


def main() -> None:
    """Write the pictures."""
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")
        source = sources.Bundle(train(folder), "digits")
        examples = [min((folder / "digits" / "held-out" / str(digit)).iterdir()) for digit in range(10)]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        with server.running(source, examples, Corrections(folder / "corrections")) as url:
            for kind, size in SIZES.items():
                photograph(browser, url, examples[7], size, FOLDER / f"page-{kind}.png")
        browser.close()


if __name__ == "__main__":
    main()
