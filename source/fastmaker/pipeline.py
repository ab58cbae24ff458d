"""The validation pipeline of a Learner as data: the `steps` of model.json, and what each does.

    {"step": "resize", "size": [224, 224], "method": "pad", "pad_mode": "zeros", "resample": "bilinear"}

Steps of an image run on the Pillow image (`image_steps`), those of a batch on its pixels in 0..1: they are divided by
255 first, unless a step says by what. The mean and std of model.json follow. Each step repeats the arithmetic of a
transform of fastai as it acts on validation images. Sizes are [height, width].
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import nn

from fastmaker import checks, geometry, image_steps, preprocess
from fastmaker.image_steps import RESAMPLES, output_size

if TYPE_CHECKING:
    from fastmaker.bundle import ModelInfo

Step = dict[str, Any]
PAD_MODES = ("reflection", "border", "zeros")
GRID_MODES = ("bilinear", "nearest", "bicubic")
MAX_STEPS = 32
QUOTE = '"'
MAX_RATIO = 1000  # of width to height, or of height to width
# The values of each step, by name: how to tell a good one, and what to expect.
OF_IMAGES: dict[str, dict[str, tuple[Any, str]]] = {}
OF_BATCHES: dict[str, dict[str, tuple[Any, str]]] = {}


def _one_of(*allowed: str) -> tuple[Any, str]:
    return (lambda value: isinstance(value, str) and value in allowed), f"one of {', '.join(allowed)}"


def _are_numbers(value: Any, good: Any = checks.is_number) -> bool:
    return isinstance(value, list) and all(map(good, value))


def _is_ratio(value: Any) -> bool:
    return _are_numbers(value) and len(value) == 2 and 1 / MAX_RATIO <= value[0] <= value[1] <= MAX_RATIO


_SIZE = (checks.is_size, "[height, width]")
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
    # RatioResize: the longer side, in pixels
    "ratio_resize": {
        "longest": ((lambda value: checks.is_size([value, value])), "pixels"),
        "resample": _one_of(*RESAMPLES),
    },
    # images that were all alike: those of another size are no images for the model
    "check_size": {"size": _SIZE},
    # images that were not resized and had several sizes, for a network that takes any
    "any_size": {},
}
OF_BATCHES |= {
    # AffineCoordTfm, of which aug_transforms is made: no rotation, but a size, or the identity if it is null
    "grid_sample": {
        "size": ((lambda value: value is None or checks.is_size(value)), "null or [height, width]"),
        "mode": _one_of(*GRID_MODES),
        "pad_mode": _one_of(*PAD_MODES),
        "align_corners": _FLAG,
    },
    # RandomResizedCropGPU: the middle, of at most these ratios of width to height, `scale` of it
    "crop_and_grid_sample": {
        "size": _SIZE,
        "ratio": (_is_ratio, "[smallest, largest]"),
        "scale": ((lambda value: checks.is_positive(value) and value <= 1), "a number above 0, at most 1"),
        "mode": _one_of(*GRID_MODES),
    },
    # IntToFloatTensor with a divisor of its own, or after another step
    "divide": {"by": (checks.is_positive, "a number above 0")},
    # a Normalize that is not the last step
    "normalize": {
        "mean": (_are_numbers, "a number for each channel"),
        "std": ((lambda value: _are_numbers(value, checks.is_positive)), "numbers above 0, one a channel"),
    },
}
KNOWN = OF_IMAGES | OF_BATCHES


def problem(steps: Any, channels: int) -> str | None:
    """Return what is wrong with the `steps` of a model.json whose images have `channels`, or None."""
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        return "expected a list of objects"
    if len(steps) > MAX_STEPS:
        return f"there are {len(steps)}; expected at most {MAX_STEPS}"
    names = [step.get("step") for step in steps]
    for name, step in zip(names, steps, strict=True):
        if not isinstance(name, str) or name not in KNOWN:
            found = repr(name)[:80] if isinstance(name, str) else checks.shown(name)
            return f"step {found} is unknown; expected one of {', '.join(KNOWN)}"
        if step.keys() - {"step"} != KNOWN[name].keys():
            return f"step {name!r} has other keys than {', '.join(KNOWN[name])}"
        for key, (good, expected) in KNOWN[name].items():
            if not good(step[key]):
                return f"{key!r} of step {name!r} is {checks.shown(step[key]).strip(QUOTE)}; expected {expected}"
        if name == "normalize" and not len(step["mean"]) == len(step["std"]) == channels:
            return f"step {name!r} has {len(step['mean'])} and {len(step['std'])} numbers; expected {channels}"
    pixels = sum(math.prod(step.get("size") or [step.get("longest", 0)] * 2) for step in steps)
    if pixels > preprocess.DEFAULT_MAX_PIXELS:
        return f"they make {pixels:,} pixels of an image; expected at most {preprocess.DEFAULT_MAX_PIXELS:,}"
    of_batches = [name in OF_BATCHES for name in names]
    return None if of_batches == sorted(of_batches) else "a step of images follows a step of batches"


def input_size(info: ModelInfo) -> tuple[int, int] | None:
    """Return the size (height, width) of all tensors of `to_tensor`; None if it depends on the image."""
    if not info.steps:
        return info.image_size
    return output_size([step for step in info.steps if step["step"] in OF_IMAGES])


def takes_any_size(info: ModelInfo) -> bool:
    """Return whether the network's input has the size of the image."""
    return bool(info.steps) and output_size(info.steps) is None


