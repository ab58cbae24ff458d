"""Model repositories as a user makes and asks them: by the command lines, on a real Triton server."""

import dataclasses
import io
import json
import re
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import urllib3
from helpers import triton_server
from helpers.commands import ENVIRONMENT, on_a_terminal, one_line
from PIL import Image

from fastmaker import bundle, preprocess
from fastmaker.jobs import package, verify
from fastmaker.jobs.clients import sources, triton
from fastmaker.jobs.page import asking
from fastmaker.local.containers import free_ports
from fastmaker.serving import models

pytestmark = pytest.mark.triton

BATCH = 8
CLOSE = {"rtol": 0, "atol": 1e-5}  # another runtime adds up in another order


def packaged(model: Path, repository: Path, *words: object) -> None:
    package.main(package.parse_args(["triton", str(model), "--output", str(repository), *map(str, words)]))


def predict(*words: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "fastmaker.jobs", "predict", *map(str, words)], env=ENVIRONMENT, capture_output=True
    )


def write_foreign_model(folder: Path) -> None:
    """A model that is none of ours."""
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.py").write_text(
        "class TritonPythonModel:\n    def execute(self, requests):\n        raise\n"
    )
    tensors = "".join(f'{kind} {{ name: "x" data_type: TYPE_FP32 dims: [1] }}\n' for kind in ("input", "output"))
    (folder / "config.pbtxt").write_text(f'name: "foreign"\nbackend: "python"\n{tensors}')


def altered(model: Path, folder: Path, **values) -> Path:
    """A bundle of the same network that says other things of itself."""
    network, info = bundle.load(model)
    bundle.save(folder, network, dataclasses.replace(info, **values))
    return folder


@pytest.fixture(scope="session")
def repository(digits_bundle, scenes_bundle, tmp_path_factory):
    """Each bundle with and without preprocessing, and some that are out of the ordinary."""
    folder = tmp_path_factory.mktemp("triton")
    repository = folder / "models"
    by_python = ("--backend", "python", "--batch-size", BATCH)
    unresized = altered(digits_bundle, folder / "unresized", resize_method=preprocess.NO_RESIZE)
    original = altered(scenes_bundle, folder / "original", mask_size="original")
    for model, *words in (
        (digits_bundle, "--preprocessing", "--max-batch-delay", 100, "--sagemaker"),
        (scenes_bundle, "--preprocessing"),
        (digits_bundle, "--model-name", "digits-array", "--max-batch-delay", 100),
        (scenes_bundle, "--model-name", "scenes-array"),
        (unresized, "--preprocessing"),
        (original,),
    ):
        packaged(model, repository, *by_python, *words)
    packaged(digits_bundle, repository, "--model-name", "native")  # for the ONNX backend, which this server lacks
    write_foreign_model(repository / "foreign")
    return repository


@pytest.fixture(scope="session")
def server(server_files, repository):
    """A server of the repository: its URLs, and a client of its own."""
    from tritonclient import grpc

    options, http_url, grpc_url = triton_server.addresses()
    log = repository.with_name("server.log")
    options += [f"--model-repository={repository}", "--exit-on-error=false", "--strict-readiness=false"]
    with (
        triton_server.running(server_files, log, f"{http_url}/v2/health/ready", *options),
        grpc.InferenceServerClient(grpc_url.removeprefix("grpc://")) as client,
    ):
        yield SimpleNamespace(http=http_url, grpc=grpc_url, client=client)


@pytest.fixture(scope="session")
def scene_files(scenes):
    return sorted((scenes / "images").iterdir())[:4]


@pytest.fixture(scope="session")
def digit_files(digits):
    return sorted(digits.rglob("*.png"))[::150]


def own_answers(model: Path, files: list[Path]) -> list:
    loaded = models.load(model)
    return [loaded.predict([preprocess.decode(file.read_bytes())])[0] for file in files]


def test_the_models_of_a_repository_are_ready(server):
    index = server.client.get_model_repository_index(as_json=True)["models"]
    states = {model["name"]: model["state"] for model in index}
    assert states.pop("native") == "UNAVAILABLE"
    parts = {f"{name}{part}" for name in ("digits", "scenes", "unresized") for part in ("", "_preprocess", "_network")}
    assert states == dict.fromkeys(parts | {"digits-array", "scenes-array", "original", "foreign"}, "READY")


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("name", ["digits", "digits-array"])
def test_a_classifier_answers_as_the_bundle_does(server, digits_bundle, digit_files, protocol, name):
    model = triton.Model(getattr(server, protocol), name)
    for file, expected in zip(digit_files, own_answers(digits_bundle, digit_files), strict=True):
        answer = model.answer(file.read_bytes())
        assert answer.as_object().keys() == expected.as_object().keys()
        assert answer.label == expected.label
        assert np.allclose(answer.probabilities, expected.probabilities, **CLOSE)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("name", ["scenes", "scenes-array"])
