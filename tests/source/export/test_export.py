"""ONNX files: torch says what is right, ONNX Runtime has to answer so."""

import json
import os
import shutil
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers import task_bundles
from PIL import Image

from fastmaker import __version__, bundle, networks, preprocess, save_bundle, unet
from fastmaker.export import onnx_file
from fastmaker.serving import models
from fastmaker.training import data

MEAN, STD = data.STATISTICS["RGB"]
pytestmark = pytest.mark.learner
LABELS = ("ground", "box", "disc", "Void")


def randomise(network):
    """Weights that let what goes through keep its size, and batch norms and an attention that change it."""
    for key, tensor in network.state_dict().items():
        if tensor.is_floating_point() and tensor.ndim == 1 and not key.endswith(("weight_u", "weight_v")):
            tensor.copy_(torch.rand(tensor.shape) + 0.5)
    return network


def save_classifier(folder, name, size=(64, 64), **facts):
    torch.manual_seed(3)
    info = bundle.ModelInfo("classification", name, LABELS, "RGB", size, "crop", MEAN, STD, **facts)
    bundle.save(folder, randomise(networks.classifier(name, len(LABELS))), info)


def save_unet(folder, size, resampled=False, **options):
    options = {**unet.OPTIONS, **options}
    facts = {"resampled": resampled, "options": options, "void_code": 3}
    info = bundle.ModelInfo("segmentation", "resnet18", LABELS, "RGB", size, "squish", MEAN, STD, **facts)
    torch.manual_seed(3)
    network = unet.unet("resnet18", len(LABELS), size, **options)
    with torch.no_grad():
        network(torch.randn(2, 3, *size))  # in training mode, where the spectral norms are estimated
    bundle.save(folder, randomise(network), info)


BUNDLES = {
    "digits": lambda folder, request: shutil.copytree(request.getfixturevalue("digits_bundle"), folder),
    "scenes": lambda folder, request: shutil.copytree(request.getfixturevalue("scenes_bundle"), folder),
    "resnet18": lambda folder, request: save_classifier(folder, "resnet18"),
    "resampled resnet18": lambda folder, request: save_classifier(folder, "resnet18", (51, 40), resampled=True),
    "odd U-Net with attention": lambda folder, request: save_unet(folder, (45, 61), True, self_attention=True),
    "odd U-Net with blur": lambda folder, request: save_unet(folder, (90, 120), blur=True, last_cross=False),
}
OF_A_KIND = ("resnet18", "odd U-Net with blur")  # that another of BUNDLES stands for


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow if name in OF_A_KIND else ()) for name in BUNDLES],
)
def both(request, tmp_path_factory):
    """A model directory with its model.onnx."""
    folder = tmp_path_factory.mktemp("both") / "model"
    BUNDLES[request.param](folder, request)
    onnx_file.to_onnx(folder, folder / "model.onnx")
    return folder


@pytest.fixture(scope="module")
def digits_onnx(digits_bundle, tmp_path_factory):
    file = tmp_path_factory.mktemp("onnx") / "digits.onnx"
    onnx_file.to_onnx(digits_bundle, file)
    return file


@pytest.fixture
def images(digits, photos, scenes):
    """Digits, photos and scenes, of many sizes."""
    files = [sorted(digits.rglob("*.png"))[::180], sorted(photos.rglob("*.jpg"))[::6]]
    return [Image.open(file) for some in (*files, sorted((scenes / "images").iterdir())[::5]) for file in some]


def run(file, batch):
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, {"image": batch})


def inputs(folder, images):
    model = models.load(folder)
    return np.stack([model.to_tensor(image).numpy() for image in images])


def test_onnx_runtime_answers_as_torch_does(both, images):
    torchs, onnxs = (models.load(both, engine=engine) for engine in ("torch", "onnxruntime"))
    for image, expected, found in zip(images, torchs.predict(images), onnxs.predict(images), strict=True):
        key = "label" if "label" in expected.as_object() else "base64_prediction"
        assert found.as_object()[key] == expected.as_object()[key]
        tensor = torchs.to_tensor(image)[None]
        probabilities = [model.numbers(tensor) for model in (torchs, onnxs)]
        assert torch.allclose(*probabilities, rtol=0, atol=1e-5)
        assert probabilities[0].std() > 0


NUMBERS = {"multilabel": "probabilities", "regression": "values", "points": "points"}


