"""Which operators a network that is kept as a graph may call, and with what.

The rule: overloads of torch's own namespace ``aten`` that compute tensors or sizes from tensors and plain values. None
of them reads a file, prints, is random, depends on values for a shape, trains, or changes weights or the input. Whole
numbers (sizes) are also added, multiplied and so on by the functions of INTEGERS.
"""

import operator
import re
from collections.abc import Callable
from typing import Any

import torch

OVERLOAD = re.compile(r"aten\.([a-z][A-Za-z0-9_]*)\.([A-Za-z][A-Za-z0-9_]*)")
# Internal operators that torch.export writes for usual layers.
INTERNAL = re.compile(r"aten\.(_softmax|_log_softmax|_to_copy|_unsafe_view|_adaptive_avg_pool2d|_upsample_\w+_aa)\.\w+")
# Parts of names: they train, show memory that was never written, or take data that torch does not check.
REFUSED = re.compile(
    r"backward|empty|resize|sparse|storage|unsafe|quant|fbgemm|mkldnn|cudnn|miopen|nested|from_file|as_strided"
    r"|requires_grad|pin_memory|batch_norm_|renorm|\.(cuda|data|set)\."
)
ALLOWED_UNSAFE = ("aten._unsafe_view.default",)
STRINGS = ("approximate", "equation", "indexing", "mode", "padding", "rounding_mode")  # arguments that are words
SWITCHES = ("train", "training", "use_input_stats")  # arguments that are true while a network trains
# Operators that torch composes of others, and whose results are always new tensors.
NEW = re.compile(
    r"aten::(conv\w+|\w+_norm|linear|bilinear|matmul|einsum|\w+_pool\d?d?|pad|scaled_dot_product_attention|upsample_\w+"
    r"|softmax|log_softmax|grid_sampler|selu|relu6|prelu|\w+shuffle|stack|hstack|vstack|concat\w*|where|square|std|var)"
)
RETURNS = ("Tensor", "List[Tensor]")
SIZES = ("aten::sym_size", "aten::sym_numel")  # they return whole numbers
MAX_INTEGER = 2**62


class OperatorError(ValueError):
    """An operator that a graph may not call, or may not call in that way; the message is one line."""


def find(name: str) -> Callable[..., Any]:
    """Return the function that `name` means: an overload such as aten.conv2d.default, or one of INTEGERS, or getitem.

    Raises OperatorError for all others.
    """
    if name in INTEGERS:
        return INTEGERS[name]
    match = OVERLOAD.fullmatch(name)
    if not match and not INTERNAL.fullmatch(name):
        raise OperatorError("expected an overload of aten, such as aten.relu.default")
    if REFUSED.search(name) and name not in ALLOWED_UNSAFE:
        raise OperatorError("a graph may not call this operator")
    _, packet_name, overload_name = name.split(".")
    packet = getattr(torch.ops.aten, packet_name, None)
    if not isinstance(packet, torch._ops.OpOverloadPacket) or overload_name not in packet.overloads():
        raise OperatorError(f"torch {torch.__version__} has no such operator")
    overload = getattr(packet, overload_name)
    _check_overload(overload)
    return overload


def _check_overload(overload: Any) -> None:
    schema, tags = overload._schema, overload.tags
    returned = {str(result.type) for result in schema.returns}
    if not returned or not (returned <= set(RETURNS) or schema.name in SIZES):
        raise OperatorError("it does not compute tensors")
    if torch.Tag.data_dependent_output in tags:
        raise OperatorError("its result depends on values, not on shapes")
    if torch.Tag.dynamic_output_shape in tags and overload is not torch.ops.aten.index.Tensor:
        raise OperatorError("the shape of its result depends on values")
    written = [argument.name for argument in schema.arguments if _is_written(argument)]
    if written and (written != [schema.arguments[0].name] or torch.Tag.inplace_view in tags):
        raise OperatorError("it changes more than one tensor, or a tensor's shape")
    switches = (*SWITCHES, "dropout_p")
    if torch.Tag.nondeterministic_seeded in tags and not any(a.name in switches for a in schema.arguments):
        raise OperatorError("it is random")


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def changes_first(function: Any) -> bool:
    """Return whether `function` writes its result into its first argument, as relu_ does."""
    return isinstance(function, torch._ops.OpOverload) and function._schema.is_mutable


def may_share(function: Any) -> bool:
    """Return whether the result may share memory with an argument, as that of a view or of dropout in eval does."""
    if not isinstance(function, torch._ops.OpOverload):
        return True
    if any(result.alias_info is not None for result in function._schema.returns):
        return True
    name = function._schema.name
    composed = torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), "CompositeImplicitAutograd")
    return (composed and not NEW.fullmatch(name)) or name in ("aten::lift_fresh", "aten::rrelu")


def check_arguments(function: Any, args: list[Any], kwargs: dict[str, Any]) -> None:
    """Raise OperatorError if a constant among the arguments, as JSON has them, is not for `function`."""
    if not isinstance(function, torch._ops.OpOverload):
        _check_integers(function, args, kwargs)
        return
    arguments = function._schema.arguments
    if len(args) > len(arguments):
        raise OperatorError(f"it takes {len(arguments)} arguments, not {len(args)}")
    values = {argument.name: value for argument, value in zip(arguments, args, strict=False)}
    if unknown := [name for name in kwargs if name not in {argument.name for argument in arguments}]:
        raise OperatorError(f"it has no argument {unknown[0]!r}")
    values |= kwargs
    for name, value in values.items():
        if isinstance(value, str) and name not in STRINGS:
            raise OperatorError(f"its argument {name!r} may not be a string")
    defaults = {a.name: a.default_value for a in arguments if a.has_default_value()}
    _check_inference(defaults | values)


def _check_inference(values: dict[str, Any]) -> None:
    for name in SWITCHES:
        # A norm without running statistics always takes those of its input.
        norm = "running_mean" in values and values["running_mean"] is None
        if name in values and values[name] is not False and not norm:
            raise OperatorError(f"its argument {name!r} is not false: a graph does not train")
    if values.get("dropout_p", 0) != 0:
        raise OperatorError("its argument 'dropout_p' is not 0: a graph does not train")
    if values.get("pin_memory"):
        raise OperatorError("its argument 'pin_memory' is not false")


def _check_integers(function: Any, args: list[Any], kwargs: dict[str, Any]) -> None:
    if kwargs or not 1 <= len(args) <= 2 or any(isinstance(value, (str, list)) for value in args):
        raise OperatorError("it takes one or two whole numbers")
    if function is item and (len(args) != 2 or type(args[1]) is not int or not 0 <= args[1] < 10_000):
        raise OperatorError(f"it has the index {str(args[-1])[:20]}; expected 0 or more")


def _integer(function: Callable[..., Any]) -> Callable[..., Any]:
    def checked(*args: Any) -> Any:
        if not all(isinstance(value, (int, torch.SymInt)) for value in args):
            raise OperatorError("it takes whole numbers alone")
        result = function(*args)
        if isinstance(result, int) and abs(result) > MAX_INTEGER:
            raise OperatorError("its result is too large for a size")
        return result

    return checked


def item(results: Any, index: int) -> Any:
    """Return one of the results of an operator that has several."""
    if not isinstance(results, (list, tuple)):
        raise OperatorError("only of several results one can be taken")
    return results[index]


INTEGERS: dict[str, Callable[..., Any]] = {
    "getitem": item,
    **{name: _integer(getattr(operator, name)) for name in ("add", "sub", "mul", "floordiv", "mod", "neg")},
}
