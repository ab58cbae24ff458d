"""What has changed between a baseline and a window: a test for each value, corrected for their number.

The two-sample test of Kolmogorov and Smirnov compares values, chi-squared counts of labels; Benjamini and Yekutieli's
correction holds for tests that depend on each other. An alarm is a change that is sure and large enough to matter.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from fastmaker.baseline import SMALL, UPRIGHT, Baseline
from fastmaker.jobs.monitoring.window import Window

ALPHA = 0.01  # of all tests together: the probability of an alarm where nothing has changed
LEAST_EFFECT = 0.1  # of two distributions: the largest difference of the fractions below any value
LEAST_IMAGES = 5  # on either side
LEAST_EXPECTED = 1  # images of a label; rarer ones are counted together
# The value, what a report calls it, and which change is an alarm: "two-sided", or one that is "less" or "greater".
# A network is surer of images that it was trained on, and these are closer: that is no alarm.
TESTS = {
    "brightness": ("brightness", "two-sided"),
    "contrast": ("contrast", "two-sided"),
    "sharpness": ("sharpness", "two-sided"),
    "edges": ("orientation", "two-sided"),
    "axes": ("orientation", "two-sided"),
    "size": ("size", "two-sided"),
    "shape": ("shape", "two-sided"),
    "distance": ("content", "greater"),
    "confidence": ("confidence", "less"),
}
CAUSES = tuple(dict.fromkeys([cause for cause, _ in TESTS.values()] + ["labels"]))
# What follows from other changes counts half when causes are put in order: what darkens images also makes a network
# less sure, and what turns them changes their width.
CONSEQUENCES = ("content", "confidence", "labels", "shape")
KOLMOGOROV: dict[str, str] = {"less": "greater", "greater": "less"}  # of distribution functions: the other way round


@dataclass
class Change:
    """A test of one value."""

    value: str
    cause: str
    before: float  # the median in the baseline
    now: float
    effect: float  # from 0 to 1
    p: float
    corrected: float = 1.0
    turned: bool = False  # turning the images back undoes more than half of the change

    @property
    def alarm(self) -> bool:
        """Whether the change is sure, and large enough to matter."""
        return self.corrected < ALPHA and self.effect >= LEAST_EFFECT

    @property
    def weight(self) -> float:
        """How likely the change is the cause of the others; above 1 if a turn explains it."""
        return self.effect * (0.5 if self.cause in CONSEQUENCES else 1) + self.turned


def compare(known: Baseline, window: Window) -> list[Change]:
    """Return the tests of a window, the likeliest cause first: those that are an alarm, and then the others."""
    changes = [
        found
        for value, (cause, alternative) in TESTS.items()
        if value in known.values and value in window.values
        for found in _of_values(value, cause, known.values[value], window.values[value], alternative)
    ]
    changes += [*_upright(known, window), *_of_embeddings(known, window), *_of_labels(known.labels, window.labels)]
    if changes:
        corrected = stats.false_discovery_control([change.p for change in changes], method="by")
        for change, p in zip(changes, corrected, strict=True):
            change.corrected = float(p)
    return sorted(changes, key=lambda change: (not change.alarm, -change.weight))


def _of_values(value: str, cause: str, before: np.ndarray, now: np.ndarray, alternative: str) -> list[Change]:
    if min(len(before), len(now)) < LEAST_IMAGES:
        return []
    found = stats.ks_2samp(now, before, alternative=KOLMOGOROV.get(alternative, alternative), method="asymp")
    change = Change(value, cause, float(np.median(before)), float(np.median(now)), *map(float, found[:2]))
    if value == "shape" and change.p < ALPHA:
        back = stats.ks_2samp(-now, before, method="asymp").statistic
        if 2 * back < change.effect:
            change.cause, change.turned = "orientation", True  # width and height are swapped
    return [change]


def _upright(known: Baseline, window: Window) -> list[Change]:
    """Return Hotelling's test of what a turn by 180 degrees changes the sign of.

    Its cause is the orientation if the mean has moved as it does where images were turned, and else the content.
    """
    names = [name for name in UPRIGHT if name in known.values and name in window.values]
    if not names:  # a baseline of an earlier version may have one of them
        return []
    before, now = (np.stack([values[name] for name in names], 1) for values in (known.values, window.values))
    if min(len(before), len(now)) < LEAST_IMAGES:
        return []
    mean, covariance = before.mean(0), np.atleast_2d(np.cov(before, rowvar=False)) + SMALL * np.eye(len(names))
    upwards = np.linalg.solve(covariance, mean)
    share = np.clip((mean - now.mean(0)) @ upwards / max(2 * mean @ upwards, SMALL), 0, 1)  # of the images, turned
    of_before = len(before), mean, covariance
    found, rest = (_hotelling("upright", "content", of_before, now + 2 * turned * mean) for turned in (0, share))
    for change, other in zip(found, rest, strict=True):
        if 2 * other.effect < change.effect:
            change.cause = "orientation"
            change.turned = bool(share > 0.5)  # else the values may have become less, as where images are blurred
    return found


def _of_embeddings(known: Baseline, window: Window) -> list[Change]:
    """Return Hotelling's test of the embeddings."""
    own = known.embedding
    if own is None or window.projected is None:
        return []
    return _hotelling("embedding", "content", (known.images, own.mean, own.covariance), window.projected)


