"""A model.json or network.json that somebody has made to do harm: it is refused on load, by its key, or it answers.

Hypothesis puts any value at any place of a good one.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import time

import pytest
import torch
from helpers import task_bundles
from helpers.changes import with_value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fastmaker import bundle, graph, networks, unet
from fastmaker.serving import errors, models, wire

EXAMPLES = int(os.environ.get("FASTMAKER_EXAMPLES", "40"))  # of each task
SECONDS = 10
SIZE = 16
HUGE = 10**400
NESTED = json.loads("[" * 900 + "]" * 900)
IMAGE = {"step": "resize", "size": [40, 56], "method": "pad", "pad_mode": "zeros", "resample": "bilinear"}
STEPS = [
    IMAGE,
    {"step": "crop_pad", "size": [40, 56], "pad_mode": "border"},
    {"step": "divide", "by": 255.0},
    {"step": "crop_and_grid_sample", "size": [40, 56], "ratio": [0.75, 1.5], "scale": 1.0, "mode": "bilinear"},
    {"step": "normalize", "mean": [0.5] * 3, "std": [0.5] * 3},
    {"step": "grid_sample", "size": None, "mode": "bilinear", "pad_mode": "zeros", "align_corners": True},
]
ANY_SIZE = [{"step": "ratio_resize", "longest": 60, "resample": "nearest"}, {"step": "any_size"}]
MASKS = bundle.ModelInfo(
    task="segmentation",
    architecture="resnet18",
    labels=("a", "b"),
    image_mode="RGB",
    image_size=(SIZE, SIZE),
    resize_method="crop",
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
    options=dict(unet.OPTIONS),
)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """By name a folder of a good bundle, and the values of its model.json."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("multilabel", "regression", "points", "steps", "any")}
    for name, changes in {"steps": {"steps": STEPS}, "any": {"steps": ANY_SIZE}}.items():
        task_bundles.save(folders[name], "regression", resize_method="steps", **changes)
    for name in ("multilabel", "regression", "points"):
        task_bundles.save(folders[name], name)
    folders["masks"] = tmp_path_factory.mktemp("masks")
    bundle.save(folders["masks"], unet.unet("resnet18", 2, (SIZE, SIZE)), MASKS)
    return {name: (folder, json.loads((folder / "model.json").read_text())) for name, folder in folders.items()}


numbers = st.one_of(
    st.sampled_from([0, -1, 1, 2**31, 2**63, 10**9, HUGE, -HUGE, 1e-320, 1e308, float("nan"), float("inf"), -0.0]),
    st.integers(-10, 10_000),
    st.floats(allow_nan=True),
)
texts = st.one_of(st.text(max_size=10), st.sampled_from(["\ud800", "x" * 10_000, "../../etc", "NaN", "graph", "steps"]))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts, st.just(NESTED), st.just([1] * 10_000)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=4,
)


def places(value, path=()):
    """The path to each place in a JSON value."""
    yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from places(part, (*path, key))


def load_and_answer(folder):
    """Load a bundle and have it answer; only the package's own errors are right."""
    start = time.monotonic()
    model = None
    try:
        model = models.load(folder)
    except bundle.BundleError as error:
        message = str(error)
    assert time.monotonic() - start < SECONDS
    if model is None:
        assert len(message.splitlines()) == 1
        assert len(message) < 2000
        return False
    for size in ((1, 1), (61, 44)):
        try:
            answer = wire.Answer(model.predict([Image.new("RGB", size, "red")]), single=True)
            wire.encode(answer, "application/json")
            wire.encode(answer, "text/csv")
        except (wire.preprocess.ImageError, errors.RequestError):
            pass
    assert time.monotonic() - start < 2 * SECONDS
    return True


@pytest.mark.parametrize("name", ["multilabel", "regression", "points", "steps", "any", "masks"])
def test_any_value_at_any_place_of_a_model_json_is_refused_or_answers(bundles, name, tmp_path):
    folder, good = bundles[name]
    assert load_and_answer(folder)
    (tmp_path / "model.pth").symlink_to(folder / "model.pth")
    every = [path for path in places(good) if path and path[0] not in ("versions", "state_sha256")]

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(every), values)
    def check(path, value):
        (tmp_path / "model.json").write_text(json.dumps(with_value(good, path, value)))
        load_and_answer(tmp_path)

    check()


