"""The quickstart, on a machine that is cut off from every network."""

import os
import re
import subprocess
import sys

import pytest
from helpers import REPOSITORY
from helpers.local_mode import running_below
from helpers.network import cut_off
from PIL import Image

pytestmark = pytest.mark.server


def test_the_quickstart_works_without_a_network_and_leaves_nothing_running(tmp_path):
    command = [sys.executable, "-m", "fastmaker.jobs", "quickstart", "--picture", str(tmp_path / "quickstart.png")]
    env = {**os.environ, "FASTMAKER_HOME": str(tmp_path / "home")}
    done = subprocess.run(cut_off(command), cwd=REPOSITORY, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(re.search(r"accuracy +([0-9.]+)$", done.stdout, re.MULTILINE)[1]) >= 0.97
    assert re.search(r"transform, prefix +[0-9.]+ +180 objects in S3, 180 answers as the endpoint's", done.stdout)
    assert re.search(r"transform, manifest +[0-9.]+ +60 objects in S3, 60 answers as the endpoint's", done.stdout)
    Image.open(tmp_path / "quickstart.png").verify()
    assert not running_below(tmp_path / "home")
    for kind in ("endpoints", "models", "training-jobs", "transform-jobs"):
        assert not list((tmp_path / "home" / kind).iterdir())