def _hotelling(value: str, cause: str, known: tuple[int, np.ndarray, np.ndarray], found: np.ndarray) -> list[Change]:
    """Return Hotelling's test of a mean; the "medians" are 0, and how far the mean has moved.

    `known` are the number of images, their mean (k,) and covariance (k, k); `found` is (n, k).
    """
    before, mean, own = known
    now, directions = found.shape
    if now < LEAST_IMAGES or before + now < directions + 2:
        return []
    covariance = own * (before - 1) + np.atleast_2d(np.cov(found, rowvar=False)) * (now - 1)
    covariance = covariance / (before + now - 2)
    shift = found.mean(0) - mean
    squared = float(shift @ np.linalg.solve(covariance, shift))
    of_chance = 1 / before + 1 / now
    freedom = before + now - directions - 1
    p = stats.f.sf(squared / of_chance * freedom / (directions * (before + now - 2)), directions, freedom)
    moved = float(np.sqrt(max(0.0, squared - directions * of_chance)))
    # The largest difference of the fractions below a value, of two normal distributions that are so far apart.
    return [Change(value, cause, 0.0, moved, float(2 * stats.norm.cdf(moved / 2) - 1), float(p))]


def _of_labels(before: dict[str, int], now: dict[str, int]) -> list[Change]:
    """Return the test of the labels' shares; the medians are those of the share that has changed most."""
    counts = np.array([[before.get(label, 0), now.get(label, 0)] for label in before], float).reshape(-1, 2).T
    totals = counts.sum(1)
    if counts.shape[1] < 2 or totals.min() < LEAST_IMAGES:
        return []
    shares = counts / totals[:, None]
    most = np.abs(shares[1] - shares[0]).argmax()
    rare = counts.sum(0) * totals.min() / totals.sum() < LEAST_EXPECTED
    counts = np.column_stack([counts[:, ~rare], counts[:, rare].sum(1)])
    counts = counts[:, counts.sum(0) > 0]
    if counts.shape[1] < 2:
        return []
    found = stats.chi2_contingency(counts, correction=False)
    # Half of Cohen's w, less what chance alone would give, to be comparable to the other effects.
    effect = min(1.0, 0.5 * float(np.sqrt(max(0.0, found.statistic - found.dof) * totals.sum() / totals.prod())))
    return [Change("labels", "labels", float(shares[0][most]), float(shares[1][most]), effect, float(found.pvalue))]
