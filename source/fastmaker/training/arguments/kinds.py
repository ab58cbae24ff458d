"""What the values of options are: types for argparse, each of which raises argparse.ArgumentTypeError."""

import argparse
import contextlib
import json
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


def _listed(text: str) -> list[str]:
    """Return what stands between commas; the SDK sends a list as JSON."""
    with contextlib.suppress(ValueError):
        if isinstance(value := json.loads(text), list):
            return list(map(str, value))
    return [word.strip() for word in text.split(",")]


def single(text: str) -> str:
    """Return the value of a list of JSON that holds one string or number, any other text as it is."""
    with contextlib.suppress(ValueError):
        value = json.loads(text)
        if isinstance(value, list) and len(value) == 1 and isinstance(value[0], (str, int, float)):
            return value[0] if isinstance(value[0], str) else json.dumps(value[0])
    return text


def size(text: str) -> tuple[int, int]:
    """Return (height, width) in pixels, of one number, HEIGHTxWIDTH, or a list of JSON."""
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", "x".join(_listed(text)))
    if not match or 0 in (int(match[1]), int(match[2] or 1)):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of pixels nor HEIGHTxWIDTH")
    return int(match[1]), int(match[2] or match[1])


def interval(text: str) -> tuple[float, float]:
    """Return (low, high): two numbers that have a comma between them or are a list of JSON."""
    try:
        low, high = map(float, _listed(text.replace(" ", ",") if "," not in text else text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not LOW,HIGH, two numbers") from None
    if not -math.inf < low < high < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: {low:g} is not below {high:g}")
    return low, high


def names(text: str) -> tuple[str, ...]:
    """Return names, which have commas between them or are a list of JSON."""
    found = tuple(_listed(text))
    if "" in found or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME,NAME,..., each once")
    return found


def sizes(text: str) -> tuple[tuple[int, int], ...]:
    """Return several of `size`, which have commas between them or are a list of JSON."""
    found = tuple(map(size, _listed(text)))
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} names no size")
    return found


def number_or_find(text: str) -> float | str:
    """Return a float above 0, or the word find."""
    return text if text == "find" else positive(float)(text)


number_or_find.__name__ = "float"


def flag(text: str) -> bool:
    """Return the bool of true or false, 1 or 0, yes or no."""
    if text.lower() in ("true", "1", "yes"):
        return True
    if text.lower() in ("false", "0", "no"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def flag_or_path(text: str) -> bool | str:
    """Return the bool of `flag`, or any other text, a path, as it is."""
    try:
        return flag(text)
    except argparse.ArgumentTypeError:
        return text


def share(text: str) -> float:
    """Return a float from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1")
    return value


def from_zero(text: str) -> float:
    """Return a finite float from 0."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not from 0")
    return value


def below_one(text: str) -> float:
    """Return a float from 0 to below 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to below 1")
    return value


from_zero.__name__ = below_one.__name__ = share.__name__ = "float"


def text(value: Any) -> str:
    """Return a value as it is written on a command line."""
    if isinstance(value, tuple):
        return ",".join(f"{part:g}" for part in value)
    return str(value).lower() if isinstance(value, bool) else str(value)
