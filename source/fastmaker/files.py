"""Files that exist whole or not at all, whenever the process or the machine stops."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """Yield the path of a partial file beside `path`, and rename it to `path` at the end of the block.

    The file and its folder, which must exist, are synced: after the block the file is on the disk. If the block
    raises, the partial file is removed and `path` stays as it was. A killed process leaves a file named *.partial.
    Raises OSError.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
        _sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _sync(path.parent)  # a crash of the machine could undo the rename otherwise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