HOSTILE = [
    ("multilabel", ("image_size",), [10**9, 1]),
    ("multilabel", ("image_size",), [10**5, 10**5]),
    ("multilabel", ("image_size",), [HUGE, 1]),
    ("multilabel", ("mean",), [HUGE, 0, 0]),
    ("multilabel", ("mean",), [1e39, 0, 0]),
    ("multilabel", ("std",), [HUGE, 1, 1]),
    ("multilabel", ("std",), [1e-300, 1, 1]),
    ("multilabel", ("threshold",), HUGE),
    ("multilabel", ("threshold",), [HUGE, 0, 0]),
    ("multilabel", ("labels",), ["a", "b", "\ud800"]),
    ("multilabel", ("labels",), ["a", "b", ["c"]]),
    ("multilabel", ("labels",), NESTED),
    ("multilabel", ("resampled",), "yes"),
    ("multilabel", ("options",), {"blur": True}),
    ("multilabel", ("void_code",), 0),
    ("multilabel", ("mask_size",), ["model"]),
    ("multilabel", ("metrics",), ["accuracy"]),
    ("multilabel", ("metrics",), {"accuracy": "high"}),
    ("multilabel", ("versions",), ["torch"]),
    ("multilabel", ("versions",), {"torch": ["2.8"]}),
    ("multilabel", ("format",), True),
    ("multilabel", ("format",), -1),
    ("multilabel", ("format",), HUGE),
    ("masks", ("image_size",), [5000, 5000]),  # whose results have 2e9 numbers
    ("masks", ("image_size",), [64_000_000, 1]),
    ("steps", ("steps",), [IMAGE] * 33),
    ("steps", ("steps",), [{**IMAGE, "size": [8000, 5000]}, IMAGE, {**IMAGE, "size": [8000, 5000]}]),
    ("steps", ("steps", 0, "size"), [99_999, 99_999]),
    ("steps", ("steps", 2, "by"), HUGE),
    ("steps", ("steps", 2, "by"), 1e-320),
    ("steps", ("steps", 3, "ratio"), [HUGE, HUGE]),
    ("steps", ("steps", 3, "ratio"), [2, 1]),
    ("steps", ("steps", 3, "scale"), 0.001),
    ("steps", ("steps", 3, "scale"), 3),
    ("steps", ("steps", 4, "mean"), [HUGE, 0, 0]),
    ("steps", ("steps", 4, "std"), [1e-300, 1, 1]),
    ("any", ("steps", 0, "longest"), 99_999),
    ("any", ("steps", 0, "longest"), HUGE),
    ("any", ("steps", 0, "step"), NESTED),
]


@pytest.mark.parametrize(
    ("name", "path", "value"), HOSTILE, ids=[f"{number} {row[0]} {row[1][-1]}" for number, row in enumerate(HOSTILE)]
)
def test_a_hostile_value_is_refused_by_its_key(bundles, name, path, value, tmp_path):
    folder, good = bundles[name]
    (tmp_path / "model.pth").symlink_to(folder / "model.pth")
    (tmp_path / "model.json").write_text(json.dumps(with_value(good, path, value)))
    with pytest.raises(bundle.BundleError) as error:
        bundle.load(tmp_path)
    assert f"'{path[0]}'" in str(error.value)
    assert "model.json: " in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_key_that_stands_twice_is_refused(bundles, tmp_path):
    folder, _ = bundles["multilabel"]
    text = (folder / "model.json").read_text()
    (tmp_path / "model.json").write_text(text.replace('"task"', '"task": "points", "task"', 1))
    with pytest.raises(bundle.BundleError, match=r'model\.json: not JSON: the key "task" stands twice in one object'):
        bundle.load_info(tmp_path)


