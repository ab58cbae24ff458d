"""Records of the resources that were created, on disk, so that another process finds them.

FASTMAKER_HOME (~/.fastmaker)/<kind>/<name>/record.json    beside what the resource owns: logs, models, trees
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fastmaker import files

RECORD_FILE = "record.json"


def default_home() -> Path:
    """Return FASTMAKER_HOME, by default ~/.fastmaker."""
    return Path(os.environ.get("FASTMAKER_HOME", "~/.fastmaker")).expanduser().absolute()


def now() -> datetime:
    """Return the time in UTC."""
    return datetime.now(timezone.utc)


class Store:
    """Keep the records of one kind of resource by name, each a dict of JSON values and datetimes."""

    def __init__(self, home: Path, kind: str) -> None:
        self.kind = kind
        self.folder = home / kind

    def directory(self, name: str) -> Path:
        """Return the directory of `name`, whether or not it exists."""
        return self.folder / name

    def create(self, name: str, record: dict[str, Any]) -> Path:
        """Write a new record and return its directory. Raises FileExistsError."""
        for folder in (self.folder.parent, self.folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory = self.directory(name)
        directory.mkdir()
        self._write(name, record)
        return directory

    def read(self, name: str) -> dict[str, Any]:
        """Return the record. Raises KeyError if there is none."""
        try:
            text = (self.directory(name) / RECORD_FILE).read_text("utf-8")
        except (FileNotFoundError, NotADirectoryError):
            raise KeyError(name) from None
        record: dict[str, Any] = json.loads(text, object_hook=_decode_time)
        return record

    @contextlib.contextmanager
    def changing(self, name: str) -> Iterator[dict[str, Any]]:
        """Yield the record, to be changed in place while no other process changes it. Raises KeyError."""
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
        """Remove the record, if there is one, and all that its directory holds."""
        (self.directory(name) / RECORD_FILE).unlink(missing_ok=True)
        shutil.rmtree(self.directory(name), ignore_errors=True)

    def names(self) -> list[str]:
        """Return the names of all records, sorted."""
        return sorted(path.parent.name for path in self.folder.glob("*/" + RECORD_FILE))

    def _write(self, name: str, record: dict[str, Any]) -> None:
        text = json.dumps(record, indent=2, default=_encode_time) + "\n"
        files.write_text(self.directory(name) / RECORD_FILE, text)


def _encode_time(value: object) -> dict[str, str]:
    if isinstance(value, datetime):
        return {"$time": value.isoformat()}
    raise TypeError(f"{type(value).__name__} cannot be kept as JSON")


def _decode_time(value: dict[str, Any]) -> Any:
    return datetime.fromisoformat(value["$time"]) if value.keys() == {"$time"} else value
