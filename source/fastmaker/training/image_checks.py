"""What is looked at of images before they train, and what trains in place of one that then does not decode.

layout     nothing: names and labels alone, as `fastmaker train` does before it starts a job
headers    what each host does: the header of each image, all of each mask and of each validation image
complete   all of each file, as ``entry_point.py --check-only true`` does
"""

import contextlib
import dataclasses
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image

from fastmaker import masks, preprocess
from fastmaker.training.layouts import DataError

if TYPE_CHECKING:
    from fastai.data.load import DataLoader

DEPTHS = ("layout", "headers", "complete")
# A larger fraction of unreadable images means a broken download rather than a few bad files.
MAX_UNREADABLE = 0.1
Pair = TypeVar("Pair", bound=tuple[Path, Any])
SamplesLike = TypeVar("SamplesLike", bound=Any)  # data.Samples, which imports this module


def readable(
    pairs: list[Pair], depth: str, problem_of: Callable[[Pair, str], str | None] | None = None
) -> tuple[list[Pair], list[str]]:
    """Return the pairs of image file and label that can be read, and a line for each other.

    `depth` is one of DEPTHS; `problem_of` returns the line of a pair, by default that of its image file.
    """
    if depth == "layout":
        return pairs, []
    find = problem_of or (lambda pair, depth: problem(pair[0], depth))
    with ThreadPoolExecutor() as pool:  # Pillow's decoders release the interpreter lock
        problems = list(pool.map(lambda pair: find(pair, depth), pairs))
    good = [pair for pair, line in zip(pairs, problems, strict=True) if line is None]
    return good, [line for line in problems if line is not None]


def problem(file: Path, depth: str = "complete") -> str | None:
    """Return why an image cannot be read, or None."""
    try:
        open_image(file, depth)
    except (preprocess.ImageError, OSError) as error:
        return f"{file}: {error}"
    return None


def open_image(file: Path, depth: str = "complete") -> Image.Image:
    """Return a training image, decoded unless its header is enough. Raises preprocess.ImageError and OSError.

    Pillow, and so fastai, clips 16-bit and floating-point pixels to 0..255, which makes most such images blank: images
    with other values are an ImageError.
    """
    image = _header(file) if depth == "headers" else None
    if image is None:
        image = preprocess.decode(file.read_bytes())
    if image.mode.startswith(("I", "F")) and (np.asarray(image.convert("L")) != np.asarray(image)).any():
        raise preprocess.ImageError(f"its pixels ({image.mode}) are not whole numbers from 0 to 255; convert it")
    return image


def _header(file: Path) -> Image.Image | None:
    """Return an image whose header says enough; None if the whole file must be looked at."""
    try:
        with warnings.catch_warnings(), Image.open(file) as image:
            warnings.simplefilter("ignore")
            large = image.width * image.height > preprocess.max_pixels()
            # Only pixels say whether deep ones fit into 8 bits, and only the file how often a JPEG goes over them.
            deep = image.mode.startswith(("I", "F"))
            return None if large or deep or image.info.get("progressive") else image
    except Exception:  # the message is that of the decoder
        return None


@dataclasses.dataclass
class Masks:
    """What masks may hold, and what those that were looked at hold."""

    codes: Sequence[str]  # the classes by their numbers
    void_pixel: int | None  # the number of the void class, if `codes` has none of it
    scale: int = 1  # what the numbers in the files are divided by
    numbers: set[int] = dataclasses.field(default_factory=set)  # in the files
    colours: dict[int, tuple[tuple[int, ...], Path]] = dataclasses.field(default_factory=dict)  # in their palettes


def mask_problem(pair: tuple[Path, Path], depth: str, seen: Masks) -> str | None:
    """Return why the pair cannot be read, or None. Raises DataError if it can be read but the mask does not fit."""
    image_file, mask_file = pair
    try:
        image = open_image(image_file, depth)
    except (preprocess.ImageError, OSError) as error:
        return f"{image_file}: {error}"
    try:
        mask_image = preprocess.decode(mask_file.read_bytes())
    except (preprocess.ImageError, OSError) as error:
        return f"{mask_file}: {error}"
    try:
        mask = masks.indexes(mask_image)
    except preprocess.ImageError as error:
        raise DataError(f"{mask_file}: {error}") from None
    if mask.shape != (image.height, image.width):
        raise DataError(
            f"{mask_file} is {mask.shape[1]}x{mask.shape[0]}, its image {image_file.name} is"
            f" {image.width}x{image.height}; a mask has the size of its image"
        )
    numbers = np.unique(mask)
    _check_numbers(numbers, mask_file, seen)
    seen.numbers.update(numbers.tolist())
    if mask_image.mode == "P":
        _check_colours(mask_image, numbers, mask_file, seen)
    return None


