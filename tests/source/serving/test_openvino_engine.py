"""OpenVINO as a bundle's engine: torch says what is right. What it shares with ONNX Runtime is in test_onnx_engine.py.

make test-openvino
"""

import shutil
import sys

import numpy as np
import pytest
import torch
from helpers import task_bundles
from PIL import Image

from fastmaker import bundle, preprocess, save_bundle
from fastmaker.export import onnx_file
from fastmaker.serving import models, openvino_engine

in_openvino = pytest.mark.openvino
BUNDLES = {
    **{task: lambda folder, task=task: task_bundles.save(folder, task) for task in task_bundles.INFOS},
    "segmentation": task_bundles.save_unet,
}


@pytest.fixture(scope="module")
def exported(digits_bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("openvino") / "model"
    shutil.copytree(digits_bundle, folder)
    onnx_file.to_onnx(folder, folder / "model.onnx")
    return folder


@pytest.fixture
def model_dir(exported, tmp_path):
    """A model directory with its model.onnx, to be changed."""
    shutil.copytree(exported, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("FASTMAKER_ENGINE", "openvino")
    monkeypatch.delenv("FASTMAKER_PRECISION", raising=False)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    folder = task_bundles.save(tmp_path / "model", "points")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(bundle.BundleError, match="the engine openvino needs the package openvino, which is not inst"):
        models.load(folder)


@in_openvino
def test_the_environment_chooses_the_engine(model_dir):
    assert isinstance(models.load(model_dir).engine, openvino_engine.OpenvinoEngine)


@in_openvino
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_digits_are_answered_as_in_torch(model_dir, digits, precision):
    images = [Image.open(file) for file in sorted(digits.rglob("*.png"))[::40]]
    expected = models.load(model_dir, engine="torch").predict(images)
    found = models.load(model_dir, precision=precision).predict(images)
    assert [answer.label for answer in found] == [answer.label for answer in expected]
    difference = max(np.abs(a.array - b.array).max() for a, b in zip(expected, found, strict=True))
    assert difference < {"float32": 1e-5, "bf16": 0.02}[precision]
    assert (difference > 1e-5) == (precision == "bf16")


@in_openvino
@pytest.mark.parametrize("task", BUNDLES)
def test_every_task_is_answered_as_in_torch(tmp_path, photos, task):
    folder = BUNDLES[task](tmp_path / "model")
    onnx_file.to_onnx(folder, folder / "model.onnx")
    images = [Image.open(file) for file in sorted(photos.rglob("*.jpg"))[::6]]
    for mask_size in ("model", "original") if task == "segmentation" else (None,):
        answers = [models.load(folder, engine=engine).predict(images, mask_size) for engine in ("torch", "openvino")]
        for expected, found in zip(*answers, strict=True):
            assert type(found) is type(expected)
            assert np.allclose(found.array, expected.array, rtol=1e-5, atol=1e-5)


@in_openvino
@pytest.mark.filterwarnings("ignore")  # fastai's
def test_images_of_any_size_are_answered_as_in_onnx_runtime(photos, tmp_path):
    from fastai.vision.all import ImageDataLoaders, Learner, aug_transforms
    from helpers import random_networks

    batches = aug_transforms(size=(40, 48))
    dls = ImageDataLoaders.from_folder(photos, valid_pct=0.3, batch_tfms=batches, bs=1, num_workers=0)
    save_bundle(Learner(dls, random_networks.Tiny(3, 3)), tmp_path)
    onnx_file.to_onnx(tmp_path, tmp_path / "model.onnx")
    one, other = (models.load(tmp_path, engine=engine) for engine in ("onnxruntime", "openvino"))
    answered = 0
    for image in map(Image.open, sorted(photos.rglob("*.jpg"))[:20]):
        if image.height > 96:
            with pytest.raises(preprocess.ImageError, match="an ONNX file of this model takes images up to 96 high"):
                other.predict([image])
            continue
        assert np.allclose(other.predict([image])[0].array, one.predict([image])[0].array, atol=1e-5)
        answered += 1
    assert 0 < answered < 20


@in_openvino
def test_it_computes_with_as_many_threads_as_torch_in_one_stream_that_is_pinned_to_no_core(model_dir):
    torch.set_num_threads(2)
    try:
        compiled = models.load(model_dir).engine.compiled
    finally:
        torch.set_num_threads(1)
    names = ("INFERENCE_NUM_THREADS", "NUM_STREAMS", "ENABLE_CPU_PINNING")
    assert [compiled.get_property(name) for name in names] == [2, 1, False]


def remove(folder):
    (folder / "model.onnx").unlink()


def cut(folder):
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:1000])


def change_weights(folder):
    network, info = bundle.load(folder)
    torch.nn.init.zeros_(network[-1].bias)
    bundle.save(folder, network, info)


def forget_origin(folder):
    import onnx

    model = onnx.load(folder / "model.onnx")
    del model.metadata_props[:]
    onnx.save(model, folder / "model.onnx")


def take_floats(folder):
    onnx_file.to_onnx(folder, folder / "model.onnx", "float")


def name_another_file(folder):
    import onnx

    model = onnx.load(folder / "model.onnx")
    tensor = next(tensor for tensor in model.graph.initializer if tensor.raw_data)
    (folder / "other.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="other.bin")
    (folder / "model.onnx").write_bytes(model.SerializeToString())


@in_openvino
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (remove, r"model\.onnx: missing; `fastmaker package onnx MODEL --bundle"),
        (cut, r"model\.onnx: not a model that OpenVINO loads: "),
        (change_weights, r"made of another bundle: its state_sha256 is not that of model\.json"),
        (forget_origin, "made of another bundle: its resampled, activation, state_sha256"),
        (take_floats, "takes float32 images; the engine serves models that take uint8"),
        (name_another_file, "it takes tensors from other files"),
    ],
)
def test_a_file_that_is_not_the_bundles_is_refused_in_one_line(model_dir, change, reason):
    change(model_dir)
    with pytest.raises(bundle.BundleError, match=reason) as caught:
        models.load(model_dir)
    assert "\n" not in str(caught.value)


@in_openvino
def test_a_precision_that_the_processor_lacks_is_refused(model_dir, monkeypatch):
    monkeypatch.setitem(openvino_engine.UNITS, "bf16", "UNITS OF NO PROCESSOR")
    with pytest.raises(ValueError, match="FASTMAKER_PRECISION is 'bf16'; OpenVINO has no such units on this processor"):
        models.load(model_dir, precision="bf16")


@in_openvino
def test_a_quantised_file_is_answered(model_dir, digits):
    files = sorted(digits.rglob("*.png"))[::20]
    images = onnx_file.inputs(files, bundle.load_info(model_dir))
    expected = models.load(model_dir, engine="torch").predict([Image.open(file) for file in files])
    onnx_file.to_int8(model_dir / "model.onnx", model_dir / "int8.onnx", images)
    (model_dir / "int8.onnx").replace(model_dir / "model.onnx")
    found = models.load(model_dir).predict([Image.open(file) for file in files])
    assert np.mean([a.label == b.label for a, b in zip(expected, found, strict=True)]) > 0.9
