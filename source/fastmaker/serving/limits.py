"""What one request may ask for. A worker that has not answered in time is ended, and with it the requests behind it."""

import os
import time
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import TypeVar

from fastmaker import preprocess

DEFAULT_MAX_IMAGES = 10_000
# How long the server waits for a worker, by the variables that tell it, the first that is set.
TIMEOUTS = ("SAGEMAKER_TS_RESPONSE_TIMEOUT", "TS_DEFAULT_RESPONSE_TIMEOUT", "SAGEMAKER_MODEL_SERVER_TIMEOUT")
DEFAULT_TIMEOUT, TOOLKIT_TIMEOUT = 120, 60
SHARE = 5 / 12  # of that time, for decoding images, and again for computing: 50 seconds
Item = TypeVar("Item")
_share: ContextVar[float | None] = ContextVar("share", default=None)  # seconds of a request that is one of several


def max_images() -> int:
    """Return how many images a request may have: FASTMAKER_MAX_IMAGES, by default 10,000. Raises ValueError."""
    return int(os.environ.get("FASTMAKER_MAX_IMAGES", DEFAULT_MAX_IMAGES))


def max_seconds() -> int:
    """Return how long the images of a request may take: FASTMAKER_MAX_SECONDS, or SHARE of the server's time.

    Raises ValueError.
    """
    if given := os.environ.get("FASTMAKER_MAX_SECONDS"):
        return int(given)
    by_the_toolkit = any(name.startswith("SAGEMAKER_TS_") for name in os.environ)  # which then sets its own
    default = TOOLKIT_TIMEOUT if by_the_toolkit else DEFAULT_TIMEOUT
    names = TIMEOUTS[:1] if by_the_toolkit else TIMEOUTS
    timeout = next((os.environ[name] for name in names if os.environ.get(name)), default)
    return max(1, int(float(timeout) * SHARE))


def check_count(images: int) -> None:
    """Raise preprocess.ImageError if a request may not have so many images."""
    if images > max_images():
        raise preprocess.ImageError(f"the request has {images:,} images; at most {max_images():,} are accepted")


def in_turn(sizes: Sequence[int], steps: int = 1) -> Iterator[int]:
    """Yield the numbers of requests that came at once, by their sizes, the smallest first.

    The server waits no longer for all of them than for one. Until the next one is asked for, each has an equal share of
    the time that is left, in each of the `steps` that follow: decoding, computing. What one leaves the others have.
    """
    end = time.monotonic() + steps * max_seconds()
    for done, number in enumerate(sorted(range(len(sizes)), key=sizes.__getitem__)):
        before = _share.set(max(0.0, end - time.monotonic()) / steps / (len(sizes) - done))
        try:
            yield number
        finally:
            _share.reset(before)


def in_time(items: list[Item]) -> Iterator[Item]:
    """Yield the images of a request while there is time for more. Raises preprocess.ImageError once there is none.

    How many there is time for depends on the model and the machine, hence it is no fixed number.
    """
    share = _share.get()
    seconds = max_seconds() if share is None else share
    end = time.monotonic() + seconds
    for number, item in enumerate(items):
        if number and time.monotonic() > end:
            raise preprocess.ImageError(
                f"{number:,} of the request's {len(items):,} images took {round(seconds, 1):g} s, which is all that it"
                " has; send fewer in one request"
            )
        yield item
