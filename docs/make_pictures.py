"""Write docs/report.png and docs/monitor.png, pages as a browser shows them: ``python docs/make_pictures.py``.

It needs Chromium. The second page is of photos that fruit.py draws, which an endpoint of this machine then sees darker.
"""

import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import fruit
from PIL import Image, ImageEnhance

from fastmaker.jobs import files
from fastmaker.jobs.digits import write_digits

FOLDER = Path(__file__).parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
COLOURS = 64  # plots have few: the file is a third of what it would be
DARKER = 0.55


def train(folder: Path, options: str) -> None:
    """Train with `options` of the entry point in `folder`, which then has model/ and output/."""
    command = [sys.executable, str(files.SOURCE / "entry_point.py"), "--model-dir", "model"]
    subprocess.run([*command, "--output-data-dir", "output", *options.split()], cwd=folder, check=True)


def write_report(folder: Path) -> Path:
    """Train on scikit-learn's digits; return the page of the report."""
    write_digits(folder / "digits")
    train(folder, "--train digits --arch convnet --epochs 5")
    return folder / "output" / "report.html"


def write_monitor(folder: Path) -> Path:
    """Train on photos of fruit, and ask an endpoint about darker ones; return the page of what it saw."""
    fruit.write_photos(folder / "photos")
    train(folder, "--train photos/train --arch resnet18 --pretrained false --image-size 96 --epochs 6")
    for file in (folder / "photos" / "held-out").rglob("*.jpg"):
        ImageEnhance.Brightness(Image.open(file)).enhance(DARKER).save(file, quality=92)
    environment = {**os.environ, "FASTMAKER_HOME": str(folder / "home")}
    for command in (
        "deploy --model model --endpoint-name fruit --data-capture 100",
        "predict --endpoint fruit photos/held-out",
        "cleanup --all --yes",
        "monitor captured/fruit --model model",
    ):
        words = [sys.executable, "-m", "fastmaker.jobs", *command.split()]
        subprocess.run(words, cwd=folder, env=environment, check=True)
    return folder / "monitor.html"


def photograph(page: Path, picture: Path, size: tuple[int, int]) -> None:
    """Let a browser show the beginning of a page in a window of `size` pixels, and write it as a PNG file."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise SystemExit(f"expected one of {', '.join(BROWSERS)} on PATH")
    shot = page.with_name("shot.png")
    options = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={size[0]},{size[1]}"]
    subprocess.run([browser, *options, f"--screenshot={shot}", page.as_uri()], check=True, capture_output=True)
    stream = io.BytesIO()
    Image.open(shot).convert("RGB").quantize(COLOURS).save(stream, "PNG", optimize=True)
    picture.write_bytes(stream.getvalue())
    print(f"wrote {picture}, {picture.stat().st_size // 1024} KB")


# What writes a page, and pixels of the window; pages are longer
PICTURES = {"report.png": (write_report, (1000, 1960)), "monitor.png": (write_monitor, (1280, 1750))}


def main() -> None:
    """Write the pictures."""
    for name, (write, size) in PICTURES.items():
        with tempfile.TemporaryDirectory() as folder:
            photograph(write(Path(folder)), FOLDER / name, size)


if __name__ == "__main__":
    main()
