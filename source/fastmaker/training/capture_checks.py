"""Compares a graph with its network, bit by bit, and the network's answers with each other: is each image's its own?"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from fastmaker import graph
from fastmaker.training.tracing import CaptureError, words

CHECKED_BATCHES = (1, 2, 3, 8)
ROWS = 4  # of the batches in which an image's neighbours are changed
TOLERANCE = 1e-6  # between answers for an image with other neighbours, of its largest number
TOLERANCE_OF_SIZES = 1e-3  # alone and in a batch: convolutions then add up in another order
Images = torch.Tensor


def check_bits(network: nn.Module, captured: graph.GraphNetwork, example: torch.Tensor) -> None:
    """Raise CaptureError unless both give the same bits for batches of CHECKED_BATCHES, and of unlike images."""
    batches = [_images(count, example.shape[1:]) for count in CHECKED_BATCHES]
    for batch in (*batches, _unlike(_images(ROWS, example.shape[1:]))):
        if not _equal(network, captured, batch):
            raise CaptureError(f"its graph does not give its own answer for a batch of {len(batch)}")


def answers_alike(
    network: nn.Module, captured: graph.GraphNetwork, shapes: Iterable[tuple[int, int, int]], channels: int
) -> tuple[int, int, int] | None:
    """Return the first of `shapes` (number, height, width) where one answers otherwise, or fails alone; else None."""
    for count, *size in shapes:
        batch = _images(count, (channels, *size))
        expected, found = _attempt(network, batch), _attempt(captured, batch)
        if expected is None and found is None:
            continue
        if expected is None or found is None or not _same(expected, found):
            return count, size[0], size[1]
    return None


def takes_other_sizes(network: nn.Module, captured: graph.GraphNetwork, example: torch.Tensor) -> bool:
    """Return whether both give the same bits for images of other sizes, those of one row and square ones included."""
    channels, height, width = example.shape[1:]
    sizes = ((height, width + 32), (height + 13, width), (2 * height, 2 * width), (height - 7, width - 5))
    others = [(n, *size) for n in (1, 2) for size in ((1, width), (height, 1), (1, 1))] + [(1, height + 3, width + 5)]
    others += [(2, width, height), (2, height, height), (2, width, width)]
    try:
        taken = all(_equal(network, captured, _images(2, (channels, *size))) for size in sizes)
    except Exception:  # of the network, or of the graph
        return False
    return taken and answers_alike(network, captured, others, channels) is None


def check_independent(network: nn.Module, example: torch.Tensor) -> None:
    """Raise CaptureError if the answer for an image depends on the other images of its batch."""
    batch = _images(ROWS, example.shape[1:])
    first, last = _unlike(batch), _unlike(batch)
    first[0], last[-1] = batch[0], batch[-1]
    expected, alone = _answer(network, batch), _answer(network, batch[:1])
    if not expected.ndim or (len(expected), len(alone)) != (ROWS, 1):
        raise CaptureError(f"it returns {list(expected.shape)} for {ROWS} images; expected a row for each")
    for row, other in ((0, first), (ROWS - 1, last)):
        if not _close(_answer(network, other)[row], expected[row], TOLERANCE):
            raise _depends(_cause(network, batch, other, row))
    if not _close(alone[0], expected[0], TOLERANCE_OF_SIZES):
        raise _depends(_cause(network, batch, batch[:1], 0))


def _depends(layer: str | None) -> CaptureError:
    where = f"in its layer {layer} " if layer else ""
    return CaptureError(f"{where}the answer for an image depends on the other images of its batch")


def _cause(network: nn.Module, one: Images, other: Images, row: int) -> str | None:
    """Return the layer where the row begins to differ between two batches, None if that is in the network's forward."""
    seen = [_rows(network, batch, min(row, len(batch) - 1), len(batch)) for batch in (one, other)]
    for (layer, expected), (_, found) in zip(*seen, strict=False):
        if not _close(expected, found, TOLERANCE if len(one) == len(other) else TOLERANCE_OF_SIZES):
            return layer
    return None


def _rows(network: nn.Module, batch: Images, row: int, count: int) -> list[tuple[str | None, torch.Tensor]]:
    """Return a row of what goes into layers and comes out of them, in order, each with the layer that computed it."""
    seen: list[tuple[str | None, torch.Tensor]] = []
    inside: list[str | None] = [None]

    def keep(value: Any, layer: str | None) -> None:
        value = value[0] if isinstance(value, tuple) and value else value
        if isinstance(value, torch.Tensor) and value.ndim and len(value) == count:
            seen.append((layer, value[row].detach().clone()))

    def enter(_: Any, args: Any, layer: str) -> None:
        keep(args, inside[-1])
        inside.append(layer)

    def leave(_: Any, args: Any, result: Any) -> None:
        keep(result, inside.pop())

    handles = []
    for name, module in network.named_modules():
        if name and not isinstance(module, torch.jit.ScriptModule):
            layer = words(name, module)
            handles.append(module.register_forward_pre_hook(lambda m, a, layer=layer: enter(m, a, layer)))
            handles.append(module.register_forward_hook(leave))
    try:
        _answer(network, batch)
    finally:
        for handle in handles:
            handle.remove()
    return seen


@contextlib.contextmanager
def _written_attention() -> Iterator[None]:
    """Let torch's attention layers compute what their Python code says, which torch.export follows, within the block.

    Their fast path without gradients gives other low bits; that the answers agree is checked with it (`parity`).
    """
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _images(count: int, shape: Any) -> Images:
    return torch.rand((count, *shape), generator=torch.Generator().manual_seed(count)) * 4 - 2


def _unlike(batch: Images) -> Images:
    """Return images that are unlike those of `batch` and each other: dark, bright, with large numbers, reversed."""
    rows = [row / 100 - 2.1 if n % 4 == 0 else row / 4 + 9 if n % 4 == 1 else row * 90 if n % 4 == 2 else -row.flip(-1)
            for n, row in enumerate(batch)]  # fmt: skip
    return torch.stack(rows)


def _answer(network: nn.Module, images: Images) -> torch.Tensor:
    with torch.no_grad(), _written_attention():
        return network(images.clone())


def _attempt(network: nn.Module, images: Images) -> torch.Tensor | None:
    try:
        return _answer(network, images)
    except Exception:  # whatever the network's own code raises
        return None


def _equal(network: nn.Module, captured: graph.GraphNetwork, images: Images) -> bool:
    return _same(_answer(network, images), _answer(captured, images))


def _same(expected: Any, found: torch.Tensor) -> bool:
    if not isinstance(expected, torch.Tensor) or (expected.shape, expected.dtype) != (found.shape, found.dtype):
        return False
    expected = expected.as_subclass(torch.Tensor)
    return bool(((expected == found) | (expected.isnan() & found.isnan())).all())


def _close(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> bool:
    if one.shape != other.shape:
        return False
    one, other = (tensor.as_subclass(torch.Tensor).double() for tensor in (one, other))
    largest = float(other.nan_to_num(0, 0, 0).abs().max()) if other.numel() else 0.0
    return torch.allclose(one, other, rtol=0, atol=tolerance * largest, equal_nan=True)
