"""A channel directory -> labelled images -> fastai DataLoaders.

`read` finds out which of these layouts a directory has, says what it found, and refuses the rest (`mask_data` reads the
one with masks):

    idx             MNIST's raw files, plain or .gz: train-images-idx3-ubyte and train-labels-idx1-ubyte, t10k-... to
                    validate
    label regex     image files anywhere below; the first group of --label-regex, searched in the file name, is the
                    label
    labels.csv      with a header; columns: file name, label
    class folders   <class>/<image>, or train/<class>/<image> with valid/<class>/<image>

Only `dataloaders` needs fastai.
"""

import csv
import gzip
import hashlib
import os
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fastmaker import preprocess

VALID_FOLDERS = ("valid", "val", "validation")
PART_FOLDERS = ("train", "training", "test", *VALID_FOLDERS)
# More unreadable images than this share of all are a broken download rather than a few bad files.
MAX_UNREADABLE = 0.1
# Normalisation for pixels in 0..1: ImageNet's statistics for colour, MNIST's for gray, as fastai has them.
STATISTICS = {"RGB": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), "L": ((0.1307,), (0.3081,))}


class DataError(ValueError):
    """The data cannot be trained on; the message says what was looked for and what was found."""


@dataclass(frozen=True)
class Samples:
    """Labelled images: paths or uint8 arrays (H, W), their labels, and which of them validate."""

    layout: str
    images: Sequence[Path] | np.ndarray
    labels: Sequence[str]
    is_valid: Sequence[bool]
    skipped: tuple[str, ...] = ()  # unreadable files, each with the reason

    @property
    def classes(self) -> list[str]:
        return sorted(set(self.labels))

    def block(self):
        """fastai's TransformBlock of the labels."""
        from fastai.vision.all import CategoryBlock

        return CategoryBlock(vocab=self.classes)

    @property
    def n_train(self) -> int:
        return len(self.labels) - sum(self.is_valid)

    def summary(self) -> str:
        return (
            f"found {self.layout}: {self.n_train} images to train, {sum(self.is_valid)} to validate,"
            f" {len(self.classes)} classes ({', '.join(self.classes[:5])}{', ...' if len(self.classes) > 5 else ''})"
            + (f"; {len(self.skipped)} unreadable images skipped" if self.skipped else "")
        )


def read(
    train_dir: str | os.PathLike,
    valid_dir: str | os.PathLike | None = None,
    label_regex: str | None = None,
    valid_pct: float = 0.2,
    seed: int = 42,
) -> Samples:
    """The samples of a channel directory, every image file opened once to see that it can be read.

    Without images set apart for validation (`valid_dir`, a valid folder, t10k files), `valid_pct` of each class
    validates, drawn with `seed`. Raises DataError.
    """
    train_dir = Path(train_dir)
    if not train_dir.is_dir():
        raise DataError(f"{train_dir} is no directory")
    pattern = compile_regex(label_regex)
    layout, train, valid = _find(train_dir, pattern)
    if valid_dir is not None:
        if valid:
            raise DataError(f"{train_dir} has validation images of its own; do not give {valid_dir} as well")
        valid_layout, valid, _ = _find(Path(valid_dir), pattern)
        if "idx" in (layout, valid_layout) and layout != valid_layout:
            raise DataError(f"{train_dir} has the layout {layout}, {valid_dir} the layout {valid_layout}")
    if layout == "idx":
        return _checked(_samples(layout, train, valid, (), valid_pct, seed))
    n_files = len(train) + len(valid)
    labels = {label for _, label in train}
    train, bad_train = _readable(train)
    valid, bad_valid = _readable(valid)
    skipped = (*bad_train, *bad_valid)
    check_skipped(skipped, n_files, train_dir)
    lost = sorted(labels - {label for _, label in train})
    if lost:
        raise DataError(f"no image of {', '.join(map(repr, lost[:5]))} can be read: " + "; ".join(skipped[:3]))
    return _checked(_samples(layout, train, valid, skipped, valid_pct, seed))


def fingerprint(samples: Samples) -> str:
    """SHA-256 over the images' names, wherever they lie, their labels and which of them validate."""
    names = [getattr(image, "name", "") for image in samples.images]  # idx files hold arrays, which have none
    labels = [getattr(label, "name", label) for label in samples.labels]  # of masks, the file's
    return hashlib.sha256(repr((names, labels, list(map(bool, samples.is_valid)))).encode()).hexdigest()


