"""A channel directory of images and masks -> samples for segmentation. Masks are checked before training starts.

The layout is that of fast.ai's CAMVID_TINY:

    images/a.png      any image that Pillow reads
    labels/a_P.png    its mask: one channel, the class index of each pixel, the size of the image; also for a.jpg. The
                      folder may be masks/ or annotations/, the file a.png or a_mask.png
    codes.txt         the class names, one a line; line 1 names index 0
    valid.txt         names of the validation images, one a line; also val.txt, or test.txt alone. The others train, or
                      those of train.txt. Or images/train and images/valid. Without, a fraction of all is drawn
"""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastmaker import masks, preprocess
from fastmaker.training import data, image_checks, layouts, mask_splits
from fastmaker.training.data import DataError, Samples

if TYPE_CHECKING:
    from fastai.vision.all import TransformBlock

MASK_FOLDERS = ("labels", "masks", "annotations")
MASK_NAMES = ("{}_P", "{}", "{}_mask")
LOSSLESS = (".tif", ".tiff", ".bmp", ".gif")  # formats of masks beside PNG
VOID_NAMES = ("void", "unlabelled", "unlabeled", "ignore")


@dataclass(frozen=True)
class MaskedSamples(Samples):
    """Images whose labels are mask files."""

    task: str = "segmentation"
    codes: tuple[str, ...] = ()
    void_code: int | None = None  # the index of the class that is ignored in loss and metrics
    void_pixel: int | None = None  # its pixel value in the mask files, if that is not void_code
    scale: int = 1  # what the numbers in mask files are divided by

    @property
    def classes(self) -> list[str]:
        return list(self.codes)

    def summary(self) -> str:
        return super().summary() + ("" if self.void_code is None else f"; {self.codes[self.void_code]} is void")

    def block(self) -> "TransformBlock":
        """Return fastai's TransformBlock for the masks."""
        from fastai.vision.all import AddMaskCodes, IntToFloatTensor, PILMask, TransformBlock

        def create(file):  # type: ignore[no-untyped-def]  # fastai acts on the annotations of a transform
            mask = masks.read(file)
            if self.void_pixel is not None:
                mask[mask == self.void_pixel] = self.void_code
            mask //= self.scale
            return PILMask.create(mask.astype(np.uint8))

        return TransformBlock(create, item_tfms=AddMaskCodes(codes=self.classes), batch_tfms=IntToFloatTensor)


def read(
    train_dir: str | os.PathLike,
    valid_dir: str | os.PathLike | None = None,
    void_code: str | None = None,
    valid_pct: float = 0.2,
    seed: int = 42,
    mask_scale: int | None = None,
    depth: str = "complete",
) -> MaskedSamples:
    """Return the samples of a channel directory.

    If the data has no validation images (`valid_dir`, valid.txt), the fraction `valid_pct` of all, drawn with `seed`,
    is used for validation. `void_code` is a class name, an index or "none"; by default the class with one of
    VOID_NAMES. An index that codes.txt does not name, such as 255, adds a class for pixels with that value. The
    numbers in masks are divided by `mask_scale`, by default 255 for two classes in masks of 0 and 255. `depth` is
    one of image_checks.DEPTHS. Raises DataError.
    """
    train_dir = _unpacked(Path(train_dir))
    seen, void = _expected(train_dir, void_code, mask_scale)
    train, skipped = _read_pairs(train_dir, seen, depth)
    train, chosen, notes = mask_splits.apply(train_dir, train)
    valid: Pairs = []
    if valid_dir is not None:
        _check_channel(train_dir, valid_dir := _unpacked(Path(valid_dir)), seen.codes, chosen)
        valid, skipped_too = _read_pairs(valid_dir, seen, depth)
        data.check_apart([image for image, _ in train], [image for image, _ in valid], "masks")
        skipped += skipped_too
        is_valid = [False] * len(train) + [True] * len(valid)
    else:
        is_valid = chosen if chosen is not None else data.split([""] * len(train), valid_pct, seed)
    _check_split(train_dir, is_valid)
    notes += [*_notes(train_dir, seen.scale if mask_scale is None else 1), *layouts.labels.doubts(seen.codes)]
    notes += _absent(seen, void) if depth != "layout" else []
    images, labels = zip(*train, *valid, strict=True)
    samples = MaskedSamples("images with masks", images, labels, is_valid, tuple(skipped), notes=tuple(notes))
    samples = replace(samples, codes=_with_void(seen), void_code=void, void_pixel=seen.void_pixel, scale=seen.scale)
    return image_checks.without_unreadable_validation(samples, depth)


