"""Write docs/fastmaker.png, docs/page-wide.png and docs/page-narrow.png: ``python docs/make_page_pictures.py``.

It needs Chromium, and what `make test-page` installs into .venv/page. The photos are those of fruit.py.
"""

import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import fruit
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from fastmaker.jobs import files
from fastmaker.jobs.cli import pictures
from fastmaker.jobs.clients import sources
from fastmaker.jobs.page import asking, server
from fastmaker.jobs.page.corrections import Corrections

FOLDER = Path(__file__).parent
WIDE, NARROW = (1280, 900), (390, 844)  # pixels of a desk's window and a phone's
CARD = 180  # pixels of a photo in the first picture
COLOURS = 256  # of a picture
OF_PHOTOS = "--train photos/train --arch resnet18 --image-size 96 --epochs 12"
OF_SCENES = "--train scenes --task segmentation --arch resnet18 --image-size 96x128 --epochs 16 --batch-size 4"


def train(folder: Path, options: str) -> sources.Bundle:
    """Train with `options` of the entry point in `folder`; return the bundle."""
    out = tempfile.mkdtemp(dir=folder)
    words = [
        *options.split(),
        "--pretrained",
        "false",
        "--model-dir",
        f"{out}/fruit",
        "--output-data-dir",
        f"{out}/report",
    ]
    subprocess.run([sys.executable, str(files.SOURCE / "entry_point.py"), *words], cwd=folder, check=True)
    return sources.Bundle(Path(out, "fruit"), "fruit")


def photograph(browser: Browser, url: str, image: Path, size: tuple[int, int]) -> Image.Image:
    """Ask about an image on the page; return what a window of `size` then shows of the whole page."""
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
    page.close()
    return shot


def first_picture(classifier: sources.Bundle, unet: sources.Bundle, photos: list[Path], scene: Path, page: Image.Image):
    """Return photos with their labels, a scene and its mask, and the page, side by side."""
    cards = []
    for photo in photos:
        asked = asking.ask(classifier, photo.name, photo.read_bytes())
        cards.append(
            pictures.captioned(Image.open(photo), f"{asked.answer['label']} {asked.answer['probability']:.2f}", CARD)
        )
    asked = asking.ask(unet, scene.name, scene.read_bytes())
    labelled = pictures.contact_sheet(cards, 2)
    height = labelled.height
    tall = [Image.open(scene), asking.draw(asked, 0.6)]
    masked = Image.new("RGB", (height * 2 // 3, height), "white")
    for number, image in enumerate(tall):
        masked.paste(image.resize((masked.width, height // 2 - 4)), (0, number * (height // 2 + 4)))
    shown = page.crop((0, 0, page.width, page.width)).resize((height, height), Image.Resampling.LANCZOS)
    picture = Image.new("RGB", (labelled.width + masked.width + shown.width + 32, height), "white")
    picture.paste(labelled, (0, 0))
    picture.paste(masked, (labelled.width + 16, 0))
    picture.paste(shown, (labelled.width + masked.width + 32, 0))
    return picture


def save(picture: Image.Image, name: str) -> None:
    """Write a picture into this folder as a PNG."""
    file = FOLDER / name
    picture.quantize(COLOURS, kmeans=2).save(file, "PNG", optimize=True)
    print(f"wrote {file}, {file.stat().st_size // 1024} KB")


def main() -> None:
    """Write the pictures."""
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")
        fruit.write_photos(folder / "photos")
        fruit.write_scenes(folder / "scenes")
        classifier, unet = train(folder, OF_PHOTOS), train(folder, OF_SCENES)
        held_out = [sorted((folder / "photos/held-out" / kind).iterdir())[0] for kind in fruit.KINDS]
        more = sorted((folder / "photos/held-out" / "orange").iterdir())[1]
        scene = folder / "scenes/images/00.jpg"
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        with server.running(classifier, held_out, Corrections(folder / "corrections")) as url:
            page = photograph(browser, url, held_out[3], WIDE)
        with server.running(unet, [scene], None) as url:
            narrow = photograph(browser, url, scene, NARROW)
        browser.close()
        save(page, "page-wide.png")
        save(narrow, "page-narrow.png")
        save(first_picture(classifier, unet, [*held_out, more], scene, page), "fastmaker.png")


if __name__ == "__main__":
    main()