def dataloaders(
    samples: Samples,
    image_mode: str,
    image_size: tuple[int, int],
    resize_method: str,
    batch_size: int,
    augment: bool,
    workers: int,
):
    """fastai DataLoaders of (image, label): float32 (N, C, H, W), normalised with STATISTICS, and int64.

    Labels are class numbers (N,) or masks (N, H, W), as `samples` has them.
    """
    from fastai.vision.all import (
        DataBlock,
        IndexSplitter,
        IntToFloatTensor,
        ItemGetter,
        Normalize,
        PILImage,
        PILImageBW,
        Resize,
        TransformBlock,
        aug_transforms,
    )

    kind = PILImage if image_mode == "RGB" else PILImageBW

    def create(image):  # as ImageBlock does; arrays, which fastai leaves in their own mode, are converted as well
        return kind(kind.create(image).convert(image_mode))

    block = DataBlock(
        blocks=(TransformBlock(type_tfms=create, batch_tfms=IntToFloatTensor), samples.block()),
        get_x=ItemGetter(0),
        get_y=ItemGetter(1),
        splitter=IndexSplitter(np.flatnonzero(samples.is_valid)),
        item_tfms=Resize(image_size, method=resize_method),
        batch_tfms=[*(aug_transforms() if augment else []), Normalize.from_stats(*STATISTICS[image_mode])],
    )
    items = list(zip(samples.images, samples.labels, strict=True))
    return block.dataloaders(items, bs=batch_size, num_workers=workers)


def compile_regex(label_regex: str | None) -> re.Pattern | None:
    if label_regex is None:
        return None
    try:
        pattern = re.compile(label_regex)
    except re.error as error:
        raise DataError(f"--label-regex {label_regex!r} is no regular expression: {error}") from None
    if not pattern.groups:
        raise DataError(f"--label-regex {label_regex!r} has no group; its first group is the label, as in '^(.+)_\\d+'")
    return pattern


# A layout's content before it is split: (image, label) pairs.
Pairs = list[tuple[Path | np.ndarray, str]]


def _find(folder: Path, pattern: re.Pattern | None) -> tuple[str, Pairs, Pairs]:
    """(layout, pairs to train, pairs to validate)"""
    if not folder.is_dir():
        raise DataError(f"{folder} is no directory")
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
        f"{folder} has no layout that is known. Looked for: MNIST idx files, labels.csv, class folders"
        " (<class>/<image> or train/<class>/<image>), or a --label-regex for file names. Found: " + listing(folder)
    )


