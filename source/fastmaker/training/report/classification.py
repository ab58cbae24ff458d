"""The report of one label an image: per-class figures, the confusion matrix, top losses, calibration."""

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from sklearn import metrics

from fastmaker.training.report import calibration, plots, predictions
from fastmaker.training.report.page import Picture, Section, Table

if TYPE_CHECKING:
    import torch
    from fastai.vision.all import Learner

TOP_LOSSES = 9
CONFUSED_PAIRS = 10
MAX_NUMBERED_CLASSES = 50  # numbers in the cells take minutes for hundreds of classes, and would be illegible
MAX_BARS = 40


class Classes:
    """The answers to images that have one label each."""

    def __init__(self, labels: list[str]):
        self.labels = labels
        self.indexes, self.true, self.predicted = (np.empty(0, np.int64) for _ in range(3))
        self.confidence, self.losses = (np.empty(0, np.float32) for _ in range(2))

    def add(self, indexes: np.ndarray, numbers: "torch.Tensor", decoded: "torch.Tensor", true: "torch.Tensor") -> None:
        """Add a batch: probabilities (N, n_classes), the class with the highest one (N,), the true class (N,)."""
        of_true = numbers.gather(1, true[:, None])[:, 0].clip(1e-38)
        for name, array in {
            "indexes": indexes,
            "true": true.cpu().numpy(),
            "predicted": decoded.cpu().numpy(),
            "confidence": numbers.amax(1).cpu().numpy(),
            "losses": -of_true.log().cpu().numpy(),
        }.items():
            setattr(self, name, np.concatenate([getattr(self, name), array]))

    @property
    def right(self) -> np.ndarray:
        """Which images got their class, bool (N,)."""
        return self.true == self.predicted

    def metrics(self) -> dict[str, float]:
        """Return what the metrics of the training lack: nothing."""
        return {}

    def key_figures(self) -> dict[str, float]:
        """Return the figures that a run is compared by."""
        by_class = [f1 for _, _, f1, _ in self._by_class() if f1 is not None]
        return {
            "accuracy": float(self.right.mean()),
            "f1_macro": float(np.mean(by_class)),
            "ece": self._calibration().ece,
        }

    def details(self) -> dict[str, Any]:
        """Return what metrics.json has beside the metrics."""
        return {
            **self.key_figures(),
            "classes": {
                label: dict(zip(("precision", "recall", "f1", "support"), row, strict=True))
                for label, row in zip(self.labels, self._by_class(), strict=True)
            },
            "most_confused": [
                {"true": true, "predicted": predicted, "images": count} for true, predicted, count in self._confused()
            ],
            "calibration": self._calibration().details(),
        }

    def sections(self, learn: "Learner") -> list[Section]:
        """Return the parts of the page. `learn` answers again to the few images that are shown."""
        wrong = int((~self.right).sum())
        rows = [[label, *row] for label, row in zip(self.labels, self._by_class(), strict=True)]
        rows.sort(key=lambda row: 2.0 if row[3] is None else row[3])
        by_class = Table(
            f"Classes, the lowest F1 first ({len(rows)})", ("class", "precision", "recall", "F1", "images"), rows
        )
        pairs = Table("Most confused", ("true", "predicted", "images"), self._confused())
        matrix = f"The confusion matrix of {len(self.labels)} classes: {wrong} of {len(self.true)} images are wrong."
        bars = f"Precision, recall and F1 of {min(len(rows), MAX_BARS)} classes, the lowest F1 at the top."
        top = f"The {min(TOP_LOSSES, len(self.true))} images whose true class got the lowest probability."
        return [
            Section(
                "Classes",
                "Precision: of the images that got the class, the fraction that has it. Recall: of the images that"
                " have it, the fraction that got it. A dash: no image got it, or none has it.",
                [Picture("classes.png", bars, lambda: plots.bars(rows[:MAX_BARS])), by_class],
            ),
            Section(
                "Confusion",
                "",
                [Picture("confusion_matrix.png", matrix, self._plot_confusion), *([pairs] if pairs.rows else [])],
            ),
            Section("Top losses", "", [Picture("top_losses.png", top, lambda: self._plot_top_losses(learn))]),
            self._calibration().section(),
        ]

    def _by_class(self) -> list[list[Any]]:
        """Return for each class precision, recall, F1 (None where undefined) and the number of its images."""
        table = metrics.precision_recall_fscore_support(
            self.true, self.predicted, labels=range(len(self.labels)), zero_division=np.nan
        )
        return [
            [*(None if np.isnan(x) else float(x) for x in row[:3]), int(row[3])] for row in zip(*table, strict=True)
        ]

    def _calibration(self) -> calibration.Calibration:
        found = calibration.Calibration("the probability of the predicted class", "the fraction that is right")
        found.add(self.confidence, self.right)
        return found

    def _matrix(self) -> np.ndarray:
        matrix: np.ndarray = metrics.confusion_matrix(self.true, self.predicted, labels=range(len(self.labels)))
        return matrix

    def _confused(self) -> list[tuple[str, str, int]]:
        """Return the pairs of a true and a predicted class with the most images."""
        matrix = self._matrix()
        np.fill_diagonal(matrix, 0)
        order = np.argsort(-matrix, axis=None, kind="stable")[:CONFUSED_PAIRS]
        pairs = zip(*np.unravel_index(order, matrix.shape), strict=True)
        return [(self.labels[i], self.labels[j], int(matrix[i, j])) for i, j in pairs if matrix[i, j]]

    def _plot_confusion(self) -> Figure:
        figure = plots.matrix(self._matrix(), [plots.short(label) for label in self.labels], MAX_NUMBERED_CLASSES)
        figure.axes[0].set(xlabel="predicted", ylabel="true")
        return figure

    def _plot_top_losses(self, learn: "Learner") -> Figure:
        top = np.argsort(-self.losses, kind="stable")[:TOP_LOSSES]
        images, *_ = predictions.shown(learn, self.indexes[top].tolist())
        figure, cells = plots.grid(len(top), 3, (3.2, 3.9))
        for cell, image, i in zip(cells, images, top, strict=True):
            lines = (
                f"true: {plots.short(self.labels[self.true[i]])}",
                f"predicted: {plots.short(self.labels[self.predicted[i]])}, {self.confidence[i]:.3f}",
                f"loss {self.losses[i]:.2f}",
            )
            plots.show_image(cell, image, "\n".join(lines))
        return figure
