"""Image bytes -> tensor: decoding, resizing, cropping and normalising for serving.

Each step repeats the arithmetic of fastai's validation pipeline (``PILImage.create``, ``Resize``, ``ToTensor``,
``IntToFloatTensor``, ``Normalize``), so that the network gets the same tensor as in ``learn.predict``.

Up to `to_array` it needs only Pillow and NumPy; torch is imported in the functions that use it. A Triton server, which
has no torch, runs this module, too (export/triton_preprocess.py).
"""

from __future__ import annotations

import functools
import io
import os
import warnings
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

if TYPE_CHECKING:
    import torch

# Pillow's modes of 8 bits, and how many channels an image in each has. (Of mode 1 the pixels are 0 and 1.)
CHANNELS = {"RGB": 3, "L": 1, "RGBA": 4, "LA": 2, "CMYK": 4, "HSV": 3, "YCbCr": 3, "LAB": 3, "1": 1}
IMAGE_MODES = tuple(CHANNELS)
KEPT = ("RGB", "L", "RGBA", "LA", "1")  # modes that an image keeps as a NumPy array
RESIZE_METHODS = ("crop", "pad", "squish")
NO_RESIZE = "none"  # the method of a model that takes images of one size, unchanged
STEPS = "steps"  # the method of a model whose images go through the steps of model.json (fastmaker.pipeline)
PADDING = {"reflection": "reflect", "border": "edge", "zeros": "constant"}  # fastai's names and NumPy's
DEFAULT_MAX_PIXELS = 64_000_000
# Pillow's decoders written in Python that take at most a second for a megabyte of a file, whatever stands in it. Not
# among them: fits_gzip, which unpacks a thousand times its size, and ppm (of another maximum than 255 or 65535).
PYTHON_DECODERS = ("BLP1", "BLP2", "MSP", "SGI16", "bmp_rle", "dds_rgb", "ppm_plain", "qoi", "xpm")
MAX_SCANS = 100  # over all pixels of the largest image; a usual JPEG has up to 15, and of few bytes it can have 50,000


class ImageError(ValueError):
    """Bytes or an array that are not a usable image; the message gives the reason in one line."""


def max_pixels() -> int:
    """Return the largest accepted width x height: FASTMAKER_MAX_PIXELS, by default 64,000,000. Raises ValueError."""
    return int(os.environ.get("FASTMAKER_MAX_PIXELS", DEFAULT_MAX_PIXELS))


def decode(data: bytes) -> Image.Image:
    """Return the first frame of an encoded image, of any format (except EPS and slow ones) and mode that Pillow reads.

    Like ``fastai.vision.core.load_image``, it does not apply the EXIF orientation. Raises ImageError for bytes that are
    empty, not an image or truncated, and for an image of more than `max_pixels` pixels.
    """
    if not data:
        raise ImageError("the image is empty (0 bytes)")
    limit = max_pixels()
    Image.MAX_IMAGE_PIXELS = limit  # Pillow warns above this and raises above twice as much
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=_formats())
            if image.width * image.height <= limit:
                _check_speed(image, data, limit)
                image.load()
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(f"the image has more than {limit:,} pixels") from None
    except Image.UnidentifiedImageError:
        raise ImageError(f"the {len(data):,} bytes are not an image that Pillow can read") from None
    except Exception as error:  # a damaged file makes Pillow's decoders raise almost anything
        raise ImageError(f"the image is damaged or truncated: {_first_line(error)}") from None
    if image.width * image.height > limit:
        raise ImageError(f"the image is {image.width}x{image.height}; at most {limit:,} pixels are accepted")
    return image


