"""Captures of endpoints, AWS's or those of this machine, as they lie in a folder or in S3.

https://docs.aws.amazon.com/sagemaker/latest/dg/model-monitor-data-capture-endpoint.html
"""

import base64
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from fastmaker.jobs import storage

SUFFIX = ".jsonl"


@dataclass(frozen=True)
class Side:
    """What was sent or answered."""

    body: bytes
    content_type: str


@dataclass(frozen=True)
class Record:
    """One request and its answer; a side that was not captured is None."""

    time: datetime
    name: str  # the inferenceId, else the eventId
    input: Side | None
    output: Side | None


@dataclass
class Reading:
    """What was found while captures were read."""

    files: int = 0
    unreadable: Counter[str] = field(default_factory=Counter)  # lines, by reason


def read(
    place: str, reading: Reading, since: datetime | None = None, until: datetime | None = None
) -> Iterator[Record]:
    """Yield the records of the files below a folder or URI, file by file in the order of their names.

    Those before `since` or after `until` are left out. What is no record is counted in `reading`. Raises StorageError
    for a place that cannot be read, ValueError if no file is there.
    """
    root, listed = storage.list_objects(storage.uri_of(place))
    names = sorted(name for name, _ in listed if name.endswith(SUFFIX))
    if not names:
        raise ValueError(f"{place}: no file of captures ({SUFFIX}) is there")
    for name in names:
        reading.files += 1
        with storage.open_object(root + name) as stream:
            for line in stream:
                try:
                    record = parse(line)
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    reading.unreadable[f"{type(error).__name__}: {error}"[:100]] += 1
                    continue
                if (since is None or record.time >= since) and (until is None or record.time <= until):
                    yield record


def parse(line: bytes) -> Record:
    """Return the record of a line. Raises ValueError, KeyError or TypeError for what is none."""
    found = json.loads(line)
    metadata, data = found["eventMetadata"], found["captureData"]
    time = datetime.fromisoformat(metadata["inferenceTime"].replace("Z", "+00:00"))
    return Record(
        time if time.tzinfo else time.replace(tzinfo=timezone.utc),
        str(metadata.get("inferenceId") or metadata["eventId"]),
        _side(data.get("endpointInput")),
        _side(data.get("endpointOutput")),
    )


def _side(found: dict[str, Any] | None) -> Side | None:
    if found is None:
        return None
    text = found["data"]
    body = base64.b64decode(text, validate=True) if found["encoding"] == "BASE64" else text.encode()
    return Side(body, found.get("observedContentType") or "")
