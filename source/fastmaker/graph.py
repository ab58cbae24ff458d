"""A network as data: a list of calls of torch's operators in JSON, and its tensors. No code, and nothing unpickled.

    network = graph.build(document, tensors)
    network(images)

`fastmaker.training.capture` makes both of any network that ``torch.export`` can follow. The document:

    {"input": [3, 224, 224],                                          of one image; null is any size
     "tensors": {"0.weight": {"dtype": "float32", "shape": [8, 3, 3, 3]}, ...},
     "nodes": [{"op": "aten.conv2d.default", "args": [{"input": 0}, {"tensor": "0.weight"}, null, [2, 2]]}, ...],
     "output": {"node": 57}}

A node is a call: an operator that `graph_operators` allows, and its arguments. They are numbers, true, false, null,
words, lists of these, the result of an earlier node, or one of CONSTANTS.
"""

import json
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fastmaker import graph_operators
from fastmaker.graph_operators import OperatorError

MAX_NODES = 20_000  # the largest of the usual networks have about 3,000
MAX_DEPTH = 4  # of lists within lists
MAX_ARGUMENTS = 1_000
DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
CONSTANTS: dict[str, dict[str, Any]] = {
    "dtype": {name: getattr(torch, name) for name in DTYPES},
    "memory_format": {n: getattr(torch, n) for n in ("contiguous_format", "channels_last", "preserve_format")},
    "layout": {"strided": torch.strided},
    "float": {name: float(name) for name in ("inf", "-inf", "nan")},
}

Values = list[Any]  # the registers of a run: the input, the tensors, the result of each node
Fill = int | Callable[[Values], Any]  # where an argument's value comes from: a register, or a function of all


class GraphError(ValueError):
    """A document or tensors that are no network; the message is one line and names the key."""


class GraphNetwork(nn.Module):
    """A network that was built of a document: float32 (N, C, H, W) -> its one result."""

    def __init__(self, document: dict[str, Any], tensors: dict[str, torch.Tensor]):
        super().__init__()
        self.document, self.names = document, list(tensors)
        for number, tensor in enumerate(tensors.values()):
            self.register_buffer(f"t{number}", tensor)
        self.shape = tuple(document["input"])
        self.first_node = 1 + len(tensors)  # the register of its result
        self.program, self.output = _Compiler(document, self.names).compile()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors by their names in the document."""
        return dict(zip(self.names, self._buffers.values(), strict=True))  # type: ignore[arg-type]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the result for images (N, C, H, W). Raises ValueError for images of another size."""
        for size, expected in zip(image.shape[1:], self.shape, strict=True):
            if expected is not None and size != expected:
                raise ValueError(f"the network takes images of {self.shape}, not {tuple(image.shape[1:])}")
        return self.compute([image, *self._buffers.values()])

    def compute(self, values: Values, watch: Any = None) -> Any:
        """Return the result for `values`, images and the tensors. `watch` is a `graph_sizes._Watch`."""
        values += [None] * len(self.program)
        for function, args, fills, kwargs, target, unused in self.program:
            if fills:
                args = args.copy()
                for position, fill in fills:
                    args[position] = values[fill] if type(fill) is int else fill(values)
            if watch:
                watch.before(args, kwargs)
            values[target] = function(*args, **kwargs)
            if watch:
                watch.after(values[target], target, unused)
            for register in unused:
                values[register] = None
        return values[self.output]


def build(document: Any, tensors: dict[str, torch.Tensor]) -> GraphNetwork:
    """Return the network of `document` and `tensors`, in eval mode. Raises GraphError, which names the key."""
    _check_document(document)
    _check_tensors(document["tensors"], tensors)
    return GraphNetwork(document, {name: tensors[name] for name in document["tensors"]}).eval()


