"""Batches that lead a network's own code down its other branches: those on shapes, also within one another.

``torch.export`` follows one side of each ``if``. What stands on the other side, a further condition say, shows only
where the network is followed again, with a batch that takes it there.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fastmaker.training import trace_guards, tracing
from fastmaker.training.tracing import CaptureError

MOST = 24  # batches for which a network is followed
TORCH = Path(torch.__file__).parent
Shape = tuple[int, int, int]  # (number, height, width)


def explore(make: Callable[[], nn.Module], program: Any, example: torch.Tensor, any_size: bool) -> Iterator[Shape]:
    """Yield a batch for each way that the network's own code can take, but for the one of `program`.

    `make` returns a copy of the network that torch.export can follow, `program` is what it made for `example`. Whoever
    compares the answers for a batch does so before asking for the next. Raises CaptureError if there are too many ways.
    """
    first = len(example), *example.shape[2:]
    waiting: list[tuple[Any, Any]] = [(first, program)]
    if any_size:  # a one torch.export takes as a constant, without a condition: one image, row or column
        waiting += [(tuple(1 if n == one else side for n, side in enumerate(first)), None) for one in range(3)]
    known: set[Any] = set()
    followed = 0
    while waiting:
        shape, program = waiting.pop(0)
        if program is None:
            followed += 1
            if followed > MOST:
                raise CaptureError(f"it has conditions on shapes that lead {MOST} ways and more")
            program = _follow(make(), shape, example.shape[1], any_size)
        path = _Path(program, shape) if program else None
        if path is None or path.key in known:
            continue
        known.add(path.key)
        for other in path.others(example, any_size):
            if other not in known:
                known.add(other)
                yield other
                waiting.append((other, None))


def _follow(network: nn.Module, shape: Shape, channels: int, any_size: bool) -> Any:
    """Return the ExportedProgram for batches of `shape`, None if the network does not take them."""
    from torch.export import Dim, export

    count, *size = shape
    free = {0: Dim.AUTO, **({2: Dim.AUTO, 3: Dim.AUTO} if any_size else {})}
    batch = torch.rand(count, channels, *size)
    try:
        with torch.no_grad():
            return export(network, (batch,), dynamic_shapes=(free,), strict=False)
    except Exception as error:  # whatever the network's own code raises
        reason = error
    try:
        with torch.no_grad():
            network(batch)
    except Exception:
        return None
    raise CaptureError(
        f"it cannot be followed by torch.export for {count} images of {size[0]} x {size[1]} pixels:"
        f" {tracing.one_line(reason)}"
    )


class _Path:
    """What decided the way that a network's own code took for the batches of a `shape`."""

    def __init__(self, program: Any, shape: Shape):
        dims = [part for n, part in enumerate(trace_guards.input_shape(program)) if n != 1]
        self.shape = shape
        self.symbols = [getattr(getattr(dim, "node", None), "expr", None) for dim in dims]
        env = next((dim.node.shape_env for dim in dims if isinstance(dim, torch.SymInt)), None)
        guards = env.guards if env else []
        self.conditions = list({str(guard.expr): guard.expr for guard in guards if _is_own(guard)}.values())
        self.key = (*map(str, self.symbols), *map(str, self.conditions))

    def others(self, example: torch.Tensor, any_size: bool) -> Iterator[Shape]:
        """Yield for each condition the nearest batch that breaks it and none before it."""
        batches = np.concatenate(
            [np.array(family, dtype=np.int64).T for family in trace_guards.families(*self.shape, any_size)], axis=1
        )
        batches = batches[:, self._are_alike(batches)]
        values = {symbol: of_dim for symbol, of_dim in zip(self.symbols, batches, strict=True) if _is_free(symbol)}
        for condition in self.conditions:
            with np.errstate(all="ignore"):
                kept = np.broadcast_to(trace_guards.evaluate(condition, values).astype(bool), batches.shape[1:])
            nearest = trace_guards.nearest(condition, batches[:, ~kept], example)
            if nearest:
                yield nearest
            batches = batches[:, kept]
            values = {symbol: of_dim[kept] for symbol, of_dim in values.items()}

    def _are_alike(self, batches: Any) -> Any:
        """Return which batches have what is constant in this path, and equal dimensions where these are one symbol."""
        alike = np.ones(batches.shape[1], dtype=bool)
        for n, symbol in enumerate(self.symbols):
            same = self.symbols.index(symbol) if _is_free(symbol) else None
            alike &= batches[n] == (self.shape[n] if same is None else batches[same])
        return alike


def _is_free(symbol: Any) -> bool:
    return symbol is not None and symbol.is_Symbol


def _is_own(guard: Any) -> bool:
    """Return whether a condition stands in other code than that of torch's operators."""
    place = getattr(getattr(guard, "sloc", None), "framework_loc", None)
    file = Path(getattr(place, "filename", ""))
    return not file.is_relative_to(TORCH) or file.is_relative_to(TORCH / "nn")
