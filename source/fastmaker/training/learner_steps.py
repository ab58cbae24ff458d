"""Reads from a Learner what its validation images go through, as the steps of model.json (`fastmaker.pipeline`)."""

import math
from collections.abc import Callable
from typing import Any

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
    Resize,
    ToTensor,
)

from fastmaker import bundle, pipeline
from fastmaker.pipeline import Step

IDENTITY = {"step": "grid_sample", "size": None, "mode": "bilinear", "pad_mode": "reflection", "align_corners": True}


def read(learn: Learner) -> tuple[list[Step], bool]:
    """Return the steps, and whether images pass through grid_sample at the end (`ModelInfo.resampled`).

    Raises BundleError, naming the transform, for one that is no step.
    """
    steps = _of_images(learn) + _of_batches(learn)
    of_batches = [step for step in steps if step["step"] in pipeline.OF_BATCHES]
    if resampled := of_batches == [IDENTITY]:
        steps.pop()
    if found := pipeline.problem(steps):
        raise bundle.BundleError(f"the Learner's validation transforms cannot be kept in a bundle: {found}")
    return steps, resampled


def _of_images(learn: Learner) -> list[Step]:
    steps: list[Step] = []
    for transform in learn.dls.valid.after_item.fs:
        if type(transform) in _ITEM_STEPS:
            steps += _ITEM_STEPS[type(transform)](transform)
        elif not _is_training_only(transform) and type(transform) not in (ToTensor, AddMaskCodes, PointScaler):
            raise bundle.BundleError(f"the Learner's {_name(transform)} changes validation images; a bundle cannot")
    return steps


def _of_batches(learn: Learner) -> list[Step]:
    steps: list[Step] = []
    normalised = False
    for transform in learn.dls.valid.after_batch.fs:
        step = _batch_step(transform)
        if step and normalised:
            raise bundle.BundleError(
                f"the Learner's {_name(transform)} comes after Normalize; a bundle normalises last"
            )
        steps += [step] if step else []
        normalised = normalised or type(transform) is Normalize
    return steps


def _batch_step(transform: Any) -> Step | None:
    """Return the step of a batch transform; None for one that only trains, or that other fields describe."""
    if isinstance(transform, IntToFloatTensor) and transform.div != 255.0:
        raise bundle.BundleError(f"the Learner divides pixels by {transform.div}; expected 255")
    if _is_fastais(transform) and isinstance(transform, AffineCoordTfm):
        return _grid_sample(transform)
    if type(transform) is RandomResizedCropGPU:
        return _crop_and_grid_sample(transform)
    if not _is_training_only(transform) and type(transform) not in (IntToFloatTensor, Normalize):
        raise bundle.BundleError(f"the Learner's {_name(transform)} changes validation batches; a bundle cannot")
    return None


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


_ITEM_STEPS: dict[type, Callable[[Any], list[Step]]] = {
    Resize: _resize,
    CropPad: _crop_pad,
    RandomCrop: _random_crop,
    RandomResizedCrop: _random_resized_crop,
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


def _is_fastais(transform: Any) -> bool:
    return type(transform).__module__ == AffineCoordTfm.__module__


def _is_training_only(transform: Any) -> bool:
    return getattr(transform, "split_idx", None) == 0


def _name(transform: Any) -> str:
    return getattr(transform, "name", type(transform).__name__).split(" -- ")[0]
