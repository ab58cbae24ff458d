"""The layouts of a channel directory with labelled images.

idx             MNIST's raw files, plain or .gz: train-images-idx3-ubyte and train-labels-idx1-ubyte, and
                t10k-... for validation
label regex     image files in any subfolder; the first group of --label-regex is the label. It is searched in the file
                name, then in the path below the directory
labels.csv      a table with a header: a column of files, columns of labels and perhaps one that says what validates
class folders   <class>/<image>, or train/<class>/<image> with valid/<class>/<image>
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastmaker.training.layouts import class_folders, columns, idx, labels, tables
from fastmaker.training.layouts.files import (
    PARTS,
    DataError,
    contents,
    folders,
    image_files,
    is_below,
    listing,
    part_of,
    parts,
    same_files,
    shown,
    wrapped,
)
from fastmaker.training.layouts.labels import Reading

__all__ = [
    "PARTS",
    "DataError",
    "Found",
    "Reading",
    "compile_regex",
    "contents",
    "find",
    "image_files",
    "listing",
    "part_of",
    "parts",
    "same_files",
    "shown",
    "wrapped",
]

# (image, label); the label as Samples.labels has it
Pairs = list[tuple[Any, Any]]
# (image, label, part): "train", "valid" or "test", or None if nothing says it
Rows = list[tuple[Path, Any, str | None]]


@dataclass(frozen=True)
class Found:
    """What a directory holds."""

    layout: str
    train: Pairs
    valid: Pairs
    notes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()  # of several numbers or points


def compile_regex(label_regex: str | None) -> re.Pattern[str] | None:
    """Return the compiled --label-regex. Raises DataError if it is invalid or has no group."""
    if label_regex is None:
        return None
    try:
        pattern = re.compile(label_regex)
    except re.error as error:
        raise DataError(f"--label-regex {label_regex!r} is not a regular expression: {error}") from None
    if not pattern.groups:
        raise DataError(f"--label-regex {label_regex!r} has no group; its first group is the label, as in '^(.+)_\\d+'")
    return pattern


def find(folder: Path, reading: Reading) -> Found:
    """Return what `folder` holds. Raises DataError. With a pattern, the layout is "label regex"."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a directory")
    if reading.pattern:
        return _by_regex(folder, reading)
    if idx.find(folder, "train-images-idx3-ubyte"):
        train, valid = (idx.pairs(folder, part) for part in ("train", "t10k"))
        return Found("idx", _labelled(train, reading, folder), _labelled(valid, reading, folder))
    table = tables.choose(folder, reading.csv)
    if table and (reading.csv or _is_of_images(table, folder)):
        return _by_table(folder, table, reading)
    if reading.csv is None and len(tables.tables_in(folder)) > 1 and not folders(folder):
        names = ", ".join(file.name for file in tables.tables_in(folder))
        raise DataError(f"{folder} holds {names}; --labels-csv NAME says which has the labels")
    if (inner := wrapped(folder)) and not part_of(inner.name) and not (folder / "codes.txt").is_file():
        found = find(inner, reading)
        unused = [f"{file} is not used" for file in tables.tables_in(folder)]
        return replace(found, notes=(f"{inner} is read, the only folder of {folder}", *unused, *found.notes))
    if reading.columns:
        raise DataError(f"--label-columns is for a table of labels, and {folder} holds none. Found: {listing(folder)}")
    return _by_folders(folder, reading)


def _by_folders(folder: Path, reading: Reading) -> Found:
    split = class_folders.split_of(folder)
    if split and all(tables.choose(path, None) and not folders_of_classes(path) for path in split.values()):
        return _in_parts(split, lambda path: find(path, replace(reading, csv=None)))
    if (folder / "codes.txt").is_file():
        raise DataError(f"{folder} holds codes.txt and so masks: --task segmentation trains on it")
    if folders(folder):
        train, valid, notes = class_folders.read(folder)
        notes += [f"{file} is not used" for file in tables.tables_in(folder)]
        found = _labelled(train, reading, folder), _labelled(valid, reading, folder)
        return Found("class folders", *found, notes=tuple(notes))
    left_out = contents(folder).left_out()
    raise DataError(
        f"{folder} has an unknown layout. Expected: MNIST idx files, labels.csv, class folders"
        " (<class>/<image> or train/<class>/<image>), or a --label-regex for file names. Found: "
        + listing(folder)
        + (f" (no images that Pillow reads: {left_out})" if left_out else "")
    )


def folders_of_classes(folder: Path) -> bool:
    """Return whether `folder` has two folders with images, as classes are."""
    return sum(bool(image_files(path)) for path in folders(folder)) > 1


def _is_of_images(table: Path, folder: Path) -> bool:
    """Return whether a table is one of labels by its name, or by what stands in it."""
    if table.stem.lower() == "labels" or not folders(folder):
        return True
    try:
        found = tables.read(table)
    except DataError:
        return False
    index = tables.FileIndex(folder, contents(folder))
    pairs = zip(found.header, found.rows[0].cells, strict=True)
    return any(
        index.exact(cell) or (tables.plain(name) in tables.FILE_NAMES and index.files(cell)) for name, cell in pairs
    )


