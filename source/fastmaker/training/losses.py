"""What a Learner's loss makes of its network's output, found out by trying: the fields of `ModelInfo` for it.

    losses.read(learn.loss_func, "multilabel", (20,))     {"activation": "sigmoid", "threshold": 0.5}

``Learner.get_preds`` calls the loss's `activation`, and ``Learner.predict`` its `decodes`, which any class or function
may have or lack. Both are called with generated numbers: the loss is one that a bundle can express if they give the
same bits as the functions of a bundle.
"""

import functools
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from fastai.vision.all import BaseLoss, TensorBase, getcallable

from fastmaker import tasks
from fastmaker.bundle import BundleError

Function = Callable[[Any], Any]
EXPECTED = {
    "classification": "picks the highest number of each image",
    "segmentation": "picks the highest number of each pixel, on axis 1",
    "multilabel": "compares each number with a threshold, or keeps it",
    "regression": "keeps the numbers",
    "points": "keeps the numbers",
}
SUCH = {
    "classification": "CrossEntropyLossFlat()",
    "segmentation": "CrossEntropyLossFlat(axis=1)",
    "multilabel": "BCEWithLogitsLossFlat()",
    "regression": "MSELossFlat()",
    "points": "MSELossFlat()",
}
SCALES = (1.0, 5.0, 40.0, 0.0, 0.1, 0.1, 1e3, 1e6, 1e12, 1e30)  # of the logits of each generated image
LARGEST = float(np.finfo(np.float32).max)


def read(loss: Any, task: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the fields of `ModelInfo` that repeat the activation and the decoding of `loss`.

    `shape` is that of the network's output for one image. Raises BundleError, which names the loss, if a bundle cannot
    repeat them.
    """
    logits = _generate(shape)
    activation = _activation(loss, logits, task)
    numbers = tasks.ACTIVATIONS[activation](logits)
    decodes = getcallable(loss, "decodes")
    decoded = _call(decodes, numbers)
    if task in ("classification", "segmentation"):
        good = _equal(decoded, numbers.argmax(dim=1)) if numbers.ndim > 1 else False
    elif task == "multilabel" and not _equal(decoded, numbers):
        threshold = _threshold(decodes, numbers, activation)
        return {"activation": activation, "threshold": threshold} if threshold is not None else _refuse(loss, task)
    else:
        good = _equal(decoded, numbers)
    return {"activation": activation} if good else _refuse(loss, task)


def name(loss: Any) -> str:
    """Return the name of a loss: that of the function or class, and of what fastai's BaseLoss or a partial calls."""
    if type(loss) in (BaseLoss, functools.partial):
        return f"{type(loss).__name__} of {name(loss.func)}"
    named = isinstance(loss, (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType))
    return loss.__name__ if named else type(loss).__name__


def _refuse(loss: Any, task: str) -> dict[str, Any]:
    found = "decodes otherwise" if callable(getattr(loss, "decodes", None)) else "has no decodes"
    raise BundleError(
        f"the Learner's loss {name(loss)} {found}; expected one whose decodes {EXPECTED[task]}:"
        f" learn.loss_func = {SUCH[task]} answers so"
    )


def _activation(loss: Any, logits: torch.Tensor, task: str) -> str:
    found = _call(getcallable(loss, "activation"), logits)
    for known, function in tasks.ACTIVATIONS.items():
        if (known != "softmax" or logits.ndim > 1) and _equal(found, function(logits)):
            return known
    raise BundleError(
        f"the Learner's loss {name(loss)} has an activation that a bundle lacks; expected softmax over axis 1, sigmoid,"
        f" or none: learn.loss_func = {SUCH[task]} has one"
    )


def _call(function: Function, numbers: torch.Tensor) -> Any:
    """Return function(numbers), None if it fails; `numbers` stays as it was."""
    try:
        with torch.no_grad():
            return function(TensorBase(numbers.clone()))
    except Exception:  # a function of the user's own may raise anything
        return None


def _equal(found: Any, expected: torch.Tensor) -> bool:
    """Return whether `found` is a tensor of the same shape and the same numbers."""
    return isinstance(found, torch.Tensor) and torch.equal(torch.Tensor.as_subclass(found, torch.Tensor), expected)


def _generate(shape: tuple[int, ...]) -> torch.Tensor:
    """Return logits of a few images: usual ones, equal ones, some around 0 and 1, and large ones, which may be cut."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn((len(SCALES), *shape), generator=generator)
    logits *= torch.tensor(SCALES).view(-1, *[1] * len(shape))
    logits[5] += 1
    return logits


def _threshold(decodes: Function, numbers: torch.Tensor, activation: str) -> Any:
    """Return the threshold of each label, as `tasks.is_over` takes it; None if `decodes` has none."""
    low, high = (-LARGEST, LARGEST) if activation == "none" else (-1.0, 1.0)
    found = _last_that_is_not_over(decodes, numbers.shape[1:], low, high)
    if found is None or not _decodes_as(decodes, found, numbers):
        return None
    threshold = [float(str(number)) for number in found]  # 0.2, where float32 has 0.20000000298
    return threshold[0] if len(set(threshold)) == 1 else tuple(threshold)


def _last_that_is_not_over(decodes: Function, shape: Any, low: float, high: float) -> np.ndarray | None:
    """Return the largest float32 in low..high, for each label, that is not decoded as a label, by bisection."""
    first, last = _to_order(np.full(shape, low, np.float32)), _to_order(np.full(shape, high, np.float32))
    while (first < last).any():
        middle = first + (last - first + 1) // 2
        decoded = _flags(decodes, torch.from_numpy(_from_order(middle))[None])
        if decoded is None:
            return None
        first, last = np.where(decoded[0], first, middle), np.where(decoded[0], middle - 1, last)
    return _from_order(first)


def _decodes_as(decodes: Function, threshold: np.ndarray, numbers: torch.Tensor) -> bool:
    """Return whether `decodes` gives what the threshold does: for `numbers`, at it and beside it."""
    beside = [threshold, *(np.nextafter(threshold, np.float32(to)) for to in (-np.inf, np.inf))]
    mixed = np.where(np.arange(threshold.size) % 2, beside[0], beside[2]).astype(np.float32)
    tried = torch.cat([numbers, torch.from_numpy(np.stack([*beside, mixed]))])
    decoded = _flags(decodes, tried)
    return decoded is not None and bool((decoded == (tried.numpy() > threshold)).all())


def _flags(decodes: Function, numbers: torch.Tensor) -> np.ndarray | None:
    """Return decoded numbers as bool; None unless each is 0 or 1, or False or True."""
    decoded = _call(decodes, numbers)
    if not isinstance(decoded, torch.Tensor) or decoded.shape != numbers.shape:
        return None
    flags = torch.Tensor.as_subclass(decoded, torch.Tensor).float().numpy()
    return flags == 1 if np.isin(flags, (0, 1)).all() else None


def _to_order(numbers: np.ndarray) -> np.ndarray:
    """Return float32 as integers of the same order, int64; neighbours differ by 1."""
    bits = numbers.view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def _from_order(order: np.ndarray) -> np.ndarray:
    bits = np.where(order < 0, -order | 0x80000000, order)
    return bits.astype(np.uint32).view(np.float32)
