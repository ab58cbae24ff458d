"""ONNX Runtime as a bundle's engine: what it takes, and what it refuses. Its answers are in test_export.py."""

import json
import os
import shutil
import sys

import pytest
import torch

from fastmaker import bundle
from fastmaker.export import onnx_file
from fastmaker.serving import engines, models, onnx_engine


@pytest.fixture(scope="module")
def exported(digits_bundle, tmp_path_factory):
    file = tmp_path_factory.mktemp("onnx") / "model.onnx"
    onnx_file.to_onnx(digits_bundle, file)
    return file


@pytest.fixture
def model_dir(digits_bundle, exported, tmp_path):
    """A model directory with its model.onnx, to be changed."""
    shutil.copytree(digits_bundle, tmp_path / "model")
    shutil.copy2(exported, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("FASTMAKER_ENGINE", "onnxruntime")
    monkeypatch.delenv("FASTMAKER_PRECISION", raising=False)


def test_the_environment_chooses_the_engine(model_dir, monkeypatch):
    assert isinstance(models.load(model_dir).engine, onnx_engine.OnnxEngine)
    monkeypatch.delenv("FASTMAKER_ENGINE")
    assert isinstance(models.load(model_dir).engine, engines.TorchEngine)
    assert isinstance(models.load(model_dir, engine="onnxruntime").engine, onnx_engine.OnnxEngine)


def test_an_unknown_engine_is_refused_with_the_right_ones(model_dir, monkeypatch):
    monkeypatch.setenv("FASTMAKER_ENGINE", "tensorrt")
    with pytest.raises(ValueError, match="FASTMAKER_ENGINE is 'tensorrt'; expected one of torch, onnxruntime"):
        models.load(model_dir)


def test_it_computes_with_as_many_threads_as_torch(model_dir):
    torch.set_num_threads(2)
    try:
        engine = models.load(model_dir).engine
    finally:
        torch.set_num_threads(1)
    assert engine.session.get_session_options().intra_op_num_threads == 2


def test_a_precision_of_torch_is_refused(model_dir, monkeypatch):
    monkeypatch.setenv("FASTMAKER_PRECISION", "bf16")
    with pytest.raises(ValueError, match="FASTMAKER_PRECISION=bf16 is for the engines torch and openvino"):
        models.load(model_dir)


def test_a_missing_package_is_named(model_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(bundle.BundleError, match="needs the package onnxruntime, which is not installed"):
        models.load(model_dir)


def test_a_missing_file_is_refused_with_the_command_that_makes_it(model_dir):
    os.remove(model_dir / "model.onnx")
    with pytest.raises(bundle.BundleError, match=r"model\.onnx: missing; `fastmaker package onnx MODEL --bundle"):
        models.load(model_dir)


def test_a_damaged_file_is_refused_in_one_line(model_dir):
    (model_dir / "model.onnx").write_bytes((model_dir / "model.onnx").read_bytes()[:1000])
    with pytest.raises(bundle.BundleError, match=r"^[^\n]*model\.onnx: not a model that ONNX Runtime loads: [^\n]+$"):
        models.load(model_dir)


def test_a_file_of_other_weights_is_refused(model_dir):
    network, info = bundle.load(model_dir)
    torch.nn.init.zeros_(network[-1].bias)
    bundle.save(model_dir, network, info)
    with pytest.raises(
        bundle.BundleError, match=r"made of another bundle: its state_sha256 is not that of model\.json"
    ):
        models.load(model_dir)


@pytest.mark.parametrize(("key", "value"), [("image_size", [30, 28]), ("mean", [0.5]), ("resampled", True)])
def test_a_file_of_another_preprocessing_is_refused(model_dir, key, value):
    facts = json.loads((model_dir / "model.json").read_text())
    (model_dir / "model.json").write_text(json.dumps(facts | {key: value}))
    with pytest.raises(bundle.BundleError, match=rf"made of another bundle: its {key} is not that of model\.json"):
        models.load(model_dir)


@pytest.mark.parametrize("metadata", [{}, {"model.json": "{"}, {"model.json": "[]"}])
def test_a_file_that_does_not_say_what_it_was_made_of_is_refused(model_dir, metadata):
    import onnx

    model = onnx.load(model_dir / "model.onnx")
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, model_dir / "model.onnx")
    with pytest.raises(bundle.BundleError, match="made of another bundle: its resampled, activation, state_sha256"):
        models.load(model_dir)


def test_a_model_of_floats_is_refused(model_dir):
    onnx_file.to_onnx(model_dir, model_dir / "model.onnx", "float")
    with pytest.raises(bundle.BundleError, match="takes float32 images; the engine serves models that take uint8"):
        models.load(model_dir)


def test_a_bundle_that_is_none_is_refused_first(model_dir):
    (model_dir / "model.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(bundle.BundleError, match="newer than"):
        models.load(model_dir)


@pytest.mark.parametrize("location", ["other.bin", "../other.bin", "link.bin", "/absolute"])
def test_a_file_whose_tensors_are_in_another_is_refused(model_dir, tmp_path, location):
    """ONNX Runtime itself reads any file of the machine that a model names."""
    import onnx

    model = onnx.load(model_dir / "model.onnx")
    tensor = next(tensor for tensor in model.graph.initializer if tensor.raw_data)
    outside = tmp_path / "other.bin"
    for file in (outside, model_dir / "other.bin"):
        file.write_bytes(tensor.raw_data)
    (model_dir / "link.bin").symlink_to(outside)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=str(outside) if location == "/absolute" else location)
    (model_dir / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(bundle.BundleError, match=r"model\.onnx: not a model .*: it takes tensors from other files"):
        models.load(model_dir)


@pytest.mark.parametrize("key", [b"\x0a\x08", b"\x0a\x88\x00", b"\x8a\x00\x08", b"\x8a\x80\x00\x88\x80\x80\x00"])
def test_a_key_that_names_another_file_is_found_however_its_length_is_written(tmp_path, key):
    file = tmp_path / "model.onnx"
    file.write_bytes(b"a location, and more" + bytes(3000) + key + b"location\x12\x05other")
    with pytest.raises(ValueError, match="takes tensors from other files"):
        onnx_engine.session(file, 1)
