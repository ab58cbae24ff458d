"""serving.json: what is read, what is refused, and what follows it."""

import json
import os

import pytest
import torch
from helpers import task_bundles

from fastmaker import bundle
from fastmaker.export import onnx_file
from fastmaker.serving import engines, models, onnx_engine, settings

CORES = len(os.sched_getaffinity(0))
TUNED = {"engine": "onnxruntime", "precision": "float32", "workers": 3, "threads": 2, "batch_size": 4}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    folder = task_bundles.save(tmp_path_factory.mktemp("settings") / "model", "points")
    onnx_file.to_onnx(folder, folder / "model.onnx")
    return folder


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("FASTMAKER_ENGINE", "FASTMAKER_PRECISION", "FASTMAKER_THREADS", settings.WORKERS):
        monkeypatch.delenv(name, raising=False)


def write(folder, values):
    (folder / "serving.json").write_text(values if isinstance(values, str) else json.dumps(values))


def test_what_was_saved_is_loaded_and_a_bundle_without_settings_has_none(tmp_path):
    assert settings.load(tmp_path) is None
    tuned = settings.Settings(**TUNED, measured={"cores": 2})
    settings.save(tmp_path, tuned)
    assert settings.load(tmp_path) == tuned
    write(tmp_path, {"engine": "openvino"})
    assert settings.load(tmp_path) == settings.Settings("openvino")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ("{", "not JSON: "),
        ('{"threads": 1, "threads": 2}', 'the key "threads" stands twice'),
        ("[]", "expected one JSON object, found list"),
        ({"engines": "torch"}, '"engines" is no setting; expected engine, precision, workers, threads, batch_size'),
        ({"engine": "tensorrt"}, "'engine' is \"tensorrt\"; expected one of torch, onnxruntime, openvino"),
        ({"engine": ["torch"]}, "'engine' is "),
        ({"precision": "int8"}, "'precision' is \"int8\"; expected one of float32, bf16"),
        ({"engine": "onnxruntime", "precision": "bf16"}, "expected float32, as the engine is onnxruntime"),
        ({"workers": 0}, "'workers' is 0; expected a whole number, 1 to 1024"),
        ({"threads": True}, "'threads' is true; expected a whole number, 1 to 1024"),
        ({"batch_size": 2.0}, "'batch_size' is 2.0; expected a whole number, 1 to 1024"),
        ({"workers": 10**6}, "'workers' is 1000000; expected a whole number, 1 to 1024"),
        ({"measured": "fast"}, "'measured' is \"fast\"; expected an object"),
    ],
)
def test_a_wrong_file_is_refused_before_anything_is_loaded(tmp_path, values, reason):
    write(tmp_path, values)
    with pytest.raises(bundle.BundleError) as caught:
        models.load(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'serving.json'}: ")
    assert reason in str(caught.value)


BF16 = {"engine": "torch", "precision": "bf16"}


@pytest.mark.parametrize(
    ("own", "variables", "engine", "dtype"),
    [
        (TUNED, {}, onnx_engine.OnnxEngine, None),
        (TUNED, {"FASTMAKER_ENGINE": "torch"}, engines.TorchEngine, torch.float32),
        (BF16, {}, engines.TorchEngine, torch.bfloat16),
        (BF16, {"FASTMAKER_PRECISION": "float32"}, engines.TorchEngine, torch.float32),
        (BF16, {"FASTMAKER_ENGINE": "onnxruntime"}, onnx_engine.OnnxEngine, None),  # whose precision it is not
    ],
)
def test_a_bundle_is_loaded_as_its_settings_say_and_variables_win(
    model_dir, monkeypatch, own, variables, engine, dtype
):
    write(model_dir, own)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = models.load(model_dir).engine
    assert type(found) is engine
    assert dtype is None or found.dtype == dtype


@pytest.mark.parametrize(
    ("variables", "workers", "threads"),
    [
        ({settings.WORKERS: "3"}, None, 2),
        ({}, 3, 2),
        ({settings.WORKERS: "1"}, None, CORES),  # other workers: the measured threads mean nothing
        ({settings.WORKERS: "3", "FASTMAKER_THREADS": "5"}, None, 5),
        ({"FASTMAKER_THREADS": "5"}, 3, 5),
    ],
)
def test_threads_are_followed_where_the_workers_are(tmp_path, monkeypatch, variables, workers, threads):
    write(tmp_path, TUNED)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert models.threads_per_worker(workers, tmp_path) == threads


@pytest.mark.parametrize("value", ["0", "two", "-1", "1.5", "9999"])
def test_threads_that_are_no_number_are_refused(monkeypatch, value):
    monkeypatch.setenv("FASTMAKER_THREADS", value)
    with pytest.raises(ValueError, match=f"FASTMAKER_THREADS is '{value}'; expected a whole number, 1 to 1024"):
        models.threads_per_worker()


@pytest.mark.parametrize(("size", "batches"), [(1, {}), (4, {settings.BATCH_SIZE: "4"})])
def test_a_server_is_told_its_workers_and_batches(size, batches):
    own = settings.Settings(workers=3, batch_size=size)
    assert settings.environment(own) == {settings.WORKERS: "3", **batches}
