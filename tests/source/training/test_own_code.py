"""A class of one's own that overrides nothing of fastai's counts as fastai's; code of one's own is refused by name."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from fastai.vision.all import (
    Categorize,
    Category,
    CategoryBlock,
    CropPad,
    CrossEntropyLossFlat,
    DataBlock,
    Flip,
    ImageBlock,
    IntToFloatTensor,
    Learner,
    MultiCategorize,
    Normalize,
    PILImage,
    PILImageBW,
    PILMask,
    RandomSplitter,
    RegressionSetup,
    Resize,
    TensorCategory,
    TensorImage,
    TensorMultiCategory,
    Transform,
    TransformBlock,
    imagenet_stats,
    parent_label,
)
from PIL import Image
from torch import nn

from fastmaker import BundleError, load_bundle, preprocess, save_bundle
from fastmaker.training import image_classes, own_code

pytestmark = pytest.mark.learner


class SquareResize(Resize):
    """A name of its own."""


class Squished(Resize):
    def __init__(self, size):
        super().__init__(size, method="squish")


class WithHelper(Resize):
    def helper(self):
        return 1


class OfLabels(Resize):
    def encodes(self, labels: TensorMultiCategory):
        return labels


class Mixin:
    def other(self):
        return 2


class Mixed(Mixin, SquareResize):
    pass


class Standardized(Normalize):
    pass


class Mirrored(Flip):
    pass


class ToFloat(IntToFloatTensor):
    order = 11


class Turned(Resize):
    def encodes(self, image: Image.Image):
        return image.rotate(90)


class Corner(Resize):
    def before_call(self, b, split_idx):
        super().before_call(b, split_idx)
        self.pcts = (0.0, 0.0)


class Twice(CropPad):
    def __call__(self, b, **options):
        return super().__call__(super().__call__(b, **options), **options)


class MixinOfCalls:
    def before_call(self, b, split_idx):
        super().before_call(b, split_idx)


class MixedOfCalls(MixinOfCalls, Resize):
    pass


class Watched(Normalize):
    def __getattribute__(self, name):
        return super().__getattribute__(name)


class Darker(Normalize):
    def encodes(self, image: TensorImage):
        return image / 2


def with_own_method(transform):
    transform.before_call = lambda b, split_idx: None
    return transform


KINDS = [
    (SquareResize(8), Resize),
    (Squished(8), Resize),
    (WithHelper(8), Resize),
    (OfLabels(8), Resize),
    (Mixed(8), Resize),
    (Standardized.from_stats(*imagenet_stats, cuda=False), Normalize),
    (Mirrored(), Flip),
    (ToFloat(), IntToFloatTensor),
    (Resize(8), Resize),
    (Turned(8), None),
    (Corner(8), None),
    (Twice(8), None),
    (MixedOfCalls(8), None),
    (Watched.from_stats(*imagenet_stats, cuda=False), None),
    (Darker.from_stats(*imagenet_stats, cuda=False), None),
    (with_own_method(Resize(8)), None),
    (Transform(parent_label), None),
]


@pytest.mark.parametrize(("transform", "kind"), KINDS, ids=[type(transform).__name__ for transform, _ in KINDS])
def test_a_transform_counts_as_the_class_whose_methods_it_has(transform, kind):
    assert own_code.kind(transform) is kind


class Photo(PILImage):
    def area(self):
        return self.width * self.height

    def show(self, **options):
        return None


class Scan(PILImageBW):
    pass


class Slide(Scan):
    _open_args: ClassVar = {"mode": "RGBA"}


class Resized(PILImage):
    def resize(self, *args, **options):
        return super().resize(*args, **options)


class Opened(PILImage):
    @classmethod
    def create(cls, fn, **options):
        return super().create(fn, **options)


class AsArray(PILImage):
    def __array__(self, *args, **options):
        return np.zeros((4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("cls", "mode"),
    [(Photo, "RGB"), (Scan, "L"), (Slide, "RGBA"), (Resized, None), (Opened, None), (AsArray, None), (PILMask, None)],
)
def test_an_image_class_counts_as_fastais_if_it_overrides_nothing(cls, mode):
    image = cls(Image.new(mode or "RGB", (4, 4)))
    if mode:
        assert image_classes.mode_of(image) == mode
    else:
        with pytest.raises(
            BundleError, match=f"images are {cls.__name__}; expected PILImage or PILImageBW, or a class"
        ):
            image_classes.mode_of(image)


class Named(Categorize):
    pass


class OwnDecodes(Categorize):
    def decodes(self, index):
        return Category(self.vocab[index])


class OwnLabels(Transform):
    def __init__(self):
        self.vocab = ["checks", "rings", "stripes"]

    def encodes(self, name):
        return TensorCategory(self.vocab.index(name))

    def decodes(self, index):
        return Category(self.vocab[index])


class RareName(Categorize):
    def decodes(self, index):
        return Category("rare" if int(index) == 1 else self.vocab[index])


class SeveralRare(MultiCategorize):
    def decodes(self, flags):
        return super().decodes(flags)


class Rounded(RegressionSetup):
    def decodes(self, number):
        return number.round()


def learner(photos, target, n_out=3, get_y=parent_label, loss=None, item_tfms=None):
    def get_items(folder):
        return sorted(folder.rglob("*.jpg"))[::4]

    block = CategoryBlock if target is None else TransformBlock(type_tfms=target)
    dls = DataBlock(
        (ImageBlock, block),
        get_items=get_items,
        get_y=get_y,
        splitter=RandomSplitter(seed=1),
        item_tfms=item_tfms or Resize(16),
    ).dataloaders(photos, bs=4, num_workers=0)
    layers = nn.Sequential(nn.Conv2d(3, n_out, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Learner(dls, layers, loss_func=loss or CrossEntropyLossFlat())


@pytest.mark.parametrize("target", [Named, OwnDecodes, OwnLabels])
def test_labels_that_are_decoded_to_their_names_are_answered(photos, tmp_path, target):
    learn = learner(photos, target(), item_tfms=Squished(16))
    save_bundle(learn, tmp_path / "model")
    file = min(photos.rglob("*.jpg"))
    with learn.no_bar(), learn.no_logging():
        label, _, numbers = learn.predict(file)
    [found] = load_bundle(tmp_path / "model").predict([preprocess.decode(file.read_bytes())])
    assert found.label == label
    assert np.array_equal(found.probabilities, numbers.numpy())


@pytest.mark.parametrize(
    ("target", "options", "reason"),
    [
        (RareName, {}, "RareName decodes class 1 as 'rare'; a bundle answers with dls.vocab, 'rings'"),
        (
            Rounded,
            {"n_out": 1, "get_y": lambda file: float(file.stem), "loss": nn.MSELoss()},
            "Rounded decodes answers by code of its own, which a bundle lacks; leave out its decodes",
        ),
    ],
)
def test_an_answer_that_code_of_ones_own_decodes_is_refused(photos, tmp_path, target, options, reason):
    with pytest.raises(BundleError) as raised:
        save_bundle(learner(photos, target(), **options), tmp_path / "model")
    assert reason in str(raised.value)


def test_decodes_of_several_labels_are_the_users_own_where_they_are_overridden():
    assert own_code.decodes_itself(SeveralRare())
    assert not own_code.decodes_itself(MultiCategorize())
    assert not own_code.decodes_itself(Transform(torch.tensor))
