"""The files of a channel directory: which are images, which are left out, and which folders are parts of a split."""

import functools
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

# Words of the names of folders, channels and columns' values that say what a part of the data is for.
PARTS = {
    "train": ("train", "training", "trn"),
    "valid": ("valid", "val", "validation", "validate", "validating", "dev", "eval", "evaluation", "holdout"),
    "test": ("test", "testing", "tst"),
}
# Words that such names have beside: seg_train, test_set, Training Data, train2017.
BESIDE = ("set", "seg", "split", "data", "dataset", "folder", "images", "image", "imgs", "img", "pics", "samples")
# Files that describe data: nobody expects them to be images.
DOCUMENTS = (
    *(".txt", ".md", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".html", ".rst", ".py", ".ipynb"),
    *(".db", ".ini", ".pkl", ".npy", ".zip", ".gz", ".tar", ".tgz"),
)


# What systems leave in folders, beside all that begins with a dot.
LEFT_BY_SYSTEMS = ("__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")


class DataError(ValueError):
    """Training data that cannot be used. The message, one line, says what was expected and what was found."""


@dataclass(frozen=True)
class Contents:
    """The files below a folder, without hidden ones, each list in order."""

    images: list[Path]
    others: list[Path]

    def left_out(self) -> str:
        """Return how many files are no images by their names, such as "3 .heic, 1 without a suffix", or nothing."""
        suffixes = Counter(file.suffix.lower() for file in self.others if file.suffix.lower() not in DOCUMENTS)
        return ", ".join(f"{n} {suffix or 'without a suffix'}" for suffix, n in suffixes.most_common(5))


def contents(folder: Path) -> Contents:
    """Return the files below `folder`. A link to a folder counts as that folder; one that leads back is left out."""
    extensions = readable_suffixes()
    images: list[Path] = []
    others: list[Path] = []
    names = _walk(str(folder), {os.path.realpath(folder)})
    for name in sorted(names, key=lambda name: name.split(os.sep)):  # as paths are sorted, in a third of the time
        (images if os.path.splitext(name)[1].lower() in extensions else others).append(Path(name))
    return Contents(images, others)


@functools.cache
def readable_suffixes() -> set[str]:
    """Return the suffixes of the formats that Pillow opens; it only writes some others, such as PDF."""
    Image.init()
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in (*Image.OPEN, "MPO")}


def _walk(folder: str, above: set[str]) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if entry.is_file() or (entry.is_symlink() and not entry.is_dir()):  # a broken link counts as unreadable
                yield entry.path
            elif entry.is_dir():
                if not entry.is_symlink():
                    yield from _walk(entry.path, above)
                elif (real := os.path.realpath(entry.path)) not in above:
                    yield from _walk(entry.path, {*above, real})


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is one that systems leave: .DS_Store, ._a.jpg, __MACOSX, __pycache__."""
    return name.startswith(".") or name in LEFT_BY_SYSTEMS


def is_image(file: Path) -> bool:
    """Return whether a listed file is an image by its suffix or, without a known one, by its header."""
    if file.suffix.lower() in (*readable_suffixes(), *DOCUMENTS):  # nobody lists a document: it counts as unreadable
        return True
    try:
        with Image.open(file):
            return True
    except Exception:  # a damaged file makes Pillow raise almost anything
        return False


def image_files(folder: Path) -> list[Path]:
    """Return the files below `folder` with a suffix of a format that Pillow reads, sorted, without hidden ones."""
    return contents(folder).images


def folders(folder: Path) -> list[Path]:
    """Return the folders in `folder`, sorted, without hidden ones."""
    return sorted(f for f in folder.iterdir() if not is_hidden(f.name) and f.is_dir())


def part_of(name: str) -> str | None:
    """Return "train", "valid" or "test" if a name says that, whatever its case and the words beside, or None."""
    words = [word for word in re.split(r"[\W_\d]+", name.lower()) if word and word not in BESIDE]
    if len(words) != 1:
        return None
    glued = {words[0], *(words[0].removesuffix(word) for word in BESIDE)}  # trainset, testdata
    return next((part for part, names in PARTS.items() if glued & set(names)), None)


def parts(folder: Path) -> dict[str, Path]:
    """Return the folders of a split in `folder`, by part. Raises DataError if two are for one part."""
    found: dict[str, Path] = {}
    for path in folders(folder):
        part = part_of(path.name)
        if part and part in found:
            raise DataError(f"{found[part]} and {path} are both for {part}; keep one of them")
        if part:
            found[part] = path
    return found


def wrapped(folder: Path) -> Path | None:
    """Return the only folder in `folder` if it holds folders, as of an archive unpacked into a folder of its name."""
    inner = folders(folder)
    if len(inner) != 1 or not folders(inner[0]):
        return None
    suffixes = readable_suffixes()
    loose = (file for file in folder.iterdir() if file.suffix.lower() in suffixes and not is_hidden(file.name))
    return None if any(loose) else inner[0]


def same_files(files: Iterable[Path], others: Iterable[Path]) -> list[Path]:
    """Return those of `files` that are among `others`, also by a link."""
    real = functools.cache(os.path.realpath)

    def place(file: Path) -> str:
        return os.path.realpath(file) if file.is_symlink() else os.path.join(real(file.parent), file.name)

    known = set(map(place, others))
    return [file for file in files if place(file) in known]


def is_below(file: Path, folder: Path | None) -> bool:
    """Return whether `file` lies below `folder`."""
    return folder is not None and file.is_relative_to(folder)


def listing(folder: Path) -> str:
    """Return the first names in `folder`, for an error message."""
    names = sorted(f.name + ("/" if f.is_dir() else "") for f in folder.iterdir())
    return shown(names, "entries") or "nothing"


def shown(names: Iterable[str], what: str, n: int = 8) -> str:
    """Return the first `n` names and how many `what` there are."""
    names = list(names)
    return ", ".join(names[:n]) + (f", ... ({len(names)} {what})" if len(names) > n else "")
