"""The report of several labels an image: figures of each label at its threshold, and the threshold of the best F1."""

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from fastmaker import tasks
from fastmaker.training.report import calibration, plots
from fastmaker.training.report.page import Picture, Section, Table

if TYPE_CHECKING:
    import torch
    from fastai.vision.all import Learner

THRESHOLDS = np.linspace(0, 1, 1001).astype(np.float32)  # that are tried
MAX_CURVES = 12
MAX_LABELS = 40  # of the bars and of the matrix


class Labels:
    """The answers to images that have any number of labels each: for each label, counts by probability and truth."""

    def __init__(self, labels: list[str], threshold: tasks.Threshold = 0.5):
        self.labels = labels
        n = len(labels)
        self.threshold = np.broadcast_to(np.asarray(np.nan if threshold is None else threshold, float), n)
        self.images = 0
        self.exact = 0  # images with all labels right
        self.counts = np.zeros((n, 2, 2), np.int64)  # by truth and answer
        self.histogram = np.zeros((n, 2, len(THRESHOLDS) + 1), np.int64)  # by truth and the number of THRESHOLDS below
        self.together = np.zeros((n, n), np.int64)
        self.calibration = calibration.Calibration("the probability of a label", "the fraction that has it")

    def add(self, indexes: np.ndarray, numbers: "torch.Tensor", decoded: "torch.Tensor", true: "torch.Tensor") -> None:
        """Add a batch: probabilities (N, n_labels), which are over the threshold, and which labels are true."""
        probabilities, truth, answer = numbers.cpu().numpy(), true.cpu().numpy() == 1, decoded.cpu().numpy() == 1
        self.images += len(truth)
        self.exact += int((truth == answer).all(1).sum())
        columns = np.broadcast_to(np.arange(len(self.labels)), truth.shape)
        np.add.at(self.counts, (columns, truth.astype(int), answer.astype(int)), 1)
        below = np.searchsorted(THRESHOLDS, probabilities)
        np.add.at(self.histogram, (columns, truth.astype(int), below), 1)
        self.together += truth.T.astype(np.int64) @ truth
        self.calibration.add(probabilities.ravel(), truth.ravel())

    def metrics(self) -> dict[str, float]:
        """Return what the metrics of the training lack: nothing."""
        return {}

    def key_figures(self) -> dict[str, float]:
        """Return the figures that a run is compared by."""
        total = self.counts.sum(0)
        f1 = _f1(total[1, 1], total[0, 1], total[1, 0])
        best = [row["best_f1"] for row in self._rows() if row["best_f1"] is not None]
        return {
            "f1_micro": float(np.nan_to_num(f1)),
            "accuracy": float(total.trace() / total.sum()),
            "all_labels_right": self.exact / self.images,
            "f1_macro_at_best_thresholds": float(np.mean(best)) if best else 0.0,
        }

    def details(self) -> dict[str, Any]:
        """Return what metrics.json has beside the metrics."""
        rows = self._rows()
        return {
            **self.key_figures(),
            "labels": {row["label"]: {name: value for name, value in row.items() if name != "label"} for row in rows},
            "calibration": self.calibration.details(),
        }

    def sections(self, learn: "Learner") -> list[Section]:
        """Return the parts of the page."""
        rows = self._rows()
        rows.sort(key=lambda row: 2.0 if row["f1"] is None else row["f1"])
        names = ("label", "precision", "recall", "f1", "threshold", "best_threshold", "best_f1", "images")
        header = ("label", "precision", "recall", "F1", "threshold", "best threshold", "its F1", "images")
        table = Table(
            f"Labels, the lowest F1 first ({len(rows)})", header, [[row[name] for name in names] for row in rows]
        )
        bars = [[row[name] for name in names] for row in rows[:MAX_LABELS]]
        parts: list[Picture | Table] = [
            Picture(
                "labels.png",
                f"Precision, recall and F1 of {len(bars)} labels at their thresholds, the lowest F1 at the top.",
                lambda: plots.bars(bars),
            ),
            table,
        ]
        curves = min(sum(row["best_f1"] is not None for row in rows), MAX_CURVES)
        alt = (
            f"F1 by the threshold, of {curves} labels, the lowest F1 first: a line at the threshold, a dot at the best."
        )
        order = [self.labels.index(row["label"]) for row in rows[:curves]]
        sections = [
            Section(
                "Labels",
                "Precision: of the images that got the label, the fraction that has it. Recall: of the images that"
                " have it, the fraction that got it. The best threshold is the one with the highest F1 on the"
                " validation images, in steps of 0.001; a dash: no validation image has the label.",
                parts,
            ),
        ]
        if order:
            thresholds = Picture("thresholds.png", alt, lambda: self._plot_thresholds(order))
            sections.append(Section("Thresholds", "", [thresholds]))
        if len(self.labels) <= MAX_LABELS:
            alt = "How many validation images have two labels together, and on the diagonal each one."
            sections.append(Section("Labels together", "", [Picture("together.png", alt, self._plot_together)]))
        return [*sections, self.calibration.section()]

    def _curves(self) -> np.ndarray:
        """Return the F1 of each label at each of THRESHOLDS (n_labels, n_thresholds); NaN for one that no image has."""
        over = self.histogram[:, :, ::-1].cumsum(2)[:, :, ::-1][:, :, 1:]
        hits, false = over[:, 1], over[:, 0]
        curves = _f1(hits, false, self.histogram[:, 1].sum(1, keepdims=True) - hits)
        curves[self.histogram[:, 1].sum(1) == 0] = np.nan
        return curves

    def _rows(self) -> list[dict[str, Any]]:
        """Return the figures of each label; None where one is undefined."""
        rows = []
        for label, counts, curve, threshold in zip(
            self.labels, self.counts, self._curves(), self.threshold, strict=True
        ):
            hits, false, missed = counts[1, 1], counts[0, 1], counts[1, 0]
            # Of those with the same F1, the one nearest to the middle.
            best = np.flatnonzero(curve == np.nanmax(curve, initial=0)) if hits + missed else ()
            chosen = min(best, key=lambda i: abs(THRESHOLDS[i] - 0.5), default=None)
            rows.append(
                {
                    "label": label,
                    "precision": _ratio(hits, hits + false),
                    "recall": _ratio(hits, hits + missed),
                    "f1": _ratio(2 * hits, 2 * hits + false + missed) if hits + missed else None,
                    "threshold": None if np.isnan(threshold) else float(threshold),
                    "best_threshold": None if chosen is None else round(float(THRESHOLDS[chosen]), 3),
                    "best_f1": None if chosen is None else float(curve[chosen]),
                    "images": int(hits + missed),
                }
            )
        return rows

    def _plot_thresholds(self, order: list[int]) -> Figure:
        figure, cells = plots.grid(len(order), 3, (3.4, 2.6))
        curves, rows = self._curves(), self._rows()
        for cell, i in zip(cells, order, strict=True):
            cell.plot(THRESHOLDS, curves[i], color=plots.BLUE)
            cell.axvline(self.threshold[i], color=plots.ORANGE, linewidth=1)
            cell.plot(rows[i]["best_threshold"], rows[i]["best_f1"], "o", color=plots.GREEN)
            cell.set(title=plots.short(self.labels[i]), xlim=(0, 1), ylim=(0, 1.02), xlabel="threshold", ylabel="F1")
        return figure

    def _plot_together(self) -> Figure:
        names = [plots.short(label) for label in self.labels]
        return plots.matrix(self.together, names, MAX_LABELS)


def _f1(hits: Any, false: Any, missed: Any) -> Any:
    with np.errstate(invalid="ignore"):
        return 2 * hits / (2 * hits + false + missed)


def _ratio(part: np.integer, whole: np.integer) -> float | None:
    return float(part / whole) if whole else None
