"""Archives that were packed anew with their code, each for one model."""

import contextlib
from pathlib import Path
from typing import Any

from fastmaker.jobs import storage
from fastmaker.local.serving import torchserve
from fastmaker.local.store import DamagedRecord, Store


def names_of(archives: Store, models: Store, names: list[str]) -> set[str]:
    """Return the names of the archives that were packed anew for models."""
    found = set()
    for name in names:
        with contextlib.suppress(KeyError, DamagedRecord):
            if archive := archive_of(archives, models.read(name)["PrimaryContainer"]):
                found.add(archive.parent.name)
    return found


def archive_of(archives: Store, container: dict[str, Any]) -> Path | None:
    """Return the archive that was packed anew for a ContainerDefinition, None if it has another."""
    archive = storage.local_path(torchserve.model_uri(container) or "")
    return archive if archive.parent.parent == archives.folder else None
