"""Channel directories with random images, in each layout, for the tests of training data."""

import struct
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from fastmaker.training import data

RANDOM = np.random.default_rng(3)


def image(path, mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RANDOM.integers(0, 256, (6, 8, 3), dtype=np.uint8)).convert(mode).save(path)
    return path


def class_folders(folder, **counts):
    """counts: the number of images of each class."""
    for label, n in counts.items():
        for i in range(n):
            image(folder / label / f"{i:02}.png")
    return folder


def idx(folder, part, labels, size=28):
    """MNIST's two raw files of a part; returns the pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = RANDOM.integers(0, 256, (len(labels), size, size), dtype=np.uint8)
    header = bytes((0, 0, 8, 3)) + struct.pack(">3I", *pixels.shape)
    (folder / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
    (folder / f"{part}-labels-idx1-ubyte").write_bytes(
        bytes((0, 0, 8, 1)) + struct.pack(">I", len(labels)) + bytes(labels)
    )
    return pixels


def flat(folder, *names):
    for name in names:
        image(folder / name)
    return folder


def labels_csv(folder, *lines, encoding="utf-8"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "labels.csv").write_text("name,label\n" + "".join(line + "\n" for line in lines), encoding)
    return folder


def refused(*expected, folder, **options):
    with pytest.raises(data.DataError) as error:
        data.read(folder, **options)
    for text in expected:
        assert text in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def files_of(samples, valid):
    return {image for image, is_valid in zip(samples.images, samples.is_valid, strict=True) if is_valid == valid}


def labels_of(samples, valid):
    return Counter(label for label, is_valid in zip(samples.labels, samples.is_valid, strict=True) if is_valid == valid)
