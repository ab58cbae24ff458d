"""A bundle answers as its Learner for every task: one label, several labels, numbers, points and masks."""

import io
import json

import numpy as np
import pytest
import torch
from fastai.vision.all import (
    BBoxBlock,
    BBoxLblBlock,
    BCEWithLogitsLossFlat,
    CategoryBlock,
    DataBlock,
    ImageBlock,
    Learner,
    MSELossFlat,
    MultiCategoryBlock,
    PILImageBW,
    PointBlock,
    RandomResizedCrop,
    RandomSplitter,
    RegressionBlock,
    Resize,
    TransformBlock,
    aug_transforms,
    load_learner,
    resnet18,
    set_seed,
    tensor,
    vision_learner,
)
from torch import nn

from fastmaker import answers, bundle, geometry, networks, preprocess, save_bundle
from fastmaker.serving import models, wire

POINTS = [[30.0, 20.0], [10.0, 35.0]]


def several(file):
    return [file.parent.name, "wide" if int(file.stem) % 2 else "high"]


def one_hot(file):
    return [float(file.parent.name == label) for label in ("checks", "rings", "stripes")]


def number(file):
    return float(file.stem)


def number_tensor(file):
    return tensor(one_hot(file))


def points(_):
    return tensor(POINTS)


MULTILABEL = (MultiCategoryBlock, several)
ENCODED = (MultiCategoryBlock(encoded=True, vocab=["checks", "rings", "stripes"]), one_hot)
REGRESSION = (RegressionBlock, number)
NUMBERS = (RegressionBlock(n_out=3), one_hot)
POINT = (PointBlock, points)


def learner(photos, target, n_out, item_tfms=None, batch_tfms=None, network=None, gray=False, **options):
    """A Learner of a small convnet, or of what `network` makes of its DataLoaders."""
    set_seed(5)
    block, get_y = target
    dls = DataBlock(
        (ImageBlock(PILImageBW) if gray else ImageBlock, block),
        get_items=lambda folder: sorted(folder.rglob("*.jpg")),
        get_y=get_y,
        splitter=RandomSplitter(seed=1),
        item_tfms=item_tfms or Resize(48),
        batch_tfms=batch_tfms,
    ).dataloaders(photos, bs=8, num_workers=0)
    if network:
        return network(dls, n_out)
    learn = Learner(dls, networks.convnet(n_out, 1 if gray else 3), **options)
    learn.arch = networks.convnet
    return learn


def with_range(dls, n_out):
    return vision_learner(dls, resnet18, pretrained=False, n_out=n_out, y_range=(-1, 1))


class Asymmetric(nn.Module):
    def forward(self, logits, target):
        return nn.functional.binary_cross_entropy_with_logits(logits, target.float())

    def activation(self, logits):
        return torch.sigmoid(logits)

    def decodes(self, numbers):
        return numbers > 0.45


LEARNERS = {
    "several labels": (MULTILABEL, 5, {}),
    "several labels over 0.2": (MULTILABEL, 5, {"loss_func": BCEWithLogitsLossFlat(thresh=0.2)}),
    "several labels, a loss of one's own": (MULTILABEL, 5, {"loss_func": Asymmetric(), "gray": True}),
    "several labels, a plain loss": (MULTILABEL, 5, {"loss_func": nn.BCEWithLogitsLoss()}),
    "several labels, encoded": (ENCODED, 3, {"batch_tfms": aug_transforms(size=40)}),
    "a number": (REGRESSION, 1, {}),
    "three numbers": (NUMBERS, 3, {"loss_func": nn.L1Loss()}),
    "numbers of no block": ((TransformBlock, number_tensor), 3, {"loss_func": MSELossFlat()}),
    "points": (POINT, 4, {"item_tfms": Resize((40, 56), method="pad", pad_mode="zeros")}),
    "points in a range": (POINT, 4, {"network": with_range}),
    "points, presized": (POINT, 4, {"item_tfms": Resize(72), "batch_tfms": aug_transforms(size=48)}),
    "points of a part": (POINT, 4, {"item_tfms": RandomResizedCrop(48)}),
}


def make(photos, name):
    target, n_out, options = LEARNERS[name]
    return learner(photos, target, n_out, **options)


