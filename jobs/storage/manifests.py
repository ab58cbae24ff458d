"""Manifests: one JSON array of a prefix and the keys below it, read as a stream.

    [{"prefix": "s3://bucket/some/"}, "key1", "folder/key2"]

https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_TransformS3DataSource.html; the prefix of a manifest that
is a file may be file://.
"""

import json
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import ijson

from fastmaker.jobs import storage

S3 = "s3://[^/]+/"
FORM = 'expected one JSON array, [{"prefix": "s3://bucket/some/"}, "key1", "key2", ...]'


class ManifestError(ValueError):
    """A manifest that cannot be used; the message says what is wrong with it and where."""


def read(uri: str) -> tuple[str, Iterator[str]]:
    """Return the prefix of the manifest at `uri`, and its keys in their order; prefix + key is an object's URI.

    Raises ManifestError, also while the keys are read, and StorageError.
    """
    items = _items(uri)
    prefix = next(items, None)
    if not isinstance(prefix, dict) or prefix.keys() != {"prefix"} or not isinstance(prefix["prefix"], str):
        raise ManifestError(f"{uri}: its first element is {_excerpt(prefix) if prefix else 'missing'}; {FORM}")
    prefix = prefix["prefix"]
    in_s3 = uri.startswith("s3://")  # whoever wrote it may not read this machine's files
    allowed, expected = (S3, "s3://bucket/") if in_s3 else (f"{S3}|file:///", "s3://bucket/ or file:///")
    if not re.match(allowed, prefix):
        raise ManifestError(f"{uri}: the prefix is {prefix!r}; expected {expected} and what follows it")
    if _leads_out(prefix):
        raise ManifestError(f"{uri}: the prefix is {prefix!r}, which leads out of its folder")
    return prefix, _keys(uri, items)


def write(uri: str | None, prefix: str, keys: Iterable[str]) -> int:
    """Write a manifest, an element a line, to `uri` or to stdout, whole or not at all; return the number of keys.

    Without keys nothing is written. Raises ValueError for a prefix that does not end with /.
    """
    if not prefix.endswith("/"):
        raise ValueError(f"the prefix {prefix!r} does not end with /: its keys would be joined to its last name")
    count = 0
    with tempfile.TemporaryFile() as file:
        file.write(b"[\n  " + json.dumps({"prefix": prefix}, ensure_ascii=False).encode())
        for key in keys:
            file.write(b",\n  " + json.dumps(key, ensure_ascii=False).encode())
            count += 1
        file.write(b"\n]\n")
        file.seek(0)
        if count and uri:
            storage.put_stream(file, uri)
        elif count:
            sys.stdout.write(file.read().decode())
    return count


def _keys(uri: str, items: Iterator[Any]) -> Iterator[str]:
    number = 0
    for number, key in enumerate(items, 1):
        if not isinstance(key, str) or not key:
            raise ManifestError(f"{uri}: element {number + 1} is {_excerpt(key)}; expected a key, a string")
        if _leads_out(key):
            raise ManifestError(f"{uri}: element {number + 1} is {key!r}, which leads out of the prefix")
        yield key
    if number == 0:
        raise ManifestError(f"{uri}: it names no key after its prefix")


def _items(uri: str) -> Iterator[Any]:
    """Yield the elements of the array. Raises ManifestError if it is no JSON array."""
    with storage.open_object(uri) as stream:
        start = stream.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n")
        if not start.startswith(b"["):
            lines = start.startswith((b"{", b'"')) and b"\n" in start
            what = "JSON lines, in place of one array" if lines else f"{start[:40]!r}" if start else "empty"
            raise ManifestError(f"{uri}: it is {what}; {FORM}")
        try:
            yield from ijson.items(_Rest(start, stream), "item", use_float=True)
        except (ijson.JSONError, UnicodeDecodeError) as error:
            raise ManifestError(f"{uri}: not JSON: {_one_line(error)}; {FORM}") from None


class _Rest:
    """Read a stream whose start was read already."""

    def __init__(self, start: bytes, stream: BinaryIO) -> None:
        self.start, self.stream = start, stream

    def read(self, size: int = -1) -> bytes:
        if size == 0:  # ijson asks whether the stream gives bytes
            return b""
        start, self.start = self.start, b""
        return start or self.stream.read(size)


def _leads_out(name: str) -> bool:
    return ".." in name.split("/")


def _excerpt(item: Any) -> str:
    text = "missing" if item is None else repr(item)
    return text if len(text) <= 60 else text[:57] + "..."


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
