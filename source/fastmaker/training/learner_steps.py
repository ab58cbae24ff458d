"""Reads from a Learner what its validation images go through, as the steps of model.json (`fastmaker.pipeline`)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from fastai.vision.all import (
    AddMaskCodes,
    AffineCoordTfm,
    CropPad,
    IntToFloatTensor,
    Learner,
    Normalize,
    PointScaler,
    RandomCrop,
    RandomResizedCrop,
    RandomResizedCropGPU,
    RatioResize,
    Resize,
    ToTensor,
)

from fastmaker import bundle, pipeline
from fastmaker.pipeline import Step
from fastmaker.training import own_code

IDENTITY = {"step": "grid_sample", "size": None, "mode": "bilinear", "pad_mode": "reflection", "align_corners": True}
BY_255 = {"step": "divide", "by": 255.0}


@dataclass(frozen=True)
class Validation:
    """What validation images go through."""

    steps: list[Step]
    mean: list[float]  # of a Normalize that comes last; 0 and 1 without one
    std: list[float]


def read(learn: Learner, channels: int) -> Validation:
    """Return the steps that images of so many `channels` go through.

    Raises BundleError, naming the transform, for one that is no step.
    """
    _check_other_transforms(learn)
    steps, of_batches = _of_images(learn), _of_batches(learn, channels)
    last = of_batches.pop() if of_batches and of_batches[-1]["step"] == "normalize" else None
    divisions = [step for step in of_batches if step["step"] == "divide"]
    if of_batches[:1] == divisions == [BY_255]:
        of_batches.pop(0)  # as `pipeline.to_pixels` does unless a step says otherwise
    elif not divisions:
        of_batches.insert(0, BY_255 | {"by": 1.0})
    steps += of_batches
    if found := pipeline.problem(steps, channels):
        raise bundle.BundleError(f"the Learner's validation transforms cannot be kept in a bundle: {found}")
    statistics = last or {"mean": [0.0] * channels, "std": [1.0] * channels}
    return Validation(steps, statistics["mean"], statistics["std"])


def split_identity(steps: list[Step], size: tuple[int, int]) -> tuple[list[Step], bool]:
    """Return the steps and `ModelInfo.resampled` for a network that gets images of `size`, (height, width).

    The identity transform of aug_transforms, if it is the only step of batches, is `resampled`, but for images that are
    tall: of these fastai takes means first, which only the step does.
    """
    of_batches = [step for step in steps if step["step"] in pipeline.OF_BATCHES]
    if of_batches == [IDENTITY] and size[0] <= 2 * size[1]:
        return [step for step in steps if step not in of_batches], True
    return steps, False


def _check_other_transforms(learn: Learner) -> None:
    """Raise BundleError for a transform at a place where only a user's own ones are."""
    for transform in learn.dls.valid.before_batch.fs:
        if not _is_training_only(transform):
            raise _unknown(transform, "batches")


def _of_images(learn: Learner) -> list[Step]:
    steps: list[Step] = []
    for transform in learn.dls.valid.after_item.fs:
        kind = own_code.kind(transform)
        if _is_training_only(transform) or kind in (ToTensor, AddMaskCodes, PointScaler):
            continue
        if kind not in _ITEM_STEPS:
            raise _unknown(transform, "images")
        steps += _ITEM_STEPS[kind](transform)
    return steps


def _of_batches(learn: Learner, channels: int) -> list[Step]:
    return [
        _batch_step(transform, channels)
        for transform in learn.dls.valid.after_batch.fs
        if not _is_training_only(transform) or isinstance(transform, AffineCoordTfm)  # which sets its own split_idx
    ]


def _batch_step(transform: Any, channels: int) -> Step:
    """Return the step of a batch transform."""
    kind = own_code.kind(transform)
    if kind is IntToFloatTensor:
        return {"step": "divide", "by": float(transform.div or 0)}
    if kind is Normalize:
        return _normalize(transform, channels)
    if kind is RandomResizedCropGPU:
        return _crop_and_grid_sample(transform)
    if kind and issubclass(kind, AffineCoordTfm):
        return _grid_sample(transform)
    raise _unknown(transform, "batches")


