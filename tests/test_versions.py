"""`source/` under other versions of torch than constraints.txt's, each in an environment that is removed afterwards.

    make test-versions
    make test-versions TORCH_PAIRS="2.7.1/0.22.1 2.10.0/0.25.0/python3.13"

The training image and the inference image of one endpoint differ in their torch, so that a bundle that was made under
one version is served under another: this is tried both ways.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from helpers import environments, kinds

pytestmark = pytest.mark.versions

REPOSITORY = Path(__file__).resolve().parents[1]
# torch, a torchvision that takes it, and a Python if it is another: those of the newest inference image, and the newest
# that there are.
PAIRS = os.environ.get("TORCH_PAIRS", "2.6.0/0.21.0 2.15.0/0.29.2").split()
# What source/ and its tests import; what they need in turn comes with it.
PACKAGES = (
    "fastai",
    "hypothesis",
    "psutil",
    "pytest",
    "sagemaker-inference",
    "sagemaker-pytorch-inference",
    "setuptools",
    "timm",
    "torchserve",
)
# The export to ONNX needs these, and a torch that is not older.
ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
ONNX_TORCH = (2, 8)
WITHOUT_ONNX = (
    "--ignore=tests/source/export/test_export.py",
    "--ignore=tests/source/serving/test_onnx_engine.py",
    "--deselect=tests/source/serving/test_torchserve_handler.py::test_a_batch_is_answered_by_onnx_runtime_as_well",
    "--deselect=tests/source/test_graph.py::test_a_graph_becomes_an_onnx_file",
    *(
        f"--deselect=tests/source/test_pipeline.py::{name}"
        for name in (
            "test_images_that_are_resized_in_batches_alone_or_not_at_all_become_an_onnx_file",
            "test_a_bundle_with_steps_is_rebuilt_as_a_learner_and_exported",
            "test_steps_of_every_kind_are_those_of_the_rebuilt_learner",
        )
    ),
)
TOLERANCE = 1e-5  # of a probability: another build of torch may add up in another order
SAME_BYTES = (2, 10)  # the newest torch whose answers have the bytes of this one's, as all from 2.6 on


class Environment(NamedTuple):
    python: Path
    torch: tuple[int, ...]

    @property
    def has_onnx(self) -> bool:
        return self.torch >= ONNX_TORCH


@pytest.fixture(scope="module", params=PAIRS)
def other(request, tmp_path_factory):
    """An environment with a pair's torch and torchvision; there is one at a time."""
    torch, torchvision, python = parse(request.param)
    version = tuple(map(int, torch.split(".")[:2]))
    pinned = (REPOSITORY / "constraints.txt").read_text().splitlines()
    others = [line for line in pinned if not line.startswith(("torch==", "torchvision=="))]
    folder = tmp_path_factory.mktemp("versions")
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join([*others, f"torch=={torch}", f"torchvision=={torchvision}"]))
    packages = ["torch", "torchvision", *PACKAGES, *(ONNX_PACKAGES if version >= ONNX_TORCH else ())]
    try:
        python = environments.create(folder / "environment", python)
        print(f"\ninstalling torch {torch} and torchvision {torchvision}", flush=True)
        with environments.needed_by("versions"):
            environments.install(python, "--constraint", constraints, *packages)
        yield Environment(python, version)
    finally:
        shutil.rmtree(folder)  # some gigabytes, which pytest would keep for its next runs


def parse(pair):
    """The versions of torch and torchvision, and the Python, this one if none is named."""
    if not (found := re.fullmatch(r"(\d+\.\d+[^/]*)/(\d+\.\d+[^/]*)(?:/(.+))?", pair)):
        pytest.fail(f"TORCH_PAIRS holds {pair!r}; expected TORCH/TORCHVISION, as in 2.6.0/0.21.0", pytrace=False)
    return found[1], found[2], found[3] or sys.executable


def test_the_tests_of_source_pass(other):
    options = () if other.has_onnx else WITHOUT_ONNX
    command = [other.python, "-m", "pytest", "tests/source", *options, "-p", "no:cacheprovider"]
    env = environments.variables() | {"PYTHONPATH": str(REPOSITORY / "source")}
    subprocess.run(command, cwd=REPOSITORY, env=env, check=True)


# A data set's fixture, and the arguments of a short run on it.
RUNS = {
    "convnet": ("few", "--arch convnet --epochs 2"),
    "resnet18": ("photos", "--arch resnet18 --pretrained false --epochs 1 --batch-size 8 --image-size 64"),
    "U-Net": (
        "scenes",
        "--task segmentation --arch resnet18 --pretrained false --self-attention true --epochs 2 --batch-size 4"
        " --image-size 40x56",
    ),
}

# Answers image files from a bundle's own code, by the functions that a container calls.
ANSWER = """
import base64, json, sys
from types import SimpleNamespace
import numpy as np
model_dir, output, *files = sys.argv[1:]
sys.path.insert(0, model_dir + "/code")
import entry_point

model = entry_point.model_fn(model_dir, SimpleNamespace(system_properties={}))
bodies, answers, probabilities = [], [], []
for file in files:
    request = entry_point.input_fn(open(file, "rb").read(), "application/x-image")
    body, _ = entry_point.output_fn(entry_point.predict_fn(request, model), "application/json")
    bodies.append(body)
    answer = json.loads(body)
    is_mask = "base64_prediction" in answer
    answers.append(list(base64.b64decode(answer["base64_prediction"])) if is_mask else [answer["index"]])
    [found] = model.numbers(model.to_tensor(request.images[0])[None]).numpy()
    probabilities.append(found.reshape(len(found), -1))
np.savez(output, bodies=bodies, classes=answers, probabilities=probabilities)
"""


