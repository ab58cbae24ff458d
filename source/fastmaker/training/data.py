"""A channel directory -> labelled images -> fastai DataLoaders.

`layouts` lists the layouts of a directory; `mask_data` reads images with masks.

Only `dataloaders` and `Samples.block` import fastai.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmaker import tasks
from fastmaker.training import image_checks, layouts
from fastmaker.training.layouts import DataError, Found, Pairs, Reading

if TYPE_CHECKING:
    from fastai.vision.all import DataLoaders, TransformBlock

# Mean and std of each channel, for pixels in 0..1: ImageNet's for colour, MNIST's for grey, as in fastai.
STATISTICS = {"RGB": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), "L": ((0.1307,), (0.3081,))}


@dataclass(frozen=True)
class Samples:
    """Labelled images: paths or uint8 arrays (H, W), their labels, and which of them are for validation."""

    layout: str
    images: Sequence[Path] | np.ndarray
    labels: Sequence[Any]  # by task: class names, tuples of them, of numbers or of points (x, y), or mask files
    is_valid: Sequence[bool]
    skipped: tuple[str, ...] = ()  # unreadable files, each with the reason
    task: str = "classification"  # one of fastmaker.tasks.TASKS
    notes: tuple[str, ...] = ()  # lines to print after the summary
    names: tuple[str, ...] = ()  # of several numbers

    @property
    def classes(self) -> list[str]:
        """The class names, in the order of the network's outputs; none of numbers and points."""
        if self.task == "multilabel":
            return sorted({label for labels in self.labels for label in labels})
        return sorted(set(map(str, self.labels))) if self.task in tasks.LABELLED else []

    @property
    def names_of_numbers(self) -> tuple[str, ...]:
        """The names of the numbers of each image, if each has a column of its own."""
        return self.names if self.task == "regression" and len(self.names) == len(self.labels[0]) else ()

    def block(self) -> "TransformBlock":
        """Return fastai's TransformBlock for the labels."""
        from fastmaker.training import task_parts

        return task_parts.TASKS[self.task].block(self)

    @property
    def n_train(self) -> int:
        """The number of training images."""
        return len(self.labels) - sum(self.is_valid)

    @property
    def training_labels(self) -> list[Any]:
        """The labels of the training images."""
        return [label for label, valid in zip(self.labels, self.is_valid, strict=True) if not valid]

    @property
    def training_counts(self) -> dict[str, int]:
        """How many training images each class has, in the order of the classes."""
        labels = self.training_labels
        counts = Counter(name for label in labels for name in (label if self.task == "multilabel" else (str(label),)))
        return {name: counts[name] for name in self.classes}

    def summary(self) -> str:
        """Return one line about the layout, the numbers of images and the classes."""
        classes = self.classes
        what = f"{len(classes)} classes ({', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''})"
        if self.task in ("regression", "points"):
            what = f"{len(self.labels[0])} {'points' if self.task == 'points' else 'numbers'} each"
        return f"found {self.layout}: {self.n_train} images to train, {sum(self.is_valid)} to validate, {what}" + (
            f"; {len(self.skipped)} unreadable images skipped" if self.skipped else ""
        )


