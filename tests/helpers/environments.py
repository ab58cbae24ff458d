"""Environments of their own, for what cannot be installed beside the packages that the tests run with."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def create(folder: Path, python: str = sys.executable) -> Path:
    """Make an environment of that Python with nothing in it but pip; returns its own Python."""
    subprocess.run([python, "-m", "venv", folder], check=True)
    return folder / "bin" / "python"


def install(python: Path, *words: str | Path) -> None:
    """`pip install` with these words, in the environment of that Python; fails in one line if it cannot."""
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, *words], env=variables(), stderr=subprocess.PIPE, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")] or [done.stderr]
        pytest.fail(f"pip install {' '.join(map(str, words))}: {errors[-1]}", pytrace=False)


@contextmanager
def needed_by(marker: str) -> Iterator[None]:
    """End the whole run with one line where an environment that all tests with a marker need cannot be installed."""
    try:
        yield
    except pytest.fail.Exception as failed:
        pytest.exit(f"the tests marked {marker} need packages from an index that pip can reach: {failed}", 1)


def variables() -> dict[str, str]:
    """The variables of this process, less those by which another Python would find its packages."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
