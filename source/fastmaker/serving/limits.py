"""What one request may ask for. A worker that has not answered in time is ended, and with it the requests behind it."""

import os
import time
from collections.abc import Iterator
from typing import TypeVar

from fastmaker import preprocess

DEFAULT_MAX_IMAGES = 10_000
DEFAULT_MAX_SECONDS = 50  # SageMaker waits for 60, TorchServe for 120 unless it is told otherwise
Item = TypeVar("Item")


def max_images() -> int:
    """Return how many images a request may have: FASTMAKER_MAX_IMAGES, by default 10,000. Raises ValueError."""
    return int(os.environ.get("FASTMAKER_MAX_IMAGES", DEFAULT_MAX_IMAGES))


def max_seconds() -> int:
    """Return how long the images of a request may take: FASTMAKER_MAX_SECONDS, by default 50. Raises ValueError."""
    return int(os.environ.get("FASTMAKER_MAX_SECONDS", DEFAULT_MAX_SECONDS))


def check_count(images: int) -> None:
    """Raise preprocess.ImageError if a request may not have so many images."""
    if images > max_images():
        raise preprocess.ImageError(f"the request has {images:,} images; at most {max_images():,} are accepted")


def in_time(items: list[Item]) -> Iterator[Item]:
    """Yield the images of a request while there is time for more. Raises preprocess.ImageError once there is none.

    How many there is time for depends on the model and the machine, hence it is no fixed number.
    """
    end = time.monotonic() + max_seconds()
    for number, item in enumerate(items):
        if number and time.monotonic() > end:
            raise preprocess.ImageError(
                f"{number:,} of the request's {len(items):,} images took {max_seconds()} s, which is all that it has;"
                " send fewer in one request"
            )
        yield item
