"""The process that runs a job and outlives whoever created it, so that anybody can describe, await and stop the job."""

import contextlib
import os
import signal
import subprocess
import sys

import psutil

from fastmaker.local.containers import session_processes
from fastmaker.local.store import Store, now

FINAL = ("Completed", "Failed", "Stopped")
MAX_REASON = 1024  # the longest FailureReason that AWS gives
START_SECONDS = 10  # in which a job that was created must have its process
_started: list[subprocess.Popen] = []  # kept, so that they are reaped


def start(store: Store, name: str, record: dict, module: str, env: dict[str, str]) -> None:
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


def running(record: dict) -> bool:
    if "supervisor" not in record:  # being started this moment
        return (now() - record["description"]["CreationTime"]).total_seconds() < START_SECONDS
    with contextlib.suppress(psutil.Error):  # cheap, and whoever waits for a job asks often
        process = psutil.Process(record["supervisor"]["pid"])
        same = abs(process.create_time() - record["supervisor"]["created"]) < 1
        return same and process.status() != psutil.STATUS_ZOMBIE
    return False


def ask_to_stop(record: dict) -> None:
    """SIGTERM to the supervisor; nothing happens if there is none."""
    for process in _processes(record)[:1]:
        process.send_signal(signal.SIGTERM)


def run(job) -> None:
    """The supervisor's main: ``job.run()``; a fault of ours ends the job as well, with its reason."""
    try:
        job.run()
    except BaseException as error:
        job.finish("Failed", f"InternalServerError: {type(error).__name__}: {error}")
        raise


def passed_on_region() -> str:
    """The region of whoever created the job, which came with the environment."""
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION", "")


def _processes(record: dict) -> list[psutil.Process]:
    supervisor = record.get("supervisor")
    return session_processes(supervisor["pid"], supervisor["created"]) if supervisor else []