def is_image(data: bytes) -> bool:
    """Return whether bytes begin as those of an image do, which may be damaged or too large."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.open(io.BytesIO(data), formats=_formats())
    except Image.UnidentifiedImageError:
        return False
    except Exception:  # as in `decode`
        return True
    return True


def _check_speed(image: Image.Image, data: bytes, limit: int) -> None:
    """Raise ImageError for an image whose few bytes would hold the processor for long.

    Those are the formats that Pillow decodes slowly, in Python, and a JPEG that goes over its pixels very often.
    """
    decoders = {tile[0] for tile in getattr(image, "tile", ())}
    slow = decoders & set(Image.DECODERS) - set(PYTHON_DECODERS)
    if slow:
        raise ImageError(
            f"the image is a {image.format} whose pixels ({min(slow)}) Pillow reads too slowly; convert it to PNG"
        )
    scans = data.count(b"\xff\xda") if image.format in ("JPEG", "MPO") else 1
    if scans * image.width * image.height > MAX_SCANS * limit:
        raise ImageError(f"the image is {image.width}x{image.height} in {scans:,} scans; it would take too long")


def image_from_array(array: np.ndarray) -> Image.Image:
    """Return a uint8 array (H, W) or (H, W, 3) as a Pillow image. Raises ImageError for other arrays."""
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise ImageError(f"expected a uint8 array (H, W) or (H, W, 3), got {array.dtype} {array.shape}")
    if 0 in array.shape:
        raise ImageError(f"the array is empty: its shape is {array.shape}")
    if array.shape[0] * array.shape[1] > max_pixels():
        raise ImageError(
            f"the array is {array.shape[1]}x{array.shape[0]}; at most {max_pixels():,} pixels are accepted"
        )
    return Image.fromarray(np.ascontiguousarray(array))


def to_tensor(image: Image.Image, mode: str, size: tuple[int, int], method: str) -> torch.Tensor:
    """Return `to_array` as a uint8 tensor (C, H, W). Raises ImageError."""
    import torch

    return torch.from_numpy(to_array(image, mode, size, method))


def to_array(image: Image.Image, mode: str, size: tuple[int, int], method: str) -> np.ndarray:
    """Return a Pillow image, converted to `mode` and resized, as uint8 (C, H, W).

    C is that of CHANNELS; (H, W) is `size` in pixels; `method` is that of `resize`. Raises ImageError.
    """
    try:
        image = resize(image.convert(mode), size, method)
    except (ValueError, OSError, OverflowError, SystemError) as error:
        raise ImageError(
            f"a {image.mode} image of {image.width}x{image.height} cannot be made {mode} {size[1]}x{size[0]}:"
            f" {_first_line(error)}"
        ) from None
    return pixels_of(image)


def pixels_of(image: Image.Image) -> np.ndarray:
    """Return the pixels of an image in one of IMAGE_MODES, uint8 (C, H, W)."""
    pixels = np.asarray(image).astype(np.uint8, copy=False)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    return pixels.transpose(2, 0, 1).copy()


def resize(
    image: Image.Image,
    size: tuple[int, int],
    method: str,
    pad_mode: str = "reflection",
    resample: Image.Resampling = Image.Resampling.BILINEAR,
) -> Image.Image:
    """Return the image resized as ``fastai.vision.augment.Resize`` does in validation: centred.

    `size` is (height, width) in pixels. `method` crop fills it and crops the rest, pad fits the whole image in and pads
    by `pad_mode`, one of PADDING, squish ignores the aspect ratio, and NO_RESIZE takes only images of that size. Raises
    ValueError.
    """
    height, width = size
    if method == NO_RESIZE and image.size != (width, height):
        raise ValueError(f"the model was trained without Resize and takes images of {width}x{height}")
    if method != NO_RESIZE:
        image = cut(image, window(image.size, size, method), pad_mode)
    return image.resize((width, height), resample)


def cut(image: Image.Image, box: tuple[int, int, int, int], pad_mode: str) -> Image.Image:
    """Return the part of the image that `box` (left, top, right, bottom) names, padded where it reaches beyond.

    Raises ValueError if that has more than `max_pixels`.
    """
    left, top, right, bottom = box
    if (right - left) * (bottom - top) > max_pixels():  # padding a very narrow image could take gigabytes
        raise ValueError(f"its padded form would be {right - left}x{bottom - top}; at most {max_pixels():,} pixels")
    image_width, image_height = image.size
    inside = max(left, 0), max(top, 0), min(right, image_width), min(bottom, image_height)
    margins = [max(-left, 0), max(-top, 0), max(right - image_width, 0), max(bottom - image_height, 0)]
    if inside != (0, 0, image_width, image_height):
        image = image.crop(inside)
    # Where the box only reaches an edge fastai pads by nothing, which may change the mode all the same.
    reaches = left < 0 or top < 0 or right >= image_width or bottom >= image_height
    padded = any(margins) or (reaches and image.mode not in KEPT)
    return _pad(image, pad_mode, *margins) if padded else image


def _pad(image: Image.Image, pad_mode: str, left: int, top: int, right: int, bottom: int) -> Image.Image:
    """Return the image padded; the margins are in pixels.

    As in ``torchvision.transforms.functional.pad``, only zeros keep a mode that is not one of KEPT. CMYK becomes RGBA,
    whose pixels are resized by the weight of their fourth channel, and LAB, whose numbers Pillow holds signed, RGB.
    """
    if pad_mode == "zeros":
        bands = len(image.getbands())
        return ImageOps.expand(image, (left, top, right, bottom), (0,) * bands if bands > 1 else 0)
    pixels = np.asarray(image)
    margins = [(top, bottom), (left, right), (0, 0)][: pixels.ndim]
    return Image.fromarray(np.pad(pixels, margins, mode=PADDING[pad_mode]))  # type: ignore[call-overload]


def window(image_size: tuple[int, int], size: tuple[int, int], method: str) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom), in pixels, of the part of the image that `resize` scales to `size`.

    With padding it reaches beyond the image. `image_size` is (width, height), as in Pillow; `size` is (height, width).
    """
    image_width, image_height = image_size
    if method in ("squish", NO_RESIZE):
        return 0, 0, image_width, image_height
    if method not in RESIZE_METHODS:
        raise ValueError(f"the resize method {method!r} has no one window")
    height, width = size
    choose = max if method == "pad" else min
    scale = choose(image_width / width, image_height / height)
    window_width, window_height = int(scale * width), int(scale * height)
    left, top = int(0.5 * (image_width - window_width)), int(0.5 * (image_height - window_height))
    return left, top, left + window_width, top + window_height


def standardise(pixels: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, resampled: bool = False) -> torch.Tensor:
    """Return (pixels - mean) / std for float32 images (N, C, H, W) in 0..1; `mean` and `std` are float32 (1, C, 1, 1).

    `resampled` first passes them through the identity grid_sample of fastai's aug_transforms (ModelInfo.resampled).
    """
    import torch
    from torch import nn

    if resampled:
        # Not len(pixels), which torch.export would take for a constant.
        identity = torch.eye(2, 3, device=pixels.device).expand(pixels.shape[0], 2, 3)
        grid = nn.functional.affine_grid(identity, list(pixels.shape), align_corners=True)
        pixels = nn.functional.grid_sample(pixels, grid, padding_mode="reflection", align_corners=True)
    return (pixels - mean) / std


@functools.cache
def _formats() -> list[str]:
    """Return the formats that Pillow reads, without EPS: it would run Ghostscript, an interpreter, on the bytes."""
    Image.init()
    return [name for name in Image.ID if name != "EPS"]


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
