"""The size of the images of a Learner that resizes none: what its validation images have, or what the caller says."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from fastai.vision.all import Learner

from fastmaker import bundle, checks, pipeline
from fastmaker.training import parity

ASSUMED = (224, 224)  # where nothing says the size: of the images that the network is tried with
Size = tuple[int, int]  # (height, width) in pixels
ImageSize = int | Sequence[int] | None  # of all images, as a caller says it: one number or (height, width), in pixels


def find(learn: Learner, steps: Sequence[pipeline.Step], image_size: ImageSize) -> list[Size]:
    """Return the sizes of the network's images: one if all are alike, several, or none if nothing says them.

    `image_size` is that of all images, in pixels: one number or (height, width). Raises BundleError if it is none, or
    another than that of the Learner's images.
    """
    resized = pipeline.output_size(steps)
    found = parity.sizes_of_images(learn) if resized is None else [resized]
    if image_size is None:
        return found
    size = _checked(image_size)
    longest = next((step["longest"] for step in reversed(steps) if step["step"] == "ratio_resize"), None)
    if resized and resized != size:
        reason = f"the Learner's transforms make all images {shown(resized)}"
    elif not resized and longest not in (None, max(size)):
        reason = f"the Learner's RatioResize makes the longer side {longest}"
    elif len(found) > 1:
        reason = f"the Learner's images have several sizes, {shown(found[0])} and {shown(found[1])} among them"
    elif found and found[0] != size:
        reason = f"the Learner's images are {shown(found[0])}"
    else:
        return [size]
    raise bundle.BundleError(f"image_size (height x width) is {shown(size)}, but {reason}; leave it out")


@contextlib.contextmanager
def explaining(assumed: bool) -> Iterator[None]:
    """Say, if the size of the images is `assumed`, in a BundleError of the block how to give it."""
    try:
        yield
    except bundle.BundleError as error:
        if not assumed:
            raise
        raise bundle.BundleError(
            f"{error}; the Learner resizes no image and holds none, so {shown(ASSUMED)} pixels were tried:"
            " image_size=(height, width), or --image-size HEIGHTxWIDTH, says what its images have"
        ) from None


def shown(size: Sequence[int]) -> str:
    """Return a size as HEIGHTxWIDTH."""
    return "x".join(map(str, size))


def _checked(image_size: Any) -> Size:
    """Return (height, width) of one number or two. Raises BundleError."""
    given = [image_size] * 2 if isinstance(image_size, int) else image_size
    if not isinstance(given, Sequence) or not checks.is_size(list(given)):
        raise bundle.BundleError(f"image_size is {image_size!r}; expected pixels, one number or (height, width)")
    return given[0], given[1]
