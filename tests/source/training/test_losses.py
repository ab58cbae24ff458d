"""A loss is what it does, whatever its class: its activation and its decodes, found out by trying."""

from functools import partial

import pytest
import torch
from fastai.vision.all import (
    BCELossFlat,
    BCEWithLogitsLossFlat,
    CrossEntropyLossFlat,
    DiceLoss,
    FocalLossFlat,
    L1LossFlat,
    LabelSmoothingCrossEntropy,
    LabelSmoothingCrossEntropyFlat,
    MSELossFlat,
)
from torch import nn
from torch.nn import functional

from fastmaker import bundle
from fastmaker.training import losses

SHAPES = {"classification": (5,), "multilabel": (5,), "regression": (3,), "points": (4, 2), "segmentation": (5, 7, 9)}
NAMES = {
    "ids": lambda value: "" if isinstance(value, dict) else value[:32] if isinstance(value, str) else losses.name(value)
}


class OfOnesOwn(nn.Module):
    """A loss of a notebook: sigmoid, and a threshold of its own."""

    def __init__(self, over=lambda numbers: numbers > 0.3, activation=torch.sigmoid):
        super().__init__()
        self.activation, self.decodes = activation, over


class Combined:
    """fastai's own example: focal and dice, no Module."""

    def activation(self, x):
        return functional.softmax(x, dim=1)

    def decodes(self, x):
        return x.argmax(dim=1)


SOFTMAX, NONE = {"activation": "softmax"}, {"activation": "none"}
OVER_A_HALF = {"activation": "sigmoid", "threshold": 0.5}
EACH = (0.1, 0.2, 0.3, 0.4, 0.5)


@pytest.mark.parametrize(
    ("loss", "task", "fields"),
    [
        (CrossEntropyLossFlat(weight=torch.ones(5)), "classification", SOFTMAX),
        (LabelSmoothingCrossEntropy(), "classification", SOFTMAX),
        (LabelSmoothingCrossEntropyFlat(), "classification", SOFTMAX),
        (FocalLossFlat(), "classification", SOFTMAX),
        (OfOnesOwn(lambda x: x.argmax(dim=-1)), "classification", {"activation": "sigmoid"}),
        (CrossEntropyLossFlat(axis=1), "segmentation", SOFTMAX),
        (FocalLossFlat(axis=1), "segmentation", SOFTMAX),
        (DiceLoss(), "segmentation", SOFTMAX),
        (Combined(), "segmentation", SOFTMAX),
        (BCEWithLogitsLossFlat(), "multilabel", OVER_A_HALF),
        (BCEWithLogitsLossFlat(thresh=0.2, pos_weight=torch.ones(5)), "multilabel", OVER_A_HALF | {"threshold": 0.2}),
        (OfOnesOwn(), "multilabel", OVER_A_HALF | {"threshold": 0.3}),
        (OfOnesOwn(lambda x: (x > 0.7).float()), "multilabel", OVER_A_HALF | {"threshold": 0.7}),
        (OfOnesOwn(lambda x: x > torch.tensor(EACH)), "multilabel", OVER_A_HALF | {"threshold": EACH}),
        (OfOnesOwn(lambda x: x >= 0.5), "multilabel", OVER_A_HALF | {"threshold": 0.49999997}),
        (OfOnesOwn(lambda x: x > -1.5, activation=lambda x: x), "multilabel", NONE | {"threshold": -1.5}),
        (BCELossFlat(), "multilabel", NONE),
        (nn.BCEWithLogitsLoss(), "multilabel", NONE),
        (MSELossFlat(), "regression", NONE),
        (L1LossFlat(), "points", NONE),
        (nn.SmoothL1Loss(), "regression", NONE),
        (functional.mse_loss, "regression", NONE),
    ],
    **NAMES,
)
def test_a_loss_is_read_from_what_it_does(loss, task, fields):
    assert losses.read(loss, task, SHAPES[task]) == fields


@pytest.mark.parametrize(
    ("loss", "task", "reason"),
    [
        (nn.CrossEntropyLoss(), "classification", "CrossEntropyLoss has no decodes"),
        (partial(functional.cross_entropy, label_smoothing=0.1), "classification", "partial of cross_entropy has no"),
        (MSELossFlat(), "classification", "BaseLoss of MSELoss decodes otherwise"),
        (CrossEntropyLossFlat(), "regression", "CrossEntropyLossFlat decodes otherwise"),
        (CrossEntropyLossFlat(), "segmentation", "CrossEntropyLossFlat has an activation that a bundle lacks"),
        (BCEWithLogitsLossFlat(), "segmentation", "BCEWithLogitsLossFlat decodes otherwise"),
        (OfOnesOwn(activation=lambda x: x.sigmoid() * 2), "multilabel", "OfOnesOwn has an activation that a bundle"),
        (OfOnesOwn(activation=lambda x: x[1:]), "multilabel", "OfOnesOwn has an activation"),
        (OfOnesOwn(activation=lambda x: x.no_such()), "multilabel", "OfOnesOwn has an activation"),
        (OfOnesOwn(lambda x: x > x.mean(dim=1, keepdim=True)), "multilabel", "OfOnesOwn decodes otherwise"),
        (OfOnesOwn(lambda x: (x > 0.3) & (x < 0.6)), "multilabel", "OfOnesOwn decodes otherwise"),
        (OfOnesOwn(lambda x: x < 0.3), "multilabel", "OfOnesOwn decodes otherwise"),
        (OfOnesOwn(lambda x: (x > 0.3) * 2), "multilabel", "OfOnesOwn decodes otherwise"),
        (OfOnesOwn(lambda x: x.round(), activation=lambda x: x), "regression", "OfOnesOwn decodes otherwise"),
        (OfOnesOwn(lambda x: x, activation=lambda x: x.clamp(-1000, 255)), "regression", "OfOnesOwn has an activation"),
        (OfOnesOwn(lambda x: x.clamp(-9e9, 9e9), activation=lambda x: x), "regression", "OfOnesOwn decodes otherwise"),
    ],
    **NAMES,
)
def test_a_loss_that_does_anything_else_is_refused_by_name(loss, task, reason):
    with pytest.raises(bundle.BundleError, match=f"the Learner's loss {reason}") as error:
        losses.read(loss, task, SHAPES[task])
    assert len(str(error.value).splitlines()) == 1
