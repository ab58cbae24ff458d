"""What works from a checkout alone: the names that jobs/ had before it was a part of the package."""

import subprocess
import sys

import pytest
from helpers import REPOSITORY


def run(*words):
    return subprocess.run([sys.executable, *words], cwd=REPOSITORY, capture_output=True, text=True)


@pytest.mark.parametrize("words", [["jobs.train"], ["jobs", "train"], ["fastmaker.jobs", "train"]], ids=" ".join)
def test_a_command_runs_as_a_module(words):
    done = run("-m", *words, "--help")
    assert done.stdout.startswith("usage: fastmaker train "), done.stderr


@pytest.mark.parametrize("name", ["ProcessSession", "DockerSession"])
def test_the_former_name_of_a_session_warns_and_is_the_same_class(name):
    former = f"from jobs.local import {name} as former; from fastmaker.local import {name} as now"
    done = run("-W", "always::DeprecationWarning", "-c", f"{former}; print(former is now)")
    assert done.stdout.endswith("True\n"), done.stderr
    assert f"DeprecationWarning: jobs.local.{name} is fastmaker.local.{name}" in done.stderr
