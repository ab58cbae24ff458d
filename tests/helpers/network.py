"""Commands with no network but loopback, in a network namespace of their own."""

import shutil
import subprocess
import sys

import pytest

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
    """The command as it is run with loopback alone; the test is skipped where no network namespace can be made."""
    if not shutil.which("unshare") or subprocess.run(_in_namespace([shutil.which("true")])).returncode:
        pytest.skip("no network namespace can be made here")
    return _in_namespace(command)


def _in_namespace(command):
    return ["unshare", "--net", "--map-root-user", sys.executable, "-c", IN_LOOPBACK_ONLY, *command]
