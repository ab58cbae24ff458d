"""A fitted fastai Learner -> a bundle, also one that a notebook made with ``vision_learner`` or ``unet_learner``.

    save_bundle(learn, "model")

`save_bundle` reads from the Learner everything that a prediction depends on, and rejects what the bundle cannot
reproduce exactly.
"""

import contextlib
import dataclasses
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.vision.all import (
    AddMaskCodes,
    AffineCoordTfm,
    CrossEntropyLossFlat,
    DynamicUnet,
    IntToFloatTensor,
    LabelSmoothingCrossEntropyFlat,
    Learner,
    Normalize,
    Resize,
    ToTensor,
)
from PIL import Image

from fastmaker import bundle, masks, preprocess, unet
from fastmaker.training import capture


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
    info = dataclasses.replace(describe(learn, metrics), mask_size=mask_size)
    if mask_size == "original" and not masks.can_resize_to_original(info.resize_method, info.void_code):
        raise bundle.BundleError(
            "mask_size is original, but the Learner's Resize crops images and no class is void for what it cuts off"
        )
    network, info = _network(learn, info)
    _check_pixels(learn, info)
    return bundle.save(model_dir, network, info)


def describe(learn: Learner, metrics: dict[str, float] | None = None) -> bundle.ModelInfo:
    """Return what ``learn.predict`` does to an image, as a `ModelInfo`. Raises BundleError."""
    has_masks = isinstance(learn.model, DynamicUnet) or _find(learn.dls.valid.after_item.fs, AddMaskCodes)
    task = "segmentation" if has_masks else "classification"
    architecture, known = _architecture(learn), bundle.ARCHITECTURES[task]
    if architecture not in known:
        architecture = bundle.GRAPH
    _check_loss(learn.loss_func, task)
    size, method = _resize(learn, task)
    _check_item_transforms(learn.dls.valid.after_item.fs)
    _check_batch_transforms(learn.dls.valid.after_batch.fs)
    mode = learn.dls.valid_ds[0][0].mode
    channels = 3 if mode == "RGB" else 1
    normalize = _find(learn.dls.valid.after_batch.fs, Normalize)
    mean, std = (normalize.mean, normalize.std) if normalize else (torch.zeros(channels), torch.ones(channels))
    return bundle.ModelInfo(
        task=task,
        architecture=architecture,
        labels=_labels(learn),
        image_mode=mode,
        image_size=size,
        resize_method=method,
        mean=tuple(mean.flatten().tolist()),
        std=tuple(std.flatten().tolist()),
        resampled=any(isinstance(t, AffineCoordTfm) for t in learn.dls.valid.after_batch.fs),
        metrics=metrics or {},
        versions={"fastai": sys.modules["fastai"].__version__},
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


def _resize(learn: Learner, task: str) -> tuple[tuple[int, int], str]:
    """Return the size (height, width) of validation images, and the resize method."""
    resize = _find(learn.dls.valid.after_item.fs, Resize)
    if resize is None and task == "segmentation":
        return tuple(learn.dls.valid_ds[0][0].shape), preprocess.NO_RESIZE
    if resize is None:
        raise bundle.BundleError("the Learner's item transforms hold no Resize; expected Resize(size, method=...)")
    if resize.pad_mode != "reflection" or resize.mode != 2:
        raise bundle.BundleError("the Learner's Resize has another pad_mode or resample than fastai's default")
    width, height = resize.size
    return (int(height), int(width)), str(resize.method)


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
        except bundle.BundleError:  # it has other layers than the architecture: a head of one's own, say
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


def _check_pixels(learn: Learner, info: bundle.ModelInfo) -> None:
    """Raise BundleError unless the Learner prepares an image as the bundle does, from the file to the network's input.

    The function that opens an item may change its pixels, too.
    """
    height, width = info.image_size if info.resize_method == preprocess.NO_RESIZE else (401, 307)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    image = Image.fromarray(pixels).convert(info.image_mode)
    expected = _input_for(learn, image)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (info.mean, info.std))
    batch = preprocess.to_tensor(image, info.image_mode, info.image_size, info.resize_method)[None]
    given = preprocess.normalise(batch, mean, std, info.resampled)
    if expected is None:
        return
    if given.shape != expected.shape or ((given - expected).abs() * std).max() > 0.5 / 255:  # of a grey level
        raise bundle.BundleError(
            "the Learner changes the pixels of an image in another way than by its Resize and normalisation"
        )


def _input_for(learn: Learner, image: Image.Image) -> torch.Tensor | None:
    """Return the network's input in ``learn.predict``; None if the Learner takes neither files nor arrays."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "image.png")
        image.save(file)
        for item in (file, np.asarray(image)):
            with contextlib.suppress(AssertionError):  # fastai raises it for an item that it does not take
                return torch.Tensor(learn.dls.test_dl([item], num_workers=0).one_batch()[0]).cpu()
    return None


def _is_training_only(transform: Any) -> bool:
    return getattr(transform, "split_idx", None) == 0


def _name(transform: Any) -> str:
    return getattr(transform, "name", type(transform).__name__).split(" -- ")[0]


def _check_item_transforms(transforms: Iterable[Any]) -> None:
    for transform in transforms:
        if not _is_training_only(transform) and type(transform) not in (Resize, ToTensor, AddMaskCodes):
            raise bundle.BundleError(
                f"the Learner's {_name(transform)} changes validation images; a bundle reproduces Resize alone"
            )


def _check_batch_transforms(transforms: Iterable[Any]) -> None:
    for transform in transforms:
        if isinstance(transform, IntToFloatTensor) and transform.div != 255.0:
            raise bundle.BundleError(f"the Learner divides pixels by {transform.div}; expected 255")
        if getattr(transform, "size", None) is not None:
            raise bundle.BundleError(f"the Learner's {_name(transform)} resizes validation batches")
        if not _is_training_only(transform) and not isinstance(
            transform, (IntToFloatTensor, Normalize, AffineCoordTfm)
        ):
            raise bundle.BundleError(f"the Learner's {_name(transform)} changes validation batches; a bundle cannot")


def _find(transforms: Iterable[Any], kind: type) -> Any:
    return next((transform for transform in transforms if type(transform) is kind), None)
