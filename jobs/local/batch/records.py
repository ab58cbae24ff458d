"""Objects into records, records into the payloads of requests (SplitType and BatchStrategy), and where answers go.

https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_TransformInput.html
"""

import gzip
import io
import struct
import zlib
from collections.abc import Callable, Iterator, Sized
from typing import BinaryIO, TypeVar

from fastmaker.jobs import storage

MB = 2**20
UNPACKED = 1024 * MB  # of gzip, where MaxPayloadInMB is 0: a few kilobytes can hold any number of zeros
_Sized = TypeVar("_Sized", bound=Sized)
RECORD_IO_MAGIC = 0xCED7230A  # https://mxnet.apache.org/versions/1.9.1/api/faq/recordio


class RecordError(Exception):
    """An object that cannot be split as the job says, or has no place for its answer."""


def output_uri(output_path: str, name: str) -> str:
    """Return where the answer of the object `name` goes. Raises RecordError for a name that leads elsewhere."""
    if ".." in name.split("/"):
        raise RecordError("its name leads out of the output location")
    return storage.join(output_path, name + ".out")


def payloads(stream: BinaryIO, split_type: str, strategy: str, max_payload_mb: int, gzipped: bool) -> Iterator[bytes]:
    """Yield the bodies of the requests for one object, each of up to `max_payload_mb` MB (0: of any size that is sent).

    `split_type` None gives the object as it is; Line and RecordIO give single records where `strategy` is SingleRecord,
    else as many as fit. The stream is closed at the end. Raises RecordError.
    """
    limit = max_payload_mb * MB or (UNPACKED if gzipped else None)
    with io.BufferedReader(stream) as buffered:  # type: ignore[type-var]
        source: io.BufferedIOBase = gzip.GzipFile(fileobj=buffered) if gzipped else buffered
        try:
            if split_type == "None":
                yield _check_size(source.read(limit + 1 if limit else -1), limit, "the object")
            elif strategy == "SingleRecord":
                yield from _RECORDS[split_type](source, limit, False)
            else:
                join = b"".join if split_type == "RecordIO" else b"\n".join
                yield from _pack(_RECORDS[split_type](source, limit, True), limit, join)
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise RecordError(f"it is no whole gzip file: {error}") from None


def _pack(records: Iterator[bytes], limit: int | None, join: Callable[[list[bytes]], bytes]) -> Iterator[bytes]:
    """Yield payloads of as many records as `limit` bytes hold."""
    batch: list[bytes] = []
    size, between = 0, len(join([b"", b""]))
    for record in records:
        if batch and limit and size + len(record) > limit:
            yield join(batch)
            batch, size = [], 0
        batch.append(record)
        size += len(record) + between
    if batch:
        yield join(batch)


def _lines(stream: io.BufferedIOBase, limit: int | None, framed: bool) -> Iterator[bytes]:
    while line := stream.readline(limit + 2 if limit else -1):
        yield _check_size(line.removesuffix(b"\n").removesuffix(b"\r"), limit, "a line")


def _record_io(stream: io.BufferedIOBase, limit: int | None, framed: bool) -> Iterator[bytes]:
    """Yield each record's data, with `framed` as it was stored, header and padding included."""
    while header := stream.read(8):
        if len(header) < 8:
            raise RecordError("its last RecordIO header is cut off")
        magic, length = struct.unpack("<II", header)
        if magic != RECORD_IO_MAGIC:
            raise RecordError(f"it is not RecordIO: a record begins with {header[:4].hex()}, not with 0a23d7ce")
        if length >> 29:
            raise RecordError("a RecordIO record of several parts is not supported")
        _check_size(range(length), limit, "a RecordIO record")
        padded = stream.read(-(-length // 4) * 4)
        if len(padded) < length:
            raise RecordError("its last RecordIO record is cut off")
        yield header + padded if framed else padded[:length]


_RECORDS = {"Line": _lines, "RecordIO": _record_io}


def _check_size(record: _Sized, limit: int | None, what: str) -> _Sized:
    """Return `record`. Raises RecordError if it is longer than `limit`."""
    if limit and len(record) > limit:
        name = "what gzip may hold" if limit == UNPACKED else "MaxPayloadInMB"
        raise RecordError(f"{what} is larger than {name}, which is {limit // MB} MB")
    return record
