"""Files of learn.export(), each made by a program whose functions are of `__main__`, as a notebook's are."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from helpers import REPOSITORY

NOTEBOOK = Path(__file__).with_name("notebook.py")
PICKLE = "data.pkl"  # in the archive that torch writes


def make(photos: Path, folder: Path, *names: str) -> Path:
    """Export the Learners of these names into `folder`, with the first photo's probabilities beside each."""
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY / "source")}
    command = [sys.executable, NOTEBOOK, photos, folder, *names]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return folder


def changed(file: Path, target: Path, *changes: tuple[bytes, bytes]) -> Path:
    """Write a copy of an export with other bytes in its pickle; the tensors are as they were."""
    with zipfile.ZipFile(file) as given, zipfile.ZipFile(target, "w") as written:
        for entry in given.infolist():
            data = given.read(entry)
            if entry.filename.endswith(PICKLE):
                for old, new in changes:
                    assert old in data
                    data = data.replace(old, new)
            written.writestr(entry, data)
    return target
