"""Segmentation masks: reading, resizing and colouring. (`answers.Mask` is the answer that holds one.)

A mask is a uint8 array (H, W); each pixel holds the index of its class, so there are at most 256 classes.
"""

import colorsys
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from fastmaker import mask_geometry, preprocess

MAX_CLASSES = 256
SIZES = ("model", "original")  # of a served mask: the network's input size, or that of the request's image
BACKGROUND = "background"  # a class of this name, in any case, is drawn as no class
INDEX_MODES = ("L", "P", "1", "I", "I;16")  # Pillow's modes of mask files


def read(path: str | os.PathLike) -> np.ndarray:
    """Return the class indexes in a mask file, int32 (H, W). Raises preprocess.ImageError and OSError."""
    with open(path, "rb") as file:
        return indexes(preprocess.decode(file.read()))


def indexes(image: Image.Image) -> np.ndarray:
    """Return the class indexes in an image of one channel, int32 (H, W); of a palette image, the palette's indexes.

    Raises preprocess.ImageError.
    """
    if image.mode not in INDEX_MODES:
        raise preprocess.ImageError(f"this is a {image.mode} image; a mask has one channel, of class indexes")
    if image.format == "JPEG":
        raise preprocess.ImageError("this is a JPEG, which changes class indexes; save masks as PNG")
    return np.asarray(image).astype(np.int32)


def palette(labels: Sequence[str], void_code: int | None = None) -> np.ndarray:
    """Return a colour for each class, uint8 (n, 3). Neighbours differ clearly; void and a background are black."""
    hues = (index * 0.618034 % 1 for index in range(len(labels)))
    colours = [colorsys.hsv_to_rgb(hue, (0.85, 0.5)[i // 2 % 2], (0.95, 0.6)[i % 2]) for i, hue in enumerate(hues)]
    colours = np.rint(np.asarray(colours) * 255).astype(np.uint8)
    colours[[index == void_code or label.lower() == BACKGROUND for index, label in enumerate(labels)]] = 0
    return colours


def can_resize_to_original(method: str, void_code: int | None, steps: Sequence[dict[str, Any]] = ()) -> bool:
    """Return whether masks can have the original size of any image: nothing is cropped, or there is a void class."""
    crops = method == "crop" or any(mask_geometry.crops(step) for step in steps)
    return void_code is not None or not crops


def resize_to_original(
    mask: np.ndarray,
    image_size: tuple[int, int],
    method: str,
    void_code: int | None,
    steps: Sequence[dict[str, Any]] = (),
) -> np.ndarray:
    """Return the model's `mask`, uint8 (H, W), resized to the size of the image by nearest neighbour.

    `image_size` is (width, height) in pixels, `method` the resize method of the model, `steps` its steps. What they
    cropped is void. Raises preprocess.ImageError if they cropped something and there is no void class.
    """
    if method == preprocess.STEPS:
        return _back_through(steps, mask, image_size, void_code)
    left, top, right, bottom = preprocess.window(image_size, mask.shape, method)
    if method == "pad":  # by rounding, the window may end a pixel inside the image
        left, top, right, bottom = min(left, 0), min(top, 0), max(right, image_size[0]), max(bottom, image_size[1])
    cuts = left > 0 or top > 0 or right < image_size[0] or bottom < image_size[1]
    if cuts and not can_resize_to_original(method, void_code):
        raise preprocess.ImageError(
            f"the model sees {right - left}x{bottom - top} of the image's {image_size[0]}x{image_size[1]} pixels, and"
            " has no void class for the rest; ask for mask_size=model"
        )
    canvas = Image.new("L", image_size, void_code or 0)
    seen = Image.fromarray(mask).resize((right - left, bottom - top), Image.Resampling.NEAREST)
    canvas.paste(seen, (left, top))
    return np.asarray(canvas)


def _back_through(
    steps: Sequence[dict[str, Any]], mask: np.ndarray, image_size: tuple[int, int], void_code: int | None
) -> np.ndarray:
    """Return for each pixel of the image the class of the mask's nearest one, or void where the steps cut it off."""
    (columns, across), (rows, down) = mask_geometry.pixels_of_mask(steps, image_size, mask.shape)
    seen = down[:, None] & across[None, :]
    if void_code is None and not seen.all():
        raise preprocess.ImageError(
            f"the model sees {across.sum()}x{down.sum()} of the image's {image_size[0]}x{image_size[1]} pixels, and"
            " has no void class for the rest; ask for mask_size=model"
        )
    return np.where(seen, mask[rows[:, None], columns[None, :]], np.uint8(void_code or 0))
