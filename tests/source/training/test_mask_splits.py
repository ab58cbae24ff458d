"""Which images with masks validate: those of lists, or of folders."""

import shutil

import pytest

from fastmaker.training import mask_data
from fastmaker.training.data import DataError


@pytest.fixture
def folder(scenes, tmp_path):
    """Scenes of one's own to spoil."""
    return shutil.copytree(scenes, tmp_path / "scenes")


def valid_of(samples):
    return [image.name for image, is_valid in zip(samples.images, samples.is_valid, strict=True) if is_valid]


def lists(**names):
    """Lists of images by their names without suffix: numbers of two digits."""
    return {f"{name}.txt": "".join(f"{number:02}.png\n" for number in numbers) for name, numbers in names.items()}


@pytest.mark.parametrize(
    ("texts", "n_train", "validating", "notes"),
    [
        (lists(val=[3, 5]), 13, ["03", "05"], []),
        ({"valid.txt": "03\n.\\05\n"}, 13, ["03", "05"], []),
        (lists(test=[3]), 14, ["03"], ["test validate"]),
        (lists(train=[0, 1, 2], valid=[3]), 3, ["03"], ["11 images of"]),
        (lists(train=[0, 1, 2], test=[3], val=[5]), 3, ["05"], ["11 images of"]),
        (lists(valid=[3], test=[5, 6]), 12, ["03"], ["2 images of"]),
    ],
)
def test_lists_say_what_trains_and_what_validates(folder, texts, n_train, validating, notes):
    for name, text in texts.items():
        (folder / name).write_text(text)
    samples = mask_data.read(folder, depth="layout")
    assert (samples.n_train, [name.removesuffix(".png") for name in valid_of(samples)]) == (n_train, validating)
    assert [any(text in note for note in samples.notes) for text in notes] == [True] * len(samples.notes)


def test_folders_of_images_are_a_split(folder):
    for kind in ("images", "labels"):
        for number, file in enumerate(sorted((folder / kind).iterdir())):
            place = folder / kind / ("val" if number % 5 == 0 else "train") / file.name
            place.parent.mkdir(exist_ok=True)
            file.rename(place)
    assert valid_of(mask_data.read(folder, depth="layout")) == ["00.png", "05.png", "10.png"]


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (lists(train=[3]), "name those that validate in valid.txt"),
        (lists(train=[3], val=[3]), "03.png is in two of the lists train.txt, val.txt"),
        (lists(valid=[3], val=[3]), "are both for valid; keep one of them"),
        (lists(valid=[99]), "valid.txt names '99.png', which is not in"),
    ],
)
def test_lists_that_cannot_be_meant_are_refused(folder, texts, reason):
    for name, text in texts.items():
        (folder / name).write_text(text)
    with pytest.raises(DataError, match=reason):
        mask_data.read(folder, depth="layout")
