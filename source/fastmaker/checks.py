"""Whether values of a JSON file can be used: anybody may have written it."""

import json
from typing import Any

from fastmaker import preprocess

LARGEST, SMALLEST = 3e38, 1e-37  # that float32 holds: about
MAX_BYTES = 16_000_000  # of a file; the largest of the usual networks need one


def parse(text: str) -> Any:
    """Return the value of a JSON text. Raises ValueError for what is none, nests too deeply or has a key twice."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("it nests too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {shown(twice)} stands twice in one object")
    return values


def shown(value: Any) -> str:
    """Return the beginning of a value, for a message."""
    try:
        return json.dumps(value)[:80]
    except (RecursionError, ValueError):  # nested too deeply; a number with too many digits
        return f"a {type(value).__name__}"


def is_number(value: Any) -> bool:
    """Return whether a value is a number that float32 holds."""
    return type(value) in (int, float) and -LARGEST <= value <= LARGEST


def is_positive(value: Any) -> bool:
    """Return whether a value is a number above 0 by which float32 can be divided."""
    return is_number(value) and value >= SMALLEST


def is_size(value: Any) -> bool:
    """Return whether a value is [height, width] of images that may be sent, too."""
    whole = isinstance(value, list) and len(value) == 2 and all(type(n) is int and n > 0 for n in value)
    return whole and value[0] * value[1] <= preprocess.DEFAULT_MAX_PIXELS


def are_texts(value: Any) -> bool:
    """Return whether a value is a list of strings that can be sent: half of a surrogate pair cannot."""
    return isinstance(value, list) and all(map(is_text, value))


def is_text(value: Any) -> bool:
    """Return whether a value is a string that can be sent."""
    try:
        return isinstance(value, str) and bool(value.encode() or True)
    except UnicodeEncodeError:
        return False
