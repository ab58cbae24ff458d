"""The batches for which a trace may not hold: those that decide a condition in the network's code in another way.

``torch.export`` follows one side of each ``if`` on a shape, and notes its condition (a guard). Most conditions are of
torch's own operators and change no result, so each is tried: on the nearest batch that breaks it.
"""

import functools
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from fastmaker.training.tracing import CaptureError

LONGEST_SIDE = 16_384  # of the images for which conditions are looked at
LARGEST_TRIED = 8_000_000  # pixels in a batch
FAR = 300_000  # pixels in the largest batch that is tried of those that a condition on size excludes
LARGEST_BATCH = 4096
POINTER = 2**31 - 1  # in conditions of operators that count in 32 bits
OPERATIONS: dict[str, Callable[..., Any]] = {
    "FloorDiv": operator.floordiv, "CleanDiv": operator.floordiv, "Mod": operator.mod, "PythonMod": operator.mod,
    "Pow": operator.pow, "PowByNatural": operator.pow, "IntTrueDiv": operator.truediv,
    "FloatTrueDiv": operator.truediv, "ToFloat": np.float64, "TruncToInt": lambda a: np.trunc(a).astype(np.int64),
    "FloorToInt": lambda a: np.floor(a).astype(np.int64), "CeilToInt": lambda a: np.ceil(a).astype(np.int64),
    "TruncToFloat": np.trunc, "RoundToInt": lambda a: np.round(a).astype(np.int64), "Abs": np.abs,
    "Equality": operator.eq, "Unequality": operator.ne, "StrictLessThan": operator.lt, "LessThan": operator.le,
    "StrictGreaterThan": operator.gt, "GreaterThan": operator.ge, "Not": np.logical_not,
}  # fmt: skip
REDUCED: dict[str, Callable[..., Any]] = {
    "Add": operator.add, "Mul": operator.mul, "Max": np.maximum, "Min": np.minimum,
    "And": np.logical_and, "Or": np.logical_or,
}  # fmt: skip


def breaking(program: Any, example: torch.Tensor, any_size: bool) -> list[tuple[int, int, int]]:
    """Return batches (number, height, width) that break the conditions of an ExportedProgram, one for each of them.

    Raises CaptureError for what stays open, also where the export took a size that was to be free as a constant.
    """
    free = (0, 2, 3) if any_size else (0,)
    shape = input_shape(program)
    symbols = [getattr(getattr(shape[dim], "node", None), "expr", None) for dim in free]
    if any(symbol is None or not symbol.is_Symbol for symbol in symbols) or len(set(symbols)) != len(symbols):
        raise CaptureError("the size of an image is a constant in it")
    count, _, height, width = example.shape
    tried = [np.array(family, dtype=np.int64).T for family in families(count, height, width, any_size)]
    conditions = {str(guard.expr): guard.expr for guard in shape[0].node.shape_env.guards}
    found = set()
    for condition in conditions.values():
        for batches in tried:
            values = dict(zip(symbols, batches if any_size else batches[:1], strict=True))
            with np.errstate(all="ignore"):
                broken = np.broadcast_to(np.logical_not(evaluate(condition, values)), batches.shape[1:])
            found |= _near_and_far(condition, batches[:, broken], example)
    return sorted(found)


def input_shape(program: Any) -> Any:
    """Return the shape of the images of an ExportedProgram: symbols where it is free."""
    names = program.graph_signature.user_inputs
    return next(n for n in program.graph.nodes if n.op == "placeholder" and n.name in names).meta["val"].shape


def families(count: int, height: int, width: int, any_size: bool) -> Iterator[list[tuple[int, int, int]]]:
    """Yield families of batches: of every number, high, wide, square, twice as high or wide, and small in both.

    A condition such as ``height > 100 and width > 100`` is noted as that on the height alone: the breaking batches of
    one family may be computed alike where those of another are not.
    """
    yield [(number, height, width) for number in range(1, LARGEST_BATCH + 1)]
    if not any_size:
        return
    sides = range(1, LONGEST_SIDE + 1)
    yield [(count, side, width) for side in sides]
    yield [(count, height, side) for side in sides]
    yield [(count, side, side) for side in sides]
    yield [(count, side, 2 * side) for side in sides]
    yield [(count, 2 * side, side) for side in sides]
    few = sorted({*range(1, 66), *(round(2 ** (power / 2)) for power in range(12, 26))})
    yield [(count, one, other) for one in few for other in few]


def _near_and_far(condition: Any, broken: Any, example: torch.Tensor) -> set[tuple[int, int, int]]:
    """Return of the batches `broken`, which break `condition`, the nearest to the example in pixels and a far one."""
    if any(number.is_Integer and int(number) >= POINTER for number in condition.atoms()):
        return set()
    if (near := nearest(condition, broken, example)) is None:
        return set()
    pixels, of_near = broken.prod(0), math.prod(near)
    if of_near <= example.numel() / example.shape[1]:
        return {near}
    far = np.where(pixels <= max(FAR, of_near), pixels, 0).argmax()  # larger batches break it: so may much larger
    number, height, width = map(int, broken[:, far])
    return {near, (number, height, width)}


def nearest(condition: Any, broken: Any, example: torch.Tensor) -> tuple[int, int, int] | None:
    """Return of the batches `broken`, (3, N), which break `condition`, the nearest to the example in pixels, if any.

    Raises CaptureError if that is too large to be tried.
    """
    if not broken.size:
        return None
    pixels = broken.prod(0)
    found = np.abs(np.log(pixels / (example.numel() / example.shape[1]))).argmin()
    if pixels[found] > LARGEST_TRIED:
        raise CaptureError(f"it has a condition on shapes, {str(condition)[:80]}, that only very large batches break")
    number, height, width = map(int, broken[:, found])
    return number, height, width


def evaluate(expression: Any, values: dict[Any, Any]) -> Any:
    """Return a sympy expression's value for each batch. Raises CaptureError for a function that is not known."""
    if expression in values:
        return values[expression]
    if expression.is_Integer:
        return int(expression)
    if expression.is_number:
        return float(expression)
    if not expression.args and str(expression) in ("True", "False"):
        return str(expression) == "True"
    name, arguments = type(expression).__name__, [evaluate(part, values) for part in expression.args]
    if name in REDUCED and arguments:
        return functools.reduce(REDUCED[name], arguments)
    if name in OPERATIONS and arguments:
        return OPERATIONS[name](*arguments)
    raise CaptureError(f"it has a condition on shapes that cannot be tried, {str(expression)[:80]}")
