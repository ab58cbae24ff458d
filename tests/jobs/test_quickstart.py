"""The quickstart, on a machine that is cut off from every network."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from helpers import REPOSITORY
from helpers.local_mode import running_below
from PIL import Image

pytestmark = pytest.mark.server

# Brings up loopback, the only interface of a fresh network namespace, then runs the command.
IN_LOOPBACK_ONLY = """
import fcntl, os, socket, struct, sys
with socket.socket() as s:
    SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
    flags = struct.unpack("16sh", fcntl.ioctl(s, SIOCGIFFLAGS, struct.pack("16sh", b"lo", 0)))[1]
    fcntl.ioctl(s, SIOCSIFFLAGS, struct.pack("16sh", b"lo", flags | IFF_UP))
assert [name for _, name in socket.if_nameindex()] == ["lo"]
os.execv(sys.argv[1], sys.argv[1:])
"""


def cut_off(command):
    return ["unshare", "--net", "--map-root-user", sys.executable, "-c", IN_LOOPBACK_ONLY, *command]


def can_be_cut_off() -> bool:
    return bool(shutil.which("unshare")) and not subprocess.run(cut_off([shutil.which("true")])).returncode


def test_the_quickstart_works_without_a_network_and_leaves_nothing_running(tmp_path):
    if not can_be_cut_off():
        pytest.skip("no network namespace can be made here")
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
