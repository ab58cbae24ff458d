"""Segmentation masks: read from files, answered with, drawn in colours.

A mask is a uint8 array (H, W); each pixel holds the index of its class, so there are at most 256 classes.
"""

import base64
import colorsys
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fastmaker import preprocess

MAX_CLASSES = 256
SIZES = ("model", "original")  # what a served mask may be as large as
LEGEND = "labels"  # the name of the PNG's text chunk that holds the class names
INDEX_MODES = ("L", "P", "1", "I", "I;16")


def read(path: str | os.PathLike) -> np.ndarray:
    """`indexes` of an image file. Raises preprocess.ImageError, also for what is no image."""
    with open(path, "rb") as file:
        return indexes(preprocess.decode(file.read()))


def indexes(image: Image.Image) -> np.ndarray:
    """The class indexes in an image, int32 (H, W). Raises preprocess.ImageError.

    A palette's colours mean nothing here: the indexes count.
    """
    if image.mode not in INDEX_MODES:
        raise preprocess.ImageError(f"this is a {image.mode} image; a mask has one channel, of class indexes")
    if image.format == "JPEG":
        raise preprocess.ImageError("this is a JPEG, which changes class indexes; a mask is a PNG, say")
    return np.asarray(image).astype(np.int32)


def palette(n: int, void: int | None = None) -> np.ndarray:
    """A colour for each class, uint8 (n, 3): neighbours in the list differ most; black is void."""
    hues = (index * 0.618034 % 1 for index in range(n))
    colours = [colorsys.hsv_to_rgb(hue, (0.85, 0.5)[i // 2 % 2], (0.95, 0.6)[i % 2]) for i, hue in enumerate(hues)]
    colours = np.rint(np.asarray(colours) * 255).astype(np.uint8)
    if void is not None:
        colours[void] = 0
    return colours


def can_resize_to_original(method: str, void: int | None) -> bool:
    """Whether there are masks in the size of any image: the resize `method` cuts nothing off, or that is void."""
    return method != "crop" or void is not None


def resize_to_original(mask: np.ndarray, image_size: tuple[int, int], method: str, void: int | None) -> np.ndarray:
    """The model's `mask` of an image, uint8 (H, W), as large as the image was (width, height): each pixel's nearest.

    What the resize `method` cut off is void. Raises preprocess.ImageError if there is no void class then.
    """
    left, top, right, bottom = preprocess.window(image_size, mask.shape, method)
    if method == "pad":  # the window may end a pixel short of the image, which its edge covers as well
        left, top, right, bottom = min(left, 0), min(top, 0), max(right, image_size[0]), max(bottom, image_size[1])
    cuts = left > 0 or top > 0 or right < image_size[0] or bottom < image_size[1]
    if cuts and not can_resize_to_original(method, void):
        raise preprocess.ImageError(
            f"the model sees {right - left}x{bottom - top} of the image's {image_size[0]}x{image_size[1]} pixels, and"
            " has no void class for the rest; ask for mask_size=model"
        )
    canvas = Image.new("L", image_size, void or 0)
    seen = Image.fromarray(mask).resize((right - left, bottom - top), Image.Resampling.NEAREST)
    canvas.paste(seen, (left, top))
    return np.asarray(canvas)


@dataclass(frozen=True)
class Mask:
    """The answer for one image: the class of each pixel, as an index into `labels`."""

    array: np.ndarray  # uint8 (H, W)
    labels: Sequence[str]
    void: int | None = None  # the class that counts for nothing

    def counts(self) -> dict[str, int]:
        """How many pixels each class has."""
        counts = np.bincount(self.array.ravel(), minlength=len(self.labels))
        return dict(zip(self.labels, counts.tolist(), strict=True))

    def as_object(self) -> dict:
        """The JSON answer; `base64_prediction` holds the mask's bytes row by row, as published examples have it."""
        counts = enumerate(self.counts().items())
        return {
            "base64_prediction": base64.b64encode(self.array.tobytes()).decode("ascii"),
            "shape": list(self.array.shape),
            "classes": [{"label": label, "index": i, "pixels": pixels} for i, (label, pixels) in counts if pixels],
        }

    def as_line(self) -> dict:
        """The answer's line in JSON lines."""
        return self.counts()

    def as_row(self) -> list:
        """The answer's line in CSV."""
        return list(self.counts().values())

    def as_png(self) -> bytes:
        """A palette PNG whose text chunk LEGEND holds the class names, as a JSON list in the order of the indexes."""
        image = Image.fromarray(self.array)
        image.putpalette(palette(len(self.labels), self.void).tobytes())
        legend = PngInfo()
        legend.add_text(LEGEND, json.dumps(self.labels))
        stream = io.BytesIO()
        image.save(stream, "PNG", pnginfo=legend)
        return stream.getvalue()