def assert_same_answers(learn, folder, files):
    """Compare with ``learn.predict`` in all the forms of an answer."""
    model = models.load(folder, precision="float32")
    for file in files:
        with learn.no_bar(), learn.no_logging():
            decoded, _, numbers = learn.predict(file)
        answer = wire.Answer(model.predict([preprocess.decode(file.read_bytes())]), single=True)
        array = np.load(io.BytesIO(wire.encode(answer, "application/x-npy")[0]))
        assert (array.dtype, array.shape) == (np.float32, tuple(numbers.shape))
        assert np.array_equal(array, numbers)
        [found] = answer.predictions
        assert json.loads(wire.encode(answer, "application/json")[0]) == found.as_object()
        if isinstance(found, answers.LabelSet):
            assert found.labels == list(map(str, decoded))
        elif isinstance(found, answers.Values):
            assert found.values == np.ravel(decoded).tolist()
        else:
            with preprocess.decode(file.read_bytes()) as image:
                size = geometry.input_size(image.size, model.info)
                in_input = (geometry.from_image(found.points, image.size, model.info) + 1) / 2 * size
            assert np.allclose(in_input, np.asarray(decoded), atol=1e-4)


FEW = ("several labels, a loss of one's own", "three numbers", "points, presized")


@pytest.mark.parametrize(
    "name", [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in LEARNERS]
)
def test_a_learner_of_any_task_is_answered_exactly(photos, tmp_path, name):
    learn = make(photos, name)
    save_bundle(learn, tmp_path / "model")
    assert_same_answers(learn, tmp_path / "model", sorted(photos.rglob("*.jpg"))[::9])


@pytest.mark.parametrize(
    "name", ["points", *(pytest.param(n, marks=pytest.mark.slow) for n in ("several labels over 0.2", "three numbers"))]
)
def test_a_loaded_learner_of_any_task_is_answered_exactly(photos, tmp_path, name):
    learn = make(photos, name)
    live = save_bundle(learn, tmp_path / "live")
    learn.export(tmp_path / "export.pkl")
    loaded = load_learner(tmp_path / "export.pkl")
    assert save_bundle(loaded, tmp_path / "model") == live
    assert_same_answers(loaded, tmp_path / "model", sorted(photos.rglob("*.jpg"))[::18])


def test_the_bundle_says_what_the_task_is(photos, tmp_path):
    infos = {name: save_bundle(make(photos, name), tmp_path / "model") for name in ("several labels", "points")}
    several, pointed = infos.values()
    assert (several.task, several.activation, several.threshold) == ("multilabel", "sigmoid", 0.5)
    assert several.labels == ("checks", "high", "rings", "stripes", "wide")
    assert (pointed.task, pointed.activation, pointed.labels, pointed.shape) == ("points", "none", (), (4,))
    assert {info.format for info in infos.values()} == {2}
    assert bundle.load_info(tmp_path / "model") == pointed


@pytest.mark.parametrize(
    ("target", "n_out", "options", "reason"),
    [
        ((CategoryBlock, lambda f: f.parent.name), 3, {"loss_func": nn.CrossEntropyLoss()}, "has no decodes"),
        (MULTILABEL, 4, {}, "network|predict fails"),
        (REGRESSION, 2, {"loss_func": BCEWithLogitsLossFlat()}, "loss BCEWithLogitsLossFlat decodes otherwise"),
        (POINT, 3, {}, "'output_shape' is \\[3\\]; expected|predict fails"),
    ],
)
def test_a_learner_whose_answer_a_bundle_cannot_give_is_refused(photos, tmp_path, target, n_out, options, reason):
    with pytest.raises(bundle.BundleError, match=reason) as error:
        save_bundle(learner(photos, target, n_out, **options), tmp_path / "model")
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("blocks", "get_y", "reason"),
    [
        ((BBoxBlock, BBoxLblBlock), [lambda _: tensor([[1.0, 2, 30, 40]]), lambda _: ["a"]], "bounding boxes"),
        ((CategoryBlock, RegressionBlock), [lambda file: file.parent.name, lambda _: 2.0], "has 2 targets"),
    ],
    ids=["boxes", "two targets"],
)
def test_what_a_bundle_has_no_answer_for_is_refused_by_name(photos, tmp_path, blocks, get_y, reason):
    dls = DataBlock(
        (ImageBlock, *blocks),
        get_items=lambda folder: sorted(folder.rglob("*.jpg")),
        get_y=get_y,
        n_inp=1,
        item_tfms=Resize(48),
    ).dataloaders(photos, bs=4, num_workers=0)
    learn = Learner(dls, networks.convnet(4, 3), loss_func=MSELossFlat())
    with pytest.raises(bundle.BundleError, match=reason):
        save_bundle(learn, tmp_path / "model")
