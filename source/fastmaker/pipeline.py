"""The validation pipeline of a Learner as data: the `steps` of model.json, and what each does.

    {"step": "resize", "size": [224, 224], "method": "pad", "pad_mode": "zeros", "resample": "bilinear"}

Steps of an image run on the Pillow image, those of a batch on its pixels in 0..1. Normalisation follows. Each repeats
the arithmetic of a transform of ``fastai.vision.augment`` as it acts on validation images. Sizes are [height, width].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from fastmaker import geometry, preprocess

if TYPE_CHECKING:
    from fastmaker.bundle import ModelInfo

Step = dict[str, Any]
RESAMPLES = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}  # Pillow's numbers
PAD_MODES = ("reflection", "border", "zeros")
GRID_MODES = ("bilinear", "nearest", "bicubic")
# The values of each step, by name: how to tell a good one, and what to expect.
OF_IMAGES: dict[str, dict[str, tuple[Any, str]]] = {}
OF_BATCHES: dict[str, dict[str, tuple[Any, str]]] = {}


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(n) is int and 0 < n < 100_000 for n in value)


def _one_of(*allowed: str) -> tuple[Any, str]:
    return (lambda value: isinstance(value, str) and value in allowed), f"one of {', '.join(allowed)}"


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


_SIZE = (_is_size, "[height, width]")
_FLAG = ((lambda value: isinstance(value, bool)), "true or false")
OF_IMAGES |= {
    # Resize; RandomResizedCrop is a squish to a larger size, and crop_pad
    "resize": {
        "size": _SIZE,
        "method": _one_of(*preprocess.RESIZE_METHODS),
        "pad_mode": _one_of(*PAD_MODES),
        "resample": _one_of(*RESAMPLES),
    },
    # CropPad and RandomCrop: the middle of the image, padded where it is smaller
    "crop_pad": {"size": _SIZE, "pad_mode": _one_of(*PAD_MODES)},
}
OF_BATCHES |= {
    # AffineCoordTfm, of which aug_transforms is made: no rotation, but a size, or the identity if it is null
    "grid_sample": {
        "size": ((lambda value: value is None or _is_size(value)), "null or [height, width]"),
        "mode": _one_of(*GRID_MODES),
        "pad_mode": _one_of(*PAD_MODES),
        "align_corners": _FLAG,
    },
    # RandomResizedCropGPU: the middle, of at most these ratios of width to height, `scale` of it
    "crop_and_grid_sample": {
        "size": _SIZE,
        "ratio": (
            (lambda value: isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))),
            "[smallest, largest]",
        ),
        "scale": (_is_number, "a number above 0"),
        "mode": _one_of(*GRID_MODES),
    },
}
KNOWN = OF_IMAGES | OF_BATCHES


def problem(steps: Any) -> str | None:
    """Return what is wrong with the `steps` of a model.json, or None."""
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        return "expected a list of objects"
    names = [step.get("step") for step in steps]
    for name, step in zip(names, steps, strict=True):
        if not isinstance(name, str) or name not in KNOWN:
            return f"step {name!r} is unknown; expected one of {', '.join(KNOWN)}"
        if step.keys() - {"step"} != KNOWN[name].keys():
            return f"step {name!r} has other keys than {', '.join(KNOWN[name])}"
        for key, (good, expected) in KNOWN[name].items():
            if not good(step[key]):
                return f"{key!r} of step {name!r} is {str(step[key])[:80]}; expected {expected}"
    of_batches = [name in OF_BATCHES for name in names]
    return None if of_batches == sorted(of_batches) else "a step of images follows a step of batches"


def output_size(steps: Sequence[Step]) -> tuple[int, int] | None:
    """Return the size (height, width) that each image has after the steps; None if it depends on the image."""
    sizes = [step["size"] for step in steps if step["size"] is not None]
    return (sizes[-1][0], sizes[-1][1]) if sizes else None


def resizes_batches(steps: Sequence[Step]) -> bool:
    """Return whether some steps need more than a resized image."""
    return any(step["step"] in OF_BATCHES for step in steps)


def to_tensor(image: Image.Image, info: ModelInfo) -> torch.Tensor:
    """Return a Pillow image after the steps of images, uint8 (C, H, W). Raises preprocess.ImageError."""
    if not info.steps:
        return preprocess.to_tensor(image, info.image_mode, info.image_size, info.resize_method)
    of_images = [step for step in info.steps if step["step"] in OF_IMAGES]
    try:
        converted = image.convert(info.image_mode)
        for step in of_images:
            converted = _apply_to_image(converted, step)
    except (ValueError, OSError, OverflowError, SystemError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise preprocess.ImageError(
            f"a {image.mode} image of {image.width}x{image.height} cannot be prepared for the model: {reason}"
        ) from None
    pixels = np.asarray(converted)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def to_pixels(batch: torch.Tensor, steps: Sequence[Step]) -> torch.Tensor:
    """Return uint8 images (N, C, H, W) of `to_tensor` as float32 in 0..1, after the steps of batches."""
    pixels = batch.float() / 255.0
    for step in steps:
        if step["step"] == "grid_sample":
            pixels = grid_sample(pixels, step["size"], step["mode"], step["pad_mode"], step["align_corners"])
        elif step["step"] == "crop_and_grid_sample":
            pixels = _crop(pixels, step["ratio"], step["scale"])
            pixels = grid_sample(pixels, step["size"], step["mode"], "reflection", True)
    return pixels


def _apply_to_image(image: Image.Image, step: Step) -> Image.Image:
    height, width = step["size"]
    if step["step"] == "crop_pad":
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return preprocess.cut(image, (left, top, left + width, top + height), step["pad_mode"])
    resample = Image.Resampling(RESAMPLES[step["resample"]])
    return preprocess.resize(image, (height, width), step["method"], step["pad_mode"], resample)


def grid_sample(
    pixels: torch.Tensor, size: Sequence[int] | None, mode: str, pad_mode: str, align_corners: bool
) -> torch.Tensor:
    """Return images (N, C, H, W) resampled to `size` as fastai's ``affine_coord`` does without a rotation."""
    target = tuple(size or pixels.shape[-2:])
    identity = torch.eye(2, 3, device=pixels.device).expand(pixels.shape[0], 2, 3)
    grid = functional.affine_grid(identity, [*pixels.shape[:2], *target], align_corners=align_corners)
    if (
        mode == "bilinear"
    ):  # of a much larger image fastai takes means first; it compares its size with the grid's shape
        zoom = 1 / (grid.max() - grid.min()).item() * 2
        shrink = min(pixels.shape[-2] / grid.shape[-2], pixels.shape[-1] / grid.shape[-1]) / 2
        if shrink > 1 and shrink > zoom:
            pixels = functional.interpolate(pixels, scale_factor=1 / shrink, mode="area", recompute_scale_factor=True)
    return functional.grid_sample(pixels, grid, mode=mode, padding_mode=pad_mode, align_corners=align_corners)


def _crop(pixels: torch.Tensor, ratio: Sequence[float], scale: float) -> torch.Tensor:
    height, width = pixels.shape[-2:]
    left, top, right, bottom = geometry.crop_window((width, height), ratio, scale)
    return pixels[..., top:bottom, left:right]