def _normalize(transform: Normalize, channels: int) -> Step:
    step: Step = {"step": "normalize"}
    for name in ("mean", "std"):
        values = torch.as_tensor(getattr(transform, name), dtype=torch.float32).cpu()
        if values.numel() != 1 and list(values.shape[-3:]) != [channels, 1, 1]:
            raise bundle.BundleError(
                f"the Learner's Normalize has a {name} of the shape {list(values.shape)}; expected one number for each"
                f" of {channels} channels"
            )
        step[name] = values.flatten().expand(channels).tolist() if values.numel() == 1 else values.flatten().tolist()
    return step


def _resize(transform: Resize) -> list[Step]:
    return [_resized(transform.size, str(transform.method), str(transform.pad_mode), transform.mode)]


def _resized(size: Any, method: str, pad_mode: str, resample: Any) -> Step:
    name = {number: name for name, number in pipeline.RESAMPLES.items()}.get(int(resample), str(resample))
    return {"step": "resize", "size": _height_width(size), "method": method, "pad_mode": pad_mode, "resample": name}


def _crop_pad(transform: CropPad) -> list[Step]:
    return [{"step": "crop_pad", "size": _height_width(transform.size), "pad_mode": str(transform.pad_mode)}]


def _random_crop(transform: RandomCrop) -> list[Step]:
    return [{"step": "crop_pad", "size": _height_width(transform.size), "pad_mode": "zeros"}]


def _random_resized_crop(transform: RandomResizedCrop) -> list[Step]:
    """In validation it squishes the whole image to a larger size, of which it takes the middle."""
    width, height = (int(n) for n in transform.size)
    extra = math.ceil(max(width, height) * transform.val_xtra / 8) * 8  # as fastai computes it
    squish = _resized((width + extra, height + extra), "squish", "zeros", transform.mode)
    return [squish, *_random_crop(transform)] if extra else [squish]


def _ratio_resize(transform: RatioResize) -> list[Step]:
    resample = _resized((1, 1), "crop", "reflection", transform.resamples[0])["resample"]
    return [{"step": "ratio_resize", "longest": transform.max_sz, "resample": resample}]


_ITEM_STEPS: dict[type | None, Callable[[Any], list[Step]]] = {
    Resize: _resize,
    CropPad: _crop_pad,
    RandomCrop: _random_crop,
    RandomResizedCrop: _random_resized_crop,
    RatioResize: _ratio_resize,
}


def _grid_sample(transform: AffineCoordTfm) -> Step:
    size = transform.size
    return {
        "step": "grid_sample",
        "size": None if size is None else [int(n) for n in ((size, size) if isinstance(size, int) else size)],
        "mode": str(transform.mode),
        "pad_mode": str(transform.pad_mode),
        "align_corners": bool(transform.align_corners),
    }


def _crop_and_grid_sample(transform: RandomResizedCropGPU) -> Step:
    return {
        "step": "crop_and_grid_sample",
        "size": [int(n) for n in transform.size],
        "ratio": [float(n) for n in transform.ratio],
        "scale": float(transform.valid_scale),
        "mode": str(transform.mode),
    }


def _height_width(size: Any) -> list[int]:
    """Return a size of fastai's item transforms, (width, height), as [height, width]."""
    return [int(size[1]), int(size[0])]


def _is_training_only(transform: Any) -> bool:
    return getattr(transform, "split_idx", None) == 0


def _unknown(transform: Any, what: str) -> bundle.BundleError:
    return bundle.BundleError(
        f"the Learner's {_name(transform)} changes validation {what}; a bundle cannot: if it is for training alone,"
        " give it split_idx = 0"
    )


def _name(transform: Any) -> str:
    # Its `name` may have all its arguments in it.
    return getattr(transform, "_name", type(transform).__name__)
