"""What botocore's model says of a request's members and boto3 leaves to AWS: enums, patterns, lengths and ranges."""

import functools
import math
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from botocore.model import ServiceModel, Shape

MAX_ERRORS = 10
MAX_SHOWN = 100  # characters of a value
# Of Java's patterns, what Python writes in another way. Letters and numbers stand in a class that has the underscore.
JAVA = {
    r"\p{L}": r"\w",
    r"\p{N}": "",
    r"\p{Z}": " \xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000",
    r"\p{Alnum}": "a-zA-Z0-9",
    r"\p{Print}": r"\x20-\x7e",
    r"\p{ASCII}": r"[\x00-\x7f]",
    r"\z": r"\Z",
}
BITS = {"integer": 31, "long": 63}
# A location may be on this machine; the operations check it. So do they with types of instances, which AWS adds to.
URI = "(https|s3)://"
INSTANCE_TYPE = "InstanceType"


def error_code(service: ServiceModel) -> str:
    """Return the code of a service's errors about requests, which the runtime spells in another way."""
    return "ValidationError" if "ValidationError" in service.shape_names else "ValidationException"


def violations(shape: Shape | None, request: Any, here: bool = True) -> str:
    """Return what of a request breaks a constraint, in AWS's words, empty if nothing does.

    A request that is made for this machine, `here`, may name its locations and types of instances.
    """
    found = [] if shape is None else list(_violations(shape, request, "", here))
    if not found:
        return ""
    count = "1 validation error" if len(found) == 1 else f"{len(found)} validation errors"
    return f"{count} detected: {'; '.join(found[:MAX_ERRORS])}"


def _violations(shape: Any, value: Any, where: str, here: bool) -> Iterator[str]:
    if shape.type_name == "structure":
        for name, member in value.items():
            yield from _violations(shape.members[name], member, _below(where, name[:1].lower() + name[1:]), here)
        return
    reason = _broken(shape, value, here)
    if reason:
        text = "***" if shape.metadata.get("sensitive") else _shown(value)
        yield f"Value '{text}' at '{where}' failed to satisfy constraint: Member must {reason}"
    elif shape.type_name == "list":
        for number, member in enumerate(value, 1):
            yield from _violations(shape.member, member, _below(where, f"{number}.member"), here)
    elif shape.type_name == "map":
        for key, member in value.items():
            yield from _violations(shape.key, key, _below(where, "key"), here)
            yield from _violations(shape.value, member, _below(where, f"{_shown(key)}.value"), here)


def _below(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _shown(value: Any) -> str:
    """Return a value as an error shows it: on one line, of bounded length, and sure to be encoded."""
    text = ascii(str(value)[: MAX_SHOWN + 1])[1:-1] if isinstance(value, str) else ascii(value)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."


def _broken(shape: Any, value: Any, here: bool) -> str | None:
    """Return the constraint of a member that is no structure which its value breaks, or None."""
    kind, most = shape.type_name, shape.metadata.get("max", math.inf)
    if kind in BITS or kind in ("float", "double"):
        return _broken_by_number(kind, value, most)
    if (kind == "string" and "\0" in value) or (isinstance(value, str) and not _can_be_encoded(value)):
        return "be text that can be encoded, without null characters"
    # Of a blob, a text or an open file is measured once it is bytes.
    if (kind in ("string", "list", "map") or isinstance(value, (bytes, bytearray))) and len(value) > most:
        return f"have length less than or equal to {most}"
    return _broken_by_text(shape, value, here) if kind == "string" else None


def _broken_by_number(kind: str, value: Any, most: float) -> str | None:
    if isinstance(value, (bool, Decimal)) or not math.isfinite(value):
        return "be a number"
    if value > most:
        return f"have value less than or equal to {most}"
    if kind in BITS and not -(2 ** BITS[kind]) <= value < 2 ** BITS[kind]:
        return f"be a number of {BITS[kind] + 1} bits"
    return None


def _broken_by_text(shape: Any, value: str, here: bool) -> str | None:
    pattern = shape.metadata.get("pattern", "")
    if shape.enum and value not in shape.enum and not (here and shape.name.endswith(INSTANCE_TYPE)):
        return f"satisfy enum value set: [{', '.join(shape.enum)}]"
    if pattern and not (here and pattern.removeprefix("^").startswith(URI)) and not _compiled(pattern).fullmatch(value):
        return f"satisfy regular expression pattern: {pattern}"
    return None


def _can_be_encoded(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    for java, python in JAVA.items():
        pattern = pattern.replace(java, python)
    return re.compile(pattern)