def read(
    train_dir: str | os.PathLike,
    valid_dir: str | os.PathLike | None = None,
    label_regex: str | None = None,
    valid_pct: float = 0.2,
    seed: int = 42,
    task: str = "classification",
    labels_csv: str | None = None,
    label_columns: Sequence[str] = (),
    label_delimiter: str | None = None,
    depth: str = "complete",
) -> Samples:
    """Return the samples of a channel directory, without unreadable images, which are looked for to a `depth`.

    If the data has no validation images (`valid_dir`, a valid folder, t10k files, a column is_valid), the fraction
    `valid_pct`, drawn with `seed`, is used for validation; of a classifier, that of each class. `task` is one of
    fastmaker.tasks.TASKS without segmentation, `depth` one of image_checks.DEPTHS. Raises DataError.
    """
    train_dir = Path(train_dir)
    pattern = layouts.compile_regex(label_regex)
    reading = layouts.Reading(task, pattern, labels_csv, tuple(label_columns), label_delimiter)
    found = layouts.find(train_dir, reading)
    if valid_dir is not None:
        found = _with_channel(found, train_dir, Path(valid_dir), reading)
    check_apart([file for file, _ in found.train], [file for file, _ in found.valid], found.layout)
    notes = (*found.notes, *_doubts([label for _, label in (*found.train, *found.valid)], task, label_delimiter))
    train, valid = found.train, found.valid
    skipped: tuple[str, ...] = ()
    if found.layout != "idx":
        labels = {label for _, label in train}
        train, bad_train = image_checks.readable(train, depth)
        valid, bad_valid = image_checks.readable(valid, depth)
        skipped = (*bad_train, *bad_valid)
        image_checks.check_skipped(skipped, len(found.train) + len(found.valid), train_dir)
        lost = sorted(labels - {label for _, label in train}) if task == "classification" else []
        if lost:
            raise DataError(f"no image of {', '.join(map(repr, lost[:5]))} can be read: " + "; ".join(skipped[:3]))
    samples = _samples(found.layout, train, valid, skipped, valid_pct, seed, task)
    samples = image_checks.without_unreadable_validation(samples, depth)
    return _checked(replace(samples, notes=notes, names=found.names))


def check_apart(train: Sequence[Path], valid: Sequence[Path], layout: str) -> None:
    """Raise DataError if the same files train and validate: the metrics would be of images that were learnt."""
    if layout != "idx" and (both := layouts.same_files(valid, train)):
        raise DataError(f"{len(both)} images train and validate, such as {both[0]}; each is for one of the two")


def _doubts(labels: Sequence[Any], task: str, label_delimiter: str | None) -> list[str]:
    """Return lines about labels that may not be meant. Raises DataError for those that cannot be."""
    if task == "classification":
        layouts.labels.check_classes(labels, label_delimiter)
        return [*layouts.labels.doubts(labels), *layouts.labels.numbers_as_classes(labels)]
    return layouts.labels.doubts({name for label in labels for name in label}) if task == "multilabel" else []


def _with_channel(found: Found, train_dir: Path, valid_dir: Path, reading: Reading) -> Found:
    """Return what the directories of two channels hold, the second of which validates. Raises DataError."""
    if found.valid:
        raise DataError(f"{train_dir} has validation images of its own; do not give {valid_dir} as well")
    other = layouts.find(valid_dir, reading)
    if "idx" in (found.layout, other.layout) and found.layout != other.layout:
        raise DataError(f"{train_dir} has the layout {found.layout}, {valid_dir} the layout {other.layout}")
    if found.names != other.names:
        raise DataError(f"{train_dir} and {valid_dir} have different columns of labels")
    return replace(found, valid=other.train, notes=(*found.notes, *other.notes))


def fingerprint(samples: Samples) -> str:
    """Return the SHA-256 of the images' file names (without folders), their labels and the validation flags."""
    names = [getattr(image, "name", "") for image in samples.images]  # idx files hold arrays, without names
    labels = [getattr(label, "name", label) for label in samples.labels]  # of a mask, its file name
    return hashlib.sha256(repr((names, labels, list(map(bool, samples.is_valid)))).encode()).hexdigest()


def dataloaders(
    samples: Samples,
    image_mode: str,
    image_size: tuple[int, int],
    resize_method: str,
    batch_size: int,
    augment: bool,
    workers: int,
    statistics: tuple[Sequence[float], Sequence[float]] | None = None,
    transforms: tuple[list[Any], list[Any]] | None = None,
) -> "DataLoaders":
    """Return fastai DataLoaders of (images, labels).

    Images are float32 (N, C, H, W), normalised with `statistics`, by default STATISTICS. Labels are int64, class
    indexes (N,) or masks (N, H, W), or float32: 0 or 1 for each class (N, n), numbers (N, n), or points in -1..1
    (N, n, 2). `image_mode` is RGB or L, `image_size` is (height, width) in pixels, `resize_method` is one of
    preprocess.RESIZE_METHODS. `transforms`, of images and of batches, replace the resizing and aug_transforms.
    """
    from fastai.vision.all import DataBlock, IndexSplitter, ItemGetter, Normalize, Resize, aug_transforms

    of_items, of_batches = transforms or (
        [Resize(image_size, method=resize_method)],
        aug_transforms() if augment else [],
    )
    block = DataBlock(
        blocks=(_image_block(image_mode), samples.block()),
        get_x=ItemGetter(0),
        get_y=ItemGetter(1),
        splitter=IndexSplitter(np.flatnonzero(samples.is_valid)),
        item_tfms=of_items,
        batch_tfms=[
            *of_batches,
            Normalize.from_stats(*(statistics or STATISTICS[image_mode])),
        ],
    )
    dls = block.dataloaders(_items(samples), bs=batch_size, num_workers=workers)
    image_checks.replace_unreadable(dls.train)
    return dls


