"""The size of the images of a Learner that resizes none and holds none: of an export, as the caller says it."""

import json
import os

import numpy as np
import pytest
from fastai.vision.all import RatioResize, Resize, aug_transforms
from helpers.unresized import SIZE, exported, learner
from PIL import Image
from torch import nn

from fastmaker import BundleError, load_bundle, preprocess, save_bundle
from fastmaker.training import convert

pytestmark = pytest.mark.learner


def free():
    return nn.Sequential(nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = free()

    def forward(self, images):
        return self.layers(images) * (2 if images.shape[2] > 100 else 1)


@pytest.mark.parametrize(
    ("network", "transforms"),
    [
        (None, {}),
        pytest.param(None, {"batch_tfms": aug_transforms()}, marks=pytest.mark.slow),
        (None, {"item_tfms": RatioResize(28)}),
        (None, {"item_tfms": Resize(SIZE)}),
        (Branching, {}),
    ],
    ids=["no transforms", "augmented", "RatioResize", "resized to it", "a network that branches on its size"],
)
def test_an_export_is_answered_exactly_for_images_of_the_size_that_is_given(tmp_path, network, transforms):
    learn = exported(learner(tmp_path / "photos", network and network(), **transforms))
    info = save_bundle(learn, tmp_path / "model", image_size=SIZE)
    assert info.image_size == SIZE
    model = load_bundle(tmp_path / "model")
    for file in sorted((tmp_path / "photos").rglob("*.png"))[:2]:
        with learn.no_bar(), learn.no_logging():
            label, _, numbers = learn.predict(file)
        [found] = model.predict([preprocess.decode(file.read_bytes())])
        assert found.label == label
        assert np.array_equal(found.probabilities, numbers.numpy())
    if not isinstance(transforms.get("item_tfms"), Resize):
        with pytest.raises(preprocess.ImageError, match="28x20"):
            model.predict([Image.new("RGB", (60, 20))])


@pytest.mark.parametrize(
    ("network", "transforms", "image_size", "reason"),
    [
        (None, {}, None, "224x224 pixels were tried: image_size=(height, width), or --image-size HEIGHTxWIDTH, says"),
        (Branching, {}, None, "network cannot be kept for images of any size; the Learner resizes no image and holds"),
        (None, {}, 28, "(Linear) fails for a batch of 2 of 28x28 pixels"),
        (None, {"item_tfms": Resize(SIZE)}, 28, "is 28x28, but the Learner's transforms make all images 20x28; leave"),
        (free, {"batch_tfms": aug_transforms(size=40)}, SIZE, "make all images 40x40"),
        (None, {"item_tfms": RatioResize(30)}, SIZE, "the Learner's RatioResize makes the longer side 30"),
        (None, {}, (20, 0), "image_size is (20, 0); expected pixels, one number or (height, width)"),
        (None, {}, "28", "image_size is '28'; expected"),
        (None, {}, True, "image_size is True; expected"),
        (None, {}, (20, 28, 3), "image_size is (20, 28, 3); expected"),
    ],
)  # fmt: skip
def test_a_size_that_contradicts_the_export_is_refused(tmp_path, network, transforms, image_size, reason):
    learn = exported(learner(tmp_path / "photos", network and network(), **transforms))
    assert reason in refusal(learn, tmp_path, image_size)


@pytest.mark.parametrize(
    ("sizes", "image_size", "reason"),
    [
        ((SIZE,), 28, "is 28x28, but the Learner's images are 20x28; leave it out"),
        ((SIZE, (28, 20)), SIZE, "but the Learner's images have several sizes, "),
        ((SIZE, (28, 20)), None, "item_tfms=Resize(...) makes one of them"),
    ],
)
def test_a_size_that_contradicts_the_images_of_a_learner_is_refused(tmp_path, sizes, image_size, reason):
    learn = learner(tmp_path / "photos", Branching(), sizes=sizes)
    assert reason in refusal(learn, tmp_path, image_size)


def refusal(learn, tmp_path, image_size):
    with pytest.raises(BundleError) as raised:
        save_bundle(learn, tmp_path / "model", image_size=image_size)
    assert not (tmp_path / "model").exists()
    assert len(str(raised.value).splitlines()) == 1
    return str(raised.value)


def test_the_process_that_loads_a_pickle_is_told_the_size(tmp_path):
    learn = exported(learner(tmp_path / "photos"))
    reading, writing = os.pipe()
    words = [learn.path / "export.pkl", "--reply", writing, "--model-dir", tmp_path / "model", "--image-size", *SIZE]
    assert convert.main(convert.get_parser().parse_args(list(map(str, words)))) == 0
    with os.fdopen(reading) as replies:
        assert json.loads(replies.readline()) == {"stand_ins": []}
    assert load_bundle(tmp_path / "model").info.image_size == SIZE
