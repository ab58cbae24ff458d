"""The report of masks: the figures of each class, and images beside their true and their predicted mask."""

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import patches
from matplotlib.figure import Figure

from fastmaker import masks
from fastmaker.training import segmentation
from fastmaker.training.report import plots, predictions
from fastmaker.training.report.page import Picture, Section, Table

if TYPE_CHECKING:
    import torch
    from fastai.vision.all import Learner

SHOWN = 6
LEGEND = 36  # classes that the legend has room for


class Masks:
    """The answers to images that have a class for each pixel: pixels by their true and their predicted class."""

    def __init__(self, labels: list[str], void_code: int | None):
        self.labels = labels
        self.counted = segmentation.MeanIou(labels, void_code)
        self.colours = masks.palette(labels, void_code) / 255
        self.indexes = np.empty(0, np.int64)

    def add(self, indexes: np.ndarray, numbers: "torch.Tensor", decoded: "torch.Tensor", true: "torch.Tensor") -> None:
        """Add a batch: probabilities (N, n_classes, H, W), and the true classes (N, H, W)."""
        self.indexes = np.concatenate([self.indexes, indexes])
        self.counted.add(numbers, true)

    def metrics(self) -> dict[str, float]:
        """Return ``iou_<class>`` for each class that occurs in the validation masks or is predicted."""
        return {f"iou_{label}": iou for label, iou, *_ in self._rows() if iou is not None}

    def key_figures(self) -> dict[str, float]:
        """Return the figures that a run is compared by."""
        return {"mean_iou": self.counted.value}

    def details(self) -> dict[str, Any]:
        """Return what metrics.json has beside the metrics."""
        names = ("iou", "precision", "recall", "pixels")
        return {"classes": {label: dict(zip(names, row, strict=True)) for label, *row in self._rows()}}

    def sections(self, learn: "Learner") -> list[Section]:
        """Return the parts of the page. `learn` answers again to the few images that are shown."""
        rows = [row for row in self._rows() if row[1] is not None]
        rows.sort(key=lambda row: row[1])
        some = self.indexes[predictions.spread(len(self.indexes), SHOWN)].tolist()
        bars = f"The intersection over union of {len(rows)} classes, with a mean of {self.counted.value:.3f}."
        pairs = f"{len(some)} validation images, each beside its true and its predicted mask."
        return [
            Section(
                "Classes",
                "Intersection over union (IoU): of the pixels that have the class or got it, the fraction that have"
                " it and got it. Void pixels are left out. A dash: no pixel got the class, or none has it.",
                [
                    Picture("iou.png", bars, lambda: self._plot_iou(rows)),
                    Table(
                        f"Classes, the lowest IoU first ({len(rows)})",
                        ("class", "IoU", "precision", "recall", "pixels"),
                        rows,
                    ),
                ],
            ),
            Section("Images", "", [Picture("masks.png", pairs, lambda: self._plot_masks(learn, some))]),
        ]

    def _rows(self) -> list[list[Any]]:
        """Return for each class IoU, precision and recall (None where undefined) and the number of its pixels."""
        counts = self.counted.counts
        hits, predicted, true = counts.diagonal(), counts.sum(0), counts.sum(1)
        return [
            [
                label,
                None if np.isnan(iou) else float(iou),
                float(hits[i] / predicted[i]) if predicted[i] else None,
                float(hits[i] / true[i]) if true[i] else None,
                int(true[i]),
            ]
            for i, (label, iou) in enumerate(zip(self.labels, self.counted.by_class(), strict=True))
        ]

    def _plot_iou(self, rows: list[list[Any]]) -> Figure:
        """Plot a bar for each class that occurs or is predicted, the best at the top."""
        figure, [axes] = plots.grid(1, 1, (6.4, 1.5 + 0.3 * len(rows)))
        colours = [self.colours[self.labels.index(row[0])] for row in rows]
        bars = axes.barh(range(len(rows)), [row[1] for row in rows], color=colours)
        axes.set_yticks(range(len(rows)), [plots.short(row[0]) for row in rows])
        axes.bar_label(bars, fmt="%.3f", padding=3)
        axes.set(title=f"Intersection over union, mean {self.counted.value:.3f}", xlim=(0, 1.1))
        return figure

    def _plot_masks(self, learn: "Learner", indexes: list[int]) -> Figure:
        images, _, predicted, true = predictions.shown(learn, indexes)
        figure, cells = plots.grid(3 * len(images), 3, (3.3, 2.6))
        for row, pictures in enumerate(zip(images, self.colours[true], self.colours[predicted], strict=True)):
            for cell, picture, title in zip(
                cells[3 * row : 3 * row + 3], pictures, ("image", "truth", "prediction"), strict=True
            ):
                plots.show_image(cell, picture, title if row == 0 else "")
        shown = np.union1d(true, predicted)[:LEGEND]
        legend = [patches.Patch(color=tuple(self.colours[i]), label=plots.short(self.labels[i])) for i in shown]
        figure.legend(handles=legend, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=4)
        return figure
