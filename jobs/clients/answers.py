"""The answers of a transform job, joined to the objects that they are for."""

import csv
import io
import itertools
import json
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jsonlines
from PIL import Image, UnidentifiedImageError

from fastmaker.jobs import storage
from fastmaker.jobs.cli import pictures, tables
from fastmaker.jobs.storage.listings import Inputs

SHOWN = 20  # answers in the contact sheet
READERS = 16  # answers that are read at once
CHUNK = 1000  # answers that are held at once
BINARY = ("image/png", "application/x-npy")  # content types of answers that are no text and cannot be collected
PROBABILITY = "probability_"  # begins the CSV's columns of several labels
PIXELS = "pixels_"  # begins the CSV's columns of the classes of masks


def check_collectable(accept: str) -> None:
    """Raises ValueError unless `collect` can hold answers of this content type."""
    if accept.strip().lower() in BINARY:
        raise ValueError(
            f"--collect goes with --accept application/json, application/jsonlines or text/csv, not {accept}"
        )


def collect(inputs: Inputs, output: str, file: Path) -> None:
    """Write every object's key with its answer, or with an `error` where it has none, as JSON lines or CSV.

    JSON lines hold the answers as they are. CSV has a row for each image, of several in one object with the same key.
    It holds a mask as the pixels of each class, ``pixels_<class>``; several labels joined by ";", with the probability
    of each, ``probability_<label>``; numbers as ``value_<name>``, without names ``value_1`` and so on; points as
    ``x_1``, ``y_1`` and so on.
    """
    rows = _rows(inputs, output)
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".jsonl":
        with jsonlines.open(file, "w") as writer:
            writer.write_all(rows)
        return
    write_csv(rows, file)


def write_csv(rows: Iterable[dict], file: Path) -> None:
    """Write rows, each a `key` with its answer or an `error`, as CSV, see `collect`."""
    columns = {"key": None}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as spool:  # the last row may bring a column
        for cells in map(_cells, itertools.chain.from_iterable(map(_by_image, rows))):
            columns |= dict.fromkeys(cells)
            spool.write(json.dumps(cells) + "\n")
        spool.seek(0)
        columns = [name for name in columns if name != "error"] + ["error"]
        with open(file, "w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(_with_zeros(json.loads(line), columns) for line in spool)


def _by_image(row: dict) -> list[dict]:
    """Return a row of `_rows` for each image that its object holds."""
    if not isinstance(answers := row.get("answer"), list) or not answers:
        return [row]
    return [_keyed(row["key"], answer) for answer in answers]


def _cells(row: dict) -> dict:
    """Return what a table shows of an image's row: lists of the answer as a column for each item, see `collect`."""
    if {"base64_prediction", "classes"} <= row.keys():
        return {"key": row["key"]} | {PIXELS + found["label"]: found["pixels"] for found in row["classes"]}
    cells = {name: value for name, value in row.items() if not isinstance(value, list | dict)}
    if isinstance(row.get("probabilities"), dict):
        cells["labels"] = ";".join(row["labels"])
        cells |= {PROBABILITY + label: probability for label, probability in row["probabilities"].items()}
    cells |= {f"value_{name}": value for name, value in tables.by_name(row).items()}
    for number, (x, y) in enumerate(row.get("points", []), 1):
        cells |= {f"x_{number}": x, f"y_{number}": y}
    return cells


def _with_zeros(cells: dict, columns: list[str]) -> dict:
    """Return the cells with 0 for the classes that a mask has no pixel of; an object without an answer has no mask."""
    return cells if "error" in cells else {name: 0 for name in columns if name.startswith(PIXELS)} | cells


def save_picture(inputs: Inputs, output: str, file: Path) -> None:
    """Write a contact sheet of images from all over the job, each with its answer."""
    step = max(1, inputs.count // SHOWN)
    names = itertools.islice((name for name, _ in inputs), 0, None, step)
    cards = []
    for name in itertools.islice(names, SHOWN):
        row = _row(output, name)
        with storage.open_object(inputs.prefix + name) as stream:
            try:
                cards.append(card(Image.open(io.BytesIO(stream.read())), row))
            except (UnidentifiedImageError, OSError):
                continue
    if cards:
        file.parent.mkdir(parents=True, exist_ok=True)
        pictures.contact_sheet(cards, columns=min(5, len(cards))).save(file)


def card(image: Image.Image, row: dict, size: int = 112) -> Image.Image:
    """Return the image with its points, if the answer has any, and the answer below, `size` pixels wide."""
    label, probability = tables.summarize(row)
    caption = row.get("error") or (label if probability is None else f"{label}  ({probability:.3f})")
    return pictures.captioned(pictures.with_points(image, row.get("points", [])), caption, size)


def _rows(inputs: Inputs, output: str) -> Iterator[dict]:
    names = (name for name, _ in inputs)
    with ThreadPoolExecutor(READERS) as pool:
        while chunk := list(itertools.islice(names, CHUNK)):
            yield from pool.map(lambda name: _row(output, name), chunk)


def _row(output: str, name: str) -> dict:
    try:
        with storage.open_object(storage.join(output, name + ".out")) as stream:
            answer = stream.read().decode("utf-8", "replace")
    except storage.StorageError:
        return {"key": name, "error": "no answer"}
    try:
        answer = json.loads(answer)
    except ValueError:
        answer = answer.strip()
    return _keyed(name, answer)


def _keyed(name: str, answer) -> dict:
    return {"key": name, **answer} if isinstance(answer, dict) else {"key": name, "answer": answer}
