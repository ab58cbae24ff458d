"""What each task needs of fastai: the block of its labels, its loss, its metrics, how many numbers its network returns.

    parts = TASKS["multilabel"]
    learn = vision_learner(dls, resnet18, n_out=parts.n_out(samples), loss_func=parts.loss(samples, args), ...)

Metrics are exact over all batches and hosts: each has totals that the hosts sum (`distributed.DataParallel`).
"""

import argparse
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from fastai.vision.all import (
    AvgMetric,
    BCEWithLogitsLossFlat,
    CategoryBlock,
    CrossEntropyLossFlat,
    Learner,
    Metric,
    MSELossFlat,
    MultiCategoryBlock,
    PointBlock,
    RegressionBlock,
    TransformBlock,
    accuracy,
    accuracy_multi,
    error_rate,
    mae,
    mse,
)

from fastmaker.training import segmentation
from fastmaker.training.data import Samples
from fastmaker.training.distributed import ProcessGroup
from fastmaker.training.mask_data import MaskedSamples


@dataclass(frozen=True)
class Parts:
    """What one task needs; each is a function of the samples, and of the arguments where they change it."""

    block: Callable[[Any], TransformBlock]
    n_out: Callable[[Any], int]
    loss: Callable[[Any, argparse.Namespace], Any]
    metrics: Callable[[Any, argparse.Namespace], list[Any]]


class MicroF1(Metric):
    """F1 of all labels of all images together: 2 * right / (given + found)."""

    name = "f1"

    def __init__(self, threshold: float):
        self.threshold = threshold
        self.reset()

    def reset(self) -> None:
        self.right, self.given, self.found = 0.0, 0.0, 0.0

    def accumulate(self, learn: Learner) -> None:
        found, given = torch.Tensor(learn.pred).sigmoid() > self.threshold, torch.Tensor(learn.y).bool()
        self.right += int((found & given).sum())
        self.given += int(given.sum())
        self.found += int(found.sum())

    def sum_over(self, group: ProcessGroup) -> None:
        """Sum the counts over the ranks of `group`, on each of them."""
        self.right, self.given, self.found = group.sum([self.right, self.given, self.found])

    @property
    def value(self) -> float:
        counted = self.given + self.found
        return 2 * self.right / counted if counted else 1.0


class Rmse(AvgMetric):
    """The root of the mean squared error over all numbers."""

    name = "rmse"

    def __init__(self) -> None:
        super().__init__(mse)

    @property
    def value(self) -> float | None:
        return math.sqrt(self.total / self.count) if self.count else None


def point_error(predicted: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Return the mean distance of predicted points (N, 2n) from true ones (N, n, 2), both in -1..1.

    It is a fraction of the image: x of its width, y of its height.
    """
    return (predicted.view_as(true) - true).norm(dim=-1).mean() / 2


def _classes(samples: Samples) -> int:
    return len(samples.classes)


def _mse(samples: Samples, args: argparse.Namespace) -> Any:
    return MSELossFlat()


TASKS = {
    "classification": Parts(
        block=lambda samples: CategoryBlock(vocab=samples.classes),
        n_out=_classes,
        loss=lambda samples, args: CrossEntropyLossFlat(),
        metrics=lambda samples, args: [accuracy, error_rate],
    ),
    "multilabel": Parts(
        block=lambda samples: MultiCategoryBlock(vocab=samples.classes),
        n_out=_classes,
        loss=lambda samples, args: BCEWithLogitsLossFlat(thresh=args.threshold),
        metrics=lambda samples, args: [
            functools.partial(accuracy_multi, thresh=args.threshold),
            MicroF1(args.threshold),
        ],
    ),
    "regression": Parts(
        block=lambda samples: RegressionBlock(n_out=len(samples.labels[0])),
        n_out=lambda samples: len(samples.labels[0]),
        loss=_mse,
        metrics=lambda samples, args: [mae, Rmse()],
    ),
    "points": Parts(
        block=lambda samples: PointBlock,
        n_out=lambda samples: 2 * len(samples.labels[0]),
        loss=_mse,
        metrics=lambda samples, args: [point_error],
    ),
    "segmentation": Parts(
        block=MaskedSamples.block,
        n_out=_classes,
        loss=lambda samples, args: segmentation.loss(samples),
        metrics=lambda samples, args: segmentation.metrics(samples),
    ),
}
