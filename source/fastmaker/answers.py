"""The answer for one image, and its forms in JSON, CSV and PNG.

By task: `Prediction` of one label, `LabelSet` of several, `Values` of a regression, `Points`, and `Mask` of a
segmentation.
"""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fastmaker import geometry, masks, tasks

if TYPE_CHECKING:
    from fastmaker.bundle import ModelInfo

LEGEND = "labels"  # the name of the PNG's text chunk that holds the class names


@dataclass(frozen=True)
class Prediction:
    """The answer for one image by a classifier: the probability of each label.

    It has the numbers of the third value that ``learn.predict`` returns.
    """

    probabilities: np.ndarray  # float32 (n_labels,); after a softmax they add up to 1
    labels: Sequence[str]  # in the order of the probabilities

    @property
    def index(self) -> int:
        """The index of the most probable label."""
        return int(self.probabilities.argmax())

    @property
    def label(self) -> str:
        """The most probable label."""
        return self.labels[self.index]

    @property
    def array(self) -> np.ndarray:
        """The answer as application/x-npy: the probabilities, float32 (n_labels,)."""
        return self.probabilities

    def as_object(self) -> dict[str, Any]:
        """Return the JSON object: label, index, probability, and the 5 most probable labels as `top`.

        `predictions` repeats the index, for clients of AWS's published examples.
        """
        top = np.argsort(-self.probabilities, kind="stable")[:5]
        return {
            "label": self.label,
            "index": self.index,
            "probability": float(self.probabilities[self.index]),
            "top": [{"label": self.labels[i], "probability": float(self.probabilities[i])} for i in top],
            "predictions": self.index,
        }

    def as_line(self) -> dict[str, Any]:
        """Return the object of a line in JSON lines, which is `as_object`."""
        return self.as_object()

    def as_row(self) -> list[Any]:
        """Return the CSV row: label, index, probability."""
        return [self.label, self.index, repr(float(self.probabilities[self.index]))]


@dataclass(frozen=True)
class LabelSet:
    """The answer for one image by a classifier of several labels: the probability of each.

    It has the numbers of the third value that ``learn.predict`` returns.
    """

    probabilities: np.ndarray  # float32 (n_labels,), each of its own
    vocab: Sequence[str]  # in the order of the probabilities
    threshold: tasks.Threshold = 0.5  # see tasks.is_over

    @property
    def labels(self) -> list[str]:
        """The labels whose probability is above the threshold, in the order of the vocabulary."""
        over = tasks.is_over(self.probabilities, self.threshold)
        return [label for label, is_over in zip(self.vocab, over, strict=True) if is_over]

    @property
    def array(self) -> np.ndarray:
        """The answer as application/x-npy: the probabilities, float32 (n_labels,)."""
        return self.probabilities

    def as_object(self) -> dict[str, Any]:
        """Return the JSON object: `labels`, and the `probabilities` of all labels by name."""
        pairs = zip(self.vocab, self.probabilities.tolist(), strict=True)
        return {"labels": self.labels, "probabilities": dict(pairs)}

    def as_line(self) -> dict[str, Any]:
        """Return the object of a line in JSON lines, which is `as_object`."""
        return self.as_object()

    def as_row(self) -> list[Any]:
        """Return the CSV row: the labels, joined by ";", then the probability of each label of the vocabulary."""
        return [";".join(self.labels), *map(repr, self.probabilities.tolist())]


@dataclass(frozen=True)
class Values:
    """The answer for one image by a regression model: the third value of ``learn.predict``."""

    array: np.ndarray  # float32 () or (n,)
    names: Sequence[str] = ()  # of the numbers, if they have any

    @property
    def values(self) -> list[float]:
        """The numbers as a list, also of a single one."""
        return self.array.ravel().tolist()

    @property
    def named_values(self) -> dict[str, float]:
        """The numbers by their names; none without names."""
        return dict(zip(self.names, self.values, strict=True)) if self.names else {}

    def as_object(self) -> dict[str, Any]:
        """Return the JSON object: `values`, a list; of numbers with names also `named_values`, by name."""
        return {"values": self.values} | ({"named_values": self.named_values} if self.names else {})

    def as_line(self) -> dict[str, Any]:
        """Return the object of a line in JSON lines, which is `as_object`."""
        return self.as_object()

    def as_row(self) -> list[Any]:
        """Return the CSV row: the values."""
        return list(map(repr, self.values))


