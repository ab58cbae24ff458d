"""Other forms of a graph that compute the same: with folded batch norms, or of operators that ONNX has."""

import re
from typing import Any

import torch
from torch import nn

from fastmaker import graph


def fold_batch_norms(network: graph.GraphNetwork) -> graph.GraphNetwork:
    """Return a network whose batch norms behind convolutions are folded into these, as `engines.fold_batch_norms`."""
    nodes = [dict(node) for node in network.document["nodes"]]
    tensors = network.tensors()
    uses: dict[int, int] = {}
    for number in re.findall(r"\{'node': (\d+)\}", str([nodes, network.document["output"]])):
        uses[int(number)] = uses.get(int(number), 0) + 1
    for node in nodes:
        source = node["args"][0].get("node") if node["op"] == "aten.batch_norm.default" else None
        if source is None or uses[source] != 1 or nodes[source]["op"] != "aten.conv2d.default":
            continue
        if folded := _fold(nodes[source], node, tensors, f"folded.{source}"):
            nodes[source] = folded
            node |= {"op": "aten.alias.default", "args": node["args"][:1]}
    document = network.document | {"nodes": nodes, "tensors": graph.describe(tensors)}
    return graph.build(document, tensors)


def _fold(conv: dict, norm: dict, tensors: dict[str, torch.Tensor], name: str) -> dict | None:
    """Return the call of a convolution that includes the batch norm, whose weights are added to `tensors`."""
    weight, *rest = (
        argument and tensors.get(argument.get("tensor", "")) for argument in [*conv["args"][1:3], None][:2]
    )
    values = [argument and tensors.get(argument.get("tensor", "")) for argument in norm["args"][1:5]]
    if weight is None or any(value is None for value in values) or conv.get("kwargs") or norm.get("kwargs"):
        return None
    bias = rest[0] if rest[0] is not None else None
    if bias is None and len(conv["args"]) > 2 and conv["args"][2] is not None:
        return None
    gamma, beta, mean, var = values
    fused = nn.utils.fusion.fuse_conv_bn_weights(weight, bias, mean, var, norm["args"][7], gamma, beta)
    for part, tensor in zip(("weight", "bias"), fused, strict=True):
        tensors[f"{name}.{part}"] = tensor.detach()
    args = [conv["args"][0], {"tensor": f"{name}.weight"}, {"tensor": f"{name}.bias"}, *conv["args"][3:]]
    return {"op": conv["op"], "args": args}


def for_onnx(network: graph.GraphNetwork) -> graph.GraphNetwork:
    """Return a network that takes the maximum of each channel by ``amax``: ONNX has no adaptive maximum."""
    nodes = [dict(node) for node in network.document["nodes"]]
    for number, node in enumerate(nodes):
        if node["op"] == "aten.adaptive_max_pool2d.default" and node["args"][1] in ([1, 1], [1]):
            nodes[number] = {"op": "aten.amax.default", "args": [node["args"][0], [2, 3], True]}
        source: Any = node["args"][0] if node.get("args") else None
        if node["op"] == "getitem" and nodes[source["node"]]["op"] == "aten.amax.default":
            nodes[number] = {"op": "aten.alias.default", "args": [source]}
    return graph.build(network.document | {"nodes": nodes}, network.tensors())
