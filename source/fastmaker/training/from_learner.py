"""A fitted fastai Learner -> a bundle, also one that a notebook made with ``vision_learner`` or ``unet_learner``.

    save_bundle(learn, "model")

`save_bundle` reads from the Learner everything that a prediction depends on, and rejects what the bundle cannot
reproduce exactly.
"""

import dataclasses
import os
import sys
from collections.abc import Iterable
from typing import Any

import torch
from fastai.vision.all import (
    AddMaskCodes,
    CrossEntropyLossFlat,
    DynamicUnet,
    LabelSmoothingCrossEntropyFlat,
    Learner,
    Normalize,
    PILImage,
    PILImageBW,
)

from fastmaker import bundle, masks, pipeline, preprocess, unet
from fastmaker.training import capture, learner_checks, learner_steps, parity

PLAIN_RESIZE = {"step": "resize", "pad_mode": "reflection", "resample": "bilinear"}  # what format 1 knows


def save_bundle(
    learn: Learner, model_dir: str | os.PathLike, metrics: dict[str, float] | None = None, mask_size: str = "model"
) -> bundle.ModelInfo:
    """Write the bundle of a fitted `learn` into `model_dir` and return its `ModelInfo`.

    The bundle predicts as ``learn.predict`` does, from torch and torchvision alone. `learn` is a Learner with its
    DataLoaders, and left as it was. A network that this package cannot rebuild is kept as a graph (`capture`).
    `metrics`, by name, are stored in model.json. `mask_size` is one of masks.SIZES: the size of a U-Net's served masks
    unless a request names one. Raises BundleError, before anything is written, if the Learner has a network, a
    transform or a loss that the bundle cannot reproduce; OSError if `model_dir` cannot be written.
    """
    learner_checks.check(learn)
    with parity.predicting(learn):
        info = dataclasses.replace(describe(learn, metrics), mask_size=mask_size)
        _check_mask_size(info)
        network, info = _network(learn, info)
        parity.check(learn, network, info)
    return bundle.save(model_dir, network, info)


def _check_mask_size(info: bundle.ModelInfo) -> None:
    if info.mask_size == "original" and info.steps:
        raise bundle.BundleError("mask_size is original, but the Learner resizes images in several steps")
    if info.mask_size == "original" and not masks.can_resize_to_original(info.resize_method, info.void_code):
        raise bundle.BundleError(
            "mask_size is original, but the Learner's Resize crops images and no class is void for what it cuts off"
        )


def describe(learn: Learner, metrics: dict[str, float] | None = None) -> bundle.ModelInfo:
    """Return what ``learn.predict`` does to an image, as a `ModelInfo`. Raises BundleError."""
    has_masks = isinstance(learn.model, DynamicUnet) or _find(learn.dls.valid.after_item.fs, AddMaskCodes)
    task = "segmentation" if has_masks else "classification"
    architecture, known = _architecture(learn), bundle.ARCHITECTURES[task]
    if architecture not in known:
        architecture = bundle.GRAPH
    _check_loss(learn.loss_func, task)
    resizing = _pipeline_fields(learn)
    mode = _image_mode(learn)
    channels = 3 if mode == "RGB" else 1
    normalize = _find(learn.dls.valid.after_batch.fs, Normalize)
    mean, std = (normalize.mean, normalize.std) if normalize else (torch.zeros(channels), torch.ones(channels))
    return bundle.ModelInfo(
        task=task,
        architecture=architecture,
        labels=_labels(learn),
        image_mode=mode,
        mean=tuple(mean.flatten().tolist()),
        std=tuple(std.flatten().tolist()),
        metrics=metrics or {},
        versions={"fastai": sys.modules["fastai"].__version__},
        **resizing,
        **(_segmentation_fields(learn) if task == "segmentation" else {}),
    )


def _architecture(learn: Learner) -> str:
    return getattr(getattr(learn, "arch", None), "__name__", type(learn.model).__name__)


def _check_loss(loss: Any, task: str) -> None:
    if not isinstance(loss, (CrossEntropyLossFlat, LabelSmoothingCrossEntropyFlat)):
        expected = "a cross entropy over one label " + ("a pixel" if task == "segmentation" else "an image")
        raise bundle.BundleError(f"the Learner's loss is {type(loss).__name__}; expected {expected}")
    if task == "segmentation" and loss.axis != 1:
        raise bundle.BundleError(f"the Learner's loss has the class axis {loss.axis}; expected axis=1")