def _items(samples: Samples) -> list[tuple[Any, Any]]:
    """Return pairs of image and label. Labels are no tuples: fastai would apply a transform to each part of one."""
    labels = [list(label) if isinstance(label, tuple) else label for label in samples.labels]
    return list(zip(samples.images, labels, strict=True))


def _image_block(image_mode: str) -> "TransformBlock":
    """Return fastai's ImageBlock for images of one mode, which also converts arrays to that mode."""
    from fastai.vision.all import IntToFloatTensor, PILImage, PILImageBW, TransformBlock

    kind = PILImage if image_mode == "RGB" else PILImageBW

    def create(image):  # type: ignore[no-untyped-def]  # fastai acts on the annotations of a transform
        with image_checks.decoding():
            return kind(kind.create(image).convert(image_mode))

    return TransformBlock(type_tfms=create, batch_tfms=IntToFloatTensor)


def _samples(
    layout: str, train: Pairs, valid: Pairs, skipped: tuple[str, ...], valid_pct: float, seed: int, task: str
) -> Samples:
    if valid:
        is_valid = [False] * len(train) + [True] * len(valid)
    else:
        # Of labels that differ from image to image, none could be drawn by class.
        is_valid = split([label if task == "classification" else "" for _, label in train], valid_pct, seed)
    images, labels = zip(*train, *valid, strict=True)
    if task == "multilabel" and not valid:
        _train_on_each(labels, is_valid)
    return Samples(layout, images, labels, is_valid, skipped, task)


def _train_on_each(labels: Sequence[tuple[str, ...]], is_valid: list[bool]) -> None:
    """Let the first image of a label train if all of its images were drawn to validate."""
    trained = {name for label, valid in zip(labels, is_valid, strict=True) if not valid for name in label}
    for i, label in enumerate(labels):
        if is_valid[i] and not trained.issuperset(label):
            is_valid[i] = False
            trained.update(label)


def split(labels: Sequence[str], valid_pct: float, seed: int) -> list[bool]:
    """Return which samples are for validation: of each class `valid_pct`, at least one, leaving one to train on."""
    random = np.random.default_rng(seed)
    array = np.asarray(labels)
    is_valid = np.zeros(len(array), bool)
    for label in np.unique(array):
        members = random.permutation(np.flatnonzero(array == label))
        n_valid = min(max(1, round(valid_pct * len(members))), len(members) - 1)
        is_valid[members[:n_valid]] = True
    return is_valid.tolist()


def _checked(samples: Samples) -> Samples:
    if samples.task in ("regression", "points"):
        sizes = sorted({len(label) for label in samples.labels})
        if len(sizes) > 1:
            raise DataError(f"images have {sizes[0]} to {sizes[-1]} {samples.task} values; each needs as many")
        if samples.task == "points" and np.abs(np.asarray(samples.labels, float)).max() <= 1:
            raise DataError(
                "all points lie within a pixel of the image's corner; write x and y in pixels, not as parts of the size"
            )
    elif len(samples.classes) < (2 if samples.task == "classification" else 1):
        raise DataError(_too_few(samples))
    unseen = [name for name, count in samples.training_counts.items() if not count]
    if unseen:
        raise DataError(f"no training image for {', '.join(map(repr, unseen[:5]))}, which the validation images have")
    if not any(samples.is_valid):
        raise DataError("no image is left for validation: every class has a single image")
    return samples


def _too_few(samples: Samples) -> str:
    if samples.task == "multilabel":
        return "no image has a label; --task multilabel needs at least one"
    return (
        f"there is only one class: {samples.classes[0]!r} ({len(samples.labels)} images); a classifier needs two."
        " If file names contain the label, give --label-regex"
    )
