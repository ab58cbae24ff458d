"""Archives of models and of code, read within limits: a few kilobytes can hold a disk full of zeros.

Weights hardly compress, and a model may have tens of gigabytes, so the limit is no fixed size: it is what the archive's
own size makes likely, and what is free on the disk.
"""

import bz2
import contextlib
import gzip
import lzma
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

MB = 2**20
BUFFER = 2**14  # bytes; tarfile copies what is left of it at each read
RATIO = 100  # of what is unpacked to the archive; text has 10, gzip cannot have more than 1,032
SMALL = 256 * MB  # that may be unpacked of any archive
FILE = 4096  # bytes that each file or folder counts for at least: it takes that on the disk
VARIABLE = "FASTMAKER_MAX_UNPACKED_MB"  # sets another limit
OPENERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}  # by a file's first bytes


class ArchiveError(ValueError):
    """An archive that cannot be unpacked; the message names it."""


def unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive into `folder`; links and names that lead outside are refused. Raises ArchiveError.

    What was unpacked before an error stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    with _opened(archive) as (tar, budget):

        def checked(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo:
            budget.take(member)
            if budget.files > free:
                raise ArchiveError(f"it needs more than the {free // MB:,} MB that are free in {folder}")
            return tarfile.data_filter(member, path)

        tar.extractall(folder, filter=checked)


def names(archive: Path) -> set[str]:
    """Return the names of the files in an archive that `unpack` would unpack. Raises ArchiveError."""
    found = set()
    with _opened(archive) as (tar, budget):
        for member in tar:
            budget.take(member)
            tarfile.data_filter(member, "model")
            found.add(member.name.removeprefix("./"))
    return found


def is_archive(file: Path) -> bool:
    """Return whether a file begins as a tar archive does, compressed or not. No more than that is read of it."""
    try:
        with _stream(file) as stream:
            tarfile.TarInfo.frombuf(stream.read(tarfile.BLOCKSIZE), tarfile.ENCODING, "surrogateescape")
    except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # of an archive without files
        return True
    except (tarfile.HeaderError, OSError, EOFError, zlib.error, lzma.LZMAError):
        return False
    return True


def _stream(archive: Path) -> IO[bytes]:
    """Open a file, uncompressed, for reading."""
    with open(archive, "rb") as file:
        opener = OPENERS.get(file.read(2), open)
    return cast(IO[bytes], opener(archive, "rb"))


@contextlib.contextmanager
def _opened(archive: Path) -> Iterator[tuple[tarfile.TarFile, "_Budget"]]:
    """Yield an archive, of which members are taken in their order, and its budget. Raises ArchiveError."""
    try:
        with _stream(archive) as stream:
            budget = _Budget(stream, os.path.getsize(archive))
            with tarfile.open(fileobj=cast(IO[bytes], budget), mode="r|", bufsize=BUFFER) as tar:
                yield tar, budget
    except Exception as error:  # a damaged archive makes tarfile raise almost anything
        raise ArchiveError(f"{archive} cannot be unpacked: {error or type(error).__name__}") from None


class _Budget:
    """The bytes of a tar file, up to a limit that holds for what is read of it, and for the files that it makes."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream, self._read, self.files = stream, 0, 0
        given = os.environ.get(VARIABLE)
        self._limit = int(given) * MB if given else max(SMALL, RATIO * size)
        self._given = bool(given)

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._read += len(data)
        self._check(self._read)
        return data

    def take(self, member: tarfile.TarInfo) -> None:
        """Count a file, which may be larger than what is read of it."""
        self.files += max(member.size, FILE)
        self._check(self.files)

    def _check(self, size: int) -> None:
        if size > self._limit:
            why = "" if self._given else f", and more than {RATIO} times its own size"
            raise ArchiveError(f"it holds more than {self._limit // MB:,} MB{why}; {VARIABLE} sets another limit")
