"""Class folders: <class>/<image>, or of a split train/<class>/<image> with valid/<class>/<image>."""

from pathlib import Path

from fastmaker.training.layouts.files import (
    DataError,
    contents,
    folders,
    is_hidden,
    listing,
    part_of,
    parts,
    readable_suffixes,
    shown,
    wrapped,
)

LabelledFiles = list[tuple[Path, str]]
# Folders of images beside those of their masks or boxes: neither is a class.
IMAGES = ("image", "images", "img", "imgs", "jpegimages", "photos")
ANNOTATIONS = ("label", "labels", "mask", "masks", "annotation", "annotations", "segmentationclass", "ground_truth")


def read(folder: Path) -> tuple[LabelledFiles, LabelledFiles, list[str]]:
    """Return the training pairs, the validation pairs and notes. Raises DataError."""
    split = split_of(folder)
    if not split:
        _check_no_split(folder)
        pairs, notes = _pairs(folder)
        return pairs, [], notes
    valid = split.get("valid", split.get("test"))
    train, notes = _pairs(_innermost(split["train"]))
    validating, more = _pairs(_innermost(valid)) if valid else ([], [])
    return train, validating, [*notes, *more, *_unused(folder, split)]


def _innermost(part: Path) -> Path:
    """Return the folder of the classes of a part: train/train, where an archive was unpacked into its own name."""
    inner = wrapped(part)
    return inner if inner and inner.name == part.name else part


def split_of(folder: Path) -> dict[str, Path]:
    """Return the folders of a split by part, nothing if there is none. Raises DataError if two are for one part.

    A folder that holds images and no folders is a class, as `train` may be among other vehicles.
    """
    holding = {path.name for path in folders(folder) if _is_part(path)}
    if not any(part_of(name) == "train" for name in holding):
        return {}
    return {part: path for part, path in parts(folder).items() if path.name in holding}


def _is_part(folder: Path) -> bool:
    beside = [other for other in folders(folder.parent) if not part_of(other.name)]
    return bool(part_of(folder.name)) and (bool(folders(folder)) or not beside)


def _check_no_split(folder: Path) -> None:
    """Raise DataError if the folders are not classes but parts of the data."""
    inner = {path: {below.name for below in folders(path)} for path in folders(folder)}
    for path, names in inner.items():
        if part_of(path.name) and (names or all(map(part_of, (p.name for p in inner)))):
            raise DataError(
                f"{path} {'holds folders of images and is not a class' if names else 'is a part of a split'}, and there"
                " is no train/<class>/<image> beside; expected <class>/<image>, or train/<class>/<image> with"
                " valid/<class>/<image>"
            )
    most = max(inner.values(), key=len, default=set())
    if len(inner) > 1 and len(most) > 1 and all(names and names <= most for names in inner.values()):
        raise DataError(
            f"{folder} holds {shown([path.name for path in inner], 'folders')}, and each the same folders"
            f" ({shown(sorted(most), 'folders')}): these look like the parts of a split. Rename them train and valid,"
            " or give one as --data and one as --valid; if they are the classes, give --label-regex '^([^/]+)/'"
        )


def _pairs(folder: Path) -> tuple[LabelledFiles, list[str]]:
    pairs: LabelledFiles = []
    left_out = []
    _check_no_annotations(folder)
    for class_folder in folders(folder):
        found = contents(class_folder)
        if not found.images:
            hint = f"; left out: {found.left_out()}" if found.left_out() else ""
            raise DataError(f"class {class_folder.name!r} is empty: {class_folder} holds no image file{hint}")
        if found.left_out():
            left_out.append(f"left out of {class_folder}, as no images that Pillow reads: {found.left_out()}")
        pairs += [(file, class_folder.name) for file in found.images]
    if not pairs:
        hint = "if file names hold the label, give --label-regex"
        raise DataError(f"{folder} holds no class folder; {hint}. Found: {listing(folder)}")
    loose = sum(file.suffix.lower() in readable_suffixes() and not is_hidden(file.name) for file in folder.iterdir())
    if loose:
        left_out.append(f"left out of {folder}, as in no class folder: {loose} images")
    return pairs, left_out


def _check_no_annotations(folder: Path) -> None:
    """Raise DataError if the folders are not classes but images and what is drawn on them."""
    names = {path.name.lower(): path.name for path in folders(folder)}
    found = [next((names[name] for name in those if name in names), None) for those in (IMAGES, ANNOTATIONS)]
    if all(found):
        raise DataError(
            f"{folder} holds {found[0]}/ and {found[1]}/, which are no classes. --task segmentation reads images/,"
            " labels/ and codes.txt; --label-regex and a table labels.csv name labels; boxes are not read"
        )


def _unused(folder: Path, split: dict[str, Path]) -> list[str]:
    """Return a note for each folder with images that is no part of the training, and for a test set that validates."""
    notes = []
    if "valid" not in split and "test" in split:
        notes.append(f"{split['test']} validates, as there is no folder valid")
    used = (split["train"], split.get("valid", split.get("test")))
    for path in folders(folder):
        if path not in used and (images := contents(path).images):
            notes.append(f"{path} is not used ({len(images)} images)")
    return notes
