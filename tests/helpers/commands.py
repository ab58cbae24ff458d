"""Commands in processes of their own: their environment, and what they print."""

import contextlib
import fcntl
import os
import pty
import re
import shlex
import struct
import subprocess
import termios

import pytest

from fastmaker.jobs.cli import errors
from helpers import REPOSITORY

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / "source")))}
# Starts the command that follows as a shell does in the background: with SIGINT ignored.
IN_BACKGROUND = ["sh", "-c", 'trap "" INT; exec "$0" "$@"']


def exit_status(command, *words) -> int:
    """Run a command's module in this process, as its last line does; a process of its own takes seconds to start."""
    with pytest.raises(SystemExit) as ended:
        errors.run(command, [str(word) for word in words])
    return ended.value.code


def one_line(stderr: str) -> str:
    """The error; argparse says the usage before it."""
    lines = stderr.splitlines()
    (line,) = [line for line in lines if "error: " in line]
    assert lines[0].startswith("usage: ") or lines == [line]
    return line


def next_command(done) -> list[str]:
    """The command that the output says comes next, less its `fastmaker`."""
    return shlex.split(re.search(r"next: +fastmaker (.*)", done.stdout.decode())[1])


def on_a_terminal(command, **options) -> tuple[subprocess.CompletedProcess, str]:
    """The finished process, whose stderr is a pseudo-terminal, and what that shows."""
    ours, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 120, 0, 0))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=terminal, **options) as process:
        os.close(terminal)
        shown = b""
        with contextlib.suppress(OSError):  # what a terminal reads once nobody writes to it any more
            while part := os.read(ours, 4096):
                shown += part
        os.close(ours)
        table = process.stdout.read()
    return subprocess.CompletedProcess(command, process.returncode, table), shown.decode()
