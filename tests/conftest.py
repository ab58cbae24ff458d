"""What the tests share: data sets made on the spot, a trained bundle, and the versions in the report's header."""

import os
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent


def pytest_report_header():
    names = ("torch", "torchvision", "fastai", "sagemaker", "torchserve")
    return "versions: " + ", ".join(f"{name} {metadata.version(name)}" for name in names)


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """scikit-learn's digits: 1,797 gray 8x8 PNGs in the class folders 0 to 9."""
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("data") / "digits"
    source = load_digits()
    for number, (image, label) in enumerate(zip(source.images, source.target, strict=True)):
        file = folder / str(label) / f"{number:04}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 255 / 16).astype(np.uint8)).save(file)
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """36 colour JPEGs of many sizes and aspect ratios: red stripes, green checks and blue rings, all noisy."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    random = np.random.default_rng(7)
    for number in range(36):
        label = ("checks", "rings", "stripes")[number % 3]
        height, width = random.integers(40, 140, 2)
        y, x = np.mgrid[:height, :width]
        pattern = {"checks": (x // 8 + y // 8) % 2, "rings": np.hypot(x - 50, y - 50) // 6 % 2, "stripes": x // 6 % 2}
        pixels = random.integers(0, 90, (height, width, 3))
        pixels[..., ("stripes", "checks", "rings").index(label)] += (150 * pattern[label]).astype(int)
        file = folder / label / f"{number:02}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(file, quality=90)
    return folder


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real images; tests that use it carry the marker `data`."""
    folder = Path(os.environ.get("FASTMAKER_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real images: {folder} is missing; FASTMAKER_TEST_DATA names the folder")
    return folder


@pytest.fixture(scope="session")
def digits_learner(digits):
    """A convnet that saw the digits for one epoch, with its fastai DataLoaders."""
    from fastai.vision.all import set_seed

    from fastmaker import data, learner

    set_seed(1, reproducible=True)
    dls = data.dataloaders(data.read(digits), "L", (28, 28), "crop", batch_size=64, augment=False, workers=0)
    learn = learner.create(dls, "convnet", "L", pretrained=False)
    with learn.no_bar(), learn.no_logging():
        learner.fit(learn, epochs=1, lr=0.005, fine_tune=False)
    return learn


@pytest.fixture(scope="session")
def digits_bundle(digits_learner, tmp_path_factory) -> Path:
    """The bundle of `digits_learner`. Shared: copy it before you change it."""
    from fastmaker import learner

    folder = tmp_path_factory.mktemp("bundle") / "digits"
    learner.save_bundle(digits_learner, folder, {"accuracy": 0.9})
    return folder