def _expected(folder: Path, void_code: str | None, mask_scale: int | None) -> tuple[image_checks.Masks, int | None]:
    """Return what the masks of a folder may hold, and the index of the void class. Raises DataError."""
    codes = _read_codes(folder)
    void, void_pixel = _void(codes, void_code)
    scale = mask_scale or (_scale(_pairs(folder)) if len(codes) == 2 and void is None else 1)
    if scale > 1 and void_pixel is not None:
        raise DataError("--mask-scale and a --void-code that codes.txt does not name do not go together")
    return image_checks.Masks(codes, void_pixel, scale), void


def _with_void(seen: image_checks.Masks) -> tuple[str, ...]:
    """Return the names of the classes, with one for void pixels whose number codes.txt does not name."""
    if seen.void_pixel is None:
        return tuple(seen.codes)
    return *seen.codes, "void" if "void" not in seen.codes else f"void {seen.void_pixel}"


def _check_channel(train_dir: Path, valid_dir: Path, codes: Sequence[str], chosen: list[bool] | None) -> None:
    """Raise DataError if the channel for validation does not go together with the one for training."""
    if chosen is not None:
        listed = mask_splits.lists(train_dir).get("valid")
        what = f"{listed} lists the validation images" if listed else f"{train_dir} has validation images of its own"
        raise DataError(f"{what}; do not give {valid_dir} as well")
    if _read_codes(valid_dir) != list(codes):
        raise DataError(f"{valid_dir / 'codes.txt'} and {train_dir / 'codes.txt'} differ")


def _absent(seen: image_checks.Masks, void: int | None) -> list[str]:
    """Return a line about classes that no mask has. Raises DataError if it is what --void-code names by its number."""
    if seen.void_pixel is not None and seen.void_pixel not in seen.numbers:
        known = f"codes.txt names 0 to {len(seen.codes) - 1}"
        raise DataError(f"--void-code {seen.void_pixel}: no mask has it, and {known}")
    absent = [repr(code) for i, code in enumerate(seen.codes) if i * seen.scale not in seen.numbers and i != void]
    return [f"no mask has the classes {layouts.shown(absent, 'classes')}"] if absent else []


def _notes(folder: Path, scale: int) -> list[str]:
    """Return lines about files that are left out, and a scale that no option gave."""
    left_out = layouts.contents(folder / "images").left_out()
    notes = [f"left out of {folder / 'images'}, as no images that Pillow reads: {left_out}"] if left_out else []
    pairs = _pairs(folder)
    images = layouts.image_files(_masks_folder(folder))
    if unused := len(set(images) - {mask for _, mask in pairs}):
        notes.append(f"{unused} files of {_masks_folder(folder)} are the mask of no image, and not used")
    return [*notes, "masks hold 0 and 255, which become 0 and 1, as with --mask-scale 255"] if scale > 1 else notes


def _unpacked(folder: Path) -> Path:
    """Return the folder with the layout: of an archive unpacked into a folder of its name, that one."""
    while folder.is_dir() and not (folder / "codes.txt").is_file() and (inner := layouts.wrapped(folder)):
        folder = inner
    return folder


def _check_split(folder: Path, is_valid: list[bool]) -> None:
    if not any(is_valid) or all(is_valid):
        raise DataError(f"{folder}: no image is left for {'training' if any(is_valid) else 'validation'}")


