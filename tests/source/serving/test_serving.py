"""A loaded bundle: order, batches, precisions and threads. Equality with fastai is in test_parity.py."""

import os
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fastmaker import bundle, networks, preprocess
from fastmaker.serving import engines, models, settings


@pytest.fixture(scope="module")
def model(digits_bundle):
    return models.load(digits_bundle)


@pytest.fixture(scope="module")
def images(digits):
    return [Image.open(file) for file in sorted(digits.rglob("*.png"))[::45]]


def probabilities(predictions):
    return np.stack([prediction.probabilities for prediction in predictions])


def test_many_images_are_answered_in_order(model, images):
    assert len(images) > 2 * models.MAX_BATCH
    together = model.predict(images)
    alone = [model.predict([image])[0] for image in images]
    assert np.allclose(probabilities(together), probabilities(alone), atol=1e-6)
    assert len({prediction.label for prediction in together}) > 5


@pytest.mark.parametrize("n", [0, 1, models.MAX_BATCH, models.MAX_BATCH + 1])
def test_there_are_as_many_answers_as_images(model, images, n):
    assert len(model.predict(images[:n])) == n


def test_a_trained_model_knows_most_digits(model, digits):
    files = sorted(digits.rglob("*.png"))[::9]
    predictions = model.predict([Image.open(file) for file in files])
    right = [prediction.label == file.parent.name for file, prediction in zip(files, predictions, strict=True)]
    assert np.mean(right) > 0.8


def test_probabilities_are_float32_and_add_up_to_one(model, images):
    rows = probabilities(model.predict(images))
    assert rows.dtype == np.float32
    assert rows.shape == (len(images), 10)
    assert np.allclose(rows.sum(axis=1), 1, atol=1e-6)


def test_label_and_index_belong_to_the_highest_probability(model, images):
    for prediction in model.predict(images[:5]):
        assert prediction.index == prediction.probabilities.argmax()
        assert prediction.label == model.info.labels[prediction.index]


def test_images_of_any_size_and_mode_go_through_together(model):
    noise = np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8)
    images = [
        Image.fromarray(noise[:h, :w]).convert(mode) for h, w, mode in ((50, 80, "RGB"), (9, 31, "CMYK"), (1, 1, "P"))
    ]
    assert len(model.predict(images)) == 3


def test_an_image_that_cannot_be_converted_is_an_image_error(model):
    with pytest.raises(preprocess.ImageError, match="a LAB image"):
        model.predict([Image.new("LAB", (5, 5))])


def test_the_same_image_gives_the_same_bits_each_time(model, images):
    first, again = (probabilities(model.predict(images)) for _ in range(2))
    assert np.array_equal(first, again)


def test_predicting_leaves_the_network_as_it_is(digits_bundle, images):
    model = models.load(digits_bundle)
    before = {key: tensor.clone() for key, tensor in model.engine.network.state_dict().items()}
    model.predict(images)
    assert not model.engine.network.training
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.engine.network.state_dict().items())


def test_an_unknown_precision_is_refused_with_the_right_ones(digits_bundle, monkeypatch):
    monkeypatch.setenv("FASTMAKER_PRECISION", "int4")
    with pytest.raises(ValueError, match="FASTMAKER_PRECISION is 'int4'; expected one of float32, bf16"):
        models.load(digits_bundle)


def test_the_environment_chooses_the_precision(digits_bundle, monkeypatch):
    monkeypatch.delenv("FASTMAKER_PRECISION", raising=False)
    assert models.load(digits_bundle).engine.dtype == torch.float32
    monkeypatch.setenv("FASTMAKER_PRECISION", "bf16")
    assert models.load(digits_bundle).engine.dtype == torch.bfloat16
    assert models.load(digits_bundle, precision="float32").engine.dtype == torch.float32


def test_bf16_is_close_to_float32_and_almost_always_of_the_same_opinion(digits_bundle, digits):
    images = [Image.open(file) for file in sorted(digits.rglob("*.png"))[::9]]
    full, half = (models.load(digits_bundle, precision=p).predict(images) for p in engines.PRECISIONS)
    assert probabilities(half).dtype == np.float32
    assert not np.array_equal(probabilities(full), probabilities(half))
    assert np.allclose(probabilities(full), probabilities(half), atol=0.1)
    assert np.mean([one.label == other.label for one, other in zip(full, half, strict=True)]) > 0.97


def test_loading_passes_on_what_is_wrong_with_the_bundle(tmp_path):
    with pytest.raises(bundle.BundleError, match="missing"):
        models.load(tmp_path)


# Batch norms


