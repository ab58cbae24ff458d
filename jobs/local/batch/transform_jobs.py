"""Batch transform jobs; ``python -m fastmaker.local.batch.transform_jobs JOB_DIRECTORY`` runs one.

Every object of a prefix or a manifest goes to a server, and the answer to ``<name of the object>.out``. Objects are
divided among the instances by key. One that fails has no .out; the others go on, and the job is Failed in the end.
Rules, defaults and limits: https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_CreateTransformJob.html
"""

import contextlib
import json
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

import jsonlines

from fastmaker import files
from fastmaker.jobs import storage
from fastmaker.jobs.storage.listings import InputError, Inputs
from fastmaker.jobs.storage.manifests import ManifestError
from fastmaker.local import supervisor
from fastmaker.local.batch.instance import Halted, Instance, ObjectError
from fastmaker.local.batch.records import RecordError, output_uri
from fastmaker.local.batch.validation import data_processing
from fastmaker.local.containers import Container, end_below
from fastmaker.local.store import Store, now
from fastmaker.local.supervisor import FINAL, MAX_REASON

MODULE = "fastmaker.local.batch.transform_jobs"
KIND = "transform-jobs"
SHAPE = {"description": {"TransformJobName": str, "TransformJobStatus": str, "CreationTime": datetime}}
FAILURES_FILE = "failures.jsonl"  # key, URI and error of each object that failed
ARCHIVE = "model.tar.gz"  # in a job's directory, of a model whose archive is deleted with it
PROGRESS_FILE = "progress.json"


def start(
    store: Store,
    request: dict[str, Any],
    arn: str,
    model: dict[str, Any],
    env: dict[str, str],
    archive: Path | None = None,
) -> None:
    """Record the job and start the process that runs it.

    An `archive` of the model that goes with the model is linked into the job's directory. Raises FileExistsError if the
    name is taken, FileNotFoundError if the archive is gone.
    """
    name = request["TransformJobName"]
    own = store.directory(name) / ARCHIVE
    source = request["TransformInput"]["DataSource"]["S3DataSource"]
    source = {**source, "S3Uri": storage.absolute(source["S3Uri"])}
    output = request["TransformOutput"]
    description = {
        **{key: value for key, value in request.items() if key != "Tags"},
        "TransformInput": {**request["TransformInput"], "DataSource": {"S3DataSource": source}},
        "TransformOutput": {**output, "S3OutputPath": storage.absolute(output["S3OutputPath"])},
        "TransformJobArn": arn,
        "TransformJobStatus": "InProgress",
        "CreationTime": now(),
    }
    model = {**model, **({"ModelDataUrl": f"file://{own}"} if archive else {})}
    record = {"description": description, "model": model, "tags": request.get("Tags", [])}

    def prepare(directory: Path) -> None:
        if archive:
            os.link(archive, own)

    supervisor.start(store, name, record, MODULE, env, prepare)


def describe(store: Store, name: str) -> dict[str, Any]:
    """Return the job as DescribeTransformJob does; a job whose processes have died is Failed. Raises KeyError."""
    record = supervisor.settle(store, name, _settle)
    description: dict[str, Any] = record["description"]
    return description


def stop(store: Store, name: str) -> None:
    """Ask the job to stop: requests under way are dropped, answers that were written stay. Raises KeyError."""

    def enter(record: dict[str, Any]) -> None:
        record["description"]["TransformJobStatus"] = "Stopping"

    supervisor.stop(store, name, enter)


def containers(store: Store, name: str) -> list[Container]:
    """Return the containers that the job has started, in that order for each instance."""
    return [Container(path) for path in sorted(store.directory(name).glob("instance-*"))]


def progress(store: Store, name: str) -> dict[str, int]:
    """Return the numbers of ``objects``, of ``answers`` and of ``failures``; empty before the job has written them."""
    try:
        counts: dict[str, int] = json.loads((store.directory(name) / PROGRESS_FILE).read_text())
    except FileNotFoundError:
        return {}
    return counts


def store_below(home: Path) -> Store:
    """Return the records of transform jobs in FASTMAKER_HOME."""
    return Store(home, KIND, SHAPE, end_below)


