"""The steps of a validation pipeline that run on the Pillow image (see `pipeline`).

It needs only Pillow and NumPy: a Triton server, which has no torch, runs this module, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from fastmaker import preprocess

RESAMPLES = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}  # Pillow's numbers
# Resize, RandomResizedCrop, RandomCrop and CropPad; RatioResize; and of a pipeline that does not give images one size
NAMES = ("resize", "crop_pad", "ratio_resize", "check_size", "any_size")


def to_array(image: Image.Image, info: Mapping[str, Any]) -> np.ndarray:
    """Return a Pillow image as uint8 (C, H, W), after what model.json, `info`, says. Raises preprocess.ImageError."""
    if not info.get("steps"):
        height, width = info["image_size"]
        return preprocess.to_array(image, info["image_mode"], (height, width), info["resize_method"])
    try:
        converted = image.convert(info["image_mode"])
        for step in info["steps"]:
            if step["step"] in NAMES:
                converted = apply(converted, step)
    except (ValueError, OSError, OverflowError, SystemError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise preprocess.ImageError(
            f"a {image.mode} image of {image.width}x{image.height} cannot be prepared for the model: {reason}"
        ) from None
    return preprocess.pixels_of(converted)


def apply(image: Image.Image, step: Mapping[str, Any]) -> Image.Image:
    """Return the image after a step of images. Raises ValueError."""
    name = step["step"]
    if name == "any_size":
        return image
    if name == "check_size":
        return _checked(image, step["size"])
    if name == "crop_pad":
        height, width = step["size"]
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return preprocess.cut(image, (left, top, left + width, top + height), step["pad_mode"])
    resample = Image.Resampling(RESAMPLES[step["resample"]])
    if name == "ratio_resize":
        size = ratio_size(image.size, step["longest"])
        return preprocess.resize(image, size, "crop", "reflection", resample)
    height, width = step["size"]
    return preprocess.resize(image, (height, width), step["method"], step["pad_mode"], resample)


def output_size(steps: Sequence[Mapping[str, Any]]) -> tuple[int, int] | None:
    """Return the size (height, width) that each image has after the steps; None if it depends on the image."""
    size = None
    for step in steps:
        if step["step"] == "ratio_resize":
            size = None
        elif step.get("size"):
            size = step["size"][0], step["size"][1]
    return size


def largest_height(info: Mapping[str, Any]) -> int | None:
    """Return the height up to which an ONNX file resizes images of any size as fastai does.

    Of a higher image fastai takes means first, which the file lacks; it compares the height with the width of the grid.
    None if all images have one size before grid_sample, or if no such step follows.
    """
    steps = info.get("steps") or ()
    if not steps or output_size([step for step in steps if step["step"] in NAMES]):
        return None
    first = next((step for step in steps if step["step"] not in NAMES and step.get("size")), None)
    return 2 * first["size"][1] if first and first["step"] == "grid_sample" else None


def check_for_onnx(size: Sequence[int], info: Mapping[str, Any]) -> None:
    """Raise preprocess.ImageError if an ONNX file takes no image of `size`, (height, width), after its own steps."""
    highest = largest_height(info)
    if highest is not None and size[0] > highest:
        raise preprocess.ImageError(
            f"the image has {size[1]}x{size[0]} pixels; an ONNX file of this model takes images up to {highest} high"
        )


def _checked(image: Image.Image, size: Sequence[int]) -> Image.Image:
    if [image.height, image.width] != list(size):
        raise ValueError(
            f"the model's images had {size[1]}x{size[0]} pixels before they were stacked; this one has"
            f" {image.width}x{image.height}"
        )
    return image


def ratio_size(image_size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Return the size (height, width) to which ``RatioResize(longest)`` resizes an image of (width, height).

    Raises ValueError where fastai would cut the image at a place that is random, in validation as well: to whole pixels
    the size has another aspect ratio than the image.
    """
    width, height = image_size
    if width >= height:
        size = int(height * longest / width), int(longest)
    else:
        size = int(longest), int(width * longest / height)
    if min(size) < 1:
        raise ValueError("it is too narrow")
    left, top, right, bottom = preprocess.window(image_size, size, "crop")
    if max(width - (right - left), height - (bottom - top)) > 1:  # int(random() * 1) is 0
        raise ValueError(f"fastai's RatioResize cuts an image of {width}x{height} at a random place")
    return size