def test_a_model_json_of_many_megabytes_is_refused(bundles, tmp_path):
    (tmp_path / "model.json").write_text("[" + "0," * 9_000_000 + "0]")
    with pytest.raises(bundle.BundleError, match="it has more than 16000000 bytes"):
        bundle.load_info(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: tensor.double(),
        lambda tensor: tensor.half(),
        lambda tensor: tensor.to(torch.complex64),
        lambda tensor: tensor.to_sparse(),
        lambda tensor: tensor.long(),
        lambda tensor: "weight",
        lambda tensor: [tensor],
        lambda tensor: None,
    ],
)
def test_weights_of_another_kind_are_refused(bundles, change, tmp_path):
    folder, good = bundles["regression"]
    state = torch.load(folder / "model.pth", weights_only=True)
    state["0.0.weight"] = change(state["0.0.weight"])
    torch.save(state, tmp_path / "model.pth")
    good = good | {"state_sha256": hashlib.sha256((tmp_path / "model.pth").read_bytes()).hexdigest()}
    (tmp_path / "model.json").write_text(json.dumps(good))
    with pytest.raises(bundle.BundleError, match=r"model\.pth: '0.0.weight' is no dense tensor of torch.float32"):
        bundle.load(tmp_path)


# Graphs

GRAPH = {
    "input": [3, SIZE, SIZE],
    "tensors": {"weight": {"dtype": "float32", "shape": [2, 3, 3, 3]}},
    "nodes": [
        {"op": "aten.conv2d.default", "args": [{"input": 0}, {"tensor": "weight"}, None, [1, 1], [1, 1]]},
        {"op": "aten.relu.default", "args": [{"node": 0}]},
        {"op": "aten.adaptive_avg_pool2d.default", "args": [{"node": 1}, [1, 1]]},
        {"op": "aten.mul.Tensor", "args": [{"node": 2}, 2.0]},
        {"op": "aten.flatten.using_ints", "args": [{"node": 3}, 1]},
    ],
    "output": {"node": 4},
}


@pytest.fixture(scope="module")
def graph_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graph")
    network = graph.build(GRAPH, {"weight": torch.rand(2, 3, 3, 3)})
    info = dataclasses.replace(MASKS, task="classification", architecture=bundle.GRAPH, options={})
    bundle.save(folder, network, info)
    return folder


def with_graph(folder, target, text):
    shutil.copytree(folder, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("code"))
    (target / "network.json").write_text(text)
    info = json.loads((target / "model.json").read_text())
    info["network_sha256"] = hashlib.sha256((target / "network.json").read_bytes()).hexdigest()
    (target / "model.json").write_text(json.dumps(info))


OPERATORS = """zeros.default ones.default full.default arange.default eye.default repeat.default expand.default
pad.default matmul.default linspace.default tile.default unfold.default pow.Tensor_Scalar repeat_interleave.self_int
upsample_nearest2d.default cumsum.default view.default reshape.default"""
operators = st.sampled_from(OPERATORS.split()).map("aten.{}".format)
nodes = st.fixed_dictionaries(
    {"op": operators, "args": st.lists(st.one_of(values, st.just({"node": 2}), st.just([10**6, 10**6])), max_size=4)}
)


def test_any_value_at_any_place_of_a_graph_is_refused_or_answers(graph_folder, tmp_path):
    assert load_and_answer(graph_folder)

    @settings(max_examples=2 * EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from([path for path in places(GRAPH) if path]), st.one_of(values, nodes))
    def check(path, value):
        with_graph(graph_folder, tmp_path, json.dumps(with_value(GRAPH, path, value)))
        load_and_answer(tmp_path)

    check()


def test_a_key_that_stands_twice_in_a_graph_is_refused(graph_folder, tmp_path):
    with_graph(graph_folder, tmp_path, json.dumps(GRAPH).replace('"args"', '"args": [], "args"', 1))
    with pytest.raises(bundle.BundleError, match=r'network\.json: not JSON: the key "args" stands twice'):
        bundle.load(tmp_path)


@pytest.mark.slow
def test_every_network_of_the_package_passes_the_check_of_its_cost():
    for architecture in networks.ARCHITECTURES:
        info = dataclasses.replace(MASKS, task="classification", architecture=architecture, image_size=(224, 224))
        bundle._empty_network(info, "model.json")
    for architecture in ("resnet18", "resnet50"):
        for size in ((360, 480), (1024, 1024)):
            bundle._empty_network(dataclasses.replace(MASKS, architecture=architecture, image_size=size), "model.json")
