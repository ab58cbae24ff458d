"""How well probabilities say how often they are right: the reliability diagram and the expected calibration error.

Guo et al., On Calibration of Modern Neural Networks, 2017: BINS bins of equal width; ECE is the mean over all images of
the difference between a bin's mean probability and the fraction that is right in it.
"""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fastmaker.training.report import plots
from fastmaker.training.report.page import Picture, Section

BINS = 15


class Calibration:
    """Probabilities and whether they were right, counted by bins."""

    def __init__(self, probability: str, fraction: str):
        """`probability` and `fraction` name the axes of the diagram."""
        self.names = probability, fraction
        self.counts, self.right, self.sums = (np.zeros(BINS) for _ in range(3))

    def add(self, probabilities: np.ndarray, right: np.ndarray) -> None:
        """Add probabilities in 0..1 (N,) and which of them were right, bool (N,)."""
        bins = np.clip(np.ceil(probabilities * BINS).astype(int) - 1, 0, BINS - 1)  # a bin holds its upper end
        for total, weights in ((self.counts, None), (self.right, right), (self.sums, probabilities)):
            total += np.bincount(bins, weights, BINS)

    @property
    def ece(self) -> float:
        """The expected calibration error, in 0..1."""
        return float(abs(self.right - self.sums).sum() / max(self.counts.sum(), 1))

    def details(self) -> dict[str, Any]:
        """Return the error and the bins that are not empty."""
        return {
            "ece": self.ece,
            "bins": [
                {
                    "from": i / BINS,
                    "to": (i + 1) / BINS,
                    "count": int(count),
                    "probability": float(self.sums[i] / count),
                    "right": float(self.right[i] / count),
                }
                for i, count in enumerate(self.counts)
                if count
            ],
        }

    def section(self) -> Section:
        """Return the part of the page with the reliability diagram."""
        alt = f"Reliability diagram in {BINS} bins of equal width; the expected calibration error is {self.ece:.3f}."
        return Section(
            "Calibration",
            "Bars on the diagonal: probabilities that say how often they are right. Below it, they are too high. The"
            f" expected calibration error (ECE) is {self.ece:.3f}: the mean distance from the diagonal, over {BINS}"
            " bins of equal width, weighted by their counts.",
            [Picture("calibration.png", alt, self._plot)],
        )

    def _plot(self) -> Figure:
        figure, (top, bottom) = plots.grid(2, 1, (5, 2.8))
        edges, used = np.arange(BINS) / BINS, self.counts > 0
        top.bar(edges[used], self.right[used] / self.counts[used], 1 / BINS, align="edge", color="#9ecae1", ec="white")
        top.plot((0, 1), (0, 1), "--", color="#526171", label="perfect")
        top.plot(self.sums[used] / self.counts[used], self.right[used] / self.counts[used], "o", color=plots.BLUE)
        top.set(xlim=(0, 1), ylim=(0, 1.02), ylabel=self.names[1], title=f"ECE {self.ece:.3f}")
        top.legend(frameon=False)
        bottom.bar(edges, self.counts, 1 / BINS, align="edge", color="#bcc7d2", ec="white")
        bottom.set(xlim=(0, 1), xlabel=self.names[0], ylabel="count")
        return figure
