"""Which images with masks train and which validate: as lists say, or the folders of images/, if any do."""

import os
from pathlib import Path

from fastmaker.training import layouts
from fastmaker.training.layouts import DataError

Pairs = list[tuple[Path, Path]]  # (image file, mask file)


def apply(folder: Path, pairs: Pairs) -> tuple[Pairs, list[bool] | None, list[str]]:
    """Return the pairs that are used, which of them validate, and notes. Raises DataError.

    Where nothing says what validates, it is None.
    """
    found = lists(folder)
    images = [Path(os.path.abspath(image)) for image, _ in pairs]
    named = {part: _read(path, folder / "images") for part, path in found.items()} or _in_folders(folder, images)
    if not named:
        return pairs, None, []
    validating = "valid" if "valid" in named else "test"
    if validating not in named:
        raise DataError(f"{found['train']} names the images that train; name those that validate in valid.txt")
    twice = next((a & b for part, a in named.items() for other, b in named.items() if part < other and a & b), None)
    if twice:
        raise DataError(f"{min(twice)} is in two of the lists {', '.join(path.name for path in found.values())}")
    training = named.get("train", set(images) - named.get("test", set()))
    used = [(pair, image) for pair, image in zip(pairs, images, strict=True) if image in training | named[validating]]
    notes = [f"the images for {validating} validate, as none are for valid"] if validating == "test" else []
    if left_out := len(pairs) - len(used):
        notes.append(f"{left_out} images of {folder} are not used: they are neither to train nor to validate")
    return [pair for pair, _ in used], [image in named[validating] for _, image in used], notes


def lists(folder: Path) -> dict[str, Path]:
    """Return the lists of images in a folder by part: train.txt, valid.txt or val.txt, test.txt. Raises DataError."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.txt")):
        part = layouts.part_of(path.stem)
        if part and part in found:
            raise DataError(f"{found[part]} and {path} are both for {part}; keep one of them")
        if part:
            found[part] = path
    return found


def lines(path: Path) -> list[str]:
    """Return the lines of a text file without the blanks around them. Raises DataError."""
    try:
        return [line.strip() for line in path.read_text("utf-8-sig").rstrip().split("\n")]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text in UTF-8: {error}") from None


def _read(path: Path, folder: Path) -> set[Path]:
    """Return the images that a list names, with or without their suffixes. Raises DataError."""
    root = Path(os.path.abspath(folder))
    stems = {file.with_suffix(""): file for file in layouts.image_files(root)}
    plain = {name: name.replace("\\", "/") for name in lines(path) if name}
    named = {name: Path(os.path.normpath(root / below)) for name, below in plain.items()}  # ./a.png as well
    files = {name: file if file.is_file() else stems.get(file) for name, file in named.items()}
    unknown = sorted(name for name, file in files.items() if not (file and file.is_relative_to(root)))
    if unknown:
        raise DataError(f"{path} names {unknown[0]!r}, which is not in {folder}")
    return {file for file in files.values() if file}


def _in_folders(folder: Path, images: list[Path]) -> dict[str, set[Path]]:
    """Return the images in the folders of a split, by part: images/train, images/valid. Raises DataError."""
    split = {part: Path(os.path.abspath(path)) for part, path in layouts.parts(folder / "images").items()}
    if "train" not in split or len(split) < 2:
        return {}
    return {part: {image for image in images if image.is_relative_to(path)} for part, path in split.items()}
