"""Refuses a graph that would take more memory or time than a network does, before any of its calls is computed.

The calls run once on torch's meta device, where tensors have shapes and no values. Where that device lacks an operator,
they run on the CPU, and each operator is tried on the meta device before it is computed.
"""

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

from fastmaker import graph

# Of one image, in numbers. A U-Net for images of 1024x1024 pixels has results of 3e8 and needs 4e12 operations.
MAX_RESULT = 2**30
MAX_ALIVE = 2**31  # of all results that are needed at one time
MAX_COMPUTED = 2**36  # of all results
MAX_OPERATIONS = 2**45  # of matrix products and convolutions
MAX_PARTS = 2**14  # of a result that is a list: each part is an object of its own
# Operators that make lists, by name, and how many parts they make of a tensor's longest side and their first number.
LISTS = {
    "unbind": lambda longest, number: longest,
    "split": lambda longest, number: longest // max(number, 1),
    **dict.fromkeys(("chunk", "tensor_split", "hsplit", "vsplit", "dsplit"), lambda longest, number: number),
}


def check_layers(network: nn.Module, image: torch.Tensor) -> None:
    """Raise GraphError unless one image, (1, C, H, W), takes less than the limits; all tensors are on the meta device.

    What the network raises goes on.
    """
    with torch.no_grad(), _Watch([], on_meta=True):
        network(image)


def check(network: graph.GraphNetwork, channels: int, size: tuple[int, int]) -> None:
    """Raise GraphError unless one image of that size takes less than the limits of this module."""
    try:
        _run(network, channels, size, _Watch(network.document["nodes"], on_meta=True))
    except graph.GraphError:
        raise
    except Exception:  # an operator that the meta device lacks, or whose results have other strides there
        watch = _Watch(network.document["nodes"], on_meta=False)
        try:
            _run(network, channels, size, watch)
        except graph.GraphError:
            raise
        except Exception as error:  # wrong arguments make torch raise almost anything
            reason = " ".join(str(error).split())[:200]
            raise graph.GraphError(f"'nodes'[{watch.number}] cannot be computed: {reason}") from None


def _run(network: graph.GraphNetwork, channels: int, size: tuple[int, int], watch: "_Watch") -> None:
    tensors = list(network.buffers())
    if watch.on_meta:
        tensors = [tensor.to("meta") for tensor in tensors]
    with torch.no_grad(), watch:
        network.compute([torch.zeros(1, channels, *size, device="meta" if watch.on_meta else "cpu"), *tensors], watch)


class _Watch(TorchDispatchMode):
    """Sees each call of a run before and after it is computed, and each operator that the call is composed of.

    Where the run is not on the meta device, each operator is tried there first.
    """

    def __init__(self, nodes: list[dict[str, Any]], on_meta: bool):
        super().__init__()
        self.on_meta = on_meta
        self.names = [node["op"].split(".")[1:2] for node in nodes]
        self.number = 0  # of the call that is being computed
        self.alive: dict[int, int] = {}  # by register, how many numbers it holds
        self.in_use = self.computed = self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.on_meta:
            return self._on_meta(func, args, kwargs or {})
        try:
            self._on_meta(func, *tree_map(_to_meta, (args, kwargs or {})))
        except graph.GraphError:
            raise
        except Exception:  # the meta device lacks it
            pass
        return func(*args, **(kwargs or {}))

    def _on_meta(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if any(argument.name == "device" for argument in func._schema.arguments):
            kwargs = kwargs | {"device": torch.device("meta")}  # what makes a tensor of no other makes it on the CPU
        result = func(*args, **kwargs)
        numbers = _numbers(result)
        self._limit(numbers, MAX_RESULT, "a result has {} numbers")
        self.computed += numbers
        self._limit(self.computed, MAX_COMPUTED, "all results have {} numbers")
        if count := flop_registry.get(func._overloadpacket):
            self.operations += count(*args, **kwargs, out_val=result)
            self._limit(self.operations, MAX_OPERATIONS, "it takes {} operations")
        return result

    def before(self, args: list[Any], kwargs: dict[str, Any]) -> None:
        """Look at the arguments of a call."""
        parts = LISTS.get("".join(self.names[self.number]))
        if parts is None:
            return
        values = [*args, *kwargs.values()]
        values += [value for part in values if isinstance(part, dict) for value in part.values()]
        longest = max((max(value.shape, default=0) for value in values if isinstance(value, torch.Tensor)), default=0)
        number = next((value for value in values if isinstance(value, int)), 0)
        self._limit(parts(longest, number), MAX_PARTS, "a result has {} parts")

    def after(self, result: Any, target: int, unused: tuple[int, ...]) -> None:
        """Look at the result of a call, which goes to the register `target`; those in `unused` are free then."""
        self.alive[target] = _numbers(result)
        self.in_use += self.alive[target]
        self._limit(self.in_use, MAX_ALIVE, "the results in use have {} numbers")
        self.in_use -= sum(self.alive.pop(register, 0) for register in unused)
        self.number += 1

    def _limit(self, found: int, limit: int, what: str) -> None:
        if found > limit:
            what_takes_it = f"'nodes'[{self.number}]" if self.names else "it"
            raise graph.GraphError(
                f"{what_takes_it} would take more memory or time than a network does:"
                f" {what.format(f'{found:.1e}')}; expected at most {limit:.1e}"
            )


def _to_meta(value: Any) -> Any:
    """Return a tensor as one of its shape and strides on the meta device; all else as it is."""
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def _numbers(result: Any) -> int:
    parts = result if isinstance(result, (list, tuple)) else [result]
    return sum(part.numel() for part in parts if isinstance(part, torch.Tensor))
