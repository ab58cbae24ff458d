"""A channel directory of images and masks -> samples for segmentation. Masks are checked before training starts.

The layout is that of fast.ai's CAMVID_TINY:

    images/a.png      any image that Pillow reads
    labels/a_P.png    its mask: one channel, the class index of each pixel, the size of the image; also for a.jpg. The
                      folder may be masks/ or annotations/, the file a.png or a_mask.png
    codes.txt         the class names, one a line; line 1 names index 0
    valid.txt         names of the validation images, one a line; without it a fraction of all is drawn
"""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastmaker import masks, preprocess
from fastmaker.training import data, image_checks, layouts
from fastmaker.training.data import DataError, Samples

if TYPE_CHECKING:
    from fastai.vision.all import TransformBlock

MASK_FOLDERS = ("labels", "masks", "annotations")
MASK_NAMES = ("{}_P", "{}", "{}_mask")
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
    codes = _read_codes(train_dir := Path(train_dir))
    void, void_pixel = _void(codes, void_code)
    scale = mask_scale or (_scale(_pairs(train_dir)) if len(codes) == 2 and void is None else 1)
    if scale > 1 and void_pixel is not None:
        raise DataError("--mask-scale and a --void-code that codes.txt does not name do not go together")
    train, skipped = _read_pairs(train_dir, codes, void_pixel, scale, depth)
    valid: Pairs = []
    if valid_dir is not None:
        _check_channel(train_dir, valid_dir := Path(valid_dir), codes)
        valid, skipped_too = _read_pairs(valid_dir, codes, void_pixel, scale, depth)
        skipped += skipped_too
        is_valid = [False] * len(train) + [True] * len(valid)
    else:
        is_valid = _split(train_dir, [image for image, _ in train], valid_pct, seed)
    _check_split(train_dir, is_valid)
    if void_pixel is not None:
        _check_void_pixel(void_pixel, (*train, *valid) if depth != "layout" else (), codes)
        codes.append("void" if "void" not in codes else f"void {void_pixel}")
    images, labels = zip(*train, *valid, strict=True)
    samples = MaskedSamples("images with masks", images, labels, is_valid, tuple(skipped))
    notes = _notes(train_dir, scale if mask_scale is None else 1)
    samples = replace(samples, codes=tuple(codes), void_code=void, void_pixel=void_pixel, scale=scale, notes=notes)
    return image_checks.without_unreadable_validation(samples, depth)


def _check_channel(train_dir: Path, valid_dir: Path, codes: list[str]) -> None:
    """Raise DataError if the channel for validation does not go together with the one for training."""
    if (train_dir / "valid.txt").is_file():
        raise DataError(f"{train_dir / 'valid.txt'} lists the validation images; do not give {valid_dir} as well")
    if _read_codes(valid_dir) != codes:
        raise DataError(f"{valid_dir / 'codes.txt'} and {train_dir / 'codes.txt'} differ")


def _split(folder: Path, images: list[Path], valid_pct: float, seed: int) -> list[bool]:
    """Return which images validate: those of valid.txt, or drawn ones."""
    if (folder / "valid.txt").is_file():
        return _read_valid(folder, images)
    return data.split([""] * len(images), valid_pct, seed)


def _check_void_pixel(void_pixel: int, pairs: Sequence[tuple[Path, Path]], codes: list[str]) -> None:
    if pairs and not any((masks.read(mask) == void_pixel).any() for _, mask in pairs):
        raise DataError(f"--void-code {void_pixel}: no mask has it, and codes.txt names 0 to {len(codes) - 1}")


def _notes(folder: Path, scale: int) -> tuple[str, ...]:
    """Return lines about files that are left out, and a scale that no option gave."""
    left_out = layouts.contents(folder / "images").left_out()
    told = (f"left out of {folder / 'images'}, as no images that Pillow reads: {left_out}",) if left_out else ()
    return (*told, "masks hold 0 and 255, which become 0 and 1, as with --mask-scale 255") if scale > 1 else told