def _pipeline_fields(learn: Learner) -> dict[str, Any]:
    """Return the fields of `ModelInfo` that say how images are resized: one resize if that is all, else the steps."""
    steps, resampled = learner_steps.read(learn)
    if not steps:
        if not len(learn.dls.valid_ds):
            raise bundle.BundleError("the Learner has no Resize and no data: the size of its images is not known")
        size, method = tuple(learn.dls.valid_ds[0][0].shape), preprocess.NO_RESIZE
    elif len(steps) == 1 and steps[0].items() >= PLAIN_RESIZE.items():
        size, method = tuple(steps[0]["size"]), steps[0]["method"]
    else:
        return _fields_of_steps(steps) | {"resampled": resampled}
    return {"image_size": size, "resize_method": method, "resampled": resampled}


def _fields_of_steps(steps: list[pipeline.Step]) -> dict[str, Any]:
    size = pipeline.output_size(steps)
    if size is None:
        raise bundle.BundleError("the Learner has no Resize, but resamples its batches: their size is not known")
    return {"format": bundle.FORMAT, "image_size": size, "resize_method": preprocess.STEPS, "steps": tuple(steps)}


def _image_mode(learn: Learner) -> str:
    """Return the mode of the images that the Learner opens. It may hold no data, as after ``load_learner``."""
    image = parity.image_of(learn)
    if type(image) not in (PILImage, PILImageBW):
        raise bundle.BundleError(f"the Learner's images are {type(image).__name__}; expected PILImage or PILImageBW")
    return image.mode


def _labels(learn: Learner) -> tuple[str, ...]:
    codes = _find(learn.dls.valid.after_item.fs, AddMaskCodes)
    vocab = codes.codes if codes else learn.dls.vocab
    if vocab is None:
        raise bundle.BundleError("the Learner's masks have no class names; expected MaskBlock(codes=...)")
    return tuple(map(str, vocab))


def _segmentation_fields(learn: Learner) -> dict[str, Any]:
    """Return the fields of `ModelInfo` for segmentation. The void class is the loss's ignore_index."""
    ignored = getattr(learn.loss_func.func, "ignore_index", -1)
    known = _architecture(learn) in bundle.ARCHITECTURES["segmentation"]
    return {
        "options": {}
        if not known
        else {name: bool(getattr(learn, name, default)) for name, default in unet.OPTIONS.items()},
        "void_code": ignored if 0 <= ignored < len(_labels(learn)) else None,
    }


def _network(learn: Learner, info: bundle.ModelInfo) -> tuple[torch.nn.Module, bundle.ModelInfo]:
    """Return the network that a bundle keeps, and `info` with its architecture: the Learner's own or its graph."""
    if info.architecture != bundle.GRAPH:
        try:
            _check_layers(learn.model, info)
            return learn.model, info
        except Exception:  # it has other layers than the architecture: a head of one's own, say, or none with weights
            info = dataclasses.replace(info, architecture=bundle.GRAPH, options={})
    try:
        return capture.capture(learn.model, torch.rand(2, info.channels, *info.image_size)), info
    except capture.CaptureError as error:
        raise bundle.BundleError(f"the Learner's network cannot be kept in a bundle: {error}") from None


def _check_layers(model: torch.nn.Module, info: bundle.ModelInfo) -> None:
    """Raise BundleError unless `model` computes the same logits, bit by bit, as the network of `info`.

    Layers without weights, such as a replaced activation, do not show in the state_dict's keys.
    """
    device, training = next(model.parameters()).device, model.training
    strided = all(parameter.is_contiguous() for parameter in model.parameters())
    layout = torch.contiguous_format if strided else torch.channels_last
    batch = torch.rand(2, info.channels, *info.image_size).to(memory_format=layout)
    with torch.no_grad():
        given = bundle.rebuild(model, info).to(memory_format=layout)(batch)  # type: ignore[call-overload]
        expected = model.cpu().eval()(batch)
    model.to(device).train(training)
    if not torch.equal(given.nan_to_num(), torch.Tensor(expected).nan_to_num()):
        raise bundle.BundleError(f"the Learner's network has other layers than {info.architecture}")


def _find(transforms: Iterable[Any], kind: type) -> Any:
    return next((transform for transform in transforms if type(transform) is kind), None)
