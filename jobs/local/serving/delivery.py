"""Delivery of captured lines: from the files of an endpoint's directory to where its configuration says.

    <endpoint>/capture/<id>.json, <id>.jsonl     where the lines go, and the lines; who writes them holds their lock

Whoever looks at an endpoint puts the lines in their place that a killed process has left.
"""

import contextlib
import fcntl
import io
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from fastmaker import files
from fastmaker.jobs import storage
from fastmaker.jobs.storage import uris
from fastmaker.local.serving import asynchronous
from fastmaker.local.store import Store

FOLDER = "capture"  # below an endpoint's directory
LINES, PLACE = ".jsonl", ".json"
MAX_PLACE = 2**16  # bytes
log = logging.getLogger(__name__)


def finish(stem: Path, stream: IO[bytes], place: dict[str, Any], environment: Callable[[], dict[str, str]]) -> bool:
    """Put a file's lines, which are whole, in their place; return whether they are there. Its writer calls it."""
    if _moved(stem, place["uri"]) or _put(stream, place, environment):
        _remove(stem.parent, stem.name)
        return True
    return False


def _moved(stem: Path, uri: str) -> bool:
    """Move the lines to a file of the same disk; return whether that could be done."""
    lines = stem.with_name(f"{stem.name}{LINES}")
    if uri.startswith("s3://"):
        return False
    with contextlib.suppress(OSError):  # also of an endpoint that was deleted
        if not lines.stat().st_size:
            return False
        target = uris.literal_path(uri)
        files.sync(lines)
        target.parent.mkdir(parents=True, exist_ok=True)
        lines.rename(target)
        return True
    return False


def deliver(store: Store, name: str, environment: Callable[[], dict[str, str]], held: bool = False) -> bool:
    """Put the lines of an endpoint in their place that nobody is writing, or with `held` all; return whether all are.

    Those whose writer lives may be put there again by it, with more lines.
    """
    folder, all_there = store.directory(name) / FOLDER, True
    for stem in _stems(folder):
        with contextlib.suppress(FileNotFoundError), open(folder / f"{stem}{LINES}", "rb") as stream:
            free = _take(stream)
            if not (free or held):
                continue
            place = json.loads(files.read_regular(folder / f"{stem}{PLACE}", MAX_PLACE))
            there = _put(stream, place, environment)
            all_there &= there
            if there and free:
                _remove(folder, stem)
    return all_there


def resume(store: Store, environment: Callable[[], dict[str, str]]) -> None:
    """Put the lines of all endpoints in their place whose writers have ended."""
    for name in store.names():
        with contextlib.suppress(OSError, ValueError):
            deliver(store, name, environment)


def _stems(folder: Path) -> Iterator[str]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        yield from sorted(name.removesuffix(LINES) for name in os.listdir(folder) if name.endswith(LINES))


def _take(stream: IO[bytes]) -> bool:
    """Take the lock of a file of lines, and return whether nobody had it and the file is still there."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(stream.fileno()).st_nlink > 0


def _put(stream: IO[bytes], place: dict[str, Any], environment: Callable[[], dict[str, str]]) -> bool:
    """Write the whole lines of a file to their place and return whether they are there."""
    uri, key = place["uri"], place["kms_key"]
    stream.seek(0)
    content = stream.read()
    lines = content[: content.rfind(b"\n") + 1]  # a process that was killed may have left a part of one
    try:
        if not lines:
            return True
        if not uri.startswith("s3://"):
            storage.put_stream(io.BytesIO(lines), uri)
            return True
        bucket, name = storage.bucket_and_key(uri)
        options = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key} if key else {}
        with asynchronous.reaching(uri):  # no threads of boto3's transfers: the process may be ending
            storage.s3.client_of(environment()).put_object(Bucket=bucket, Key=name, Body=lines, **options)
    except (storage.StorageError, asynchronous.Later) as error:
        log.error("data capture: %s", error)
        return False
    return True


def _remove(folder: Path, stem: str) -> None:
    """Remove a file of lines, and then its place."""
    for kind in (LINES, PLACE):
        (folder / f"{stem}{kind}").unlink(missing_ok=True)