@dataclass(frozen=True)
class Points:
    """The answer for one image by a model of points."""

    array: np.ndarray  # the third value of learn.predict: float32 (2n,) or (n, 2), -1..1 of the network's input
    points: np.ndarray  # float64 (n, 2): x and y in pixels of the image that was sent, from its upper left corner

    def as_object(self) -> dict[str, Any]:
        """Return the JSON object: `points`, a list of [x, y] in pixels of the image that was sent."""
        return {"points": self.points.tolist()}

    def as_line(self) -> dict[str, Any]:
        """Return the object of a line in JSON lines, which is `as_object`."""
        return self.as_object()

    def as_row(self) -> list[Any]:
        """Return the CSV row: x and y of the first point, of the second, and so on."""
        return list(map(repr, self.points.ravel().tolist()))


@dataclass(frozen=True)
class Mask:
    """The answer for one image by a segmentation model: the class of each pixel."""

    array: np.ndarray  # uint8 (H, W), indexes into labels; the model's input size or the image's (masks.SIZES)
    labels: Sequence[str]
    void_code: int | None = None  # the index of the class that is ignored in loss and metrics

    def counts(self) -> dict[str, int]:
        """Return the number of pixels of each class, by label."""
        counts = np.bincount(self.array.ravel(), minlength=len(self.labels))
        return dict(zip(self.labels, counts.tolist(), strict=True))

    def as_object(self) -> dict[str, Any]:
        """Return the JSON object: `base64_prediction`, `shape` [H, W], and the `classes` that occur.

        `base64_prediction` is the uint8 array row by row, as in AWS's published examples.
        """
        counts = enumerate(self.counts().items())
        return {
            "base64_prediction": base64.b64encode(self.array.tobytes()).decode("ascii"),
            "shape": list(self.array.shape),
            "classes": [{"label": label, "index": i, "pixels": pixels} for i, (label, pixels) in counts if pixels],
        }

    def as_line(self) -> dict[str, Any]:
        """Return the object of a line in JSON lines: `counts`."""
        return self.counts()

    def as_row(self) -> list[Any]:
        """Return the CSV row: the number of pixels of each class, in the order of the labels."""
        return list(self.counts().values())

    def as_png(self) -> bytes:
        """Return a PNG with a palette; its text chunk LEGEND holds the labels as a JSON list."""
        image = Image.fromarray(self.array)
        image.putpalette(masks.palette(self.labels, self.void_code).tobytes())
        legend = PngInfo()
        legend.add_text(LEGEND, json.dumps(self.labels))
        stream = io.BytesIO()
        image.save(stream, "PNG", pnginfo=legend)
        return stream.getvalue()


Answer = Prediction | LabelSet | Values | Points | Mask


def of(numbers: np.ndarray, image_size: tuple[int, int], info: "ModelInfo") -> Answer:
    """Return the answer that the numbers of an image stand for, or a mask's classes.

    `numbers` is float32 of the shape `info.shape`, of a segmentation uint8 (H, W). `image_size` is (width, height) of
    the image.
    """
    if info.task == "classification":
        return Prediction(numbers, info.labels)
    if info.task == "multilabel":
        return LabelSet(numbers, info.labels, info.threshold)
    if info.task == "regression":
        return Values(numbers, info.names)
    if info.task == "points":
        return Points(numbers, geometry.to_image(numbers.reshape(-1, 2), image_size, info))
    return Mask(numbers, info.labels, info.void_code)
