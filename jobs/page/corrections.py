"""Images with the labels that a person gave them, in a folder that ``fastmaker train --data FOLDER`` takes.

labels.csv lists the images of the folder images/ with their labels, as docs/data-layouts.md says.
"""

import contextlib
import csv
import fcntl
import hashlib
import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from fastmaker import files, preprocess

TABLE, IMAGES, FILE = "labels.csv", "images", "image"
TASKS = ("classification", "multilabel", "regression")
DIGITS = 16  # of an image's SHA-256, in its name


class CorrectionError(ValueError):
    """A correction that cannot be saved; the message is one line."""


class Corrections:
    """A folder of corrections; it is new, empty, or one of earlier corrections. Raises ValueError otherwise."""

    def __init__(self, folder: Path):
        self.folder = folder
        found = {path.name for path in folder.iterdir() if not path.name.startswith(".")} if folder.is_dir() else set()
        if found and TABLE not in found:
            raise ValueError(f"--corrections {folder}: it holds other files; name a folder that is new or empty")

    def save(self, image: bytes, name: str, task: str, label: str | Sequence[str], labels: Sequence[str] = ()) -> str:
        """Save an image with what it shows, and return a sentence that says so. Nothing is overwritten.

        `label` is a label; of a multilabel model those of `labels` that it shows; of a regression its numbers. Raises
        CorrectionError, and OSError if the folder cannot be written.
        """
        header, cells = _cells(task, label, labels)
        digest = hashlib.sha256(image).hexdigest()[:DIGITS]
        file = f"{IMAGES}/{_stem(name)}-{digest}{_suffix(image)}"
        (self.folder / IMAGES).mkdir(parents=True, exist_ok=True)
        with self._locked():
            rows = self._rows([FILE, *header])
            for row in rows[1:]:
                if Path(row[0]).stem.endswith(f"-{digest}"):
                    return _saved_before(row, cells, self.folder / TABLE)
            with files.atomic(self.folder / file) as partial:
                partial.write_bytes(image)
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows([*rows, [file, *cells]])
            files.write_text(self.folder / TABLE, text.getvalue())
        return f"Saved as {self.folder / file}; {len(rows):,} in {self.folder / TABLE}."

    def _rows(self, header: list[str]) -> list[list[str]]:
        """Return the rows of the table, of which the header is the first. Raises CorrectionError if it is another."""
        table = self.folder / TABLE
        if not table.exists():
            return [header]
        with open(table, newline="", encoding="utf-8") as stream:
            rows = list(csv.reader(stream))
        if not rows or rows[0] != header:
            raise CorrectionError(
                f"{table} has the columns {','.join(rows[0] if rows else [])}, and this model's would be"
                f" {','.join(header)}: start the page with another --corrections FOLDER"
            )
        return rows

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Wait until no other thread or process writes the folder, and keep others from it."""
        lock = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def _saved_before(row: list[str], cells: list[str], table: Path) -> str:
    if row[1:] == cells:
        return f"It was saved before, as {row[0]}."
    raise CorrectionError(f"this image is in {table} with {', '.join(row[1:])}; change its line there")


def _cells(task: str, label: str | Sequence[str], labels: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the columns and cells of what an image shows. Raises CorrectionError."""
    if task not in TASKS:
        raise CorrectionError(f"corrections are for {', '.join(TASKS)}; draw points and masks in a program for that")
    if task == "multilabel":
        if FILE in labels:
            raise CorrectionError(f"a label is called {FILE!r}, as the column of the files is")
        if unknown := sorted(set(label) - set(labels)):
            raise CorrectionError(f"{', '.join(unknown)}: the model has no such label")
        return list(labels), [str(int(name in label)) for name in labels]
    text = label if isinstance(label, str) else " ".join(label)
    if task == "classification":
        if not text.strip() or not text.isprintable():
            raise CorrectionError("say what it is: choose a label, or write a new one")
        return ["label"], [text.strip()]
    return _numbers(text)


def _numbers(text: str) -> tuple[list[str], list[str]]:
    words = re.split(r"[\s;,]+", text.strip())
    try:
        numbers = [repr(float(word)) for word in words]
    except ValueError:
        raise CorrectionError(f"{text!r}: expected numbers with spaces between them, such as 1.5 20") from None
    names = ["value"] if len(numbers) == 1 else [f"value_{number}" for number in range(1, len(numbers) + 1)]
    return names, numbers


def _stem(name: str) -> str:
    """Return the beginning of a file's name, of letters that every system takes."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", Path(name.replace("\\", "/")).stem)[:60].strip("-") or "image"


def _suffix(image: bytes) -> str:
    """Return a suffix by which an image is known as one. Raises CorrectionError if it is none."""
    try:
        kind = preprocess.decode(image).format
    except preprocess.ImageError as error:
        raise CorrectionError(str(error)) from None
    usual = {"JPEG": ".jpg", "PNG": ".png", "TIFF": ".tiff"}
    return usual.get(kind or "") or next(
        suffix for suffix, name in Image.registered_extensions().items() if name == kind
    )
