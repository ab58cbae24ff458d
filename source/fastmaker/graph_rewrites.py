"""Other forms of a graph that compute the same: with folded batch norms, or of operators that ONNX has."""

import collections
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.utils.fusion import fuse_conv_bn_weights

from fastmaker import graph

Node = dict[str, Any]


def fold_batch_norms(network: graph.GraphNetwork) -> graph.GraphNetwork:
    """Return a network whose batch norms are folded into the convolutions that they follow."""
    nodes, tensors = _copy(network), network.tensors()
    uses = collections.Counter(_references([nodes, network.document["output"]]))
    for node in nodes:
        if node["op"] != "aten.batch_norm.default" or len(node["args"]) != 9:
            continue
        source = (node["args"][0] or {}).get("node")
        if source is None or uses["node", source] != 1 or nodes[source]["op"] != "aten.conv2d.default":
            continue
        if folded := _fold(nodes[source], node, tensors, f"folded.{source}"):
            nodes[source] = folded
            node |= {"op": "aten.alias.default", "args": node["args"][:1]}
    left = collections.Counter(_references([nodes, network.document["output"]]))
    used = {name: tensor for name, tensor in tensors.items() if left["tensor", name]}
    return graph.build(network.document | {"nodes": nodes, "tensors": graph.describe(used)}, used)


def _fold(conv: Node, norm: Node, tensors: dict[str, torch.Tensor], name: str) -> Node | None:
    """Return the call of a convolution that includes the batch norm, whose weights are added to `tensors`."""
    weight, bias = (_tensor(conv["args"], position, tensors) for position in (1, 2))
    gamma, beta, mean, var = (_tensor(norm["args"], position, tensors) for position in (1, 2, 3, 4))
    with_bias = len(conv["args"]) > 2 and conv["args"][2] is not None
    if conv["kwargs"] or weight is None or with_bias != (bias is not None):
        return None
    if gamma is None or beta is None or mean is None or var is None:
        return None
    fused = fuse_conv_bn_weights(weight, bias, mean, var, norm["args"][7], gamma, beta)
    for part, tensor in zip(("weight", "bias"), fused, strict=True):
        tensors[f"{name}.{part}"] = tensor.detach()
    return conv | {
        "args": [conv["args"][0], *({"tensor": f"{name}.{p}"} for p in ("weight", "bias")), *conv["args"][3:]]
    }


def _tensor(args: list[Any], position: int, tensors: dict[str, torch.Tensor]) -> torch.Tensor | None:
    value = args[position] if position < len(args) else None
    return tensors.get(value.get("tensor", "")) if isinstance(value, dict) else None


def for_onnx(network: graph.GraphNetwork) -> graph.GraphNetwork:
    """Return a network that takes the maximum of each channel by ``amax``: ONNX has no adaptive maximum."""
    nodes = _copy(network)
    maxima = set()
    for number, node in enumerate(nodes):
        if node["op"] == "aten.adaptive_max_pool2d.default" and node["args"][1:] in ([[1, 1]], [[1]]):
            node |= {"op": "aten.amax.default", "args": [node["args"][0], [2, 3], True]}
            maxima.add(number)
        elif node["op"] == "getitem" and node["args"][0].get("node") in maxima and node["args"][1] == 0:
            node |= {"op": "aten.alias.default", "args": node["args"][:1]}
    return graph.build(network.document | {"nodes": nodes}, network.tensors())


def _copy(network: graph.GraphNetwork) -> list[Node]:
    return [{"args": [], "kwargs": {}, **node} for node in network.document["nodes"]]


def _references(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield (kind, name) of each reference within `value`: ("node", 3) or ("tensor", "0.weight")."""
    if isinstance(value, list):
        for part in value:
            yield from _references(part)
    elif isinstance(value, dict) and "op" in value:
        yield from _references([*value["args"], *value["kwargs"].values()])
    elif isinstance(value, dict):
        yield from value.items()
