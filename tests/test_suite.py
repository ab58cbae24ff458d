"""The suite itself: it names the same tests each time, wherever and whenever it runs."""

import os
import subprocess
import sys
import time

import pytest
from helpers import REPOSITORY

# Two users' environments, as far apart as they come.
ENVIRONMENTS = (
    {"PYTHONHASHSEED": "1", "TZ": "Asia/Kolkata", "LC_ALL": "C"},
    {"PYTHONHASHSEED": "2", "TZ": "America/Anchorage", "LC_ALL": "C.UTF-8", "COLUMNS": "40"},
)


@pytest.mark.slow  # pytest-xdist's processes compare their collections in every run
def test_two_collections_in_different_seconds_name_the_same_tests(tmp_path):
    """pytest-xdist refuses to run what its workers have not named alike."""
    collections = []
    for number, environment in enumerate(ENVIRONMENTS):
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "", "-p", "no:cacheprovider"]
        with open(tmp_path / str(number), "w") as output:
            collections.append(
                subprocess.Popen(command, cwd=REPOSITORY, env={**os.environ, **environment}, stdout=output)
            )
        time.sleep(1.1)
    assert [collection.wait() for collection in collections] == [0, 0]
    first, second = ((tmp_path / name).read_bytes().splitlines() for name in "01")
    ids = [line for line in first if b"::" in line]
    assert ids == [line for line in second if b"::" in line]
    assert len(ids) == len(set(ids)) > 1000
    assert all(line.isascii() for line in ids)
