"""Processes that are killed at a step that a test chooses, without a word of it in what is tested."""

import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from helpers import REPOSITORY

# What checks a request, before anything is made.
CHECKS = tuple(str(REPOSITORY / f"jobs/local/{name}.py") for name in ("boto", "constraints", "arguments"))
WATCHED = tuple(str(REPOSITORY / path) for path in ("jobs/local/", "source/fastmaker/files.py"))


def killed_at(step: int, operation: Callable[[], object]) -> bool:
    """Run `operation` in a process of its own that is killed before the `step`-th line of the engine's code.

    Returns whether it was killed, rather than done before. An error of the operation fails the test.
    """
    return _in_a_process(operation, lambda number: number >= step and os.kill(os.getpid(), signal.SIGKILL))


def steps_of(operation: Callable[[], object]) -> int:
    """Run `operation` in a process of its own; return how many lines of the engine's code it ran."""
    with tempfile.TemporaryFile("w+b", buffering=0) as file:
        _in_a_process(operation, lambda number: os.pwrite(file.fileno(), b"%020d" % number, 0))
        return int(os.pread(file.fileno(), 20, 0))


def every_kill(operation: Callable[[], object], stride: int = 1, first: int = 1):
    """Yield after each of the kills at steps `first`, `first` + `stride`, ... until the operation is done before."""
    step = first
    while killed_at(step, operation):
        yield step
        step += stride


def in_a_process(operation: Callable[[], object]) -> None:
    """Run `operation` in a process of its own, whose error fails the test."""
    assert not killed_at(sys.maxsize, operation)


def _in_a_process(operation: Callable[[], object], at_step: Callable[[int], object]) -> bool:
    """Run `operation` in a process of its own, which calls `at_step` with 1, 2, ... before each line of the engine's.

    Returns whether it was killed.
    """
    pid = os.fork()
    if not pid:
        status = 1
        try:
            _trace(at_step)
            operation()
            status = 0
        finally:
            os._exit(status)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the operation raised an error"
    return os.WIFSIGNALED(status)


def _trace(at_step: Callable[[int], object]) -> None:
    number = 0

    def trace(frame: FrameType, event: str, argument: object):
        nonlocal number
        if not frame.f_code.co_filename.startswith(WATCHED) or frame.f_code.co_filename in CHECKS:
            return None
        if event == "line":
            number += 1
            at_step(number)
        return trace

    sys.settrace(trace)


def leftovers(folder: Path) -> list[str]:
    """The names of what is half made or half removed in a store's folder."""
    return [name for name in os.listdir(folder) if name.startswith(".")] if folder.is_dir() else []
