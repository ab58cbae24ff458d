"""Triton model repositories, and what is wrong before a server answers; test_triton_server.py has a server."""

import dataclasses
import json
import re
import shlex
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from google.protobuf import text_format
from helpers.commands import exit_status, one_line
from tritonclient.grpc import model_config_pb2

from fastmaker import bundle, preprocess, save_bundle
from fastmaker.jobs import package, predict
from fastmaker.jobs.packaging import triton
from fastmaker.local.containers import free_ports
from fastmaker.serving import models, onnx_engine


def packaged(*words):
    return package.main(package.parse_args(["triton", *map(str, words)]))


def config(model):
    return text_format.Parse((model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def tensors(listed):
    return {tensor.name: (model_config_pb2.DataType.Name(tensor.data_type), list(tensor.dims)) for tensor in listed}


def files_below(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def plain(digits_bundle, tmp_path_factory):
    """A repository of the digits, of which all is as default but the numbers."""
    repository = tmp_path_factory.mktemp("triton") / "models"
    packaged(digits_bundle, "--output", repository, "--batch-size", 4, "--max-batch-delay", 5, "--instances", 2)
    return repository


@pytest.fixture(scope="module")
def ensemble(scenes_bundle, tmp_path_factory):
    """A repository of the scenes with preprocessing."""
    repository = tmp_path_factory.mktemp("triton") / "models"
    packaged(scenes_bundle, "--output", repository, "--preprocessing", "--backend", "python", "--batch-size", 1)
    return repository


def test_a_classifier_is_one_model_for_the_onnx_backend(plain, digits_bundle):
    assert set(files_below(plain)) == {"digits/config.pbtxt", "digits/labels.txt", "digits/1/model.onnx"}
    found, info = config(plain / "digits"), bundle.load_info(digits_bundle)
    assert (found.name, found.platform, found.backend, found.max_batch_size) == ("digits", "onnxruntime_onnx", "", 4)
    assert tensors(found.input) == {"image": ("TYPE_UINT8", [info.channels, *info.image_size])}
    assert tensors(found.output) == {"probabilities": ("TYPE_FP32", [len(info.labels)])}
    assert found.dynamic_batching.max_queue_delay_microseconds == 5000
    assert [group.count for group in found.instance_group] == [2]
    assert (plain / "digits" / found.output[0].label_filename).read_text().splitlines() == list(info.labels)
    assert json.loads(found.parameters["model.json"].string_value) == json.loads(json.dumps(dataclasses.asdict(info)))


def test_the_network_of_a_repository_is_that_of_the_bundle(plain, digits_bundle):
    session = onnx_engine.session(plain / "digits" / "1" / "model.onnx", 1)
    described = json.loads(session.get_modelmeta().custom_metadata_map[onnx_engine.MODEL_JSON])
    assert described["state_sha256"] == bundle.load_info(digits_bundle).state_sha256


def test_preprocessing_makes_an_ensemble_whose_tensors_fit_together(ensemble, scenes_bundle):
    found = config(ensemble / "scenes")
    info = bundle.load_info(scenes_bundle)
    assert found.platform == "ensemble"
    assert tensors(found.input) == {"image_bytes": ("TYPE_STRING", [1])}
    assert tensors(found.output) == {
        "mask": ("TYPE_UINT8", list(info.image_size)),
        "probabilities": ("TYPE_FP32", [len(info.labels), *info.image_size]),
    }
    have = tensors(found.input)
    for step in found.ensemble_scheduling.step:
        model = config(ensemble / step.model_name)
        assert model.name == step.model_name
        assert model.max_batch_size == found.max_batch_size
        assert {name: have[source] for name, source in step.input_map.items()} == tensors(model.input)
        have |= {target: tensors(model.output)[name] for name, target in step.output_map.items()}
    assert tensors(found.output).items() <= have.items()
    assert {folder.name for folder in ensemble.iterdir()} == {"scenes", "scenes_preprocess", "scenes_network"}
    assert all(any((model / "1").iterdir()) for model in ensemble.iterdir())  # S3 keeps no empty folders


PREPARE = """
import json, sys
import numpy as np
sys.modules["torch"] = None
sys.path.insert(0, sys.argv[1])
from fastmaker import image_steps, preprocess
info = json.load(open(sys.argv[2]))
np.save(sys.argv[4], image_steps.to_array(preprocess.decode(open(sys.argv[3], "rb").read()), info))
"""


def test_the_preprocessing_of_steps_needs_no_torch_and_gives_the_same_pixels(photos, tmp_path):
    from fastai.vision.all import ImageDataLoaders, Learner, RandomResizedCrop, aug_transforms
    from helpers import random_networks

    dls = ImageDataLoaders.from_folder(
        photos, valid_pct=0.3, item_tfms=RandomResizedCrop(64), batch_tfms=aug_transforms(size=40), bs=8, num_workers=0
    )
    save_bundle(Learner(dls, random_networks.Tiny(3, 3)), tmp_path / "model")
    packaged(tmp_path / "model", "--output", tmp_path / "repository", "--preprocessing")
    assert tensors(config(tmp_path / "repository" / "model_network").input)["image"][1] == [3, 64, 64]
    file = next(photos.rglob("*.jpg"))
    copied = tmp_path / "repository" / "model_preprocess" / "1"
    words = [copied, tmp_path / "model" / "model.json", file, tmp_path / "pixels.npy"]
    subprocess.run([sys.executable, "-I", "-c", PREPARE, *map(str, words)], check=True)
    expected = models.load(tmp_path / "model").to_tensor(preprocess.decode(file.read_bytes()))
    assert np.array_equal(np.load(tmp_path / "pixels.npy"), expected)


def test_without_batches_no_request_waits(ensemble):
    assert not any(config(model).HasField("dynamic_batching") for model in ensemble.iterdir())


def test_an_existing_model_is_replaced_by_force_alone_and_others_stay(digits_bundle, plain, tmp_path, capsys):
    repository = tmp_path / "models"
    shutil.copytree(plain, repository)
    shutil.copytree(plain / "digits", repository / "other")
    before = files_below(repository)
    with pytest.raises(ValueError, match=r"models/digits exists; --force replaces it"):
        packaged(digits_bundle, "--output", repository)
    assert files_below(repository) == before
    packaged(digits_bundle, "--output", repository, "--force", "--preprocessing")
    assert config(repository / "digits").platform == "ensemble"
    packaged(digits_bundle, "--output", repository, "--force")
    assert config(repository / "digits").platform == "onnxruntime_onnx"
    assert {model.name for model in repository.iterdir()} == {"digits", "other"}
    assert files_below(repository / "other") == files_below(plain / "digits")
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_a_bundle_that_cannot_be_exported_leaves_the_repository_as_it_was(digits_bundle, plain, tmp_path):
    repository = tmp_path / "models"
    shutil.copytree(plain, repository)
    shutil.copytree(digits_bundle, tmp_path / "digits")
    (tmp_path / "digits" / "model.pth").write_bytes(b"x")
    before = files_below(tmp_path)
    with pytest.raises(bundle.BundleError, match="its SHA-256 is not"):
        packaged(tmp_path / "digits", "--output", repository, "--force", "--sagemaker")
    assert files_below(tmp_path) == before


def test_a_repository_is_put_back_if_not_all_models_can_be_moved_into_it(plain, tmp_path):
    repository, built = tmp_path / "models", tmp_path / "built"
    shutil.copytree(plain, repository)
    (built / "digits_preprocess").mkdir(parents=True)
    with pytest.raises(FileNotFoundError):  # digits itself is not there to be moved
        triton._install(built, repository, ["digits_preprocess", "digits"], tmp_path / "replaced")
    assert files_below(repository) == files_below(plain)


def test_a_label_of_two_lines_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"the label 'a\\nb' is no line of text"):
        triton._write_labels(tmp_path / "labels.txt", ["a", "a\nb"])


def test_the_commands_that_are_printed_serve_and_ask_this_repository(digits_bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    packaged(digits_bundle, "--model-name", "x", "--output", "my models", "--preprocessing", "--sagemaker")
    printed = dict(re.split(": +", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())
    docker = shlex.split(printed["to serve"])
    assert f"{tmp_path / 'my models'}:/models:ro" in docker
    assert docker[-1] == "pip install pillow && exec tritonserver --model-repository=/models"
    args = predict.parse_args(shlex.split(printed["next"])[2:])
    assert (args.triton, args.model) == ("127.0.0.1:8001", "x")
    archive, environment = printed["archive"].split(", for SageMaker with ")
    assert environment == "SAGEMAKER_TRITON_DEFAULT_MODEL_NAME=x"
    with tarfile.open(archive) as tar:
        assert {name.split("/")[0] for name in tar.getnames()} == {"x", "x_preprocess", "x_network"}


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("nothing", "nothing: no such training job, model directory or model.tar.gz"),
        ("BUNDLE --model-name ../up", "--model-name '../up': expected letters, digits"),
        ("BUNDLE --batch-size 0", "argument --batch-size: 0: expected at least 1"),
        ("BUNDLE --instances 0", "argument --instances: 0: expected at least 1"),
        ("BUNDLE --backend tensorrt", "invalid choice: 'tensorrt'"),
        ("BUNDLE --output BUNDLE/model.json", "model.json: expected a folder"),
    ],
)
def test_bad_usage_gets_one_line_and_leaves_no_repository(digits_bundle, tmp_path, capsys, words, reason):
    words = words.replace("BUNDLE", str(digits_bundle)).split()
    words += [] if "--output" in words else ["--output", str(tmp_path / "models")]
    assert exit_status(package, "triton", *words) == 2
    assert reason in one_line(capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--triton ftp://127.0.0.1", "--triton 'ftp://127.0.0.1': expected grpc://HOST"),
        ("--triton 127.0.0.1:70000", "--triton '127.0.0.1:70000': expected grpc://HOST"),
        ("--triton 127.0.0.1:PORT", "no Triton server answers at 127.0.0.1:PORT: .*[Cc]onnect"),
        ("--triton http://127.0.0.1:PORT", "no Triton server answers at http://127.0.0.1:PORT: .*refused"),
        ("--triton 127.0.0.1:PORT --endpoint digits", "--endpoint and --triton: expected one of them"),
        ("--model digits", "--model is a model of --triton, which is missing"),
    ],
)
def test_a_server_that_cannot_be_asked_gets_one_line(digits, capsys, words, reason):
    (port,) = free_ports(1)
    image = next((digits / "7").iterdir())
    assert exit_status(predict, *words.replace("PORT", str(port)).split(), image) == 2
    assert re.search(reason.replace(":PORT", f":{port}"), one_line(capsys.readouterr().err))
