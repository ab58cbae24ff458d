"""Any network -> a graph, by ``torch.export``: the calls that it makes, as data, and its tensors (`fastmaker.graph`).

    network = capture.capture(model, torch.rand(2, 3, 224, 224))

Needed where a bundle is written. A bundle is served without it.
"""

import contextlib
import copy
import itertools
import operator
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from fastmaker import graph, graph_operators
from fastmaker.training import capture_checks, shape_branches, trace_guards, tracing
from fastmaker.training.tracing import CaptureError

PASSED_ON = ("aten.detach_.default", "aten.detach.default", "aten.lift_fresh.default")  # their result is their argument
COMPUTED = {WeightNorm: "name", SpectralNorm: "name", BasePruningMethod: "_tensor_name"}  # hooks, and who knows what
INTEGERS = {getattr(operator, name): name for name in ("add", "sub", "mul", "floordiv", "mod", "neg", "getitem")}


def capture(model: nn.Module, example: torch.Tensor, any_size: bool = False) -> graph.GraphNetwork:
    """Return `model` in eval mode as a graph for batches of any number of images as large as those of `example`.

    `example` is float32 (N, C, H, W), N at least 2. With `any_size` the graph takes images of other sizes, too, if the
    network does. `model` is left as it was. The graph gives the same bits as the model (`capture_checks`).
    Raises CaptureError.
    """
    if scripted := next((m for m in model.named_modules() if isinstance(m[1], torch.jit.ScriptModule)), None):
        raise CaptureError(f"{tracing.words(*scripted)} is scripted; use the module that it was made of")

    def with_plain_weights() -> nn.Module | None:
        return _with_plain_weights(_traceable(model))

    # Copies: what a network keeps from one call for the next, torch.export would fill with tensors without values.
    try:
        network, computed = _copy(unwrapped(model)), with_plain_weights()
    except Exception as error:
        raise CaptureError(f"it cannot be copied: {tracing.one_line(error)}") from None
    if computed is not None:
        with contextlib.suppress(CaptureError):  # a network of its own may use what its weights are computed of
            return _captured(network, with_plain_weights, example, any_size)
    return _captured(network, lambda: _traceable(model), example, any_size)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network within ``DataParallel``, ``DistributedDataParallel`` and ``torch.compile``."""
    while hasattr(model, "_orig_mod") or isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model._orig_mod if hasattr(model, "_orig_mod") else model.module  # type: ignore[assignment]
    return model


def _captured(network: nn.Module, make: Callable[[], Any], example: torch.Tensor, any_size: bool) -> graph.GraphNetwork:
    """Return what `make` makes, copies of `network` to trace, as a graph with its bits. Raises CaptureError."""
    tracing.check_answers(network, example)
    program = tracing.export(make(), example, any_size)
    captured = _to_graph(program, example, any_size)
    capture_checks.check_bits(network, captured, example)
    capture_checks.check_independent(network, example)
    try:
        tried = trace_guards.breaking(program, example, any_size)
        ways = shape_branches.explore(make, program, example, any_size)
        other = capture_checks.answers_alike(network, captured, itertools.chain(tried, ways), example.shape[1])
        fault = f"it computes otherwise for {other[0]} images of {other[1]} x {other[2]} pixels" if other else None
    except CaptureError as error:
        fault = str(error)
    if any_size and (fault or not capture_checks.takes_other_sizes(network, captured, example)):
        return _captured(network, make, example, any_size=False)
    if fault:
        raise CaptureError(f"{fault}, which a graph cannot")
    return captured


def _traceable(model: nn.Module) -> nn.Module:
    return _without_casts(_copy(unwrapped(model)))


def _copy(model: nn.Module) -> nn.Module:
    # Weights that a layer computed in its last call, as weight norm does, cannot be copied with their history.
    computed = [value for m in model.modules() for value in vars(m).values() if isinstance(value, torch.Tensor)]
    memo = {id(tensor): tensor.detach().clone() for tensor in computed if not tensor.is_leaf}
    plain: Any = copy.deepcopy(model, memo).cpu().eval().requires_grad_(False)
    return plain.to(memory_format=torch.contiguous_format)


def _without_casts(network: nn.Module) -> nn.Module:
    """Return `network` without fastai's layers that only change a tensor's class, which torch.export cannot follow."""
    for name, module in list(network.named_modules()):
        if name and (type(module).__module__, type(module).__name__) == ("fastai.layers", "ToTensorBase"):
            parent, _, last = name.rpartition(".")
            setattr(network.get_submodule(parent), last, nn.Identity())
    return network


def _with_plain_weights(network: nn.Module) -> nn.Module | None:
    """Return `network` with tensors in place of the weights that its layers compute of others at each call.

    Weight norm, spectral norm, pruning and ``torch.nn.utils.parametrize`` do; a network that predicts computes the
    same ones each time. None if there are no such weights.
    """
    found = False
    for module in list(network.modules()):
        names = _compute(module)
        for name in names:
            tensor = getattr(module, name).detach().clone()
            delattr(module, name)
            module.register_buffer(name, tensor)
        parametrized = parametrize.is_parametrized(module)
        if parametrized:
            _remove_parametrizations(module)
        found |= parametrized or bool(names)
    return network if found else None


def _compute(module: nn.Module) -> set[str]:
    """Let the hooks of `module` compute its weights a last time, and return the names of these."""
    names = set()
    for key, hook in list(module._forward_pre_hooks.items()):
        if kind := next((kind for kind in COMPUTED if isinstance(hook, kind)), None):
            hook(module, None)  # type: ignore[operator]
            names.add(getattr(hook, COMPUTED[kind]))
            del module._forward_pre_hooks[key]
    return names


def _remove_parametrizations(module: nn.Module) -> None:
    tensors = {name: getattr(module, name).detach().clone() for name in module.parametrizations}  # type: ignore
    # torch's own function would also change the class of the network that this is a copy of.
    del module.parametrizations
    module.__class__ = type(module).__bases__[0]
    for name, tensor in tensors.items():
        module.register_buffer(name, tensor)


def _to_graph(program: Any, example: torch.Tensor, any_size: bool) -> graph.GraphNetwork:
    """Return an ExportedProgram as a graph. Raises CaptureError."""
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    references, tensors = _inputs(program)
    nodes: list[dict[str, Any]] = []
    for node in _needed(program):
        if str(node.target) in PASSED_ON:
            references[node] = references[node.args[0]]
            continue
        if free_unbacked_symbols(node.meta.get("val")):
            raise CaptureError(
                f"its layer {tracing.layer(node)} calls {node.target}: the shape of its result depends on values"
            )
        nodes.append(_call(node, references))
        references[node] = {"node": len(nodes) - 1}
    channels, *size = example.shape[1:]
    document = {
        "input": [channels, *([None, None] if any_size else size)],
        "tensors": graph.describe(tensors),
        "nodes": nodes,
        "output": references[_output(program)],
    }
    try:
        return graph.build(document, tensors)
    except graph.GraphError as error:
        number = re.match(r"'nodes'\[(\d+)\]", str(error))
        owner = [n for n, reference in references.items() if number and reference == {"node": int(number[1])}]
        raise CaptureError(f"{'its layer ' + tracing.layer(owner[0]) if owner else 'its graph'}: {error}") from None


def _needed(program: Any) -> list[Any]:
    """Return the calls that the result depends on: also those that change a tensor in place."""
    needed: set[Any] = set()
    for node in reversed(program.graph.nodes):
        written = node.op == "call_function" and graph_operators.changes_first(node.target)
        if node.op == "output" or node in needed or written:
            needed.update([node, *node.all_input_nodes])
    return [node for node in program.graph.nodes if node in needed and node.op == "call_function"]


def _inputs(program: Any) -> tuple[dict[Any, dict[str, Any]], dict[str, torch.Tensor]]:
    """Return what refers to each placeholder, and the tensors that are used, by name."""
    from torch.export.graph_signature import InputKind

    references: dict[Any, dict[str, Any]] = {}
    tensors: dict[str, torch.Tensor] = {}
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
        if spec.kind == InputKind.USER_INPUT:
            references[node] = {"input": 0}
        elif spec.kind not in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            raise CaptureError(f"it holds an object that is no tensor: {spec.target}")
        elif node.users:
            stored = program.state_dict if spec.target in program.state_dict else program.constants
            tensor = stored[spec.target].detach().cpu().contiguous()
            tensors[spec.target] = tensor.as_subclass(torch.Tensor).clone()
            references[node] = {"tensor": spec.target}
    return references, tensors


def _output(program: Any) -> Any:
    """Return the node of the network's one result. Raises CaptureError for several, or for changed buffers."""
    from torch.export.graph_signature import OutputKind

    specs = program.graph_signature.output_specs
    if changed := [spec.target for spec in specs if spec.kind != OutputKind.USER_OUTPUT]:
        raise CaptureError(f"it changes its own {changed[0]} when it predicts")
    [results] = next(node for node in program.graph.nodes if node.op == "output").args
    if len(specs) != 1 or not program.call_spec.out_spec.is_leaf():
        raise CaptureError(f"it returns {len(specs)} values; expected one tensor")
    return results[0]


