"""What the values of options are: types for argparse, each of which raises argparse.ArgumentTypeError."""

import argparse
import math
import re
from collections.abc import Callable
from typing import Any

BOOL = "{true,false}"


def positive(kind: type) -> Callable[[str], Any]:
    """Return the type of a number above 0: float, or int."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    parse.__name__ = kind.__name__  # argparse names it in "invalid int value"
    return parse


def whole(text: str) -> int:
    """Return an int from 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


whole.__name__ = "int"


def fraction(text: str) -> float:
    """Return a float between 0 and 1, both left out."""
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def size(text: str) -> tuple[int, int]:
    """Return (height, width) in pixels, of one number or HEIGHTxWIDTH."""
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not match or 0 in (int(match[1]), int(match[2] or 1)):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of pixels nor HEIGHTxWIDTH")
    return int(match[1]), int(match[2] or match[1])


def interval(text: str) -> tuple[float, float]:
    """Return (low, high) of two numbers with a comma or a space between them, in brackets or not."""
    try:
        low, high = map(float, text.strip("[]() ").replace(",", " ").split())
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not LOW,HIGH, two numbers") from None
    if not -math.inf < low < high < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: {low:g} is not below {high:g}")
    return low, high


def names(text: str) -> tuple[str, ...]:
    """Return names that have commas between them."""
    found = tuple(name.strip() for name in text.split(","))
    if "" in found or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME,NAME,..., each once")
    return found


def flag(text: str) -> bool:
    """Return the bool of true or false, 1 or 0, yes or no."""
    if text.lower() in ("true", "1", "yes"):
        return True
    if text.lower() in ("false", "0", "no"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
