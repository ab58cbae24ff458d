"""The layouts of a channel directory with labelled images.

idx             MNIST's raw files, plain or .gz: train-images-idx3-ubyte and train-labels-idx1-ubyte, and
                t10k-... for validation
label regex     image files in any subfolder; the first group of --label-regex, searched in the file name, is
                the label
labels.csv      with a header; columns: file name, label
class folders   <class>/<image>, or train/<class>/<image> with valid/<class>/<image>
"""

import csv
import gzip
import re
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

VALID_FOLDERS = ("valid", "val", "validation")
PART_FOLDERS = ("train", "training", "test", *VALID_FOLDERS)

# (image, label)
Pairs = list[tuple[Path | np.ndarray, str]]


class DataError(ValueError):
    """Training data that cannot be used. The message, one line, says what was expected and what was found."""


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


def find(folder: Path, pattern: re.Pattern[str] | None) -> tuple[str, Pairs, Pairs]:
    """Return the name of the layout of `folder`, its training pairs and its validation pairs. Raises DataError.

    With a `pattern`, the layout is "label regex".
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a directory")
    if pattern:
        return "label regex", _by_regex(folder, pattern), []
    if _idx_file(folder, "train-images-idx3-ubyte"):
        return "idx", _by_idx(folder, "train"), _by_idx(folder, "t10k")
    if (folder / "labels.csv").is_file():
        return "labels.csv", _by_csv(folder), []
    if (folder / "train").is_dir() and not _is_class(folder / "train"):
        valid = next((folder / name for name in VALID_FOLDERS if (folder / name).is_dir()), None)
        return "class folders", _by_folder(folder / "train"), _by_folder(valid) if valid else []
    if (folder / "codes.txt").is_file():
        raise DataError(f"{folder} holds codes.txt and so masks: --task segmentation trains on it")
    if _folders(folder):
        return "class folders", _by_folder(folder), []
    raise DataError(
        f"{folder} has an unknown layout. Expected: MNIST idx files, labels.csv, class folders"
        " (<class>/<image> or train/<class>/<image>), or a --label-regex for file names. Found: " + listing(folder)
    )


def _by_regex(folder: Path, pattern: re.Pattern[str]) -> Pairs:
    files = image_files(folder)
    if not files:
        raise DataError(f"{folder} holds no image file. Found: {listing(folder)}")
    pairs: Pairs = []
    for file in files:
        match = pattern.search(file.name)
        if not match or not match.group(1):
            raise DataError(f"--label-regex {pattern.pattern!r} finds no label in the file name {file.name!r}")
        pairs.append((file, match.group(1)))
    return pairs


def _by_csv(folder: Path) -> Pairs:
    path = folder / "labels.csv"
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = [row for row in csv.reader(file) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a CSV file in UTF-8: {error}") from None
    if len(lines) < 2 or any(len(row) < 2 for row in lines):
        raise DataError(f"{path}: expected a header and two columns, file name and label")
    rows = [(name.strip(), label.strip()) for name, label, *_ in lines]
    if _named_file(folder, rows[0][0]):
        raise DataError(f"{path}, line 1: {rows[0][0]!r} is a file; expected a header, such as name,label")
    labels: dict[Path | np.ndarray, str] = {}
    for number, (name, label) in enumerate(rows[1:], 2):
        image = _named_file(folder, name)
        if image is None:
            raise DataError(f"{path}, line {number}: there is no file {name!r} in {folder}")
        if not label:
            raise DataError(f"{path}, line {number}: {name!r} has no label")
        if image in labels:
            raise DataError(f"{path}, line {number}: {name!r} is listed twice; an image has one label")
        labels[image] = label
    return list(labels.items())


def _named_file(folder: Path, name: str) -> Path | None:
    return next((f for f in (folder / name, folder / "images" / name) if f.is_file()), None)


def _is_class(train: Path) -> bool:
    """Return whether train/ is a class named train: it holds no folders, and other class folders are beside it."""
    others = [other for other in _folders(train.parent) if other.name not in PART_FOLDERS]
    return bool(others) and not _folders(train)


def _by_folder(folder: Path) -> Pairs:
    pairs: Pairs = []
    for class_folder in _folders(folder):
        files = image_files(class_folder)
        if class_folder.name in PART_FOLDERS and files and not any(file.parent == class_folder for file in files):
            raise DataError(
                f"{class_folder} holds folders of images and is not a class; expected <class>/<image>, or"
                " train/<class>/<image> with valid/<class>/<image>"
            )
        if not files:
            raise DataError(f"class {class_folder.name!r} is empty: {class_folder} holds no image file")
        pairs += [(file, class_folder.name) for file in files]
    if not pairs:
        raise DataError(f"{folder} holds no class folder. Found: {listing(folder)}")
    return pairs


def _by_idx(folder: Path, part: str) -> Pairs:
    images, labels = _idx_file(folder, f"{part}-images-idx3-ubyte"), _idx_file(folder, f"{part}-labels-idx1-ubyte")
    if images is None:
        return []
    if labels is None:
        raise DataError(f"{folder} holds {part}-images-idx3-ubyte but no {part}-labels-idx1-ubyte")
    pixels, numbers = _read_idx(images, 3), _read_idx(labels, 1)
    if not len(pixels):
        raise DataError(f"{images} holds no image")
    if len(pixels) != len(numbers):
        raise DataError(f"{images} holds {len(pixels)} images, {labels} {len(numbers)} labels")
    return list(zip(pixels, map(str, numbers), strict=True))


def _idx_file(folder: Path, name: str) -> Path | None:
    return next((f for f in (folder / name, folder / f"{name}.gz") if f.is_file()), None)


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Return the uint8 array of an idx file: magic 0, 0, 8, dimensions; then big-endian sizes; then the bytes."""
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be unpacked: {error}") from None
    header = 4 + 4 * dimensions
    if data[:4] != bytes((0, 0, 8, dimensions)) or len(data) < header:
        raise DataError(f"{path} is not an idx file of uint8 with {dimensions} dimensions")
    shape = np.frombuffer(data[4:header], ">u4")
    if len(data) != header + shape.prod(dtype=np.int64):
        raise DataError(f"{path} is cut short: its header says {'x'.join(map(str, shape))}")
    return np.frombuffer(data[header:], np.uint8).reshape(shape)


def image_files(folder: Path) -> list[Path]:
    """Return the files below `folder` with an extension that Pillow reads, sorted, without hidden ones."""
    extensions = Image.registered_extensions()
    files = (f for f in folder.rglob("*") if f.suffix.lower() in extensions and f.is_file())
    return sorted(f for f in files if not any(part.startswith(".") for part in f.relative_to(folder).parts))


def _folders(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith((".", "__")))


def listing(folder: Path) -> str:
    """Return the first names in `folder`, for an error message."""
    names = sorted(f.name + ("/" if f.is_dir() else "") for f in folder.iterdir())
    return ", ".join(names[:8]) + (f", ... ({len(names)} entries)" if len(names) > 8 else "") or "nothing"
