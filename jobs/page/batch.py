"""Many images at once: files, or zips of them, which are read in memory and never unpacked onto the disk."""

import itertools
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from fastmaker.jobs.cli import pictures
from fastmaker.jobs.clients import answers
from fastmaker.jobs.clients.sources import Source
from fastmaker.jobs.page import asking
from fastmaker.jobs.page.asking import Asked

MOST_IMAGES = 1000
MOST_BYTES = 64 << 20  # of one image
MOST_BYTES_OF_ALL = 512 << 20  # unpacked
CLIENTS = 4  # requests under way at once
SHOWN = 100  # cards of a contact sheet
CARD = 160  # pixels of one


class BatchError(ValueError):
    """Files that are not taken; the message is one line."""


class File(NamedTuple):
    """A file to read: its name, its size as it says itself, and what returns at most that many bytes of it."""

    name: str
    size: int
    read: Callable[[int], bytes]


def images(uploads: Sequence[tuple[str, str]]) -> tuple[list[File], list[str]]:
    """Return the images of uploads, (path, name) each, those of zips among them; and notes of what is left out.

    Raises BatchError if they are too many or too large, before any is read.
    """
    found: list[File] = []
    left_out: list[str] = []
    for path, name in uploads:
        for file in _of_zip(path, name) if zipfile.is_zipfile(path) else [_of_file(path, name)]:
            is_image = Path(file.name).suffix.lower() in Image.registered_extensions()
            (found if is_image else left_out).append(file if is_image else file.name)
        if len(found) > MOST_IMAGES:
            raise BatchError(f"there are more than {MOST_IMAGES:,} images; send fewer at once")
    if (total := sum(file.size for file in found)) > MOST_BYTES_OF_ALL:
        raise BatchError(f"the images have {total:,} bytes; at most {MOST_BYTES_OF_ALL:,} are accepted at once")
    if not found:
        raise BatchError("there is no image among the files")
    some = ", ".join(left_out[:5]) + (", ..." if len(left_out) > 5 else "")
    return found, [f"{len(left_out):,} files are left out, as they are not called as images are: {some}"] * bool(some)


def _of_file(path: str, name: str) -> File:
    def read(most: int) -> bytes:
        with open(path, "rb") as stream:
            return stream.read(most)

    return File(name, os.path.getsize(path), read)


def _of_zip(path: str, name: str) -> Iterator[File]:
    """Yield the files of a zip but for folders and hidden ones. Raises BatchError."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise BatchError(f"{name}: the zip cannot be read: {error}") from None
    for member in members:
        parts = member.filename.split("/")
        if not member.is_dir() and not any(part.startswith((".", "__MACOSX")) and part != ".." for part in parts):
            yield File(member.filename, member.file_size, _reader(path, member))


def _reader(path: str, member: zipfile.ZipInfo) -> Callable[[int], bytes]:
    def read(most: int) -> bytes:
        with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
            return stream.read(most)

    return read


def ask_all(source: Source, files: Sequence[File]) -> Iterator[Asked]:
    """Yield the answer for each image in order; of one that cannot be read, the reason. Raises BatchError.

    What a file says of its size may be wrong: the bytes are counted as they are read.
    """
    total, numbered = 0, enumerate(files)
    with ThreadPoolExecutor(CLIENTS) as pool:
        while chunk := list(itertools.islice(numbered, 4 * CLIENTS)):
            read = [(number, file.name, _read(file)) for number, file in chunk]
            total += sum(len(data) for _, _, data in read if isinstance(data, bytes))
            if total > MOST_BYTES_OF_ALL:
                raise BatchError(
                    f"the images have more than {MOST_BYTES_OF_ALL:,} bytes, though the zip says otherwise"
                )
            yield from pool.map(lambda item: _ask(source, *item), read)


def _ask(source: Source, number: int, name: str, data: bytes | str) -> Asked:
    if isinstance(data, str):
        return Asked(name, b"", error=data)
    asked = asking.ask(source, name, data, with_mask=number < SHOWN)
    if asked.task == "segmentation":  # a thousand masks would need gigabytes, and the table shows none
        asked = replace(asked, raw=json.dumps(asked.answer | {"base64_prediction": ""}).encode())
    return asked if number < SHOWN else replace(asked, image=b"")


def _read(file: File) -> bytes | str:
    """Return the bytes of a file, or why they cannot be had."""
    try:
        data = file.read(MOST_BYTES + 1)
    except Exception as error:  # a damaged or encrypted zip makes its decoders raise almost anything
        return f"it cannot be read: {error or type(error).__name__}"
    return data if len(data) <= MOST_BYTES else f"it has more than {MOST_BYTES:,} bytes"


def sheet(asked: Sequence[Asked]) -> Image.Image | None:
    """Return a contact sheet of the first SHOWN images, each with its answer below; None if none is an image."""
    drawn = ((asking.draw(one), one.answer) for one in asked[:SHOWN])
    cards = [answers.card(image, {**row, "points": []}, CARD) for image, row in drawn if image]
    return pictures.contact_sheet(cards, min(6, len(cards))) if cards else None


def write_csv(asked: Sequence[Asked], file: Path) -> None:
    """Write a row for each image, as `fastmaker transform --collect` does."""
    answers.write_csv(({"key": one.name, **one.answer} for one in asked), file)
