"""The baseline of a bundle: what is measured of images, how embeddings lie, and what its file may hold."""

import dataclasses
import io
import shutil

import numpy as np
import pytest
import torch
from helpers import task_bundles
from torch import nn

from fastmaker import baseline, bundle, graph
from fastmaker.serving import models
from fastmaker.training import capture

pytestmark = pytest.mark.fast
RANDOM = np.random.default_rng(5)


def photos(n=6):
    """Images like photos: smooth shapes of light from above, float32 (n, 3, 48, 48) from 0 to 1."""
    rough = torch.from_numpy(RANDOM.random((n, 3, 12, 12), np.float32))
    smooth = nn.functional.interpolate(rough, size=(48, 48), mode="bicubic").clip(0, 1)
    return (0.6 * smooth + torch.linspace(0.35, 0, 48).view(1, 1, 48, 1)).clip(0, 1)


def blurred(images):
    return nn.functional.avg_pool2d(nn.functional.pad(images, (3, 3, 3, 3), mode="replicate"), 7, stride=1)


# What is done to the photos, and the value that changes most by it
CHANGES = {
    "darker": (lambda images: images * 0.4, "brightness"),
    "grey": (lambda images: images.mean((2, 3), keepdim=True).lerp(images, 0.3), "contrast"),
    "blurred": (blurred, "sharpness"),
    "upside down": (lambda images: images.flip(2), "light"),
    "turned": (lambda images: images.rot90(1, (2, 3)), "light"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_each_value_tells_its_own_change(case):
    change, value = CHANGES[case]
    images = photos(40)
    before, after = baseline.measure(images), baseline.measure(change(images))
    effects = ((after - before).mean(0) / before.std(0)).abs()
    assert baseline.OF_PIXELS[int(effects.argmax())] == value


def test_an_image_of_one_colour_has_finite_values():
    assert baseline.measure(torch.zeros(2, 1, 8, 8)).isfinite().all()


def seen(network, images):
    found = baseline.Seen((0.5,) * 3, (0.25,) * 3)
    with torch.inference_mode():
        found.answered(images, lambda: network(images))
    return found


NETWORKS = {
    "a linear layer": nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)),
    "without a bias": nn.Sequential(
        nn.Flatten(), nn.Linear(108, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False)
    ),
    "convolutions": nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)),
}


@pytest.mark.parametrize("case", NETWORKS)
def test_an_embedding_is_what_the_last_layer_is_given_as_a_module_and_as_a_graph(case):
    network, images = NETWORKS[case].eval(), torch.rand(5, 3, 6, 6)
    numbers = network(images)
    assert numbers.shape[:2] == (5, 2)
    features = network[:-1](images)
    expected = features if features.ndim == 2 else features.mean((2, 3))
    captured = capture.capture(network, images[:2])
    for each in (network, graph.build(captured.document, captured.tensors())):
        torch.testing.assert_close(torch.from_numpy(seen(each, images).embeddings()), expected.detach())


def test_new_images_are_as_far_as_those_of_the_baseline_and_others_farther():
    mixing = RANDOM.normal(size=(60, 60))
    old, new = (RANDOM.normal(size=(n, 60)) @ mixing for n in (160, 160))
    embedding = baseline.fit(old)
    usual = np.median(baseline._distances_from_others(embedding, old))
    assert abs(np.median(embedding.distances(embedding.project(new))) - usual) < 0.1 * usual
    assert np.median(embedding.distances(embedding.project(new * 2))) > 1.5 * usual


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A bundle with a baseline, and the baseline."""
    folder = task_bundles.save(tmp_path_factory.mktemp("bundle") / "model", "multilabel")
    network, info = bundle.load(folder)
    images = torch.rand(40, 3, 40, 56)
    known = seen(lambda batch: network(batch).sigmoid(), images)
    found = baseline.of(known, info, [(80, 60)] * 40)
    baseline.save(folder, found)
    return folder, found


def test_a_baseline_is_read_as_it_was_written(written):
    folder, found = written
    read = baseline.load(folder)
    assert (read.labels, read.images, read.state_sha256) == (found.labels, 40, bundle.load_info(folder).state_sha256)
    assert read.values.keys() == {*baseline.OF_PIXELS, *baseline.OF_FILES, *baseline.OF_ANSWERS}
    for name, values in found.values.items():
        np.testing.assert_array_equal(read.values[name], values)
    np.testing.assert_array_equal(read.embedding.covariance, found.embedding.covariance)


def test_serving_answers_the_same_bits_with_a_baseline_and_without(written, tmp_path):
    folder, _ = written
    shutil.copytree(folder, tmp_path / "bare")
    (tmp_path / "bare" / bundle.BASELINE_FILE).unlink()
    batch = torch.randint(0, 256, (2, 3, 40, 56), dtype=torch.uint8)
    with_it, without = (models.load(path).numbers(batch) for path in (folder, tmp_path / "bare"))
    assert torch.equal(with_it, without)


def changed(folder, **arrays):
    """The bytes of a bundle's baseline with other arrays."""
    with np.load(folder / bundle.BASELINE_FILE) as file:
        content = {**dict(file), **arrays}
    stream = io.BytesIO()
    np.savez_compressed(stream, **content)
    return stream.getvalue()


# The bytes of the file, None for no file; and what the error says
BAD = {
    "missing": (lambda folder: None, "missing: it is `fastmaker train` that writes one"),
    "no archive": (lambda folder: b"PK no archive", "no baseline that can be read"),
    "newer": (lambda folder: changed(folder, format=9), f"newer than {baseline.FORMAT}; use a newer fastmaker"),
    "other weights": (lambda folder: changed(folder, state_sha256="0" * 64), "it is of other weights"),
    "pickled": (lambda folder: changed(folder, labels=np.array([{}], object)), "no baseline that can be read"),
    "unknown values": (lambda folder: changed(folder, **{"values.other": np.zeros(3)}), "its values are not those"),
    "shapes": (lambda folder: changed(folder, **{"embedding.mean": np.zeros(3)}), "do not fit each other"),
    "too large": (lambda folder: changed(folder, counts=np.zeros(2**23 + 1)), "unpacks to more than"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_baseline_of_the_bundle_is_refused(written, tmp_path, case):
    content, reason = BAD[case]
    data = content(written[0])
    shutil.copytree(written[0], tmp_path / "model")
    file = tmp_path / "model" / bundle.BASELINE_FILE
    file.unlink()
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(bundle.BundleError, match=reason):
        baseline.load(tmp_path / "model")


def test_a_bundle_that_is_saved_anew_has_no_baseline_of_the_earlier_one(written, tmp_path):
    shutil.copytree(written[0], tmp_path / "model")
    network, info = bundle.load(tmp_path / "model")
    bundle.save(tmp_path / "model", network, dataclasses.replace(info, metrics={"f1": 0.5}))
    assert not (tmp_path / "model" / bundle.BASELINE_FILE).exists()
