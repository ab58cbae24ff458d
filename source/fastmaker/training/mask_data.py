"""A channel directory of images and masks -> samples for segmentation, every file checked before training begins.

The layout is the one of fast.ai's CAMVID_TINY:

    images/a.png      any image that Pillow reads
    labels/a_P.png    its mask: one channel, the class index of each pixel, as large as the image; a.jpg has one, too
    codes.txt         the class names, one a line; line 1 names index 0
    valid.txt         names of the images that validate, one a line; without it a share of all is drawn
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastmaker import masks, preprocess
from fastmaker.training import data
from fastmaker.training.data import DataError, Samples

VOID_NAMES = ("void", "unlabelled", "unlabeled", "ignore")


@dataclass(frozen=True)
class MaskedSamples(Samples):
    """Images whose labels are mask files."""

    codes: tuple[str, ...] = ()
    void: int | None = None  # the index of the class that counts for nothing
    void_label: int | None = None  # what stands for it in the files, if that is another number

    @property
    def classes(self) -> list[str]:
        return list(self.codes)

    def summary(self) -> str:
        return super().summary() + ("" if self.void is None else f"; {self.codes[self.void]} is void")

    def block(self):
        """fastai's TransformBlock of the masks."""
        from fastai.vision.all import AddMaskCodes, IntToFloatTensor, PILMask, TransformBlock

        def create(file):
            mask = masks.read(file)
            if self.void_label is not None:
                mask[mask == self.void_label] = self.void
            return PILMask.create(mask.astype(np.uint8))

        return TransformBlock(create, item_tfms=AddMaskCodes(codes=self.classes), batch_tfms=IntToFloatTensor)


def read(
    train_dir: str | os.PathLike,
    valid_dir: str | os.PathLike | None = None,
    void_code: str | None = None,
    valid_pct: float = 0.2,
    seed: int = 42,
) -> MaskedSamples:
    """The samples of a channel directory.

    Without images set apart for validation (`valid_dir`, valid.txt), `valid_pct` of them validate, drawn with `seed`.
    `void_code` is a class name, an index or "none"; by default the class that has one of VOID_NAMES. An index that
    codes.txt does not name adds a class for what has that label, such as 255. Raises DataError.
    """
    train_dir = Path(train_dir)
    codes = _read_codes(train_dir)
    void, void_label = _void(codes, void_code)
    train, skipped = _read_pairs(train_dir, codes, void_label)
    valid = []
    if valid_dir is not None:
        valid_dir = Path(valid_dir)
        if (train_dir / "valid.txt").is_file():
            raise DataError(f"{train_dir / 'valid.txt'} says which images validate; do not give {valid_dir} as well")
        if _read_codes(valid_dir) != codes:
            raise DataError(f"{valid_dir / 'codes.txt'} and {train_dir / 'codes.txt'} differ")
        valid, skipped_too = _read_pairs(valid_dir, codes, void_label)
        skipped += skipped_too
        is_valid = [False] * len(train) + [True] * len(valid)
    elif (train_dir / "valid.txt").is_file():
        is_valid = _read_valid(train_dir, [image for image, _ in train])
    else:
        is_valid = data.split([""] * len(train), valid_pct, seed)
    if not any(is_valid) or all(is_valid):
        raise DataError(f"{train_dir}: no image is left to {'train' if any(is_valid) else 'validate'}")
    if void_label is not None:
        if not any((masks.read(mask) == void_label).any() for _, mask in (*train, *valid)):
            raise DataError(f"--void-code {void_label}: no mask has it, and codes.txt names 0 to {len(codes) - 1}")
        codes.append("void" if "void" not in codes else f"void {void_label}")
    images, labels = zip(*train, *valid, strict=True)
    return MaskedSamples("images with masks", images, labels, is_valid, tuple(skipped), tuple(codes), void, void_label)


def _read_codes(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DataError(f"{folder} is no directory")
    path = folder / "codes.txt"
    if not path.is_file():
        raise DataError(f"{folder} holds no codes.txt, the class names, one a line. Found: {data.listing(folder)}")
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
        raise DataError(f"{path} is no text in UTF-8: {error}") from None


def _void(codes: list[str], void_code: str | None) -> tuple[int | None, int | None]:
    """The index of the void class, and the label that stands for it if codes.txt has no class of that index."""
    void, label = _named_void(codes, void_code), None
    if void is not None and void >= len(codes):
        void, label = len(codes), void
    if void is not None and len(codes) - (void < len(codes)) < 2:
        raise DataError(f"{codes[void]} is void, and only one class is left; --void-code none makes it a class")
    return void, label


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
        f"--void-code {void_code!r} is no class of codes.txt; expected none, 0 to {masks.MAX_CLASSES - 1}, or one of"
        f" {', '.join(codes)}"
    )


# An image file and its mask's.
Pairs = list[tuple[Path, Path]]


def _read_pairs(folder: Path, codes: list[str], void_label: int | None) -> tuple[Pairs, list[str]]:
    """The pairs that can be read, and a line for each that cannot. Raises DataError for a mask that does not fit."""
    for name in ("images", "labels"):
        if not (folder / name).is_dir():
            raise DataError(f"{folder} holds no folder {name}/. Found: {data.listing(folder)}")
    files = data.image_files(folder / "images")
    if not files:
        raise DataError(f"{folder / 'images'} holds no image file")
    pairs = [(file, _mask_of(file, folder)) for file in files]
    with ThreadPoolExecutor() as pool:
        problems = list(pool.map(lambda pair: _problem(*pair, codes, void_label), pairs))
    skipped = [problem for problem in problems if problem]
    data.check_skipped(skipped, len(pairs), folder)
    return [pair for pair, problem in zip(pairs, problems, strict=True) if not problem], skipped


def _mask_of(image: Path, folder: Path) -> Path:
    below = image.relative_to(folder / "images").parent
    path = folder / "labels" / below / f"{image.stem}_P.png"  # photos have PNGs, too: JPEG changes indexes
    found = next((file for file in map(path.with_suffix, (".png", image.suffix, ".PNG")) if file.is_file()), None)
    if found is None:
        raise DataError(f"{image} has no mask: {path} is missing")
    return found


def _problem(image_file: Path, mask_file: Path, codes: list[str], void_label: int | None) -> str | None:
    """Why the pair cannot be read. Raises DataError if it can be read and does not fit."""
    try:
        image = data.open_image(image_file)
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
            f" {image.width}x{image.height}; a mask is as large as its image"
        )
    wrong = mask[(mask < 0) | (mask >= len(codes))]
    wrong = wrong if void_label is None else wrong[wrong != void_label]
    if wrong.size:
        hint = f" (--void-code {wrong[0]} makes it count for nothing)" if 0 <= wrong[0] < masks.MAX_CLASSES else ""
        raise DataError(f"{mask_file} holds the label {wrong[0]}; codes.txt names 0 to {len(codes) - 1}{hint}")
    return None


def _read_valid(folder: Path, images: list[Path]) -> list[bool]:
    path, root = folder / "valid.txt", Path(os.path.abspath(folder / "images"))
    named = {name: Path(os.path.normpath(root / name)) for name in _lines(path) if name}  # ./a.png as well
    unknown = sorted(name for name, file in named.items() if not (file.is_relative_to(root) and file.is_file()))
    if unknown:
        raise DataError(f"{path} names {unknown[0]!r}, which is not in {folder / 'images'}")
    validating = set(named.values())
    return [Path(os.path.abspath(image)) in validating for image in images]
