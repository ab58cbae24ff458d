"""Files that exist whole or not at all, through a kill, a reboot or a full disk, and their digests."""

import contextlib
import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """Yield the path of a partial file beside `path`, which takes the place of `path` once it is on the disk.

    If the block raises, the partial file is removed and `path` stays as it was. No two writers share a partial file: of
    those that write one `path` at once, the last to end wins. A killed process leaves a file named
    .fastmaker-*.partial. The folder must exist before the block ends. Raises OSError.
    """
    path = Path(path)
    partial = path.with_name(f".fastmaker-{secrets.token_hex(8)}.partial")  # fits where the name of `path` does
    try:
        yield partial
        sync(partial)
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # a folder that may not be read, or whose file system cannot sync folders
        sync(path.parent)  # a crash of the machine could undo the rename otherwise


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` to `path` in UTF-8, whole or not at all. Raises OSError."""
    with atomic(path) as partial:
        partial.write_text(text, "utf-8")


def read_regular(path: str | os.PathLike, most: int) -> bytes:
    """Return the bytes of a file, but not of what a link leads to, of a pipe or a device, nor more than `most`.

    Raises OSError.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as stream:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "no regular file")
        if found.st_size > most:
            raise OSError(errno.EFBIG, f"it has more than {most:,} bytes")
        return stream.read()


def sync(path: str | os.PathLike) -> None:
    """Wait until the file or folder at `path` is on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file. Raises OSError."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
