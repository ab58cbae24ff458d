"""How the predictions of routes compare with those of a reference, image by image.

A route is a way to a prediction: an engine in this process, or a server. It disagrees if a number differs by more than
its tolerance (above 1, by that share of it), or if it gives another label (of a mask: a pixel another class) where the
reference's two highest probabilities are further apart than twice the tolerance; of several labels, if one is given
whose probability is further from the threshold than the tolerance.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from fastmaker import tasks

if TYPE_CHECKING:
    from fastmaker.bundle import ModelInfo


@dataclass(frozen=True)
class Answer:
    """A route's prediction for one image."""

    classes: np.ndarray  # int () of a classifier, bool (n_labels,) of several labels, int (H, W) of a U-Net; else empty
    numbers: np.ndarray | None  # float32 as in ModelInfo.shape; None from servers of masks
    threshold: tasks.Threshold = None  # of several labels

    def margin(self) -> np.ndarray:
        """Return the difference of the two highest probabilities, as `classes`; inf where they are unknown.

        Of several labels it is twice the distance of each from the threshold.
        """
        if self.numbers is None or not self.classes.size:
            return np.full(self.classes.shape, np.inf)
        if self.classes.dtype == bool:
            return 2 * np.abs(self.numbers - np.asarray(1 if self.threshold is None else self.threshold))
        second, first = np.partition(self.numbers, -2, axis=0)[-2:]
        return first - second


def answer(numbers: np.ndarray, info: "ModelInfo") -> Answer:
    """Return what the numbers of one image stand for."""
    if info.task == "multilabel":
        return Answer(tasks.is_over(numbers, info.threshold), numbers, info.threshold)
    if info.task in tasks.LABELLED:
        return Answer(numbers.argmax(axis=0), numbers)
    return Answer(np.empty(0, int), numbers)


@dataclass(frozen=True)
class Difference:
    """An image for which a route gives other classes than the reference."""

    route: str
    image: bytes
    found: Answer
    expected: Answer


class Unavailable(Exception):
    """A route cannot run on this machine; the message says why."""


class Route:
    """A way to a prediction, with the figures and the result of its comparison."""

    def __init__(self, name: str, tolerance: float, serving: Callable[[], AbstractContextManager]):
        """`serving()` is a context manager that yields a function from an encoded image to an Answer."""
        self.name, self.tolerance, self.serving = name, tolerance, serving
        self.predict = None  # while it runs: from an encoded image to an Answer
        self.unavailable = self.failure = ""
        self.start_seconds = self.seconds = 0.0
        self.images = self.equal = self.total = 0
        self.largest = None

    def start(self, stack: ExitStack, image: bytes) -> None:
        """Start what predicts, until the stack is closed, and measure the time until its first answer."""
        started = time.perf_counter()
        try:
            predict = stack.enter_context(self.serving())
            predict(image)
        except Unavailable as error:
            self.unavailable = str(error)
        except KeyboardInterrupt:  # that of local mode's session is an Exception as well
            raise
        except Exception as error:  # a failure of one route is the result of that route
            self.failure = _one_line(error)
        else:
            self.predict = predict
        self.start_seconds = time.perf_counter() - started

    def answer(self, file: Path, image: bytes) -> Answer | None:
        """Return the answer for an image; after a failure None, and the route is stopped."""
        started = time.perf_counter()
        try:
            answer = self.predict(image)
        except KeyboardInterrupt:
            raise
        except Exception as error:
            self.failure = f"{file}: {_one_line(error)}"
            self.predict = None
            return None
        self.seconds += time.perf_counter() - started
        self.images += 1
        return answer

    def compare(self, file: Path, found: Answer, expected: Answer) -> bool:
        """Count one answer; return whether its classes are those expected."""
        if found.classes.shape != expected.classes.shape:
            self.failure = f"{file}: the answer's shape is {found.classes.shape}, not {expected.classes.shape}"
            return False
        differs = found.classes != expected.classes
        self.total += differs.size
        self.equal += int((~differs).sum())
        if (differs & (expected.margin() > 2 * self.tolerance)).any():
            self.failure = self.failure or f"{file}: another answer"
        if found.numbers is not None and expected.numbers is not None:
            relative = np.abs(found.numbers - expected.numbers) / np.maximum(1, np.abs(expected.numbers))
            difference = float(relative.max())
            self.largest = max(self.largest or 0.0, difference)
            if not difference <= self.tolerance:  # true for nan
                self.failure = self.failure or f"{file}: off by {difference:.1e}, more than {self.tolerance:g}"
        return not differs.any()

    def row(self) -> list:
        """Return the name, equal and all classes, the largest difference, images/s, seconds to start, the result."""
        if self.unavailable or not self.images:
            return [self.name, "-", "-", "-", "-", "-", self._result()]
        largest = "-" if self.largest is None else f"{self.largest:.1e}"
        rate, start = round(self.images / self.seconds, 1), round(self.start_seconds, 1)
        counts = [self.equal, self.total] if self.total else ["-", "-"]  # numbers and points have no labels
        return [self.name, *counts, largest, rate, start, self._result()]

    def _result(self) -> str:
        if self.unavailable:
            return f"not run: {self.unavailable}"
        return f"FAILED: {self.failure}" if self.failure else "agrees"


def compare(routes: list[Route], files: list[Path], limit: int) -> list[Difference]:
    """Compare the routes, which have been started, on each image file; the first that runs is the reference.

    Returns the first `limit` differences of classes. Raises ValueError for a file that is no image.
    """
    differences = []
    reference = next((route for route in routes if route.predict), None)
    for file in tqdm(files, unit="image", leave=False, disable=None):
        image = read_image(file)
        running = [route for route in routes if route.predict]
        answers = [(route, route.answer(file, image)) for route in running]
        if not answers or answers[0][0] is not reference or answers[0][1] is None:
            break  # the reference has failed
        expected = answers[0][1]
        for route, found in answers:
            if found and not route.compare(file, found, expected) and len(differences) < limit:
                differences.append(Difference(route.name, image, found, expected))
    return differences


def read_image(file: Path) -> bytes:
    """Return the content of an image file. Raises ValueError if it is no image."""
    from fastmaker import preprocess

    data = file.read_bytes()
    try:
        preprocess.decode(data)
    except preprocess.ImageError as error:
        raise ValueError(f"{file}: {error}") from None
    return data


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
