"""Write docs/report.png, a report as a browser shows it: ``python docs/make_pictures.py``. It needs Chromium."""

import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from fastmaker.jobs import files
from fastmaker.jobs.digits import write_digits

PICTURE = Path(__file__).with_name("report.png")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SIZE = (1000, 1960)  # pixels of the window; a report is longer
COLOURS = 64  # plots have few: the file is a third of what it would be


def write_report(folder: Path) -> Path:
    """Train on scikit-learn's digits; return the page of the report."""
    write_digits(folder / "digits")
    command = [sys.executable, files.SOURCE / "entry_point.py", "--train", folder / "digits", "--arch", "convnet"]
    command += ["--model-dir", folder / "model", "--output-data-dir", folder / "output"]
    subprocess.run([*map(str, command), "--epochs", "5"], check=True)
    return folder / "output" / "report.html"


def photograph(page: Path, picture: Path) -> None:
    """Let a browser show the beginning of a page, and write it as a PNG file."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise SystemExit(f"expected one of {', '.join(BROWSERS)} on PATH")
    shot = page.with_name("shot.png")
    options = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={SIZE[0]},{SIZE[1]}"]
    subprocess.run([browser, *options, f"--screenshot={shot}", page.as_uri()], check=True, capture_output=True)
    stream = io.BytesIO()
    Image.open(shot).convert("RGB").quantize(COLOURS).save(stream, "PNG", optimize=True)
    picture.write_bytes(stream.getvalue())


def main() -> None:
    """Write the picture."""
    with tempfile.TemporaryDirectory() as folder:
        photograph(write_report(Path(folder)), PICTURE)
    print(f"wrote {PICTURE}, {PICTURE.stat().st_size // 1024} KB")


if __name__ == "__main__":
    main()
