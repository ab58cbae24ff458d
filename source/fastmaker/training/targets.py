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
    TensorImageBase,
    TensorMask,
)

from fastmaker import bundle, tasks
from fastmaker.training import losses, tracing


def task(learn: Learner) -> str:
    """Return what the Learner's targets are, one of tasks.TASKS. Raises BundleError for what is none."""
    after_item, data = learn.dls.valid.after_item.fs, learn.dls.valid_ds
    of_batch = [_flat(kinds) for kinds in (getattr(learn.dls.valid, "_types", None) or {}).values()]
    _check_targets([kind for kinds in of_batch for kind in kinds if isinstance(kind, type)][learn.dls.n_inp :])
    lists = getattr(data, "tls", [])
    if learn.dls.n_inp != 1:
        raise bundle.BundleError(f"the Learner has {learn.dls.n_inp} inputs; expected one image")
    if len(lists) > learn.dls.n_inp + 1:
        raise bundle.BundleError(f"the Learner has {len(lists) - learn.dls.n_inp} targets; expected one")
    if isinstance(learn.model, DynamicUnet) or any(isinstance(transform, AddMaskCodes) for transform in after_item):
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


def _check_targets(types: Iterable[type]) -> None:
    """Raise BundleError if the targets of a Learner, by their types, are what a bundle has no answer for."""
    for kind in types:
        if issubclass(kind, TensorBBox):
            found = "bounding boxes"
        elif issubclass(kind, TensorImageBase) and not issubclass(kind, TensorMask):
            found = "images"
        else:
            continue
        raise bundle.BundleError(
            f"the Learner predicts {found} ({kind.__name__}), which a bundle cannot answer with; expected labels,"
            " numbers, points or masks"
        )


def fields(learn: Learner, task: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the fields of `ModelInfo` about the network's output, whose shape for one image is `shape`.

    Raises BundleError.
    """
    labelled = task in tasks.LABELLED
    found = {"labels": labels(learn)} if labelled else {"labels": (), "output_shape": shape}
    return found | losses.read(learn.loss_func, task, shape)


def void_code(learn: Learner) -> int | None:
    """Return the class that the loss of masks ignores, None if there is none."""
    ignored = getattr(getattr(learn.loss_func, "func", learn.loss_func), "ignore_index", -1)
    return ignored if 0 <= ignored < len(labels(learn)) else None


def output_shape(learn: Learner, task: str, image: tuple[int, int, int]) -> tuple[int, ...]:
    """Return the shape of the network's output for one image, whose own shape is `image` (C, H, W).

    Raises BundleError if the network has none, or another than the task needs.
    """
    shape = _output_shape(learn, image)
    if task in tasks.LABELLED:
        _check_several(task, labels(learn))
        expected = len(labels(learn)), *(image[1:] if task == "segmentation" else ())
        if shape != expected:
            raise bundle.BundleError(
                f"the output of the Learner's network has the shape {list(shape)} for one image; expected"
                f" {list(expected)}, a number for each of its labels"
            )
    elif len(shape) > 2:
        raise bundle.BundleError(
            f"the output of the Learner's network has the shape {list(shape)} for one image; expected [n], for numbers"
            " and points: x.flatten(1) at the end makes that"
        )
    return shape


def _check_several(task: str, labels: tuple[str, ...]) -> None:
    """Raise BundleError for the one class that every image would get."""
    if task != "multilabel" and len(labels) < 2:
        raise bundle.BundleError(
            f"the Learner's classes are {list(labels)}; expected two or more, as every image would get the only one"
        )


def labels(learn: Learner) -> tuple[str, ...]:
    """Return the names of the classes or labels, in the order of the network's outputs. Raises BundleError."""
    codes = next((t for t in learn.dls.valid.after_item.fs if isinstance(t, AddMaskCodes)), None)
    vocab = codes.codes if codes else getattr(learn.dls, "vocab", None)
    if vocab is None:
        raise bundle.BundleError("the Learner's masks have no class names; expected MaskBlock(codes=...)")
    return tuple(map(str, vocab))


def _output_shape(learn: Learner, image: tuple[int, int, int]) -> tuple[int, ...]:
    """Return the shape of the network's output for one image. Raises BundleError if it has none."""
    of_two, of_one = _output(learn, (2, *image)), _output(learn, (1, *image))
    if of_two[:1] != (2,) or of_one != (1, *of_two[1:]):
        hint = ": .flatten(1) or .squeeze(-1) keeps its axis, .squeeze() does not" if of_two[:1] == (2,) else ""
        raise bundle.BundleError(
            f"the Learner's network returns the shape {list(of_two)} for two images and {list(of_one)} for one;"
            f" expected a row for each image{hint}"
        )
    return of_two[1:]


def _output(learn: Learner, batch: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the network's output for images of the shape `batch`. Raises BundleError if it has none."""
    model = learn.model
    parameter, modes = next(model.parameters()), {module: module.training for module in model.modules()}
    entered, remove = tracing.follow(model)
    try:
        with torch.no_grad():
            output = model.eval()(torch.zeros(batch, device=parameter.device, dtype=parameter.dtype))
    except Exception as error:  # whatever a network of the user's own raises
        reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
        where = f"its layer {entered[-1]}" if entered else "it"
        raise bundle.BundleError(
            f"the Learner's network cannot be kept in a bundle: {where} fails for a batch of"
            f" {batch[0]} of {'x'.join(map(str, batch[2:]))} pixels: {reason}"
        ) from None
    finally:
        remove()
        for module, training in modes.items():
            module.training = training
    if not isinstance(output, torch.Tensor):
        raise bundle.BundleError(
            f"the Learner's network returns a {type(output).__name__}; expected one tensor with a row for each image"
        )
    return tuple(output.shape)


def _flat(kinds: Any) -> Iterable[Any]:
    """Yield the types in what a DataLoader holds as `_types`: a type, or lists and dicts of types."""
    if isinstance(kinds, dict):
        kinds = list(kinds.values())
    if isinstance(kinds, (list, tuple)):
        for kind in kinds:
            yield from _flat(kind)
    else:
        yield kinds
