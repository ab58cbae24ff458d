"""Files that exist whole or not at all, through a kill, a reboot or a full disk."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a path beside `target` to write a file to, which takes the place of `target` once it is on the disk.

    If the body raises, `target` stays as it was and nothing else is left. No two writers share a path: of those that
    write one target at once, the last to end wins. The folder must exist before the body ends. Raises OSError.
    """
    partial = target.with_name(f".fastmaker-{uuid.uuid4().hex}.partial")
    try:
        yield partial
        _sync(partial)
        partial.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # a folder that may not be read, or whose file system cannot sync folders
        _sync(target.parent)


def write_text(target: Path, text: str) -> None:
    """Write `text` to `target` in UTF-8, whole or not at all. Raises OSError."""
    with atomic_path(target) as partial:
        partial.write_text(text, "utf-8")


def _sync(path: Path) -> None:
    """Wait until the file or folder at `path` is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