@pytest.mark.parametrize("task", ["points", *(pytest.param(task, marks=pytest.mark.slow) for task in NUMBERS)])
def test_a_file_of_every_task_has_its_numbers(tmp_path, images, task):
    folder = task_bundles.save(tmp_path / "model", task)
    onnx_file.to_onnx(folder, folder / "model.onnx")
    (output,) = onnxruntime.InferenceSession(folder / "model.onnx").get_outputs()
    assert (output.name, output.shape) == (NUMBERS[task], ["batch", *bundle.load_info(folder).shape])
    torchs, onnxs = (models.load(folder, engine=engine) for engine in ("torch", "onnxruntime"))
    for expected, found in zip(torchs.predict(images), onnxs.predict(images), strict=True):
        assert type(found) is type(expected)
        assert np.allclose(found.array, expected.array, rtol=1e-5, atol=1e-5)
    images[0].save(folder / "0.png")
    files = onnx_file.inputs([folder / "0.png"], torchs.info)
    same, total = onnx_file.to_int8(folder / "model.onnx", folder / "int8.onnx", files)
    assert 0 <= same <= total == len(files) * expected.array.size


def test_a_file_of_a_bundle_with_another_activation_is_refused(tmp_path):
    folder = task_bundles.save(tmp_path / "model", "multilabel")
    onnx_file.to_onnx(folder, folder / "model.onnx")
    task_bundles.save(folder, "multilabel", activation="none")
    with pytest.raises(bundle.BundleError, match="its activation is not that of model"):
        models.load(folder, engine="onnxruntime")


def test_images_of_any_size_that_batches_are_resized_from_are_answered_as_in_fastai(photos, tmp_path):
    from fastai.vision.all import ImageDataLoaders, Learner, aug_transforms
    from helpers import random_networks

    batches = aug_transforms(size=(40, 48))
    dls = ImageDataLoaders.from_folder(photos, valid_pct=0.3, batch_tfms=batches, bs=1, num_workers=0)
    learn = Learner(dls, random_networks.Tiny(3, 3))
    save_bundle(learn, tmp_path)
    onnx_file.to_onnx(tmp_path, tmp_path / "model.onnx")
    model = models.load(tmp_path, engine="onnxruntime")
    files, answered = sorted(photos.rglob("*.jpg")), 0
    for file in files:
        image = Image.open(file)
        if image.height > 96:  # fastai takes means first
            with pytest.raises(preprocess.ImageError, match="an ONNX file of this model takes images up to 96 high"):
                model.predict([image])
            continue
        with learn.no_bar(), learn.no_logging():
            expected = learn.predict(file)[2]
        assert np.allclose(model.predict([image])[0].array, expected, atol=1e-5)
        answered += 1
    assert 0 < answered < len(files)


def test_a_batch_of_any_size_has_the_answers_of_its_images(both, images):
    batch = inputs(both, images[:5])
    together = run(both / "model.onnx", batch)
    for i in range(len(batch)):
        for of_all, of_one in zip(together, run(both / "model.onnx", batch[i : i + 1]), strict=True):
            assert np.allclose(of_all[i], of_one[0], rtol=0, atol=1e-5)


def test_the_file_is_alone_and_says_what_goes_in_and_out(both):
    info, model = bundle.load_info(both), onnx.load(both / "model.onnx", load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert not [tensor for tensor in model.graph.initializer if tensor.external_data]
    assert sorted(os.listdir(both)) == ["code", "config.yaml", "model.json", "model.onnx", "model.pth"]
    session = onnxruntime.InferenceSession(both / "model.onnx", providers=["CPUExecutionProvider"])
    described = {node.name: (node.type, node.shape) for node in (*session.get_inputs(), *session.get_outputs())}
    size, n = list(info.image_size), len(info.labels)
    expected = {"image": ("tensor(uint8)", ["batch", info.channels, *size])}
    if info.task == "segmentation":
        expected |= {
            "mask": ("tensor(uint8)", ["batch", *size]),
            "probabilities": ("tensor(float)", ["batch", n, *size]),
        }
    else:
        expected |= {"probabilities": ("tensor(float)", ["batch", n])}
    assert described == expected


def test_the_metadata_is_the_bundles(both):
    metadata = onnxruntime.InferenceSession(both / "model.onnx").get_modelmeta().custom_metadata_map
    assert metadata["model.json"] == (both / "model.json").read_text("utf-8")
    assert tuple(json.loads(metadata["labels"])) == bundle.load_info(both).labels
    assert metadata["fastmaker"] == __version__


def test_no_path_of_the_exporting_machine_is_in_the_file(digits_onnx):
    assert os.path.dirname(onnx_file.__file__).encode() not in digits_onnx.read_bytes()


def test_a_mask_is_the_class_of_the_highest_probability(scenes_bundle, images, tmp_path):
    onnx_file.to_onnx(scenes_bundle, tmp_path / "model.onnx")
    probabilities, mask = run(tmp_path / "model.onnx", inputs(scenes_bundle, images))
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, probabilities.argmax(axis=1))
    assert len(np.unique(mask)) > 1


def test_float_input_is_the_pixels_scaled_to_one(digits_bundle, digits_onnx, images, tmp_path):
    difference = onnx_file.to_onnx(digits_bundle, tmp_path / "deep" / "float.onnx", "float")
    batch = inputs(digits_bundle, images)
    (found,) = run(tmp_path / "deep" / "float.onnx", (batch / 255).astype(np.float32))
    assert np.allclose(found, *run(digits_onnx, batch), rtol=0, atol=1e-6)
    assert difference < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", networks.ARCHITECTURES)
