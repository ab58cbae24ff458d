"""Which pixel of a mask stands for each pixel of the image that was sent, through the steps of a pipeline.

Each axis is followed alone: a step maps the positions x of its input to a * x + b in its output. The centre of pixel i
is at i + 0.5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastmaker import geometry

Axis = tuple[float, float, int]  # a and b of a step, and the number of pixels after it


def crops(step: Mapping[str, Any]) -> bool:
    """Return whether a step may cut off more of an image than rounding does."""
    return step["step"] in ("crop_pad", "crop_and_grid_sample") or step.get("method") == "crop"


def pixels_of_mask(
    steps: Sequence[Mapping[str, Any]], image_size: tuple[int, int], shape: Sequence[int]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return for the columns of an image, and for its rows, the nearest pixel of the mask and whether it has one.

    `image_size` is (width, height), `shape` that of the mask, (H, W).
    """
    size, cut = image_size, any(map(crops, steps))
    positions = [np.arange(length) + 0.5 for length in image_size]
    for step in steps:
        axes = _axes(step, size)
        positions = [a * values + b for values, (a, b, _) in zip(positions, axes, strict=True)]
        size = axes[0][2], axes[1][2]
    result = []
    for values, length in zip(positions, (shape[1], shape[0]), strict=True):
        # Without a crop a pixel at the border may be cut off all the same, by rounding.
        margin = 0.0 if cut or len(values) < 2 else values[1] - values[0]
        seen = (values >= -margin) & (values < length + margin)
        result.append((np.floor(values).clip(0, length - 1).astype(int), seen))
    return result


def _axes(step: Mapping[str, Any], size: tuple[int, int]) -> list[Axis]:
    """Return the mapping of a step for images of `size`, (width, height), across and down."""
    window, target = geometry.window_of(step, size)
    if step["step"] == "crop_and_grid_sample" or step.get("align_corners"):
        return _of_corners(window, target)
    return _of_window(window, target)


def _of_window(window: geometry.Window, size: geometry.Size) -> list[Axis]:
    axes = []
    for start, end, length in ((window[0], window[2], size[0]), (window[1], window[3], size[1])):
        scale = length / (end - start)
        axes.append((scale, -start * scale, length))
    return axes


def _of_corners(window: geometry.Window, size: geometry.Size) -> list[Axis]:
    """Return the mapping of a grid_sample with `align_corners`: the centres of the outer pixels lie on each other."""
    axes = []
    for start, end, length in ((window[0], window[2], size[0]), (window[1], window[3], size[1])):
        scale = (length - 1) / (end - start - 1) if end - start > 1 else 1.0
        axes.append((scale, 0.5 - (start + 0.5) * scale, length))
    return axes
