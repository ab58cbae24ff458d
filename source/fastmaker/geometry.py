"""Where a point of the network's input lies in the image that was sent.

    geometry.to_image(points, image.size, info)

Points of fastai are x and y in -1..1: from the left edge of an image to the right, and from the top to the bottom
(``fastai.vision.core.PointScaler``). Each step of a pipeline keeps a window of the image, and resizes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmaker import image_steps, preprocess

if TYPE_CHECKING:
    from fastmaker.bundle import ModelInfo

Size = tuple[int, int]  # (width, height)
Window = tuple[int, int, int, int]  # (left, top, right, bottom), which may reach beyond the image
UNMOVED = ("check_size", "any_size", "divide", "normalize")  # steps after which a pixel lies where it lay


def to_image(points: np.ndarray, image_size: Size, info: ModelInfo) -> np.ndarray:
    """Return points of the network's input, (n, 2) in -1..1, in pixels of the image, float64 (n, 2).

    `image_size` is (width, height) of the image before it is prepared.
    """
    size, origin, scale = _through(image_size, info)
    return (np.asarray(points, np.float64) + 1) / 2 * np.asarray(size) * scale + origin


def from_image(points: np.ndarray, image_size: Size, info: ModelInfo) -> np.ndarray:
    """Return points in pixels of an image, (n, 2), in -1..1 of the network's input, float64 (n, 2)."""
    size, origin, scale = _through(image_size, info)
    return (np.asarray(points, np.float64) - origin) / scale * 2 / np.asarray(size) - 1


def input_size(image_size: Size, info: ModelInfo) -> Size:
    """Return the size of the network's input for an image of this size."""
    return _through(image_size, info)[0]


def _through(image_size: Size, info: ModelInfo) -> tuple[Size, np.ndarray, np.ndarray]:
    """Return the size of the network's input, the image's pixel at its origin, and the image's pixels in one of it."""
    size, origin, scale = image_size, np.zeros(2), np.ones(2)
    for (left, top, right, bottom), target in _windows(image_size, info):
        origin = origin + scale * (left, top)
        scale = scale * (right - left, bottom - top) / np.asarray(target)
        size = target
    return size, origin, scale


def _windows(size: Size, info: ModelInfo) -> list[tuple[Window, Size]]:
    """Return the window of each step and the size that it is resized to; a window is in pixels of the step before."""
    if info.resize_method == preprocess.NO_RESIZE:
        return []
    if info.resize_method != preprocess.STEPS:
        target = info.image_size[1], info.image_size[0]
        return [(preprocess.window(size, info.image_size, info.resize_method), target)]
    windows = []
    for step in info.steps:
        windows.append(window_of(step, size))
        size = windows[-1][1]
    return windows


def window_of(step: Mapping[str, Any], size: Size) -> tuple[Window, Size]:
    """Return what a step keeps of images of `size`, and the size that it gives it. Raises ValueError if unknown."""
    width, height = size
    name = step["step"]
    if name in UNMOVED or (name == "grid_sample" and step["size"] is None):
        return (0, 0, width, height), size
    if name == "ratio_resize":
        rows, columns = image_steps.ratio_size(size, step["longest"])
        return preprocess.window(size, (rows, columns), "crop"), (columns, rows)
    target = (step["size"][1], step["size"][0]) if "size" in step else size
    if name == "resize":
        return preprocess.window(size, (target[1], target[0]), step["method"]), target
    if name == "crop_pad":
        left, top = (width - target[0]) // 2, (height - target[1]) // 2
        return (left, top, left + target[0], top + target[1]), target
    if name == "grid_sample":
        return (0, 0, width, height), target
    if name == "crop_and_grid_sample":
        return crop_window(size, step["ratio"], step["scale"]), target
    raise ValueError(f"pixels cannot be followed through the step {name}")


def crop_window(size: Size, ratio: Sequence[float], scale: float) -> Window:
    """Return (left, top, right, bottom) of what the step crop_and_grid_sample keeps of (width, height)."""
    width, height = size
    if width / height < ratio[0]:
        size = width, int(width / ratio[0])
    elif width / height > ratio[1]:
        size = int(height * ratio[1]), height
    columns, rows = int(size[0] * scale), int(size[1] * scale)
    left, top = (width - columns) // 2, (height - rows) // 2
    return left, top, left + columns, top + rows