def try_out(network: GraphNetwork, channels: int, size: tuple[int, int]) -> torch.Tensor:
    """Return the network's result for one image of zeros. Raises GraphError with the reason if it fails."""
    tensor = next(network.buffers(), torch.zeros(0))
    dtype = tensor.dtype if tensor.is_floating_point() else torch.float32
    try:
        with torch.inference_mode():
            result = network(torch.zeros(1, channels, *size, device=tensor.device, dtype=dtype))
    except Exception as error:  # wrong arguments make torch raise almost anything
        raise GraphError(f"'nodes' cannot be computed: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(result, torch.Tensor):
        raise GraphError(f"'output' is no tensor: {type(result).__name__}")
    return result


def to_json(document: dict[str, Any]) -> str:
    """Return the text of a document, a line for each tensor and each call."""
    parts = []
    for key, value in document.items():
        text = json.dumps(value, ensure_ascii=False)
        if isinstance(value, list) and key == "nodes":
            text = "[\n" + ",\n".join(f"  {json.dumps(node, ensure_ascii=False)}" for node in value) + "\n]"
        elif isinstance(value, dict) and key == "tensors":
            lines = (f"  {json.dumps(name, ensure_ascii=False)}: {json.dumps(one)}" for name, one in value.items())
            text = "{\n" + ",\n".join(lines) + "\n}"
        parts.append(f"{json.dumps(key)}: {text}")
    return "{" + ",\n".join(parts) + "}\n"


def _check(good: bool, key: str, expected: str) -> None:
    if not good:
        raise GraphError(f"{key}: expected {expected}")


def _check_document(document: Any) -> None:
    _check(isinstance(document, dict), "the file", "one JSON object")
    keys = ("input", "tensors", "nodes", "output")
    _check(sorted(document) == sorted(keys), "the keys", ", ".join(keys))
    shape, nodes = document["input"], document["nodes"]
    sizes = isinstance(shape, list) and len(shape) == 3 and all(_is_size(n) or n is None for n in shape[1:])
    _check(sizes and _is_size(shape[0]), "'input'", "[channels, height, width]")
    _check(isinstance(nodes, list) and 0 < len(nodes) <= MAX_NODES, "'nodes'", f"a list of 1 to {MAX_NODES} calls")
    _check(isinstance(document["tensors"], dict), "'tensors'", "an object")


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**31


def _check_tensors(table: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Raise GraphError unless `tensors` are those of `table`: no more, no less, in the same dtypes and shapes."""
    for name in [*table, *tensors]:
        shown = str(name)[:80]
        if name not in tensors:
            raise GraphError(f"'tensors': {shown!r} is not in the file of the weights")
        if name not in table:
            raise GraphError(f"'tensors': the file of the weights holds {shown!r}, which the graph does not know")
    for name, described in table.items():
        tensor = tensors[name]
        _check(type(tensor) is torch.Tensor, f"'tensors': {name[:80]!r}", "a tensor in the file of the weights")
        found = {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
        _check(described == found, f"'tensors': {name[:80]!r}", f"{found}, as in the file of the weights")
        _check(tensor.layout is torch.strided, f"'tensors': {name[:80]!r}", "a dense tensor")


class _Compiler:
    """The calls of a document -> the program of a GraphNetwork."""

    def __init__(self, document: dict[str, Any], names: list[str]):
        self.document = document
        self.tensors = {name: 1 + number for number, name in enumerate(names)}
        self.first = 1 + len(names)  # the register of node 0
        self.last_use: dict[int, int] = {}  # by register, the node that uses it last
        self.shared = set(range(self.first))  # registers that may share memory with the input or a tensor

    def compile(self) -> tuple[list[tuple], int]:
        program = []
        for number, node in enumerate(self.document["nodes"]):
            key = f"'nodes'[{number}]"
            named = isinstance(node, dict) and isinstance(node.get("op"), str)
            _check(named and node.keys() <= {"op", "args", "kwargs"}, key, "an object of op, args and kwargs")
            args, kwargs = node.get("args", []), node.get("kwargs", {})
            good = isinstance(args, list) and isinstance(kwargs, dict) and len(args) + len(kwargs) <= MAX_ARGUMENTS
            _check(good, key, f"a list of args and an object of kwargs, at most {MAX_ARGUMENTS}")
            try:
                program.append(self._call(number, node["op"], args, kwargs))
            except OperatorError as error:
                raise GraphError(f"{key}: {node['op'][:80]!r}: {error}") from None
        output = self._register(self.document["output"], len(program), "'output'")
        self.last_use[output] = len(program)
        ends: dict[int, list[int]] = {}
        for register, number in self.last_use.items():
            if register >= self.first:
                ends.setdefault(number, []).append(register)
        return [(*call, ends.get(number, ())) for number, call in enumerate(program)], output

    def _call(self, number: int, op: str, args: list[Any], kwargs: dict[str, Any]) -> tuple:
        """Return (function, constant args, what fills them, kwargs, register of the result) of one node."""
        function = graph_operators.find(op)
        graph_operators.check_arguments(function, args, kwargs)
        key = f"'nodes'[{number}]"
        parsed = [self._argument(value, number, key) for value in args]
        named = {name: self._argument(value, number, key) for name, value in kwargs.items()}
        used = {register for _, _, registers in [*parsed, *named.values()] for register in registers}
        self._track(function, number, used, parsed)
        fills = tuple((position, fill) for position, (_, fill, _) in enumerate(parsed) if fill is not None)
        constant = {name: value for name, (value, fill, _) in named.items() if fill is None}
        filled = {name: fill for name, (_, fill, _) in named.items() if fill is not None}
        if filled:
            function, fills = _with_keywords(function, len(args), filled, fills)
            parsed.append((None, None, ()))
        return function, [value for value, _, _ in parsed], fills, constant, self.first + number

    def _track(self, function: Any, number: int, used: set[int], parsed: list[tuple]) -> None:
        """Note which registers are used, and refuse a call that would change the input or a tensor."""
        for register in used:
            self.last_use[register] = number
        if graph_operators.changes_first(function) and (not parsed or not self.shared.isdisjoint(parsed[0][2])):
            raise OperatorError("it would change the input or a tensor of the network")
        if not self.shared.isdisjoint(used) and graph_operators.may_share(function):
            self.shared.add(self.first + number)
        self.last_use.setdefault(self.first + number, number)

    def _argument(self, value: Any, number: int, key: str, depth: int = 0) -> tuple[Any, Fill | None, tuple[int, ...]]:
        """Return (constant, what fills it at each run or None, the registers that it needs)."""
        if value is None or isinstance(value, (bool, float, str)):
            return value, None, ()
        if isinstance(value, int):
            _check(abs(value) <= 2**63, key, "whole numbers of 64 bits")
            return value, None, ()
        if isinstance(value, list):
            _check(depth < MAX_DEPTH and len(value) <= MAX_ARGUMENTS, key, f"lists of at most {MAX_ARGUMENTS} values")
            return _join([self._argument(part, number, key, depth + 1) for part in value])
        _check(isinstance(value, dict) and len(value) == 1, key, "arguments of one key")
        [(kind, name)] = value.items()
        if kind == "device":
            return None, _device_of_input, ()
        if kind in CONSTANTS:
            known = CONSTANTS[kind]
            _check(isinstance(name, str) and name in known, f"{key}: {kind!r}", f"one of {', '.join(known)}")
            return known[name], None, ()
        register = self._register(value, number, key)
        return None, register, (register,)

    def _register(self, value: Any, number: int, key: str) -> int:
        """Return the register that `value` refers to, for a use by node `number`."""
        _check(isinstance(value, dict) and len(value) == 1, key, "a reference to the input, a tensor or a node")
        [(kind, name)] = value.items()
        if kind == "input" and type(name) is int and name == 0:
            return 0
        if kind == "tensor":
            _check(isinstance(name, str) and name in self.tensors, f"{key}: 'tensor'", "one of 'tensors'")
            return self.tensors[name]
        earlier = kind == "node" and type(name) is int and 0 <= name < number
        _check(earlier, f"{key}: {str(kind)[:20]!r}", f"a node before this one, 0 to {number - 1}")
        return self.first + name


def _value(fill: Fill, values: Values) -> Any:
    return values[fill] if isinstance(fill, int) else fill(values)


def _device_of_input(values: Values) -> torch.device:
    return values[0].device


def _join(parts: list[tuple]) -> tuple[Any, Fill | None, tuple[int, ...]]:
    """Return the list of `parts` as one argument."""
    constants = [constant for constant, _, _ in parts]
    fills = [(position, fill) for position, (_, fill, _) in enumerate(parts) if fill is not None]
    if not fills:
        return constants, None, ()

    def fill_list(values: Values) -> list[Any]:
        filled = constants.copy()
        for position, fill in fills:
            filled[position] = _value(fill, values)
        return filled

    return None, fill_list, tuple(register for _, _, registers in parts for register in registers)


def _with_keywords(function: Any, count: int, filled: dict[str, Fill], fills: tuple) -> tuple[Any, tuple]:
    """Return `function` as one whose last positional argument is its keywords that a run fills, and all fills."""

    def call(*args: Any, **constant: Any) -> Any:
        return function(*args[:count], **args[count], **constant)

    def fill_keywords(values: Values) -> dict[str, Any]:
        return {name: _value(fill, values) for name, fill in filled.items()}

    return call, (*fills, (count, fill_keywords))


def describe(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return the table of `tensors` in a document: their dtypes and shapes."""
    return {
        name: {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
        for name, tensor in tensors.items()
    }