def test_masks_are_those_of_the_bundle(server, scenes_bundle, scene_files, protocol, name):
    model = triton.Model(getattr(server, protocol), name)
    for file, expected in zip(scene_files, own_answers(scenes_bundle, scene_files), strict=True):
        assert model.answer(file.read_bytes()).as_object() == expected.as_object()


def test_the_page_shows_what_the_server_answers(server, digits_bundle, digit_files, scenes_bundle, scene_files):
    digit, scene = digit_files[0], scene_files[0]
    [label], [mask] = own_answers(digits_bundle, [digit]), own_answers(scenes_bundle, [scene])
    asked = asking.ask(sources.Triton(server.grpc, "digits"), digit.name, digit.read_bytes())
    assert asked.answer["label"] == label.label
    assert "error" in asking.ask(sources.Triton(server.grpc, "digits"), "broken", b"no image").answer
    asked = asking.ask(sources.Triton(server.grpc, "scenes"), scene.name, scene.read_bytes())
    assert asked.answer == mask.as_object()
    assert asking.draw(asked).size[0] >= Image.open(scene).size[0]
    assert np.array_equal(Image.open(io.BytesIO(asked.mask)), mask.array)


def test_the_probabilities_of_each_pixel_can_be_asked_for(server, scenes_bundle, scene_files):
    from tritonclient import grpc

    loaded = models.load(scenes_bundle)
    pixels = loaded.to_tensor(preprocess.decode(scene_files[0].read_bytes()))[None]
    tensor = grpc.InferInput("image", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels.numpy())
    answer = server.client.infer("scenes-array", [tensor])
    assert np.allclose(answer.as_numpy("probabilities"), loaded.numbers(pixels), **CLOSE)


def test_a_mask_is_as_large_as_the_bundle_says(server, repository, scenes_bundle, tmp_path):
    wide = tmp_path / "wide.png"
    Image.fromarray(np.random.default_rng(5).integers(0, 256, (90, 70, 3), dtype=np.uint8)).save(wide)
    (expected,) = own_answers(repository.with_name("original"), [wide])
    answer = triton.Model(server.grpc, "original").answer(wide.read_bytes())
    assert answer.array.shape == (90, 70)
    assert np.array_equal(answer.array, expected.array)


def test_triton_names_the_classes_itself(server, digits_bundle, digit_files):
    """By its classification extension, which any client may use and which reads labels.txt."""
    from tritonclient import grpc

    tensor = grpc.InferInput("image_bytes", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[digit_files[0].read_bytes()]], dtype=object))
    output = grpc.InferRequestedOutput("probabilities", class_count=2)
    (first, second), (expected,) = (
        server.client.infer("digits", [tensor], outputs=[output]).as_numpy("probabilities")[0],
        own_answers(digits_bundle, digit_files[:1]),
    )
    top = expected.as_object()["top"]
    assert [found.decode().split(":")[2] for found in (first, second)] == [top[0]["label"], top[1]["label"]]


@pytest.mark.parametrize("name", ["digits", "digits-array"])
def test_requests_at_once_go_through_together_and_a_bad_one_fails_alone(server, digits_bundle, digit_files, name):
    network = "digits_network" if name == "digits" else name
    model = triton.Model(server.grpc, name)

    def counts():
        (found,) = server.client.get_inference_statistics(network, as_json=True)["model_stats"]
        return np.array([int(found.get(count, 0)) for count in ("inference_count", "execution_count")])

    def ask(data):
        try:
            return model.answer(data)
        except ValueError as error:
            return str(error)

    before = counts()
    files = digit_files[: BATCH - 1]
    with ThreadPoolExecutor(BATCH) as clients:
        *answers, refused = clients.map(ask, [*(file.read_bytes() for file in files), b"no image"])
    inferences, executions = counts() - before
    assert inferences == BATCH - 1
    assert executions < inferences
    assert refused == "the 8 bytes are not an image that Pillow can read"
    for answer, expected in zip(answers, own_answers(digits_bundle, files), strict=True):
        assert np.allclose(answer.probabilities, expected.probabilities, **CLOSE)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_script_answers_as_for_an_endpoint(server, digits_bundle, few, tmp_path, protocol):
    folder, broken = few / "7", tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    words = ("--triton", getattr(server, protocol), "--model", "digits", folder, broken)
    done = predict(*words, "--json")
    assert done.returncode == 1
    *rows, refused = map(json.loads, done.stdout.splitlines())
    files = sorted(folder.iterdir())
    for row, file, expected in zip(rows, files, own_answers(digits_bundle, files), strict=True):
        assert (row["image"], row["label"]) == (str(file), expected.label)
        assert row["probability"] == pytest.approx(expected.as_object()["probability"], abs=1e-5)
    assert refused == {"image": str(broken), "error": "the 8 bytes are not an image that Pillow can read"}
    table = predict(*words).stdout.decode().splitlines()
    assert table[0].split() == ["image", "label", "probability", "error"]
    assert len(table) == len(files) + 3


