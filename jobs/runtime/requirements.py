"""Whether a requirements.txt asks for anything that this environment lacks; in the image of the Dockerfile as well."""

import importlib.metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement


def met(requirements: Path) -> bool:
    """Return whether each line is a plain requirement that this environment meets; a missing file has no lines."""
    lines = requirements.read_text("utf-8").splitlines() if requirements.is_file() else []
    for line in lines:
        line = line.split(" #")[0].strip()
        if not line or line.startswith("#"):
            continue
        try:
            requirement = Requirement(line)
            if requirement.marker and not requirement.marker.evaluate():
                continue
            version = importlib.metadata.version(requirement.name)
        except (InvalidRequirement, importlib.metadata.PackageNotFoundError):
            return False
        if requirement.url or requirement.extras or not requirement.specifier.contains(version, prereleases=True):
            return False
    return True
