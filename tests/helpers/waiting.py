"""Waiting for what is to happen, and a look at what is left running."""

import os
import time
from pathlib import Path

import psutil

from helpers import PATIENCE


def running_below(home: Path, word: str = "") -> list[psutil.Process]:
    """Processes that were started for something under `home`, with `word` in their commands."""
    found = []
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
            places = [*command, process.environ().get("FASTMAKER_CONTAINER", "")]
            if process.status() == psutil.STATUS_ZOMBIE or not any(str(home) in place for place in places):
                continue
            if any(word in part for part in command):
                found.append(process)
        except psutil.Error:
            continue
    return [process for process in found if process.pid != os.getpid()]


def nothing_runs_below(home: Path) -> bool:
    """Whether all is over; a job's own process ends a moment after it has written how the job ended."""
    return wait_until(lambda: not running_below(home))


def wait_until(condition, seconds: float = PATIENCE):
    """Returns condition()'s first true value; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s")