def changes_batches(steps: Sequence[Step]) -> bool:
    """Return whether some steps are of batches."""
    return any(step["step"] in OF_BATCHES for step in steps)


def to_tensor(image: Image.Image, info: ModelInfo) -> torch.Tensor:
    """Return a Pillow image after the steps of images, uint8 (C, H, W). Raises preprocess.ImageError."""
    return torch.from_numpy(image_steps.to_array(image, vars(info)))


def to_pixels(batch: torch.Tensor, steps: Sequence[Step]) -> torch.Tensor:
    """Return uint8 images (N, C, H, W) of `to_tensor` as float32, by default in 0..1, after the steps of batches."""
    pixels = batch.float()
    if all(step["step"] != "divide" for step in steps):
        pixels = pixels / 255.0
    for step in steps:
        pixels = _apply_to_batch(pixels, step)
    return pixels


def _apply_to_batch(pixels: torch.Tensor, step: Step) -> torch.Tensor:
    """Return the pixels after a step of batches, and unchanged after one of images."""
    if step["step"] == "grid_sample":
        return grid_sample(pixels, step["size"], step["mode"], step["pad_mode"], step["align_corners"])
    if step["step"] == "crop_and_grid_sample":
        pixels = _crop(pixels, step["ratio"], step["scale"])
        return grid_sample(pixels, step["size"], step["mode"], "reflection", True)
    if step["step"] == "divide":
        return pixels / step["by"]
    if step["step"] == "normalize":
        mean, std = (torch.tensor(step[key], device=pixels.device).view(1, -1, 1, 1) for key in ("mean", "std"))
        return (pixels - mean) / std
    return pixels


def grid_sample(
    pixels: torch.Tensor, size: Sequence[int] | None, mode: str, pad_mode: str, align_corners: bool
) -> torch.Tensor:
    """Return images (N, C, H, W) resampled to `size` as fastai's ``affine_coord`` does without a rotation."""
    target = tuple(size or pixels.shape[-2:])
    identity = torch.eye(2, 3, device=pixels.device).expand(pixels.shape[0], 2, 3)
    grid = nn.functional.affine_grid(identity, [pixels.shape[0], pixels.shape[1], *target], align_corners=align_corners)
    of_any_size = isinstance(pixels.shape[-1], torch.SymInt)  # as in an ONNX file, see image_steps.largest_height
    if mode == "bilinear" and not of_any_size:
        # Of a much larger image fastai takes means first; it compares its size with the grid's.
        zoom = _zoom(target, align_corners)
        shrink = min(pixels.shape[-2] / grid.shape[-2], pixels.shape[-1] / grid.shape[-1]) / 2
        if shrink > 1 and shrink > zoom:
            pixels = nn.functional.interpolate(
                pixels, scale_factor=1 / shrink, mode="area", recompute_scale_factor=True
            )
    return nn.functional.grid_sample(pixels, grid, mode=mode, padding_mode=pad_mode, align_corners=align_corners)


@functools.lru_cache(1024)  # torch.export cannot follow it, but takes its value
def _zoom(size: tuple[int, int], align_corners: bool) -> float:
    """Return how much fastai takes a grid of this size to enlarge an image."""
    grid = nn.functional.affine_grid(torch.eye(2, 3)[None], [1, 1, *size], align_corners=align_corners)
    return 1 / (grid.max() - grid.min()).item() * 2


def _crop(pixels: torch.Tensor, ratio: Sequence[float], scale: float) -> torch.Tensor:
    height, width = pixels.shape[-2:]
    left, top, right, bottom = geometry.crop_window((width, height), ratio, scale)
    if not (left < right and top < bottom):
        raise ValueError("the step crop_and_grid_sample leaves nothing of it")
    return pixels[..., top:bottom, left:right]
