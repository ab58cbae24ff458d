"""The answer for one image, and its forms in JSON, CSV and PNG: `Prediction` of classes, `Mask` of a segmentation."""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fastmaker import masks

LEGEND = "labels"  # the name of the PNG's text chunk that holds the class names


@dataclass(frozen=True)
class Prediction:
    """The answer for one image by a classifier: the probability of each label.

    It has the numbers of the third value that ``learn.predict`` returns.
    """

    probabilities: np.ndarray  # float32 (n_labels,), which add up to 1
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
        image.putpalette(masks.palette(len(self.labels), self.void_code).tobytes())
        legend = PngInfo()
        legend.add_text(LEGEND, json.dumps(self.labels))
        stream = io.BytesIO()
        image.save(stream, "PNG", pnginfo=legend)
        return stream.getvalue()
