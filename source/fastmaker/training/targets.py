"""Reads from a Learner what it predicts: the task, the labels, and the numbers of its network's output."""

from collections.abc import Iterable
from typing import Any

import torch
from fastai.vision.all import (
    AddMaskCodes,
    Categorize,
    DynamicUnet,
    EncodedMultiCategorize,
    Learner,
    MultiCategorize,
    PointScaler,
    RegressionSetup,
    TensorBBox,
)

from fastmaker import bundle, tasks
from fastmaker.training import losses, tracing


def task(learn: Learner) -> str:
    """Return what the Learner's targets are, one of tasks.TASKS. Raises BundleError for what is none."""
    after_item, data = learn.dls.valid.after_item.fs, learn.dls.valid_ds
    types = {kind for kinds in (getattr(learn.dls.valid, "_types", None) or {}).values() for kind in _flat(kinds)}
    if any(isinstance(kind, type) and issubclass(kind, TensorBBox) for kind in types):
        raise bundle.BundleError("the Learner predicts bounding boxes (TensorBBox), which a bundle cannot answer with")
    lists = getattr(data, "tls", [])
    if learn.dls.n_inp != 1:
        raise bundle.BundleError(f"the Learner has {learn.dls.n_inp} inputs; expected one image")
    if len(lists) > learn.dls.n_inp + 1:
        raise bundle.BundleError(f"the Learner has {len(lists) - learn.dls.n_inp} targets; expected one")
    if isinstance(learn.model, DynamicUnet) or any(type(transform) is AddMaskCodes for transform in after_item):
        return "segmentation"
    if scalers := [transform for transform in after_item if isinstance(transform, PointScaler)]:
        if not scalers[0].do_scale or scalers[0].y_first:
            raise bundle.BundleError("the Learner's PointScaler has options; expected do_scale=True and y_first=False")
        return "points"
    of_target = lists[-1].tfms.fs if lists else []
    for known, classes in {
        "multilabel": (MultiCategorize, EncodedMultiCategorize),
        "classification": (Categorize,),
        "regression": (RegressionSetup,),
    }.items():
        if any(isinstance(transform, classes) for transform in of_target):
            return known
    return "regression" if getattr(learn.dls, "vocab", None) is None else "classification"


def fields(learn: Learner, task: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the fields of `ModelInfo` about the network's output, whose shape for one image is `shape`.

    Raises BundleError.
    """
    labelled = task in tasks.LABELLED
    found = {"labels": _labels(learn)} if labelled else {"labels": (), "output_shape": shape}
    return found | losses.read(learn.loss_func, task, shape)


def output_shape(learn: Learner, task: str, image: tuple[int, int, int]) -> tuple[int, ...]:
    """Return the shape of the network's output for one image, whose own shape is `image` (C, H, W).

    Raises BundleError if the network has none, or another than the task needs.
    """
    shape = _output_shape(learn, image)
    if task in tasks.LABELLED:
        expected = len(_labels(learn)), *(image[1:] if task == "segmentation" else ())
        if shape != expected:
            raise bundle.BundleError(
                f"the output of the Learner's network has the shape {list(shape)} for one image; expected"
                f" {list(expected)}, a number for each of its labels"
            )
    return shape


def _labels(learn: Learner) -> tuple[str, ...]:
    codes = next((t for t in learn.dls.valid.after_item.fs if type(t) is AddMaskCodes), None)
    vocab = codes.codes if codes else getattr(learn.dls, "vocab", None)
    if vocab is None:
        raise bundle.BundleError("the Learner's masks have no class names; expected MaskBlock(codes=...)")
    return tuple(map(str, vocab))


def _output_shape(learn: Learner, image: tuple[int, int, int]) -> tuple[int, ...]:
    """Return the shape of the network's output for one image. Raises BundleError if it has none."""
    model = learn.model
    parameter, modes = next(model.parameters()), {module: module.training for module in model.modules()}
    entered, remove = tracing.follow(model)
    try:
        with torch.no_grad():
            output = model.eval()(torch.zeros(2, *image, device=parameter.device, dtype=parameter.dtype))
    except Exception as error:  # whatever a network of the user's own raises
        reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
        where = f"its layer {entered[-1]}" if entered else "it"
        raise bundle.BundleError(
            f"the Learner's network cannot be kept in a bundle: {where} fails for images of"
            f" {'x'.join(map(str, image[1:]))} pixels: {reason}"
        ) from None
    finally:
        remove()
        for module, training in modes.items():
            module.training = training
    if not isinstance(output, torch.Tensor) or output.ndim < 1 or len(output) != 2:
        found = list(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise bundle.BundleError(
            f"the Learner's network returns {found} for two images; expected one tensor with a row for each"
        )
    return tuple(output.shape[1:])


def _flat(kinds: Any) -> Iterable[Any]:
    """Yield the types in what a DataLoader holds as `_types`: a type, or lists and dicts of types."""
    if isinstance(kinds, dict):
        kinds = list(kinds.values())
    if isinstance(kinds, (list, tuple)):
        for kind in kinds:
            yield from _flat(kind)
    else:
        yield kinds