def test_the_script_shows_its_progress_on_a_terminal(server, few):
    words = ["--triton", server.http, "--model", "digits-array", str(few)]
    done, shown = on_a_terminal([sys.executable, "-m", "fastmaker.jobs", "predict", *words], env=ENVIRONMENT)
    assert done.returncode == 0, shown
    counted = {int(count) for count in re.findall(r"(\d+)/160 \[\d\d:\d\d<.*?image/s\]", shown)}
    assert counted
    assert max(counted) > 1


def test_the_script_draws_the_masks(server, scene_files, tmp_path):
    words = ("--triton", server.http, "--model", "scenes", *map(str, scene_files), "--save", str(tmp_path / "saved"))
    done = predict(*words)
    assert done.returncode == 0, done.stderr.decode()
    assert len([Image.open(file) for file in (tmp_path / "saved").iterdir()]) == len(scene_files)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (["--model", "nothing"], "there is no such model on .*; its models are digits, .*scenes"),
        (["--model", "native"], "--model native is not ready on .*: UNAVAILABLE .*onnxruntime"),
        (["--model", "foreign"], "--model foreign: its configuration has no parameter model.json"),
        ([], "--model NAME is needed: ready are digits, digits-array, foreign, original, scenes, .*, unresized"),
    ],
)
def test_a_model_that_cannot_be_asked_gets_one_line(server, digit_files, protocol, model, reason):
    done = predict("--triton", getattr(server, protocol), *model, str(digit_files[0]))
    assert done.returncode == 2, done.stdout.decode()
    assert re.search(reason, one_line(done.stderr.decode()))


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_an_image_of_the_wrong_size_is_refused_with_one_line(server, digit_files, tmp_path, protocol):
    Image.new("L", (28, 28)).save(tmp_path / "right.png")
    words = (str(digit_files[0]), str(tmp_path / "right.png"), "--json")
    done = predict("--triton", getattr(server, protocol), "--model", "unresized", *words)
    assert done.returncode == 1, done.stderr.decode()
    refused, answered = map(json.loads, done.stdout.splitlines())
    assert "trained without Resize and takes images of 28x28" in refused["error"]
    assert "label" in answered


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_tritons_own_refusal_of_a_shape_is_one_line(server, digit_files, protocol):
    model = triton.Model(getattr(server, protocol), "digits-array")
    model.info["image_size"] = [28, 30]  # what a client says that read the configuration of a model since replaced
    with pytest.raises(triton.InvalidRequest, match=r"^unexpected shape for input 'image'.*\[1,1,28,30\]") as refused:
        model.answer(digit_files[0].read_bytes())
    assert "\n" not in str(refused.value)


def test_the_archive_for_sagemaker_answers_ping_and_invocations(
    server_files, repository, digits_bundle, digit_files, tmp_path
):
    """With the options of the `serve` script in SageMaker's Triton images. This port Triton opens on all addresses.

    https://github.com/triton-inference-server/server/blob/main/docker/sagemaker/serve
    """
    from tritonclient import http

    (port,) = free_ports(1)
    with tarfile.open(repository.with_name("models.tar.gz")) as archive:
        archive.extractall(tmp_path / "model", filter="data")
    options = ["--allow-sagemaker=true", f"--sagemaker-port={port}", "--allow-grpc=false", "--allow-http=false"]
    options += ["--model-control-mode=explicit", "--load-model=digits", f"--model-repository={tmp_path / 'model'}"]
    url, env = f"http://127.0.0.1:{port}", {"SAGEMAKER_TRITON_DEFAULT_MODEL_NAME": "digits"}
    tensor = http.InferInput("image_bytes", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[digit_files[0].read_bytes()]], dtype=object))
    outputs = [http.InferRequestedOutput("probabilities")]
    body, header_length = http.InferenceServerClient.generate_request_body([tensor], outputs=outputs)
    binary = "application/vnd.sagemaker-triton.binary+json;json-header-size="
    with triton_server.running(server_files, tmp_path / "log", f"{url}/ping", *options, **env):
        headers = {"Content-Type": f"{binary}{header_length}"}
        answer = urllib3.request("POST", f"{url}/invocations", body=body, headers=headers, retries=False)
    assert answer.status == 200, answer.data
    length = int(answer.headers["Content-Type"].removeprefix(binary))
    found = http.InferenceServerClient.parse_response_body(answer.data, header_length=length).as_numpy("probabilities")
    (expected,) = own_answers(digits_bundle, digit_files[:1])
    assert np.allclose(found[0], expected.probabilities, **CLOSE)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("name", ["digits", "digits-array", "original"])
def test_the_gate_compares_the_server_with_the_bundle(
    server, protocol, name, digits_bundle, scenes_bundle, digit_files, scene_files, capsys
):
    model, files = (scenes_bundle, scene_files) if name == "original" else (digits_bundle, digit_files)
    words = [model, *files, "--paths", "torch,triton", "--triton", getattr(server, protocol), "--triton-model", name]
    assert verify.main(verify.parse_args(list(map(str, words)))) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("triton ")]
    assert row.endswith("agrees")