def test_every_architecture_can_be_exported(name, tmp_path):
    save_classifier(tmp_path / "model", name)
    assert onnx_file.to_onnx(tmp_path / "model", tmp_path / "model.onnx") < 1e-5


# What cannot be exported


def test_a_network_whose_answers_are_no_numbers_leaves_what_was_there(digits_bundle, tmp_path):
    network, info = bundle.load(digits_bundle)
    torch.nn.init.constant_(network[-1].bias, float("nan"))
    bundle.save(tmp_path / "model", network, info)
    (tmp_path / "model.onnx").write_bytes(b"what was there")
    with pytest.raises(onnx_file.ExportError, match="probabilities of 1 images are off torch's by up to nan"):
        onnx_file.to_onnx(tmp_path / "model", tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == b"what was there"
    assert sorted(os.listdir(tmp_path)) == ["model", "model.onnx"]


def test_a_damaged_bundle_is_refused_as_serving_refuses_it(digits_bundle, tmp_path):
    shutil.copytree(digits_bundle, tmp_path / "model")
    (tmp_path / "model" / "model.pth").write_bytes(b"x")
    with pytest.raises(bundle.BundleError, match=r"its SHA-256 is not the state_sha256 of model\.json"):
        onnx_file.to_onnx(tmp_path / "model", tmp_path / "model.onnx")
    assert os.listdir(tmp_path) == ["model"]


def test_an_unknown_input_is_refused_with_the_right_ones(digits_bundle, tmp_path):
    with pytest.raises(onnx_file.ExportError, match="the input is 'int4'; expected one of uint8, float"):
        onnx_file.to_onnx(digits_bundle, tmp_path / "model.onnx", "int4")


@pytest.mark.parametrize("name", onnx_file.PACKAGES)
def test_a_package_that_is_missing_is_named(digits_bundle, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        onnx_file.ExportError, match=rf"ONNX needs {name}, not installed here: pip install 'fastmaker\[onnx\]'"
    ):
        onnx_file.to_onnx(digits_bundle, tmp_path / "model.onnx")


# int8


def test_int8_is_a_third_as_large_and_of_the_same_opinion(digits_bundle, digits_onnx, digits, tmp_path):
    info = bundle.load_info(digits_bundle)
    images = onnx_file.calibration_images(digits, info)[::20]
    same, of = onnx_file.to_int8(digits_onnx, tmp_path / "int8.onnx", images)
    labels = [
        np.concatenate([run(f, image)[0].argmax(axis=1) for image in images])
        for f in (digits_onnx, tmp_path / "int8.onnx")
    ]
    assert (same, of) == ((labels[0] == labels[1]).sum(), len(images))
    assert same / of > 0.95
    assert (tmp_path / "int8.onnx").stat().st_size < digits_onnx.stat().st_size / 3
    assert os.listdir(tmp_path) == ["int8.onnx"]
    float32, int8 = (onnx.load(file) for file in (digits_onnx, tmp_path / "int8.onnx"))
    assert list(map(str, int8.metadata_props)) == list(map(str, float32.metadata_props))
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in int8.graph.node}


@pytest.mark.slow
def test_int8_of_a_unet_is_measured_in_pixels(scenes_bundle, scenes, tmp_path):
    onnx_file.to_onnx(scenes_bundle, tmp_path / "float32.onnx", "float")
    images = onnx_file.calibration_images(scenes / "images", bundle.load_info(scenes_bundle), "float")[:4]
    same, of = onnx_file.to_int8(tmp_path / "float32.onnx", tmp_path / "int8.onnx", images)
    assert of == 4 * 40 * 56
    assert 0.9 * of < same <= of


def test_calibration_takes_the_images_as_serving_sees_them(digits_bundle, digits):
    model, files = models.load(digits_bundle), sorted((digits / "3").iterdir())
    found = onnx_file.calibration_images(digits / "3", model.info)
    assert np.array_equal(np.concatenate(found), inputs(digits_bundle, map(Image.open, files)))
    assert found[0].shape == (1, 1, 28, 28)


def test_hidden_files_do_not_calibrate(digits_bundle, digits, tmp_path):
    (tmp_path / "0.png").symlink_to(next(digits.rglob("*.png")))
    (tmp_path / "._0.png").write_bytes(b"x")
    assert len(onnx_file.calibration_images(tmp_path, bundle.load_info(digits_bundle))) == 1


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "holds no image"), (b"x", r"0\.png: the 1 bytes are not an image")]
)
def test_calibration_without_good_images_is_refused(digits_bundle, tmp_path, content, reason):
    if content:
        (tmp_path / "0.png").write_bytes(content)
    with pytest.raises(onnx_file.ExportError, match=reason):
        onnx_file.calibration_images(tmp_path, bundle.load_info(digits_bundle))
