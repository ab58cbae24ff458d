"""Checkpoints of a training job: restored when it starts, saved while it runs.

The objects at checkpoint_s3_uri are copied to every host. Files that a host writes are copied there; none is deleted:
https://docs.aws.amazon.com/sagemaker/latest/dg/model-checkpoints.html
"""

import time
from pathlib import Path, PurePosixPath
from typing import Any

from fastmaker.jobs import storage
from fastmaker.local.containers import Container

OPT_ML = "/opt/ml/"
DEFAULT_PATH = OPT_ML + "checkpoints"
SYNC_SECONDS = 2  # between two comparisons
SETTLED_SECONDS = 1  # since its last change, until a file counts as written


class Checkpoints:
    """Restore and save the checkpoints of a job's hosts; `config` is the request's CheckpointConfig, if it has one."""

    def __init__(self, config: dict[str, Any] | None, containers: list[Container]) -> None:
        self.uri = config["S3Uri"] if config else None
        below = PurePosixPath((config or {}).get("LocalPath", DEFAULT_PATH)).parts[3:]  # than /, opt and ml
        self.folders = [container.root.joinpath(*below) for container in containers]
        self._saved: dict[Path, tuple[int, int]] = {}  # the state of each file when it was saved
        self._next = 0.0

    def restore(self) -> None:
        """Copy the checkpoints that exist to every host. Raises StorageError."""
        if self.uri is None:
            return
        for folder in self.folders:
            folder.mkdir(parents=True, exist_ok=True)
            for name in storage.names_below(self.uri):
                if not (folder / name).resolve().is_relative_to(folder.resolve()):
                    raise storage.StorageError(f"{storage.join(self.uri, name)}: its name leads out of the checkpoints")
                storage.copy(storage.join(self.uri, name), folder / name)
                self._saved[folder / name] = _state(folder / name)

    def save(self, last: bool = False) -> None:
        """Copy what has changed, at most every SYNC_SECONDS unless it is the `last` time. Raises StorageError."""
        if self.uri is None or (time.monotonic() < self._next and not last):
            return
        for folder in reversed(self.folders):  # the first host's file is written last, and stays
            for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                self._save_file(file, storage.join(self.uri, str(file.relative_to(folder))), last)
        self._next = time.monotonic() + SYNC_SECONDS

    def _save_file(self, file: Path, uri: str, last: bool) -> None:
        try:
            state = _state(file)
            settled = last or time.time() - file.stat().st_mtime > SETTLED_SECONDS
            if settled and self._saved.get(file) != state:
                storage.put(file, uri)
                self._saved[file] = state
        except FileNotFoundError:  # the script has replaced or removed it
            pass


def _state(file: Path) -> tuple[int, int]:
    """Return what changes when a file is written."""
    found = file.stat()
    return found.st_mtime_ns, found.st_size
