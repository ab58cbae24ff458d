"""The report of points: predicted and true ones on images, and the distances between them."""

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from fastmaker.training.report import plots, predictions
from fastmaker.training.report.page import Picture, Section, Table

if TYPE_CHECKING:
    import torch
    from fastai.vision.all import Learner

SHOWN = 9


class Points:
    """The answers to images that have the same number of points each."""

    def __init__(self, size: tuple[int, int]):
        """`size` is that of the network's input, (height, width) in pixels."""
        self.size = size
        self.indexes = np.empty(0, np.int64)
        self.distances: list[np.ndarray] = []

    def add(self, indexes: np.ndarray, numbers: "torch.Tensor", decoded: "torch.Tensor", true: "torch.Tensor") -> None:
        """Add a batch: points (N, 2n), from -1 to 1 as fastai's PointScaler has them, and the true ones (N, n, 2)."""
        predicted, truth = (self._pixels(tensor.double().cpu().numpy()) for tensor in (numbers, true))
        self.indexes = np.concatenate([self.indexes, indexes])
        self.distances.append(np.linalg.norm(predicted - truth, axis=2))

    @property
    def errors(self) -> np.ndarray:
        """The distance of each point from the true one, in pixels of the network's input (N, n)."""
        return np.concatenate(self.distances)

    def metrics(self) -> dict[str, float]:
        """Return what the metrics of the training lack: nothing."""
        return {}

    def key_figures(self) -> dict[str, float]:
        """Return the figures that a run is compared by."""
        return {"mean_error_pixels": float(self.errors.mean()), "median_error_pixels": float(np.median(self.errors))}

    def details(self) -> dict[str, Any]:
        """Return what metrics.json has beside the metrics."""
        names = ("mean_error_pixels", "median_error_pixels", "error_pixels_95th_percentile")
        return {
            "pixels": f"of the network's input, {self.size[0]}x{self.size[1]}",
            **self.key_figures(),
            "points": [dict(zip(names, row, strict=True)) for _, *row in self._rows()],
        }

    def sections(self, learn: "Learner") -> list[Section]:
        """Return the parts of the page. `learn` answers again to the few images that are shown."""
        errors, height, width = self.errors, *self.size
        worst = self.indexes[np.argsort(-errors.mean(1), kind="stable")[:SHOWN]].tolist()
        some = self.indexes[predictions.spread(len(self.indexes), SHOWN)].tolist()
        return [
            Section(
                "Points",
                f"Errors are distances in pixels of the network's input, {height}x{width}.",
                [
                    Picture(
                        "errors.png",
                        f"How many points have which error; the mean is {errors.mean():.2f} pixels.",
                        self._plot_errors,
                    ),
                    Table("Errors", ("point", "mean", "median", "95th percentile"), self._rows()),
                ],
            ),
            Section(
                "Images",
                "A green circle is a true point, an orange cross the predicted one.",
                [
                    Picture(
                        "points.png",
                        f"{len(some)} validation images with their true and predicted points.",
                        lambda: self._plot_images(learn, some),
                    ),
                    Picture(
                        "largest_errors.png",
                        f"The {len(worst)} images with the largest errors.",
                        lambda: self._plot_images(learn, worst),
                    ),
                ],
            ),
        ]

    def _pixels(self, points: np.ndarray) -> np.ndarray:
        """Return points (N, n, 2), x and y, in pixels of the network's input."""
        pixels: np.ndarray = (points.reshape(len(points), -1, 2) + 1) / 2 * np.asarray(self.size[::-1])
        return pixels

    def _rows(self) -> list[list[Any]]:
        return [
            [i, float(errors.mean()), float(np.median(errors)), float(np.percentile(errors, 95))]
            for i, errors in enumerate(self.errors.T, 1)
        ]

    def _plot_errors(self) -> Figure:
        figure, [axes] = plots.grid(1, 1, (6, 3.4))
        errors = self.errors.ravel()
        axes.hist(errors, bins=min(40, max(5, errors.size // 5)), color="#9ecae1", ec="white")
        axes.axvline(errors.mean(), color=plots.ORANGE, label=f"mean {errors.mean():.2f}")
        axes.set(xlabel="error in pixels of the network's input", ylabel="points", xlim=(0, None))
        axes.legend(frameon=False)
        return figure

    def _plot_images(self, learn: "Learner", indexes: list[int]) -> Figure:
        images, numbers, _, true = predictions.shown(learn, indexes)
        figure, cells = plots.grid(len(images), 3, (3.2, 3.3))
        height, width = self.size
        for cell, image, found, truth in zip(cells, images, self._pixels(numbers), self._pixels(true), strict=True):
            plots.show_image(cell, image)
            cell.plot(*truth.T, "o", mfc="none", mec="#48bb78", mew=2, ms=9)
            cell.plot(*found.T, "x", color=plots.ORANGE, mew=2, ms=8)
            cell.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
        return figure
