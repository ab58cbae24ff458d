"""What was created, on disk, so that another process finds it.

FASTMAKER_HOME (~/.fastmaker)/<kind>/<name>/record.json    beside what the thing owns: logs, models, trees
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from fastmaker.jobs.storage import atomic

RECORD_FILE = "record.json"


def default_home() -> Path:
    """FASTMAKER_HOME, by default ~/.fastmaker."""
    return Path(os.environ.get("FASTMAKER_HOME", "~/.fastmaker")).expanduser().absolute()


def now() -> datetime:
    return datetime.now(timezone.utc)


class Store:
    """Records of one kind, each a dict of JSON values and datetimes, by name."""

    def __init__(self, home: Path, kind: str):
        self.kind = kind
        self.folder = home / kind

    def directory(self, name: str) -> Path:
        """The directory of `name`, whether or not it exists."""
        return self.folder / name

    def create(self, name: str, record: dict) -> Path:
        """Write a new record and return its directory. Raises FileExistsError."""
        for folder in (self.folder.parent, self.folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory = self.directory(name)
        directory.mkdir()
        self._write(name, record)
        return directory

    def read(self, name: str) -> dict:
        """Raises KeyError if there is no such record."""
        try:
            return json.loads((self.directory(name) / RECORD_FILE).read_text("utf-8"), object_hook=_decode_time)
        except (FileNotFoundError, NotADirectoryError):
            raise KeyError(name) from None

    @contextlib.contextmanager
    def changing(self, name: str) -> Iterator[dict]:
        """The record, to be changed in place while no other process changes it. Raises KeyError."""
        try:
            lock = open(self.directory(name) / ".lock", "w")  # noqa: SIM115
        except FileNotFoundError:
            raise KeyError(name) from None
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            record = self.read(name)
            yield record
            self._write(name, record)

    def delete(self, name: str) -> None:
        """Remove the record and all that its directory holds; nothing happens if there is none."""
        (self.directory(name) / RECORD_FILE).unlink(missing_ok=True)
        shutil.rmtree(self.directory(name), ignore_errors=True)

    def names(self) -> list[str]:
        return sorted(path.parent.name for path in self.folder.glob("*/" + RECORD_FILE))

    def _write(self, name: str, record: dict) -> None:
        text = json.dumps(record, indent=2, default=_encode_time) + "\n"
        atomic.write_text(self.directory(name) / RECORD_FILE, text)


def _encode_time(value):
    if isinstance(value, datetime):
        return {"$time": value.isoformat()}
    raise TypeError(f"{type(value).__name__} cannot be kept as JSON")


def _decode_time(value):
    return datetime.fromisoformat(value["$time"]) if value.keys() == {"$time"} else value