def train(python, images, arguments, folder):
    """The bundle that the entry point makes, under that Python."""
    folders = ["--train", images, "--model-dir", folder / "model", "--output-data-dir", folder / "data"]
    entry_point = REPOSITORY / "source" / "entry_point.py"
    command = [python, entry_point, *folders, *arguments.split()]
    subprocess.run(command, cwd=folder, env=environments.variables(), check=True)
    return folder / "model"


def answer(python, model_dir, files, output):
    """What a container with that Python answers: JSON, bytes (N,); the class of each image or pixel, uint8 or int64
    (N, pixels), and the probabilities, float32 (N, n_labels, pixels); a classifier's images are one pixel."""
    subprocess.run([python, "-I", "-c", ANSWER, model_dir, output, *files], env=environments.variables(), check=True)
    with np.load(output) as found:
        return found["bodies"], found["classes"], found["probabilities"]


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("trained_by", ["this", "other"])
def test_a_bundle_is_served_alike_by_the_version_that_trained_it_and_by_another(
    other, trained_by, run, request, tmp_path
):
    data, arguments = RUNS[run]
    images = request.getfixturevalue(data)
    pythons = {"this": sys.executable, "other": other.python}
    model_dir = train(pythons[trained_by], images, arguments, tmp_path)
    files = sorted(file for file in images.rglob("*") if file.suffix in (".png", ".jpg"))[::3]
    (expected_bodies, expected_classes, expected), (bodies, classes, probabilities) = (
        answer(python, model_dir, files, tmp_path / f"{name}.npz") for name, python in pythons.items()
    )
    print(f"{run}: {(bodies == expected_bodies).sum()} of {len(files)} answers are equal byte for byte", flush=True)
    assert other.torch > SAME_BYTES or np.array_equal(bodies, expected_bodies)
    assert np.ptp(expected, axis=0).max() > 100 * TOLERANCE  # the images do make a difference
    assert np.abs(probabilities - expected).max() <= TOLERANCE
    best, second = np.sort(expected, axis=1)[:, :-3:-1].swapaxes(0, 1)
    clear = best - second > 2 * TOLERANCE  # where rounding cannot exchange them
    assert clear.mean() > 0.99
    assert np.array_equal(classes[clear], expected_classes[clear])


# Networks that are kept as graphs: of what torch may compute otherwise in another version.
KEPT = {
    name: kinds.SMALL[name]
    for name in (
        "parametrized weight norm", "orthogonal", "GeM", "MishJit", "ICNR, spectral and blurred", "self attention",
        "attention", "encoder", "LSTM", "spatial transformer", "ensemble", "positions", "upsampled", "transposed",
        "group norm", "instance norm", "circular padding", "activations",
    )
} | {"U-Net": kinds.UNETS[str({"norm_type": kinds.NormType.Weight})], "xresnet": kinds.XRESNETS["{}"]}  # fmt: skip
GRAPH_TOLERANCE = 1e-6

# Answers arrays from bundles' own code, where what made them cannot be imported.
GRAPH_ANSWER = """
import sys
import numpy as np
for name in ("fastai", "timm", "pandas", "spacy"):
    sys.modules[name] = None
output, images, *folders = sys.argv[1:]
sys.path.insert(0, folders[0] + "/code")
import torch
from fastmaker import load_bundle

batch = torch.from_numpy(np.load(images))
np.savez(output, *[load_bundle(folder).numbers(batch).numpy() for folder in folders])
"""


def save_graphs(folder):
    """Save a bundle of each of KEPT in `folder`; returns their paths."""
    for number, (name, build) in enumerate(KEPT.items()):
        kinds.save(build, folder / str(number), segments=name == "U-Net")
    return [folder / str(number) for number in range(len(KEPT))]


def graph_answers(python, folders, folder):
    """The probabilities of each bundle for four random images, float32 (N, n_labels, ...)."""
    images = folder / "images.npy"
    size = (4, 3, kinds.SIZE, kinds.SIZE)
    np.save(images, np.random.default_rng(5).integers(0, 256, size, dtype=np.uint8))
    command = [python, "-I", "-c", GRAPH_ANSWER, folder / "answers.npz", images, *folders]
    subprocess.run(command, env=environments.variables(), check=True)
    with np.load(folder / "answers.npz") as found:
        return dict(zip(KEPT, found.values(), strict=True))


def test_a_graph_is_answered_alike_by_another_version(other, tmp_path):
    folders = save_graphs(tmp_path)
    expected = graph_answers(sys.executable, folders, tmp_path)
    for name, found in graph_answers(other.python, folders, tmp_path).items():
        assert np.ptp(expected[name], axis=0).max() > 100 * GRAPH_TOLERANCE, name
        assert np.abs(found - expected[name]).max() <= GRAPH_TOLERANCE, name