def _read_codes(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DataError(f"{folder} is not a directory")
    path = folder / "codes.txt"
    if not path.is_file():
        raise DataError(f"{folder} holds no codes.txt, the class names, one a line. Found: {layouts.listing(folder)}")
    codes = mask_splits.lines(path)
    twice = sorted({code for code in codes if codes.count(code) > 1})
    if "" in codes:
        raise DataError(f"{path}: line {codes.index('') + 1} is empty")
    if twice:
        raise DataError(f"{path} names {twice[0]!r} twice")
    if not 2 <= len(codes) <= masks.MAX_CLASSES:
        raise DataError(f"{path} names {len(codes)} classes; expected 2 to {masks.MAX_CLASSES}")
    return codes


def _void(codes: list[str], void_code: str | None) -> tuple[int | None, int | None]:
    """Return the index of the void class, and its pixel value if codes.txt has no class of that index."""
    void, pixel = _named_void(codes, void_code), None
    if void is not None and void >= len(codes):
        void, pixel = len(codes), void
    if void is not None and len(codes) - (void < len(codes)) < 2:
        raise DataError(f"{codes[void]} is void, and only one other class is left; --void-code none makes it a class")
    return void, pixel


def _named_void(codes: list[str], void_code: str | None) -> int | None:
    if void_code is None:
        return next((i for i, code in enumerate(codes) if code.lower() in VOID_NAMES), None)
    if void_code in codes:
        return codes.index(void_code)
    if void_code.isdecimal() and int(void_code) < masks.MAX_CLASSES:
        return int(void_code)
    if void_code == "none":
        return None
    raise DataError(
        f"--void-code {void_code!r} is not a class of codes.txt; expected none, 0 to {masks.MAX_CLASSES - 1}, or one of"
        f" {', '.join(codes)}"
    )


# (image file, mask file)
Pairs = list[tuple[Path, Path]]


def _read_pairs(folder: Path, seen: image_checks.Masks, depth: str) -> tuple[Pairs, list[str]]:
    """Return the readable pairs, and a line for each unreadable one. Raises DataError for a mask that does not fit."""
    pairs = _pairs(folder)
    good, skipped = image_checks.readable(
        pairs, depth, lambda pair, depth: image_checks.mask_problem(pair, depth, seen)
    )
    image_checks.check_skipped(skipped, len(pairs), folder)
    return good, skipped


def _pairs(folder: Path) -> Pairs:
    """Return each image with its mask. Raises DataError."""
    if not (folder / "images").is_dir():
        raise DataError(f"{folder} holds no folder images/. Found: {layouts.listing(folder)}")
    found = _masks_folder(folder)
    files = layouts.image_files(folder / "images")
    if not files:
        raise DataError(f"{folder / 'images'} holds no image file")
    image_of: dict[Path, Path] = {}
    for file in files:
        mask = _mask_of(file, folder, found)
        if mask in image_of:
            raise DataError(f"{mask} is the mask of {image_of[mask]} and of {file}; a mask has one image")
        image_of[mask] = file
    return [(image, mask) for mask, image in image_of.items()]


def _masks_folder(folder: Path) -> Path:
    found = [folder / name for name in MASK_FOLDERS if (folder / name).is_dir()]
    if not found:
        raise DataError(f"{folder} holds no folder labels/ with masks. Found: {layouts.listing(folder)}")
    if len(found) > 1:
        raise DataError(f"{found[0]} and {found[1]} may both hold the masks; keep one of them")
    return found[0]


def _mask_of(image: Path, folder: Path, masks_folder: Path) -> Path:
    below = masks_folder / image.relative_to(folder / "images").parent
    # .png also for JPEG images: JPEG would change indexes.
    ends = dict.fromkeys((".png", image.suffix, ".PNG", *LOSSLESS))
    named = ([below / (name.format(image.stem) + end) for end in ends] for name in MASK_NAMES)
    found = [path for paths in named if (path := next(filter(Path.is_file, paths), None))]
    if not found:
        first = below / (MASK_NAMES[0].format(image.stem) + ".png")
        raise DataError(f"{image} has no mask: {first} is missing, and so is {image.stem}.png beside it")
    if len(found) > 1:
        raise DataError(f"{image} has two masks, {found[0]} and {found[1].name}; keep one of them")
    return found[0]


def _scale(pairs: Pairs) -> int:
    """Return 255 if the first mask that is not all 0 holds 0 and 255 alone, else 1."""
    for _, file in pairs:
        with contextlib.suppress(preprocess.ImageError, OSError):
            values = set(np.unique(masks.read(file)).tolist())
            if values - {0}:
                return 255 if values <= {0, 255} else 1
    return 1
