"""The process that runs a job. It outlives the one that created the job, which any process can describe and stop.

A job that has not ended names the process that is to end it. Whoever finds that one dead ends what it has started and
records how the job ended: its guard at once, which waits for nothing else, or else the next one that describes the job.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import psutil

from fastmaker.local import processes
from fastmaker.local.containers import end_below
from fastmaker.local.store import Store, no_space

FINAL = ("Completed", "Failed", "Stopped")
MAX_REASON = 1024  # the longest FailureReason that AWS gives
DIED = "InternalServerError: the process that ran the job has died"
SETTLE = "--settle"
# Waits for a line; without one, whoever was to send it has died.
GUARD = 'read -r line || exec "$@"'


class Job(Protocol):
    """What `run` runs."""

    name: str
    store: Store
    stop_requested: bool

    def run(self) -> None:
        """Run the job to its end, and record its status."""

    def finish(self, status: str, reason: str | None = None) -> None:
        """Record a final status and, of a job that failed, why."""

    def request_stop(self, number: int, frame: FrameType | None) -> None:
        """Take SIGTERM, which asks the job to stop."""


def start(
    store: Store,
    name: str,
    record: dict[str, Any],
    module: str,
    env: dict[str, str],
    prepare: Callable[[Path], object] = lambda directory: None,
) -> None:
    """Record the job, `prepare` its directory and run ``python -m module DIRECTORY`` for it.

    Raises FileExistsError if the name is taken, and what `prepare` raises.
    """
    directory = store.create(name, {**record, "creator": processes.identity()})
    try:
        store.reserve(name)
        prepare(directory)
        command = [sys.executable, "-m", module, str(directory)]
        processes.Started(directory).run(command, "/", env, directory / "supervisor.log")
    except BaseException:
        with contextlib.suppress(KeyError):
            store.delete(name)
        raise


def running(store: Store, name: str, record: dict[str, Any]) -> bool:
    """Return whether the process that runs the job is alive, or about to be started by a living one."""
    if "supervisor" in record:
        return processes.lives(record["supervisor"])
    started = processes.Started(store.directory(name))
    return started.alive() if started.file.exists() else processes.lives(record.get("creator"))


def status(record: dict[str, Any]) -> str:
    """Return the status of a job of either kind."""
    description = record["description"]
    return str(description.get("TrainingJobStatus") or description.get("TransformJobStatus"))


def settle(store: Store, name: str, finish: Callable[[dict[str, Any], str, str | None], None]) -> dict[str, Any]:
    """Return the record of a job, after it was ended if the process that was to end it has died. Raises KeyError.

    `finish` enters a final status and a reason in a record.
    """
    record = store.read(name)
    if status(record) in FINAL or running(store, name, record):
        return record
    # What cannot be written, on a full disk, the next one writes.
    with contextlib.suppress(OSError), store.changing(name, last=True) as record:
        if status(record) not in FINAL and not running(store, name, record):
            end_below(store.directory(name))
            stopped = status(record) == "Stopping"
            finish(record, "Stopped" if stopped else "Failed", None if stopped else reason(store, DIED))
    return record


def reason(store: Store, text: str) -> str:
    """Return why a job failed, after its code that the disk is full if it is: that may be the cause."""
    code, _, rest = text.partition(": ")
    return ": ".join(filter(None, [code, no_space(store.folder), rest]))


def stop(store: Store, name: str, enter: Callable[[dict[str, Any]], None]) -> None:
    """Ask a job that has not ended to stop, which `enter` enters in its record. Raises KeyError."""
    try:
        with store.changing(name) as record:
            if status(record) in FINAL:
                return
            enter(record)
    except OSError:  # on a full disk it is stopped all the same
        record = store.read(name)
    _ask_to_stop(record)


def _ask_to_stop(record: dict[str, Any]) -> None:
    """Send SIGTERM to the process that runs the job, if there is one; one that has yet to start reads the record."""
    if process := processes.find(record.get("supervisor")):
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGTERM)


def main(module: str, job: Callable[[Path], Job], settle_job: Callable[[Path], object]) -> None:
    """Run the job of a directory, or settle one whose process has died: ``python -m module [--settle] DIRECTORY``."""
    directory = Path(sys.argv[-1])
    if SETTLE in sys.argv:
        with contextlib.suppress(KeyError):
            settle_job(directory)
    elif processes.Started(directory).is_this():
        run(job(directory), module)


def run(job: Job, module: str) -> None:
    """Run the job in this process; an error of the engine fails the job as well, with its reason.

    A job that has ended already is not run.
    """
    signal.signal(signal.SIGTERM, job.request_stop)
    with job.store.changing(job.name) as record:
        if status(record) in FINAL:
            return
        job.stop_requested = job.stop_requested or status(record) == "Stopping"
        record["supervisor"] = processes.identity()
    with guarded(module, job.store.directory(job.name)):
        try:
            job.run()
        except BaseException as error:
            job.finish("Failed", f"InternalServerError: {type(error).__name__}: {error}")
            raise


@contextlib.contextmanager
def guarded(module: str, directory: Path) -> Iterator[None]:
    """Have another process settle what `directory` is for if this one dies while the context lasts."""
    end, line = os.pipe()
    env = {key: value for key, value in os.environ.items() if key != processes.VARIABLE}
    command = ["/bin/sh", "-c", GUARD, "sh", sys.executable, "-m", module, SETTLE]
    guard = subprocess.Popen([*command, str(directory)], stdin=end, env=env, start_new_session=True)
    os.close(end)
    try:
        yield
    finally:
        with contextlib.suppress(BrokenPipeError):  # the guard was killed
            os.write(line, b"ended\n")
        os.close(line)
        guard.wait()


def caller_region() -> str:
    """Return the region of whoever created the job, which came with the environment."""
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION", "")