def _check_numbers(numbers: np.ndarray, mask_file: Path, seen: Masks) -> None:
    """Raise DataError unless the numbers of a mask, in order, are those of the classes, each times the scale."""
    odd = numbers[numbers % seen.scale != 0]
    if odd.size:
        raise DataError(f"{mask_file} holds the number {odd[0]}, which --mask-scale {seen.scale} does not divide")
    n, numbers = len(seen.codes), numbers // seen.scale
    wrong = numbers[(numbers < 0) | (numbers >= n)]
    wrong = wrong if seen.void_pixel is None else wrong[wrong != seen.void_pixel]
    if not wrong.size:
        return
    hint = ""
    if numbers[0] == 1 and numbers[-1] == n:
        hint = " (if its numbers begin at 1, name a class for 0, such as Void, in the first line of codes.txt)"
    elif 0 <= wrong[0] < masks.MAX_CLASSES:
        hint = f" (--void-code {wrong[0]} ignores it in loss and metrics; --mask-scale divides all)"
    raise DataError(f"{mask_file} holds the label {wrong[0]}; codes.txt names 0 to {n - 1}{hint}")


def _check_colours(image: Image.Image, numbers: np.ndarray, mask_file: Path, seen: Masks) -> None:
    """Raise DataError if a mask shows a number in another colour than an earlier one: then numbers mean nothing."""
    palette = image.getpalette() or []
    for number in numbers.tolist():
        colour = tuple(palette[3 * number : 3 * number + 3])
        first, file = seen.colours.setdefault(number, (colour, mask_file))
        if first != colour:
            raise DataError(
                f"{mask_file} shows the number {number} in another colour than {file.name}: each mask has a palette of"
                " its own; write masks whose numbers are the classes"
            )


def check_skipped(skipped: Sequence[str], n_files: int, folder: Path | str) -> None:
    """Raise DataError if more than MAX_UNREADABLE of the files are unreadable."""
    if len(skipped) > MAX_UNREADABLE * n_files:
        raise DataError(
            f"{len(skipped)} of {n_files} images in {folder} cannot be read (more than a tenth): "
            + "; ".join(skipped[:3])
        )


def without_unreadable_validation(samples: SamplesLike, depth: str) -> SamplesLike:
    """Return `samples` without validation images that do not decode: each counts once in a metric, or not at all.

    Raises DataError if more than a tenth of all are then unreadable.
    """
    if depth != "headers" or not len(samples.images) or not isinstance(samples.images[0], Path):
        return samples
    validating = [(file, None) for file, valid in zip(samples.images, samples.is_valid, strict=True) if valid]
    good, skipped = readable(validating, "complete")
    # fastai opens the first training image to set its transforms up: it must decode, too.
    training = [file for file, valid in zip(samples.images, samples.is_valid, strict=True) if not valid]
    leading = [line for line in itertools.takewhile(bool, map(problem, training)) if line]
    if not skipped and not leading:
        return samples
    skipped += leading
    skipped = [*samples.skipped, *skipped]
    check_skipped(skipped, len(samples.images) + len(samples.skipped), validating[0][0].parent)
    kept = {file for file, _ in good} | set(training[len(leading) :])
    keep = [file in kept for file in samples.images]

    def chosen(values: Sequence[Any]) -> list[Any]:
        return [value for value, stays in zip(values, keep, strict=True) if stays]

    return dataclasses.replace(
        samples,
        images=chosen(samples.images),
        labels=chosen(samples.labels),
        is_valid=chosen(samples.is_valid),
        skipped=tuple(skipped),
    )


@contextlib.contextmanager
def decoding() -> Iterator[None]:
    """Turn whatever Pillow raises within the block into a preprocess.ImageError."""
    try:
        yield
    except Exception as error:  # a damaged file makes Pillow's decoders raise almost anything
        raise preprocess.ImageError(f"the image cannot be decoded: {error}") from error


class Replacing:
    """The training items of a DataLoader; in place of one whose image does not decode, the next one that does.

    Whether an image decodes depends on its file alone: so do batches, on all hosts and after a resumption.
    """

    def __init__(self, dl: "DataLoader"):
        import torch

        self.dataset = dl.dataset
        # One flag an image, shared with the processes that load images.
        self.unreadable = torch.zeros(len(self.dataset), dtype=torch.bool).share_memory_()

    def item(self, index: int) -> Any:
        """Return the item of `index`, or of the next whose image decodes. Raises DataError if none does."""
        n = len(self.dataset)
        for i in ((index + step) % n for step in range(n)):
            if not self.unreadable[i]:
                try:
                    return self.dataset[i]
                except preprocess.ImageError:
                    self.unreadable[i] = True
        raise DataError("no training image can be decoded")

    def file(self, index: int) -> Path:
        """Return the image file of an item."""
        return self.dataset.items[index][0]


def replace_unreadable(dl: "DataLoader") -> None:
    """Let `dl` load the items of a `Replacing`."""
    dl.create_item = Replacing(dl).item  # a method, which fastai does not give to a DataLoader made of this one


def replacing(dl: "DataLoader") -> Replacing | None:
    """Return what `replace_unreadable` has given to `dl`."""
    owner = getattr(dl.create_item, "__self__", None)
    return owner if isinstance(owner, Replacing) else None