def used_batch_norms(network):
    """`network` in float64, as if trained: batch norms that change what goes through them."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in (
                (module.weight, 0.5),
                (module.bias, -0.5),
                (module.running_mean, -0.5),
                (module.running_var, 0.5),
            ):
                nn.init.uniform_(tensor, low, low + 1)
    return network.eval().double()


@pytest.mark.parametrize("name", ["convnet", "resnet18", "resnet50", "vgg11_bn", "densenet121"])
def test_folding_batch_norms_changes_no_answer(name):
    network = used_batch_norms(networks.classifier(name, 4))
    batch = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = network(batch)
        folded = engines.fold_batch_norms(network)
        assert torch.allclose(folded(batch), expected, rtol=1e-9)
    assert expected.std() > 0


@pytest.mark.parametrize("name", ["convnet", "resnet18", "vgg11_bn"])
def test_folding_leaves_no_batch_norm_behind_a_convolution(name):
    folded = engines.fold_batch_norms(networks.classifier(name, 4).eval())
    assert not [module for module in folded.modules() if isinstance(module, nn.BatchNorm2d)]


# Threads


CORES = len(os.sched_getaffinity(0))
WORKERS = ("SAGEMAKER_TS_MAX_WORKERS", "SAGEMAKER_MODEL_SERVER_WORKERS", "TS_DEFAULT_WORKERS_PER_MODEL")


@pytest.fixture
def no_workers_set(monkeypatch):
    for name in (*WORKERS, *settings.OF_TORCHSERVE):
        monkeypatch.delenv(name, raising=False)


def test_with_a_worker_a_core_each_computes_with_one_thread(no_workers_set):
    assert models.threads_per_worker() == 1


@pytest.mark.parametrize("name", WORKERS)
@pytest.mark.parametrize(
    ("workers", "threads"), [("1", CORES), ("0", CORES), (str(CORES), 1), ("999", 1), ("", 1), ("two", 1)]
)
def test_the_cores_are_shared_out_among_the_workers(no_workers_set, monkeypatch, name, workers, threads):
    monkeypatch.setenv(name, workers)
    assert models.threads_per_worker() == threads


def test_the_toolkit_writes_workers_by_these_variables():
    from sagemaker_pytorch_serving_container import ts_parameters

    names = {value for name, value in vars(ts_parameters).items() if name.startswith("MODEL_SERVER_")}
    assert set(settings.OF_TORCHSERVE) == names


def started_workers(gpus: int) -> int:
    """Return how many workers TorchServe starts by the file that the toolkit writes, and by its own variable.

    Those of a model are its minWorkers, else the default, which is one for each GPU or core.
    """
    from sagemaker_pytorch_serving_container import torchserve

    written = torchserve._generate_ts_config_properties("handler")
    if of_model := re.search(r'"minWorkers": (\d+)', written):
        return int(of_model[1])
    of_file = re.findall(r"(?m)^default_workers_per_model=(\d+)$", written)
    default = int(os.environ.get("TS_DEFAULT_WORKERS_PER_MODEL") or (of_file or [0])[-1])
    return default or gpus or CORES


BATCHES = {settings.BATCH_SIZE: "4"}


@pytest.mark.parametrize("gpus", [0, 3])
@pytest.mark.parametrize(
    "variables",
    [
        {},
        {settings.WORKERS: "1"},
        {settings.WORKERS: "0"},
        {settings.WORKERS: "2", "TS_DEFAULT_WORKERS_PER_MODEL": "1"},
        {"TS_DEFAULT_WORKERS_PER_MODEL": "1"},
        BATCHES,
        {**BATCHES, settings.WORKERS: "2"},
        {**BATCHES, "TS_DEFAULT_WORKERS_PER_MODEL": "2"},
        {**BATCHES, settings.MIN_WORKERS: "2"},
        {**BATCHES, settings.MAX_WORKERS: "2"},
        {settings.MAX_WORKERS: "2"},
        {settings.MIN_WORKERS: "2", settings.MAX_WORKERS: "4", settings.WORKERS: "1"},
        {settings.BATCH_DELAY: "10"},
        {"SAGEMAKER_TS_RESPONSE_TIMEOUT": "10"},
    ],
)
def test_the_workers_that_the_toolkit_starts_have_all_cores_among_them(no_workers_set, monkeypatch, variables, gpus):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    started = started_workers(gpus)
    assert models.toolkit_workers() == started
    assert models.threads_per_worker(models.toolkit_workers()) == max(1, CORES // started)


@pytest.mark.parametrize(("default", "workers"), [({}, 1), ({settings.WORKERS: "2"}, 2), (BATCHES, 1)])
def test_a_container_of_many_models_has_one_worker_for_each(no_workers_set, monkeypatch, default, workers):
    for name, value in {"SAGEMAKER_MULTI_MODEL": "true", **default}.items():
        monkeypatch.setenv(name, value)
    assert models.toolkit_workers() == workers


@pytest.mark.parametrize(
    ("given", "started"),
    [
        ({settings.WORKERS: "3", **BATCHES}, 3),
        ({settings.WORKERS: "3"}, 3),
        ({settings.WORKERS: "3", settings.BATCH_DELAY: "9", settings.MIN_WORKERS: "2"}, 2),
        (BATCHES, 1),
        ({settings.WORKERS: "", **BATCHES}, 1),
    ],
)
def test_as_many_workers_run_as_were_asked_for(no_workers_set, monkeypatch, given, started):
    found = settings.with_workers(given)
    assert found.items() >= given.items()
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    assert started_workers(0) == started