class Job:
    """Run a transform job, from its record to its last object."""

    def __init__(self, directory: Path) -> None:
        self.name = directory.name
        self.directory = directory
        self.store = store_below(directory.parent.parent)
        record = self.store.read(self.name)
        self.request, self.model = record["description"], record["model"]
        self.processing = data_processing(self.request)
        self.output = self.request["TransformOutput"]
        self.inputs = Inputs(directory / "inputs.sqlite")
        self.halted = threading.Event()
        self.stop_requested = False
        self.answers = self.failures = 0
        self.first_failure = (sys.maxsize, "")  # the object's number, and why
        self.failure_reason: str | None = None
        self.internal_error: BaseException | None = None
        self._written_progress: dict[str, int] = {}
        self._reading = False
        self._lock = threading.Lock()

    def run(self) -> None:
        """Run the job from the list of its objects to a final status; an error becomes the FailureReason."""
        if self.stop_requested:  # before there was a process to ask
            self.finish("Stopped")
            return
        try:
            self._read_inputs()
            with self.store.changing(self.name) as record:
                record["description"]["TransformStartTime"] = now()
            self._run_instances()
            self.finish(*self._outcome())
        except Halted:
            self.finish("Stopped")
        except (InputError, ManifestError, storage.StorageError) as error:
            self.finish("Failed", f"ClientError: {error}")

    def finish(self, status: str, reason: str | None = None) -> None:
        """Record the final status and, if the job failed, why."""
        self._write_progress()
        self.inputs.close()
        reason = reason and supervisor.reason(self.store, reason)
        with self.store.changing(self.name, last=True) as record:
            if record["description"]["TransformJobStatus"] not in FINAL:
                _finish(record["description"], status, reason)

    def record_answer(self) -> None:
        """Count an object whose answer was written."""
        with self._lock:
            self.answers += 1

    def record_failure(self, number: int, name: str, error: Exception) -> None:
        """Count an object that failed and write why. The answer that an earlier job left in its place is removed."""
        uri = self.inputs.prefix + name
        try:
            storage.remove(output_uri(self.output["S3OutputPath"], name))
        except RecordError:  # there is no place for its answer, hence none
            pass
        except storage.StorageError as kept:
            error = ObjectError(f"{error}; an answer of an earlier job may still be there: {kept}")
        with self._lock:
            self.failures += 1
            self.first_failure = min(self.first_failure, (number, f"{uri}: {error}"))
            with jsonlines.open(self.directory / FAILURES_FILE, "a") as file:
                file.write({"key": name, "uri": uri, "error": str(error)})

    def fail(self, reason: str) -> None:
        """End the job with this reason: no object that follows can succeed."""
        with self._lock:
            self.failure_reason = self.failure_reason or reason
        self.halted.set()

    def fail_internally(self, error: BaseException) -> None:
        """End the job for an error of the engine, unless the error is a consequence of the job's end."""
        if not self.halted.is_set():
            self.internal_error = error
            self.halted.set()

    def _read_inputs(self) -> None:
        source = self.request["TransformInput"]["DataSource"]["S3DataSource"]
        self._reading = True  # a request to stop interrupts it: a million keys take a while
        storage.check_writable(self.output["S3OutputPath"])
        self.inputs.read(source["S3DataType"], source["S3Uri"])
        self._reading = False

    def _run_instances(self) -> None:
        count = self.request["TransformResources"]["InstanceCount"]
        instances = [Instance(self, number, count) for number in range(count)]
        with ThreadPoolExecutor(count) as pool:
            running = [pool.submit(instance.run) for instance in instances]
            while not all(future.done() for future in running):
                if self.halted.is_set():
                    for instance in instances:
                        instance.close()
                self._write_progress()
                time.sleep(0.1)
        if self.internal_error:
            raise self.internal_error

    def _outcome(self) -> tuple[str, str | None]:
        if self.stop_requested:
            return "Stopped", None
        if self.failure_reason:
            return "Failed", self.failure_reason
        if self.failures:
            count = f"{self.failures} of {self.inputs.count} objects failed"
            first = self.first_failure[1][: MAX_REASON // 2]
            return "Failed", f"ClientError: {count}, the first is {first}; all: {self.directory / FAILURES_FILE}"
        return "Completed", None

    def _write_progress(self) -> None:
        counts = {"objects": self.inputs.count, "answers": self.answers, "failures": self.failures}
        if counts != self._written_progress:
            with contextlib.suppress(OSError):  # on a full disk the job goes on
                files.write_text(self.directory / PROGRESS_FILE, json.dumps(counts))
                self._written_progress = counts

    def request_stop(self, number: int, frame: FrameType | None) -> None:
        """Take SIGTERM: the job stops."""
        self.stop_requested = True
        self.halted.set()
        if self._reading:
            raise Halted


def _finish(description: dict[str, Any], status: str, reason: str | None) -> None:
    if reason:
        description["FailureReason"] = reason[:MAX_REASON]
    description.update(TransformJobStatus=status, TransformEndTime=now())


def _settle(record: dict[str, Any], status: str, reason: str | None) -> None:
    _finish(record["description"], status, reason)


if __name__ == "__main__":
    supervisor.main(MODULE, Job, lambda directory: describe(store_below(directory.parent.parent), directory.name))
