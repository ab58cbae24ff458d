"""Environments of their own, for what cannot be installed beside the packages that the tests run with."""

import os
import subprocess
import sys
from pathlib import Path


def create(folder: Path) -> Path:
    """Make an environment with nothing in it but pip; returns its Python."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    return folder / "bin" / "python"


def install(python: Path, *words: str | Path) -> None:
    """`pip install` with these words, in the environment of that Python."""
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *words], env=variables(), check=True)


def variables() -> dict[str, str]:
    """The variables of this process, less those by which another Python would find its packages."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
