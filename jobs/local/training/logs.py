"""The values of metrics in the log of a host, read line by line: a script may print more than memory holds."""

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

MAX_LINE = 2**20  # bytes that are searched at once


def values(definitions: Iterable[dict[str, str]], log: Path) -> Iterator[tuple[str, float, float]]:
    """Yield the name of a metric, how far in a log it stands, from 0 to 1, and its value.

    That is what the first group of the metric's regular expression matches in a line, if it is a number.
    """
    patterns = [(definition["Name"], re.compile(definition["Regex"])) for definition in definitions]
    if not (patterns and log.is_file()):
        return
    size, read = max(1, log.stat().st_size), 0
    with open(log, "rb") as stream:
        while line := stream.readline(MAX_LINE):
            text = line.decode("utf-8", "replace")
            for name, pattern in patterns:
                for match in pattern.finditer(text):
                    with contextlib.suppress(IndexError, TypeError, ValueError):
                        yield name, min(1.0, read / size), float(match[1])
            read += len(line)