def _by_regex(folder: Path, pattern: re.Pattern) -> Pairs:
    files = image_files(folder)
    if not files:
        raise DataError(f"{folder} holds no image file. Found: {listing(folder)}")
    pairs = []
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
            rows = [row for row in csv.reader(file) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no CSV file in UTF-8: {error}") from None
    if len(rows) < 2 or any(len(row) < 2 for row in rows):
        raise DataError(f"{path}: expected a header and two columns, file name and label")
    rows = [(name.strip(), label.strip()) for name, label, *_ in rows]
    if _named_file(folder, rows[0][0]):
        raise DataError(f"{path}, line 1: {rows[0][0]!r} is a file; expected a header, such as name,label")
    pairs = {}
    for number, (name, label) in enumerate(rows[1:], 2):
        file = _named_file(folder, name)
        if file is None:
            raise DataError(f"{path}, line {number}: there is no file {name!r} in {folder}")
        if not label:
            raise DataError(f"{path}, line {number}: {name!r} has no label")
        if file in pairs:
            raise DataError(f"{path}, line {number}: {name!r} is there a second time; an image has one label")
        pairs[file] = label
    return list(pairs.items())


def _named_file(folder: Path, name: str) -> Path | None:
    return next((f for f in (folder / name, folder / "images" / name) if f.is_file()), None)


def _is_class(train: Path) -> bool:
    """Whether the folder train/ is a class of that name: it holds images, no folders, and has other classes beside."""
    others = [other for other in _folders(train.parent) if other.name not in PART_FOLDERS]
    return bool(others) and not _folders(train)


def _by_folder(folder: Path) -> Pairs:
    pairs = []
    for class_folder in _folders(folder):
        files = image_files(class_folder)
        if class_folder.name in PART_FOLDERS and files and not any(file.parent == class_folder for file in files):
            raise DataError(
                f"{class_folder} holds folders of images and is no class; expected <class>/<image>, or"
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
    if images is None and part == "t10k":
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
    """The uint8 array of an idx file: magic 0, 0, 8, dimensions; then big-endian sizes; then the bytes."""
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be unpacked: {error}") from None
    header = 4 + 4 * dimensions
    if data[:4] != bytes((0, 0, 8, dimensions)) or len(data) < header:
        raise DataError(f"{path} is no idx file of uint8 with {dimensions} dimensions")
    shape = np.frombuffer(data[4:header], ">u4")
    if len(data) != header + shape.prod(dtype=np.int64):
        raise DataError(f"{path} is cut short: its header says {'x'.join(map(str, shape))}")
    return np.frombuffer(data[header:], np.uint8).reshape(shape)


def image_files(folder: Path) -> list[Path]:
    extensions = Image.registered_extensions()
    files = (f for f in folder.rglob("*") if f.suffix.lower() in extensions and f.is_file())
    return sorted(f for f in files if not any(part.startswith(".") for part in f.relative_to(folder).parts))


def _folders(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith((".", "__")))


def listing(folder: Path) -> str:
    names = sorted(f.name + ("/" if f.is_dir() else "") for f in folder.iterdir())
    return ", ".join(names[:8]) + (f", ... ({len(names)} entries)" if len(names) > 8 else "") or "nothing"


def _readable(pairs: Pairs) -> tuple[Pairs, list[str]]:
    """The pairs whose image file decodes, and a line for each that does not."""
    with ThreadPoolExecutor() as pool:  # Pillow's decoders release the interpreter lock
        problems = list(pool.map(_problem, (file for file, _ in pairs)))
    good = [pair for pair, problem in zip(pairs, problems, strict=True) if problem is None]
    return good, [problem for problem in problems if problem is not None]


def _problem(file: Path) -> str | None:
    try:
        open_image(file)
    except (preprocess.ImageError, OSError) as error:
        return f"{file}: {error}"
    return None


def open_image(file: Path) -> Image.Image:
    """An image to train on. Raises preprocess.ImageError and OSError.

    Of 16-bit and floating-point images Pillow, and so fastai, cuts off what is not in 0 to 255: most become blank.
    """
    image = preprocess.decode(file.read_bytes())
    if image.mode.startswith(("I", "F")) and (np.asarray(image.convert("L")) != np.asarray(image)).any():
        raise preprocess.ImageError(f"its pixels ({image.mode}) are not whole numbers from 0 to 255; convert it")
    return image


def check_skipped(skipped: Sequence[str], n_files: int, folder: Path) -> None:
    """Raise DataError if too many of the files are unreadable."""
    if len(skipped) > MAX_UNREADABLE * n_files:
        raise DataError(
            f"{len(skipped)} of {n_files} images in {folder} cannot be read (more than a tenth): "
            + "; ".join(skipped[:3])
        )


def _samples(layout: str, train: Pairs, valid: Pairs, skipped: tuple[str, ...], valid_pct: float, seed: int) -> Samples:
    if valid:
        is_valid = [False] * len(train) + [True] * len(valid)
    else:
        is_valid = split([label for _, label in train], valid_pct, seed)
    images, labels = zip(*train, *valid, strict=True)
    return Samples(layout, images, labels, is_valid, skipped)


def split(labels: Sequence[str], valid_pct: float, seed: int) -> list[bool]:
    """Of each class `valid_pct` to validate: at least one image, and at least one left to train."""
    random = np.random.default_rng(seed)
    labels = np.asarray(labels)
    is_valid = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        n_valid = min(max(1, round(valid_pct * len(members))), len(members) - 1)
        is_valid[members[:n_valid]] = True
    return is_valid.tolist()


def _checked(samples: Samples) -> Samples:
    train = Counter(label for label, valid in zip(samples.labels, samples.is_valid, strict=True) if not valid)
    if len(samples.classes) < 2:
        raise DataError(
            f"there is one class only: {samples.classes[0]!r} ({len(samples.labels)} images); a classifier needs two."
            " Where file names carry the label, give --label-regex"
        )
    unseen = [label for label in samples.classes if not train[label]]
    if unseen:
        raise DataError(f"no training image for {', '.join(map(repr, unseen[:5]))}, which the validation images have")
    if not any(samples.is_valid):
        raise DataError("no image is left to validate: every class has a single image")
    return samples
