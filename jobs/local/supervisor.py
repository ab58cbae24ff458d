"""The process that runs a job. It outlives the one that created the job, which any process can describe and stop."""

import contextlib
import os
import signal
import subprocess
import sys
from datetime import timedelta
from typing import Any, Protocol

import psutil

from fastmaker.local.containers import session_processes
from fastmaker.local.store import Store, now

FINAL = ("Completed", "Failed", "Stopped")
MAX_REASON = 1024  # the longest FailureReason that AWS gives
START_SECONDS = 10  # in which a job that was created must have its process
_started: list[subprocess.Popen[bytes]] = []  # kept, so that they are reaped


class Job(Protocol):
    """What `run` runs."""

    def run(self) -> None:
        """Run the job to its end, and record its status."""

    def finish(self, status: str, reason: str | None = None) -> None:
        """Record a final status and, of a job that failed, why."""


def start(store: Store, name: str, record: dict[str, Any], module: str, env: dict[str, str]) -> None:
    """Record the job and run ``python -m module DIRECTORY`` for it. Raises FileExistsError if the name is taken."""
    directory = store.create(name, record)
    with open(directory / "supervisor.log", "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module, str(directory)],
            cwd="/",
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    _started.append(process)
    with store.changing(name) as record:
        record["supervisor"] = {"pid": process.pid, "created": psutil.Process(process.pid).create_time()}


def running(record: dict[str, Any]) -> bool:
    """Return whether the process that runs the job is alive."""
    if "supervisor" not in record:  # it is being started
        age: timedelta = now() - record["description"]["CreationTime"]
        return age.total_seconds() < START_SECONDS
    with contextlib.suppress(psutil.Error):  # a look at one process: whoever waits for a job asks often
        process = psutil.Process(record["supervisor"]["pid"])
        same = abs(process.create_time() - record["supervisor"]["created"]) < 1
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    return False


def ask_to_stop(record: dict[str, Any]) -> None:
    """Send SIGTERM to the process that runs the job, if there is one."""
    for process in _processes(record)[:1]:
        process.send_signal(signal.SIGTERM)


def run(job: Job) -> None:
    """Run the job in this process; an error of the engine fails the job as well, with its reason."""
    try:
        job.run()
    except BaseException as error:
        job.finish("Failed", f"InternalServerError: {type(error).__name__}: {error}")
        raise


def caller_region() -> str:
    """Return the region of whoever created the job, which came with the environment."""
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION", "")


def _processes(record: dict[str, Any]) -> list[psutil.Process]:
    supervisor = record.get("supervisor")
    return session_processes(supervisor["pid"], supervisor["created"]) if supervisor else []
