"""A graph that would fill the memory, or never end, is refused before it is computed; real networks are not."""

import json
import time

import pytest
import torch

from fastmaker import bundle, graph, graph_sizes

INFO = bundle.ModelInfo(
    task="classification",
    architecture=bundle.GRAPH,
    labels=("a", "b", "c"),
    image_mode="RGB",
    image_size=(8, 8),
    resize_method="squish",
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
)
ZERO = [{"op": "aten.zeros.default", "args": [[1]]}]
SQUARE = {"op": "aten.zeros.default", "args": [[30_000, 30_000]]}
LARGE = {"op": "aten.zeros.default", "args": [[2**29]]}


def document(*nodes):
    """The mean of each channel, after other calls whose results nobody needs."""
    answer = {"op": "aten.mean.dim", "args": [{"input": 0}, [2, 3]]}
    return {"input": [3, 8, 8], "tensors": {}, "nodes": [*nodes, answer], "output": {"node": len(nodes)}}


def call(name, *args):
    return {"op": f"aten.{name}", "args": list(args)}


FIRST = {"node": 0}
BOMBS = {
    "zeros": [call("zeros.default", [10**6, 10**6])],
    "a size beyond 64 bits": [call("zeros.default", [2**40, 2**40])],
    "full": [call("full.default", [2**40], 1.0)],
    "arange": [call("arange.default", 10**15)],
    "linspace": [call("linspace.default", 0, 1, 10**13)],
    "eye": [call("eye.default", 10**6)],
    "expand": [*ZERO, call("expand.default", FIRST, [2**40]), call("relu.default", {"node": 1})],
    "repeat": [*ZERO, call("repeat.default", FIRST, [10**12])],
    "repeat_interleave": [*ZERO, call("repeat_interleave.self_int", FIRST, 10**12)],
    "pad": [call("pad.default", {"input": 0}, [10**6, 10**6, 10**6, 10**6])],
    "nearest": [call("upsample_nearest2d.vec", {"input": 0}, [10**6, 10**6], None)],
    "interpolate": [call("upsample_bicubic2d.vec", {"input": 0}, None, False, [1e6, 1e6])],
    "pool": [call("adaptive_avg_pool2d.default", {"input": 0}, [10**6, 10**6])],
    "outer product": [call("arange.default", 10**6), call("outer.default", FIRST, FIRST)],
    "unbind": [call("zeros.default", [2**29]), call("unbind.int", FIRST)],
    "split": [call("zeros.default", [2**29]), call("split.Tensor", FIRST, 1)],
    "tensor_split": [*ZERO, call("tensor_split.sections", FIRST, 10**9)],
    "by keywords": [*ZERO, {"op": "aten.tensor_split.sections", "kwargs": {"self": FIRST, "sections": 10**9}}],
    "matrix products": [SQUARE, *[call("mm.default", FIRST, FIRST)] * 4],
    "many results at once": [*[LARGE] * 4, call("stack.default", [{"node": n} for n in range(4)])],
    "many large results": [LARGE] * 200,
    "many operations": [call("zeros.default", [2**13, 2**13]), *[call("mm.default", FIRST, FIRST)] * 100],
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_at_once(name):
    network = graph.build(document(*BOMBS[name]), {})
    began = time.process_time()
    with pytest.raises(graph.GraphError, match=r"^'nodes'\[\d+\]( would take| cannot be computed)") as error:
        graph_sizes.check(network, 3, (8, 8))
    assert time.process_time() - began < 2
    assert len(str(error.value)) < 400


def test_a_bomb_in_a_bundle_is_refused_before_it_is_computed():
    network = graph.build(document(*BOMBS["many large results"]), {})
    with pytest.raises(bundle.BundleError, match=r"network\.json: 'nodes'\[127\] would take more memory or time"):
        bundle.rebuild(network, INFO)


def test_what_needs_no_value_is_no_bomb():
    network = graph.build(document(call("zeros.default", [1000, 1000]), call("mm.default", FIRST, FIRST)), {})
    graph_sizes.check(network, 3, (8, 8))
    bundle.rebuild(network, INFO)


MASKED = [call("gt.Scalar", {"input": 0}, 0), call("index.Tensor", {"input": 0}, [FIRST])]  # of no shape without values


def test_what_the_meta_device_lacks_is_computed():
    graph_sizes.check(graph.build(document(*MASKED), {}), 3, (8, 8))


@pytest.mark.parametrize("name", ["full", "expand", "by keywords"])
def test_a_bomb_behind_what_the_meta_device_lacks_is_refused(name):
    nodes = [*MASKED, *json.loads(json.dumps(BOMBS[name]), object_hook=shifted)]
    with pytest.raises(graph.GraphError, match=r"^'nodes'\[\d+\] would take"):
        graph_sizes.check(graph.build(document(*nodes), {}), 3, (8, 8))


def shifted(value):
    """References to nodes that have two more before them."""
    return {"node": value["node"] + 2} if "node" in value else value


@pytest.mark.slow
def test_a_large_unet_is_no_bomb():
    """The limits are far from what the largest of usual networks need: a U-Net for images of 1024x1024 pixels."""
    from fastmaker import unet
    from fastmaker.training import capture

    network = capture.capture(unet.unet("resnet18", 3, (64, 64)), torch.rand(2, 3, 64, 64), any_size=True)
    graph_sizes.check(network, 3, (1024, 1024))
