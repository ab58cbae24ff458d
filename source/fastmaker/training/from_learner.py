"""A fitted fastai Learner -> a bundle, also one that a notebook made with ``vision_learner`` or ``unet_learner``.

    save_bundle(learn, "model")

`save_bundle` reads from the Learner everything that a prediction depends on, and rejects what the bundle cannot
reproduce exactly.
"""

import dataclasses
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from fastai.vision.all import Learner

from fastmaker import bundle, masks, pipeline, preprocess, unet
from fastmaker.training import (
    capture,
    image_classes,
    image_sizes,
    layers,
    learner_checks,
    learner_steps,
    parity,
    targets,
)
from fastmaker.training.image_sizes import ImageSize

# What format 1 knows; of its tasks the activation is softmax.
PLAIN_RESIZE = {"step": "resize", "pad_mode": "reflection", "resample": "bilinear"}
PLAIN_MODES = ("RGB", "L")
PLAIN_TASKS = ("classification", "segmentation")


def save_bundle(
    learn: Learner,
    model_dir: str | os.PathLike,
    metrics: dict[str, float] | None = None,
    mask_size: str = "model",
    image_size: ImageSize = None,
    names: Sequence[str] = (),
) -> bundle.ModelInfo:
    """Write the bundle of a fitted `learn` into `model_dir` and return its `ModelInfo`.

    The bundle predicts as ``learn.predict`` does, from torch and torchvision alone. `learn` is a Learner with its
    DataLoaders, and left as it was. A network that this package cannot rebuild is kept as a graph (`capture`).
    `metrics`, by name, are stored in model.json. `mask_size` is one of masks.SIZES: the size of a U-Net's served masks
    unless a request names one. `image_size` is the size of all images, in pixels, one number or (height, width): only
    of a Learner that resizes none and holds none, as one of load_learner, whose network takes one size. `names` are
    those of the numbers of a regression, which answers then have as well. Raises BundleError, before anything is
    written, if the Learner has a network, a transform or a loss that the bundle cannot reproduce; OSError if
    `model_dir` cannot be written.
    """
    network, info = checked(learn, metrics, mask_size, image_size, names)
    return bundle.save(model_dir, network, info)


def checked(
    learn: Learner,
    metrics: dict[str, float] | None = None,
    mask_size: str = "model",
    image_size: ImageSize = None,
    names: Sequence[str] = (),
) -> tuple[torch.nn.Module, bundle.ModelInfo]:
    """Return what `save_bundle` writes, once it has been compared with `learn`: network and `ModelInfo`."""
    learner_checks.check(learn)
    with parity.predicting(learn):
        info = dataclasses.replace(describe(learn, metrics, image_size), mask_size=mask_size, names=tuple(names))
        _check_mask_size(info)
        network, info = _network(learn, info)
        parity.check(learn, network, info)
    return network, info


def _check_mask_size(info: bundle.ModelInfo) -> None:
    if info.mask_size == "original" and not masks.can_resize_to_original(
        info.resize_method, info.void_code, info.steps
    ):
        raise bundle.BundleError(
            "mask_size is original, but the Learner's Resize crops images and no class is void for what it cuts off"
        )


def describe(learn: Learner, metrics: dict[str, float] | None = None, image_size: ImageSize = None) -> bundle.ModelInfo:
    """Return what ``learn.predict`` does to an image, as a `ModelInfo`. Raises BundleError."""
    task = targets.task(learn)
    architecture, known = _architecture(learn), bundle.ARCHITECTURES[task]
    if architecture not in known:
        architecture = bundle.GRAPH
    prepared = _pipeline_fields(learn, image_size)
    channels = preprocess.CHANNELS[prepared["image_mode"]]
    with image_sizes.explaining(_is_assumed(learn, prepared.get("steps", ()))):
        shape = targets.output_shape(learn, task, (channels, *prepared["image_size"]))
    outputs = targets.fields(learn, task, shape)
    plain = not prepared.get("steps") and task in PLAIN_TASKS and outputs["activation"] == "softmax"
    return bundle.ModelInfo(
        task=task,
        architecture=architecture,
        metrics=metrics or {},
        versions={"fastai": sys.modules["fastai"].__version__},
        format=bundle.PLAIN_FORMAT if plain else bundle.FORMAT,
        **prepared,
        **outputs,
        **(_segmentation_fields(learn) if task == "segmentation" else {}),
    )


def _architecture(learn: Learner) -> str:
    return getattr(getattr(learn, "arch", None), "__name__", type(learn.model).__name__)


def _is_assumed(learn: Learner, steps: Iterable[pipeline.Step]) -> bool:
    """Return whether nothing says the size of the images: the Learner resizes none, and holds none."""
    return not len(learn.dls.valid_ds) and any(step["step"] == "any_size" for step in steps)


