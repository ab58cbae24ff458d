"""Checkpoints of a training job: brought back when it starts, taken away while it runs.

What stands at checkpoint_s3_uri comes to every host; what a host writes goes there, and nothing is deleted there:
https://docs.aws.amazon.com/sagemaker/latest/dg/model-checkpoints.html
"""

import time
from pathlib import Path

from fastmaker.jobs import storage
from fastmaker.local.containers import Container

OPT_ML = "/opt/ml/"
DEFAULT_PATH = OPT_ML + "checkpoints"
SYNC_SECONDS = 2  # between two looks
SETTLED_SECONDS = 1  # since its last change, until a file counts as written


class Checkpoints:
    """The checkpoints of a job's hosts; `config` is the request's CheckpointConfig, if it has one."""

    def __init__(self, config: dict | None, containers: list[Container]):
        self.uri = config["S3Uri"] if config else None
        below = (config or {}).get("LocalPath", DEFAULT_PATH).removeprefix(OPT_ML)
        self.folders = [container.root / below for container in containers]
        self._saved: dict[Path, tuple] = {}  # what a file was like when it was taken away
        self._next = 0.0

    def restore(self) -> None:
        """Bring what there is to every host. Raises StorageError."""
        for folder in self.folders if self.uri else ():
            folder.mkdir(parents=True, exist_ok=True)
            for name in storage.names_below(self.uri):
                storage.copy(storage.join(self.uri, name), folder / name)
                self._saved[folder / name] = _state(folder / name)

    def save(self, last: bool = False) -> None:
        """Take away what has changed, at most every SYNC_SECONDS unless it is the `last` time. Raises StorageError."""
        if not self.uri or (time.monotonic() < self._next and not last):
            return
        for folder in reversed(self.folders):  # the first host's comes last, and stays
            for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                self._save_file(file, str(file.relative_to(folder)), last)
        self._next = time.monotonic() + SYNC_SECONDS

    def _save_file(self, file: Path, name: str, last: bool) -> None:
        try:
            state = _state(file)
            settled = last or time.time() - file.stat().st_mtime > SETTLED_SECONDS
            if settled and self._saved.get(file) != state:
                storage.put(file, storage.join(self.uri, name))
                self._saved[file] = state
        except FileNotFoundError:  # the script has replaced or removed it
            pass


def _state(file: Path) -> tuple:
    found = file.stat()
    return found.st_mtime_ns, found.st_size
