"""DataLoaders of images and masks -> a U-Net's Learner, and the figures of its masks."""

from collections.abc import Sequence

import numpy as np
import torch
import torchvision.models
from fastai.vision.all import CrossEntropyLossFlat, Learner, Metric, unet_learner

from fastmaker.training import learner
from fastmaker.training.mask_data import MaskedSamples


class Confusion(Metric):
    """Counts the pixels of each true class (rows) by predicted class (columns), less those that are void."""

    def __init__(self, codes: Sequence[str], void: int | None):
        self.codes, self.void = codes, void
        self.reset()

    def reset(self):
        self.counts = np.zeros((len(self.codes), len(self.codes)), np.int64)

    def accumulate(self, learn):
        self.add(learn.pred, learn.y)

    def add(self, logits: torch.Tensor, true: torch.Tensor) -> None:
        """(N, n_classes, H, W) and int64 (N, H, W)"""
        true, found = torch.Tensor(true), torch.Tensor(logits).argmax(1)
        if self.void is not None:
            true, found = true[true != self.void], found[true != self.void]
        pairs = (true * len(self.codes) + found).flatten()
        self.counts += pairs.bincount(minlength=self.counts.size).view(self.counts.shape).cpu().numpy()

    def sum_over(self, group) -> None:
        """Let each process of `group` have the counts of all."""
        sums = group.sum(self.counts.ravel().tolist())
        self.counts = np.array(sums, np.int64).reshape(self.counts.shape)


class PixelAccuracy(Confusion):
    """The share of pixels, less the void ones, that have the right class."""

    name = "pixel_accuracy"

    @property
    def value(self) -> float:
        return float(self.counts.trace() / max(self.counts.sum(), 1))


class MeanIou(Confusion):
    """The mean of each class's intersection over union, of the classes that are there or are predicted."""

    name = "mean_iou"

    @property
    def value(self) -> float:
        return float(np.nanmean(self.each())) if self.counts.any() else 0.0

    def each(self) -> np.ndarray:
        """Each class's intersection over union; NaN for a class that is neither there nor predicted, and for void."""
        intersection = self.counts.diagonal()
        union = self.counts.sum(0) + self.counts.sum(1) - intersection
        iou = np.divide(intersection, union, out=np.full(len(union), np.nan), where=union > 0)
        if self.void is not None:
            iou[self.void] = np.nan
        return iou


class CrossEntropyWithoutVoid(CrossEntropyLossFlat):
    """fastai's cross entropy over the pixels that are not void; 0 where all are, of which the mean would be NaN."""

    def __init__(self, void: int):
        super().__init__(axis=1, ignore_index=void)
        self.void = void

    def __call__(self, logits: torch.Tensor, true: torch.Tensor, **kwargs) -> torch.Tensor:
        if (true == self.void).all():
            return torch.Tensor(logits).sum() * 0
        return super().__call__(logits, true, **kwargs)


def create(
    dls, samples: MaskedSamples, architecture: str, image_mode: str, pretrained: bool, self_attention: bool = False
) -> Learner:
    """A Learner of ``unet_learner``. Void pixels are not learnt. Raises learner.WeightsError."""
    loss = CrossEntropyLossFlat(axis=1) if samples.void is None else CrossEntropyWithoutVoid(samples.void)
    with learner.downloading_weights(architecture):
        return unet_learner(
            dls,
            getattr(torchvision.models, architecture),
            pretrained=pretrained,
            n_in=3 if image_mode == "RGB" else 1,
            normalize=False,
            n_out=len(samples.codes),
            self_attention=self_attention,
            loss_func=loss,
            metrics=[kind(samples.codes, samples.void) for kind in (PixelAccuracy, MeanIou)],
        )


def iou_by_class(learn: Learner) -> dict[str, float]:
    """``iou_<class>`` of each class that the validation masks have or the Learner predicts."""
    [metric] = [metric for metric in learn.metrics if isinstance(metric, MeanIou)]
    metric.reset()
    learn.model.eval()
    with torch.no_grad():  # and without the Learner, whose Recorder would begin anew
        for images, true in learn.dls.valid:
            metric.add(learn.model(images), true)
    return {f"iou_{code}": float(iou) for code, iou in zip(metric.codes, metric.each(), strict=True) if iou == iou}