def _check_split(folder: Path, is_valid: list[bool]) -> None:
    if not any(is_valid) or all(is_valid):
        raise DataError(f"{folder}: no image is left for {'training' if any(is_valid) else 'validation'}")


def _read_codes(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DataError(f"{folder} is not a directory")
    path = folder / "codes.txt"
    if not path.is_file():
        raise DataError(f"{folder} holds no codes.txt, the class names, one a line. Found: {layouts.listing(folder)}")
    codes = _lines(path)
    twice = sorted({code for code in codes if codes.count(code) > 1})
    if "" in codes:
        raise DataError(f"{path}: line {codes.index('') + 1} is empty")
    if twice:
        raise DataError(f"{path} names {twice[0]!r} twice")
    if not 2 <= len(codes) <= masks.MAX_CLASSES:
        raise DataError(f"{path} names {len(codes)} classes; expected 2 to {masks.MAX_CLASSES}")
    return codes


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text("utf-8-sig").rstrip().split("\n")]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text in UTF-8: {error}") from None


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


def _read_pairs(
    folder: Path, codes: list[str], void_pixel: int | None, scale: int, depth: str
) -> tuple[Pairs, list[str]]:
    """Return the readable pairs, and a line for each unreadable one. Raises DataError for a mask that does not fit."""
    pairs = _pairs(folder)
    good, skipped = image_checks.readable(
        pairs, depth, lambda pair, depth: image_checks.mask_problem(pair, depth, codes, void_pixel, scale)
    )
    image_checks.check_skipped(skipped, len(pairs), folder)
    return good, skipped


def _pairs(folder: Path) -> Pairs:
    """Return each image with its mask. Raises DataError."""
    if not (folder / "images").is_dir():
        raise DataError(f"{folder} holds no folder images/. Found: {layouts.listing(folder)}")
    found = [folder / name for name in MASK_FOLDERS if (folder / name).is_dir()]
    if not found:
        raise DataError(f"{folder} holds no folder labels/ with masks. Found: {layouts.listing(folder)}")
    if len(found) > 1:
        raise DataError(f"{found[0]} and {found[1]} may both hold the masks; keep one of them")
    files = layouts.image_files(folder / "images")
    if not files:
        raise DataError(f"{folder / 'images'} holds no image file")
    return [(file, _mask_of(file, folder, found[0])) for file in files]


def _mask_of(image: Path, folder: Path, masks_folder: Path) -> Path:
    below = masks_folder / image.relative_to(folder / "images").parent
    # .png also for JPEG images: JPEG would change indexes.
    paths = [below / (name.format(image.stem) + end) for name in MASK_NAMES for end in (".png", image.suffix, ".PNG")]
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        raise DataError(f"{image} has no mask: {paths[0]} is missing, and so is {image.stem}.png beside it")
    return found


def _scale(pairs: Pairs) -> int:
    """Return 255 if the first mask that is not all 0 holds 0 and 255 alone, else 1."""
    for _, file in pairs:
        with contextlib.suppress(preprocess.ImageError, OSError):
            values = set(np.unique(masks.read(file)).tolist())
            if values - {0}:
                return 255 if values <= {0, 255} else 1
    return 1


def _read_valid(folder: Path, images: list[Path]) -> list[bool]:
    path, root = folder / "valid.txt", Path(os.path.abspath(folder / "images"))
    named = {name: Path(os.path.normpath(root / name)) for name in _lines(path) if name}  # ./a.png as well
    unknown = sorted(name for name, file in named.items() if not (file.is_relative_to(root) and file.is_file()))
    if unknown:
        raise DataError(f"{path} names {unknown[0]!r}, which is not in {folder / 'images'}")
    validating = set(named.values())
    return [Path(os.path.abspath(image)) in validating for image in images]