def _by_table(folder: Path, path: Path, reading: Reading) -> Found:
    table = tables.read(path)
    rows, chosen, notes = columns.read(table, folder, reading)
    split = parts(folder) if any(part_of(inner.name) == "train" for inner in folders(folder)) else {}
    split = {part: inner for part, inner in split.items() if image_files(inner)}
    rows = columns.split_by_folder(rows, split)
    _check_listed(path, rows, split)
    if reading.task == "multilabel" and len(chosen.labels) == 1:
        labels.check_delimiter([label for _, label, _ in rows], reading.delimiter)
    beside = [file for file in tables.tables_in(folder) if file != path]
    validating = next((file for file in beside if _is_for(file, "valid")), None)
    if validating and not any(part for *_, part in rows):
        rows, notes = _with_table(rows, path, validating, folder, reading)
        beside.remove(validating)
    notes += [f"{file} is not used" for file in beside]
    names = chosen.labels if reading.task in ("regression", "points") else ()
    return _found(path.name, rows, tuple(notes), names)


def _is_for(table: Path, part: str) -> bool:
    return part_of(table.stem.lower().replace("labels", "")) == part


def _with_table(rows: Rows, path: Path, validating: Path, folder: Path, reading: Reading) -> tuple[Rows, list[str]]:
    """Return the rows of a table and of another one, which validate, and notes. Raises DataError."""
    more, *_ = columns.read(tables.read(validating), folder, reading)
    again = {file for file, *_ in rows} & {file for file, *_ in more}
    if again:
        raise DataError(f"{path} and {validating} both list {min(again)}")
    rows = [(file, label, "train") for file, label, _ in rows] + [(file, label, "valid") for file, label, _ in more]
    n_unlisted = len(set(image_files(folder)) - {file for file, *_ in rows})
    return rows, [f"{n_unlisted} images of {folder} are in no table, and not used"] if n_unlisted else []


def _check_listed(path: Path, rows: Rows, split: dict[str, Path]) -> None:
    """Raise DataError if a table lists only training images, and a folder with images for validation is beside."""
    placed = {part for part, path in split.items() if any(is_below(file, path) for file, *_ in rows)}
    if "valid" in split and placed == {"train"} and not any(part for *_, part in rows):
        raise DataError(
            f"{path} lists no image of {split['valid']}; list them too, or give --labels-csv none if the folders are"
            " the classes"
        )


def _by_regex(folder: Path, reading: Reading) -> Found:
    found = contents(folder)
    if not found.images:
        hint = f" (no images that Pillow reads: {found.left_out()})" if found.left_out() else ""
        raise DataError(f"{folder} holds no image file. Found: {listing(folder)}{hint}")
    rows: Rows = [(file, _matched(file, folder, reading), None) for file in found.images]
    split = parts(folder) if any(part_of(inner.name) == "train" for inner in folders(folder)) else {}
    split = {part: path for part, path in split.items() if image_files(path)}
    if len(split) > 1 and all(any(is_below(file, path) for path in split.values()) for file in found.images):
        rows = columns.split_by_folder(rows, split)
    notes = [f"left out of {folder}, as no images that Pillow reads: {found.left_out()}"] if found.left_out() else []
    notes += [f"{file} is not used, as --label-regex is given" for file in tables.tables_in(folder)]
    return _found("label regex", rows, tuple(notes), ())


def _matched(file: Path, folder: Path, reading: Reading) -> Any:
    assert reading.pattern
    below = file.relative_to(folder).as_posix()
    match = reading.pattern.search(file.name)
    if not match or not match.group(1):
        match = reading.pattern.search(below)
    if not match or not match.group(1):
        where = "" if below == file.name else f" and none in its path {below!r}"
        raise DataError(
            f"--label-regex {reading.pattern.pattern!r} finds no label in the file name {file.name!r}{where}"
        )
    groups = match.groups() if reading.task != "classification" else match.groups()[:1]
    return reading.label([group for group in groups if group], str(file))


def _labelled(pairs: list[tuple[Any, str]], reading: Reading, folder: Path) -> Pairs:
    """Return pairs whose labels are those of the task, of the names of folders or digits."""
    if reading.task == "points":
        raise DataError(f"--task points: the names of folders in {folder} are no points; list them in labels.csv")
    return [(image, reading.label([label], f"the label of {folder}")) for image, label in pairs]


def _found(layout: str, rows: Rows, notes: tuple[str, ...], names: tuple[str, ...]) -> Found:
    """Return what rows say: those for validation validate, and without them those of a test set."""
    of = {part: [(file, label) for file, label, said in rows if said == part] for part in ("train", "valid", "test")}
    if not any(of.values()):
        return Found(layout, [(file, label) for file, label, _ in rows], [], notes, names)
    if not of["train"] or not (of["valid"] or of["test"]):
        lacking = "train" if not of["train"] else "validate"
        raise DataError(f"no image is left to {lacking}: every row of {layout} says otherwise")
    if not of["valid"]:
        return Found(layout, of["train"], of["test"], (*notes, "the test set validates, as no row is to"), names)
    more = (f"{len(of['test'])} images of the test set are not used",) if of["test"] else ()
    return Found(layout, of["train"], of["valid"], (*notes, *more), names)


def _in_parts(split: dict[str, Path], read: Callable[[Path], Found]) -> Found:
    """Return what the folders of a split hold, each with a table of its own."""
    validating = split.get("valid", split.get("test"))
    train = read(split["train"])
    if validating is None:
        return train
    valid = read(validating)
    if train.names != valid.names:
        raise DataError(f"{split['train']} and {validating} have different columns of labels")
    notes = [*train.notes, *valid.notes]
    notes += [f"{path} is not used" for path in split.values() if path not in (split["train"], validating)]
    if "valid" not in split:
        notes.append(f"{validating} validates, as there is no folder valid")
    return Found(train.layout, train.train + train.valid, valid.train + valid.valid, tuple(notes), train.names)
