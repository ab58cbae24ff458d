"""Of the Learner of a U-Net: its loss and its metrics, which ignore void pixels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from fastai.vision.all import CrossEntropyLossFlat, Learner, Metric

from fastmaker.training.distributed import ProcessGroup
from fastmaker.training.mask_data import MaskedSamples


class Confusion(Metric):
    """Count pixels by true class (rows) and predicted class (columns), without those that are void."""

    def __init__(self, codes: Sequence[str], void_code: int | None):
        self.codes, self.void_code = codes, void_code
        self.reset()

    def reset(self) -> None:
        self.counts: np.ndarray = np.zeros((len(self.codes), len(self.codes)), np.int64)

    def accumulate(self, learn: Learner) -> None:
        self.add(learn.pred, learn.y)

    def add(self, logits: torch.Tensor, true: torch.Tensor) -> None:
        """Add a batch: logits (N, n_classes, H, W) and true classes int64 (N, H, W)."""
        true, predicted = torch.Tensor(true), torch.Tensor(logits).argmax(1)
        if self.void_code is not None:
            labelled = true != self.void_code
            true, predicted = true[labelled], predicted[labelled]
        pairs = (true * len(self.codes) + predicted).flatten()
        self.counts += pairs.bincount(minlength=self.counts.size).view(self.counts.shape).cpu().numpy()

    def sum_over(self, group: ProcessGroup) -> None:
        """Sum the counts over the ranks of `group`, on each of them."""
        sums = group.sum(self.counts.ravel().tolist())
        self.counts[:] = np.reshape(sums, self.counts.shape)


class PixelAccuracy(Confusion):
    """The fraction of pixels, without void ones, whose predicted class is the true one."""

    name = "pixel_accuracy"

    @property
    def value(self) -> float:
        return float(self.counts.trace() / max(self.counts.sum(), 1))


class MeanIou(Confusion):
    """The mean intersection over union of the classes that occur or are predicted."""

    name = "mean_iou"

    @property
    def value(self) -> float:
        return float(np.nanmean(self.by_class())) if self.counts.any() else 0.0

    def by_class(self) -> np.ndarray:
        """Return each class's intersection over union (n_classes,); NaN for void and for absent classes."""
        intersection = self.counts.diagonal()
        union = self.counts.sum(0) + self.counts.sum(1) - intersection
        iou = np.divide(intersection, union, out=np.full(len(union), np.nan), where=union > 0)
        if self.void_code is not None:
            iou[self.void_code] = np.nan
        return iou


class CrossEntropyWithoutVoid(CrossEntropyLossFlat):
    """fastai's cross entropy with the void class as ignore_index; 0, not NaN, for a batch of void pixels only."""

    def __init__(self, void_code: int):
        super().__init__(axis=1, ignore_index=void_code)
        self.void_code = void_code

    def __call__(self, logits: torch.Tensor, true: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        if (true == self.void_code).all():
            return torch.Tensor(logits).sum() * 0
        return super().__call__(logits, true, **kwargs)


def loss(samples: MaskedSamples) -> CrossEntropyLossFlat:
    """Return the loss of masks, which ignores the void class."""
    return CrossEntropyLossFlat(axis=1) if samples.void_code is None else CrossEntropyWithoutVoid(samples.void_code)


def metrics(samples: MaskedSamples) -> list[Metric]:
    """Return the metrics of masks, which ignore the void class."""
    return [kind(samples.codes, samples.void_code) for kind in (PixelAccuracy, MeanIou)]


def iou_by_class(learn: Learner) -> dict[str, float]:
    """Return ``iou_<class>`` for each class that occurs in the validation masks or is predicted."""
    [metric] = [metric for metric in learn.metrics if isinstance(metric, MeanIou)]
    metric.reset()
    learn.model.eval()
    with torch.no_grad():  # not learn.validate(), which would reset its Recorder
        for images, true in learn.dls.valid:
            metric.add(learn.model(images), true)
    return {f"iou_{code}": float(iou) for code, iou in zip(metric.codes, metric.by_class(), strict=True) if iou == iou}
