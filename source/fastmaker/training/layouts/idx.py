"""MNIST's raw files, plain or .gz."""

import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from fastmaker.training.layouts.files import DataError


def pairs(folder: Path, part: str) -> list[tuple[Any, str]]:
    """Return the images, uint8 (H, W), and labels of the part train or t10k; none without files. Raises DataError."""
    images, labels = find(folder, f"{part}-images-idx3-ubyte"), find(folder, f"{part}-labels-idx1-ubyte")
    if images is None:
        return []
    if labels is None:
        raise DataError(f"{folder} holds {part}-images-idx3-ubyte but no {part}-labels-idx1-ubyte")
    pixels, numbers = _read_idx(images, 3), _read_idx(labels, 1)
    if not len(pixels):
        raise DataError(f"{images} holds no image")
    if len(pixels) != len(numbers):
        raise DataError(f"{images} holds {len(pixels)} images, {labels} {len(numbers)} labels")
    return list(zip(pixels, map(str, numbers), strict=True))


def find(folder: Path, name: str) -> Path | None:
    """Return the file of that name, plain or packed, or None."""
    return next((f for f in (folder / name, folder / f"{name}.gz") if f.is_file()), None)


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Return the uint8 array of an idx file: magic 0, 0, 8, dimensions; then big-endian sizes; then the bytes."""
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be unpacked: {error}") from None
    header = 4 + 4 * dimensions
    if data[:4] != bytes((0, 0, 8, dimensions)) or len(data) < header:
        raise DataError(f"{path} is not an idx file of uint8 with {dimensions} dimensions")
    shape = np.frombuffer(data[4:header], ">u4")
    if len(data) != header + shape.prod(dtype=np.int64):
        raise DataError(f"{path} is cut short: its header says {'x'.join(map(str, shape))}")
    return np.frombuffer(data[header:], np.uint8).reshape(shape)
