"""The tasks: what the numbers of a network mean, by the loss that it was trained with.

    numbers = tasks.ACTIVATIONS["sigmoid"](logits)

A loss of fastai has an `activation`, which makes numbers of a network's logits, and `decodes`, which makes an answer of
the numbers. Both are kept as data in model.json: `activation`, and of several labels `threshold`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmaker import checks

if TYPE_CHECKING:
    import torch

# With labels, a network has an output for each of them; without, its output has the shape `output_shape`.
LABELLED = ("classification", "multilabel", "segmentation")
TASKS = (*LABELLED, "regression", "points")
# By their names in model.json: logits (N, ...) -> numbers (N, ...).
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda logits: logits,
    "sigmoid": lambda logits: logits.sigmoid(),
    "softmax": lambda logits: logits.softmax(dim=1),
}
Threshold = float | tuple[float, ...] | None
Check = Callable[[str, bool, str], None]  # (key, whether its value is good, what is expected)


def check(values: dict[str, Any], check_key: Check) -> None:
    """Check the keys of a model.json that depend on its task, which is one of TASKS, by `check_key`."""
    task: str = values["task"]
    labels: Any = values.get("labels")
    check_key(
        "activation", values.get("activation", "softmax") in tuple(ACTIVATIONS), f"one of {', '.join(ACTIVATIONS)}"
    )
    strings = checks.are_texts(labels)
    if task not in LABELLED:
        check_key("labels", labels == [], f"[], as the task is {task}")
    elif task == "multilabel":
        check_key("labels", strings and 0 < len(set(labels)) == len(labels), "a list of strings, none of them twice")
    else:
        check_key("labels", strings and len(labels) > 1, "a list of two or more strings")
    _check_output_shape(values, check_key)
    _check_names(values, check_key)
    threshold = values.get("threshold")
    if task != "multilabel":
        check_key("threshold", threshold is None, f"null, as the task is {task}")
    elif threshold is not None:
        each = [threshold] * len(labels) if not isinstance(threshold, list) else threshold
        check_key(
            "threshold",
            all(map(checks.is_number, each)) and len(each) == len(labels),
            "null, a number, or a number for each label",
        )


def _check_output_shape(values: dict[str, Any], check_key: Check) -> None:
    task: str = values["task"]
    shape: Any = values.get("output_shape")
    if task in LABELLED:
        check_key("output_shape", shape is None, f"null, as the task is {task}")
        return
    sizes = isinstance(shape, list) and all(type(n) is int and 0 < n < 1_000_000 for n in shape)
    if task == "regression":
        check_key("output_shape", sizes and len(shape) < 2, "[] or [n], the shape of the network's output")
    else:
        pairs = sizes and ((len(shape) == 1 and shape[0] % 2 == 0) or (len(shape) == 2 and shape[1] == 2))
        check_key("output_shape", pairs, "[2n] or [n, 2], for n points")


def _check_names(values: dict[str, Any], check_key: Check) -> None:
    names: Any = values.get("names", [])
    if values["task"] != "regression":
        check_key("names", names == [], f"[], as the task is {values['task']}")
        return
    n = math.prod(values["output_shape"])
    named = checks.are_texts(names) and len(names) == len(set(names)) == n
    check_key("names", named or names == [], f"[], or {n} strings, none of them twice")


def is_over(numbers: np.ndarray, threshold: Threshold) -> np.ndarray:
    """Return which numbers, float32 (n_labels,), stand for a label of an image, bool (n_labels,).

    Without a threshold these are the numbers that are 1: so fastai decodes where the loss has no `decodes`.
    """
    return numbers == 1 if threshold is None else numbers > np.asarray(threshold, np.float32)
