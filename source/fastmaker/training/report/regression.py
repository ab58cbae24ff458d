"""The report of numbers: predicted against true ones, residuals, and the errors of each column."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from sklearn import metrics

from fastmaker.training.report import plots, predictions
from fastmaker.training.report.page import Picture, Section, Table

if TYPE_CHECKING:
    import torch
    from fastai.vision.all import Learner

SHOWN_ERRORS = 9
MAX_PLOTS = 12  # columns that are plotted


class Numbers:
    """The answers to images that have one number or several each."""

    def __init__(self, names: Sequence[str] = ()):
        self.given = names
        self.indexes = np.empty(0, np.int64)
        self.parts: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, indexes: np.ndarray, numbers: "torch.Tensor", decoded: "torch.Tensor", true: "torch.Tensor") -> None:
        """Add a batch: numbers (N,) or (N, n), and the true ones."""
        rows = (tensor.double().cpu().numpy().reshape(len(indexes), -1) for tensor in (numbers, true))
        predicted, truth = rows
        self.indexes = np.concatenate([self.indexes, indexes])
        self.parts.append((predicted, truth))

    @property
    def predicted(self) -> np.ndarray:
        """The numbers of all images (N, n)."""
        return np.concatenate([predicted for predicted, _ in self.parts])

    @property
    def true(self) -> np.ndarray:
        """The true numbers of all images (N, n)."""
        return np.concatenate([true for _, true in self.parts])

    @property
    def names(self) -> list[str]:
        """The names of the numbers: value, or value 1 to value n, where none are given."""
        n = self.parts[0][1].shape[1]
        if len(self.given) == n:
            return list(self.given)
        return ["value"] if n == 1 else [f"value {i}" for i in range(1, n + 1)]

    def metrics(self) -> dict[str, float]:
        """Return what the metrics of the training lack: nothing."""
        return {}

    def key_figures(self) -> dict[str, float]:
        """Return the figures that a run is compared by."""
        errors = self.predicted - self.true
        return {"mae": float(abs(errors).mean()), "rmse": float(np.sqrt((errors**2).mean()))}

    def details(self) -> dict[str, Any]:
        """Return what metrics.json has beside the metrics."""
        names = ("mae", "rmse", "r2", "mean_residual")
        return {
            **self.key_figures(),
            "columns": {name: dict(zip(names, row, strict=True)) for name, *row in self._rows()},
        }

    def sections(self, learn: "Learner") -> list[Section]:
        """Return the parts of the page. `learn` answers again to the few images that are shown."""
        header = ("", "MAE", "RMSE", "R²", "mean residual")
        n = len(self.names)
        cut = f", of the first {MAX_PLOTS} of {n} numbers" if n > MAX_PLOTS else ""
        images = f"The {min(SHOWN_ERRORS, len(self.indexes))} images with the largest errors."
        return [
            Section(
                "Numbers",
                "R² is the fraction of the variance that the predictions explain; a dash: the true numbers are all"
                " equal. A residual is the predicted number less the true one.",
                [
                    Table("Errors", header, self._rows()),
                    Picture("predicted.png", f"Predicted numbers against true ones{cut}.", self._plot_predicted),
                    Picture("residuals.png", f"How many images have which residual{cut}.", self._plot_residuals),
                ],
            ),
            Section("Largest errors", "", [Picture("largest_errors.png", images, lambda: self._plot_errors(learn))]),
        ]

    def _rows(self) -> list[list[Any]]:
        rows = []
        for name, predicted, true in zip(self.names, self.predicted.T, self.true.T, strict=True):
            residuals = predicted - true
            rows.append(
                [
                    name,
                    float(metrics.mean_absolute_error(true, predicted)),
                    float(np.sqrt(metrics.mean_squared_error(true, predicted))),
                    float(metrics.r2_score(true, predicted)) if np.ptp(true) > 0 else None,
                    float(residuals.mean()),
                ]
            )
        return rows

    def _columns(self) -> list[tuple[str, np.ndarray, np.ndarray]]:
        columns = zip(self.names, self.predicted.T, self.true.T, strict=True)
        return [(plots.short(name), predicted, true) for name, predicted, true in columns][:MAX_PLOTS]

    def _plot_predicted(self) -> Figure:
        columns = self._columns()
        figure, cells = plots.grid(len(columns), 3, (4, 4))
        for cell, (name, predicted, true) in zip(cells, columns, strict=True):
            cell.plot(true, predicted, ".", color=plots.BLUE, alpha=0.5)
            cell.axline((true[0], true[0]), slope=1, linestyle="--", color="#526171", linewidth=1)
            cell.set(title=name, xlabel="true", ylabel="predicted")
        return figure

    def _plot_residuals(self) -> Figure:
        columns = self._columns()
        figure, cells = plots.grid(len(columns), 3, (4, 3))
        for cell, (name, predicted, true) in zip(cells, columns, strict=True):
            cell.hist(predicted - true, bins=min(40, max(5, len(true) // 5)), color="#9ecae1", ec="white")
            cell.axvline(0, linestyle="--", color="#526171", linewidth=1)
            cell.set(title=name, xlabel="predicted less true", ylabel="images")
        return figure

    def _plot_errors(self, learn: "Learner") -> Figure:
        predicted, true = self.predicted, self.true
        scale = true.std(0)
        errors = (abs(predicted - true) / np.where(scale > 0, scale, 1)).max(1)  # columns have units of their own
        top = np.argsort(-errors, kind="stable")[:SHOWN_ERRORS]
        images, *_ = predictions.shown(learn, self.indexes[top].tolist())
        figure, cells = plots.grid(len(top), 3, (3.2, 3.7))
        for cell, image, i in zip(cells, images, top, strict=True):
            lines = [f"true: {_several(true[i])}", f"predicted: {_several(predicted[i])}"]
            plots.show_image(cell, image, "\n".join(lines))
        return figure


def _several(numbers: np.ndarray) -> str:
    return ", ".join(f"{number:.4g}" for number in numbers[:4]) + (", ..." if len(numbers) > 4 else "")