def _pipeline_fields(learn: Learner, image_size: ImageSize) -> dict[str, Any]:
    """Return the fields of `ModelInfo` that say how images are prepared: one resize if that is all, else the steps."""
    mode = image_classes.mode_of(parity.image_of(learn))
    validation = learner_steps.read(learn, preprocess.CHANNELS[mode])
    parity.check_ratio_resize(learn, validation.steps)
    fields: dict[str, Any] = {
        "image_mode": mode,
        "mean": tuple(validation.mean),
        "std": tuple(validation.std),
    }
    steps = validation.steps
    sizes = image_sizes.find(learn, steps, image_size)
    size = sizes[0] if sizes else image_sizes.ASSUMED
    if len(sizes) == 1:
        steps, fields["resampled"] = learner_steps.split_identity(steps, size)
    if mode in PLAIN_MODES and len(steps) == 1 and steps[0].items() >= PLAIN_RESIZE.items():
        return fields | {"image_size": size, "resize_method": steps[0]["method"]}
    if mode in PLAIN_MODES and not steps and len(sizes) == 1:
        return fields | {"image_size": size, "resize_method": preprocess.NO_RESIZE}
    if pipeline.output_size(steps) is None:
        of_images = [step for step in steps if step["step"] in pipeline.OF_IMAGES]
        alike = {"step": "check_size", "size": list(size)} if len(sizes) == 1 else {"step": "any_size"}
        steps = [*of_images, alike, *steps[len(of_images) :]]
    return fields | {
        "image_size": size,
        "resize_method": preprocess.STEPS,
        "steps": tuple(steps),
    }


def _segmentation_fields(learn: Learner) -> dict[str, Any]:
    """Return the fields of `ModelInfo` for segmentation."""
    known = _architecture(learn) in bundle.ARCHITECTURES["segmentation"]
    return {
        "options": {}
        if not known
        else {name: bool(getattr(learn, name, default)) for name, default in unet.OPTIONS.items()},
        "void_code": targets.void_code(learn),
    }


def _network(learn: Learner, info: bundle.ModelInfo) -> tuple[torch.nn.Module, bundle.ModelInfo]:
    """Return the network that a bundle keeps, and `info` with its architecture: the Learner's own or its graph."""
    if info.architecture != bundle.GRAPH:
        try:
            _check_layers(learn.model, info)
            return learn.model, info
        except Exception:  # it has other layers than the architecture: a head of one's own, say, or none with weights
            info = dataclasses.replace(info, architecture=bundle.GRAPH, options={})
    with image_sizes.explaining(_is_assumed(learn, info.steps)):
        return _graph(learn, info), info


def _graph(learn: Learner, info: bundle.ModelInfo) -> torch.nn.Module:
    any_size = pipeline.takes_any_size(info)
    try:
        network = capture.capture(learn.model, torch.rand(2, info.channels, *info.image_size), any_size)
    except capture.CaptureError as error:
        raise bundle.BundleError(f"the Learner's network cannot be kept in a bundle: {error}") from None
    if any_size and None not in network.document["input"]:
        hint = "; its images have several: item_tfms=Resize(...) makes one of them" if len(learn.dls.valid_ds) else ""
        raise bundle.BundleError(f"the Learner's network cannot be kept for images of any size{hint}")
    return network


def _check_layers(model: torch.nn.Module, info: bundle.ModelInfo) -> None:
    """Raise BundleError unless `model` has the layers of the network of `info`, and the same logits, bit by bit.

    Layers without weights, such as a replaced activation, do not show in the state_dict's keys, and one that cuts off
    large numbers not in every logit.
    """
    device, training = next(model.parameters()).device, model.training
    strided = all(parameter.is_contiguous() for parameter in model.parameters())
    layout = torch.contiguous_format if strided else torch.channels_last
    batch = torch.rand(2, info.channels, *info.image_size).to(memory_format=layout)
    rebuilt = bundle.rebuild(model, info).to(memory_format=layout)  # type: ignore[call-overload]
    with torch.no_grad():
        given = rebuilt(batch)
        expected = model.cpu().eval()(batch)
    model.to(device).train(training)
    same_layers = layers.same(model, rebuilt, info.task == "segmentation")
    if not same_layers or not torch.equal(given.nan_to_num(), torch.Tensor(expected).nan_to_num()):
        raise bundle.BundleError(f"the Learner's network has other layers than {info.architecture}")


def _find(transforms: Iterable[Any], kind: type) -> Any:
    return next((transform for transform in transforms if type(transform) is kind), None)