def _call(node: Any, references: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    """Return a node of a document. Raises CaptureError, which names the layer."""
    name = INTEGERS.get(node.target, str(node.target))
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        raise CaptureError(
            f"its layer {tracing.layer(node)} calls {name}, which runs a part of the network as a function of its own;"
            " a graph is one list of operators"
        )
    _check_norm(node, name)
    try:
        args = [_argument(value, references) for value in node.args]
        kwargs = {key: _argument(value, references) for key, value in node.kwargs.items()}
        graph_operators.check_arguments(graph_operators.find(name), args, kwargs)
    except (graph_operators.OperatorError, CaptureError) as error:
        raise CaptureError(f"its layer {tracing.layer(node)} calls {name}: {error}") from None
    return {"op": name, "args": args, **({"kwargs": kwargs} if kwargs else {})}


def _check_norm(node: Any, name: str) -> None:
    """Raise CaptureError for a batch norm of images by the statistics of their batch; weights may be normed so."""
    if "batch_norm" not in name:
        return
    names = [argument.name for argument in node.target._schema.arguments]
    values = dict(zip(names, node.args, strict=False)) | node.kwargs
    count = values["input"].meta["val"].shape[0]
    if isinstance(count, torch.SymInt) and (values.get("training") or values.get("running_mean") is None):
        raise CaptureError(
            f"in its layer {tracing.layer(node)} the answer for an image depends on the other images of its batch: it"
            " is a batch norm without running statistics"
        )


def _argument(value: Any, references: dict[Any, dict[str, Any]]) -> Any:
    """Return an argument as JSON has it."""
    if isinstance(value, torch.fx.Node):
        return references[value]
    if isinstance(value, (list, tuple)):
        return [_argument(part, references) for part in value]
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return {"float": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.device):
        return {"device": None}
    for kind, known in graph.CONSTANTS.items():
        for name, constant in known.items():
            if kind != "float" and value is constant:
                return {kind: name}
    raise CaptureError(f"an argument is {str(value)[:80]}, of {type(value).__name__}")
