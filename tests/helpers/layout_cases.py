"""Cases of folders and tables as people keep them, each of which is read as meant or refused by one line."""

import shutil
from dataclasses import dataclass, field

import pytest

from fastmaker.training import data

T, V = "train", "valid"
CLASSES = ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png")
MULTI, NUMBERS, POINTS = ({"task": task} for task in ("multilabel", "regression", "points"))


@dataclass
class Case:
    """Files of a folder (names alone: images), and what is read of them."""

    name: str
    images: tuple[str, ...]
    pairs: dict[str, tuple] | None = None  # file below the folder: (label, part), or only the label if drawn
    error: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    texts: dict[str, str | bytes] = field(default_factory=dict)
    options: dict = field(default_factory=dict)


def parts(**folders):
    """Class folders in folders of a split."""
    return tuple(f"{folder}/{file}" for folder in folders.values() for file in CLASSES)


def read_as(train, valid):
    """The pairs of class folders in two folders."""
    return {f"{folder}/{file}": (file[:3], part) for folder, part in ((train, T), (valid, V)) for file in CLASSES}


def split(train, valid):
    notes = ("validates, as there is no folder valid",) if "test" in valid.lower() else ()
    return Case(f"{train}, {valid}", parts(a=train, b=valid), read_as(train, valid), notes=notes)


FILES = ("1.png", "2.png", "3.png", "4.png")
LABELS = dict(zip(FILES, ("a", "a", "b", "b"), strict=True))


def table(name, text, pairs=None, error=(), images=FILES, notes=(), file="labels.csv", texts=None, **options):
    pairs = LABELS if pairs is None and not error else pairs
    return Case(name, images, pairs, error, notes, {file: text, **(texts or {})}, options)


def rows(header, *lines, delimiter=","):
    return "\n".join([header, *(delimiter.join((file, *line)) for file, line in zip(FILES, lines, strict=True))]) + "\n"


AABB = (("a",), ("a",), ("b",), ("b",))
PLAIN = rows("image,label", *AABB)


def check(folder, picture, case):
    """Write the files of a case, each image a copy of `picture`, and read them."""
    write(folder, picture, case)
    if case.error:
        with pytest.raises(data.DataError) as error:
            data.read(folder, **case.options)
        message = str(error.value)
        assert [text for text in case.error if text not in message] == [], message
        assert len(message.splitlines()) == 1
        return
    samples = data.read(folder, **case.options)
    said = zip(samples.images, samples.labels, samples.is_valid, strict=True)
    drawn = not any(isinstance(label, tuple) and label[1:] in ((T,), (V,)) for label in case.pairs.values())
    found = {str(f.relative_to(folder)): label if drawn else (label, V if v else T) for f, label, v in said}
    assert found == case.pairs
    assert len(samples.notes) == len(case.notes), samples.notes
    assert all(any(text in note for note in samples.notes) for text in case.notes), samples.notes


def write(folder, picture, case):
    for name in case.images:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, folder / name)
    for name, text in case.texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
