"""The backend ray: transform jobs on a Ray cluster. Ray keeps nothing of a job, so its record is in FASTMAKER_HOME.

A job whose command was ended, or some of whose objects failed, is resumed by the same command: what it has answered is
not done again.
"""

import contextlib
import hashlib
import json
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import jsonlines

from fastmaker.jobs import instance_types, storage
from fastmaker.jobs.backends.local import session
from fastmaker.jobs.backends.requests import Request, TransformRequest
from fastmaker.jobs.cli.errors import Failure
from fastmaker.jobs.cluster import driver, worker
from fastmaker.jobs.storage.listings import listed
from fastmaker.local import processes
from fastmaker.local.batch import validation
from fastmaker.local.store import Store, default_home, now

FAILURES_FILE = "failures.jsonl"  # key, URI and error of each object that failed
PROGRESS_SECONDS = 10
WRONG_FORMAT = (406, 415)  # no object of the same Content-Type and Accept will fare better
# What has no meaning on a cluster, of a TransformRequest and of fastmaker transform.
NOT_HONOURED = {
    "instance_count": (1, "--instance-count: the cluster says how many workers there are"),
    "timeout": (None, "--timeout: the model is not asked through a server that could be given up"),
}


class Cluster:
    """A `Backend` for transform jobs alone."""

    region = None
    instance_type = "Ray cluster"
    serving_cli_flags = ""

    def __init__(self, address: str = driver.LOCAL, *, dry_run: bool = False):
        self._address, self._dry_run = address, dry_run
        self.cli_flags = " --backend ray" + (f" --address {address}" if address != driver.LOCAL else "")
        self._resumed: dict[str, str] = {}  # the job that goes on, by the name that was asked for

    @cached_property
    def session(self):
        """The SDK's session of this machine, which knows its training jobs."""
        return session()

    def check(self, request: Request) -> bool:
        assert isinstance(request, TransformRequest)
        driver.check_installed()
        if self._address.startswith("ray://"):
            raise ValueError(
                f"--address {self._address}: Ray Data does not run through Ray's client; run the command on a machine"
                " of the cluster, with --address auto"
            )
        for name, (default, reason) in NOT_HONOURED.items():
            if getattr(request, name) != default:
                raise ValueError(reason)
        if request.output is None and request.source.startswith("s3://"):
            raise ValueError("--output is needed for objects in S3: where their answers go")
        described = describe(request)
        if reason := validation.validation_error(described, lambda _: True):
            raise ValueError(reason)
        storage.check_writable(described["TransformOutput"]["S3OutputPath"])
        if self._dry_run:
            print("checked; leave out --dry-run to run it")
        return not self._dry_run

    def transform(self, request: TransformRequest) -> bool:
        identity = {"request": {**vars(request), "name": "", "model_data": ""}}
        self._run(request.name, describe(request), request.model_data, identity)
        return True

    def retry_transform(self, description: dict, name: str, manifest: str) -> None:
        source = {"S3DataType": "ManifestFile", "S3Uri": manifest}
        asked = {
            **description,
            "TransformInput": {**description["TransformInput"], "DataSource": {"S3DataSource": source}},
        }
        earlier = _jobs().read(description["TransformJobName"])
        self._run(name, asked, earlier["model"], {"retried": description["TransformJobName"]}, earlier["digest"])

    def describe_transform(self, name: str) -> dict:
        job = self._resumed.get(name, name)
        try:
            description = _jobs().read(job)["description"]
        except KeyError:
            raise Failure(f"{name}: no such transform job of --backend ray") from None
        with _driving(job) as alone:
            if alone and description["TransformJobStatus"] == "InProgress":  # its command was killed
                description["TransformJobStatus"] = "Stopped"
        return description

    def _run(self, name: str, description: dict, archive: str, identity: dict, digest: str | None = None) -> None:
        """Run a job as `name`, or resume the one of the same identity. Raises Failure if it fails."""
        with tempfile.TemporaryDirectory() as scratch:
            model = driver.read_model(storage.fetch(archive, Path(scratch, "model.tar.gz")))
        found = driver.digest(model)
        if digest not in (None, found):
            raise ValueError(f"{archive} is not the model any more that the job had")
        record = {"model": archive, "digest": found, "identity": _digest({**identity, "digest": found})}
        job = self._resumed[name] = _begin(name, {**record, "description": description})
        with _driving(job) as alone:
            if not alone:
                raise ValueError(f"transform job {job} runs already")
            with _finishing(job):
                self._transform(job, model)

    def _transform(self, job: str, model: dict[str, bytes]) -> None:
        description = _jobs().read(job)["description"]
        source = description["TransformInput"]["DataSource"]["S3DataSource"]
        output, env = description["TransformOutput"]["S3OutputPath"], description["Environment"]
        with listed(source["S3DataType"], source["S3Uri"]) as inputs, driver.connected(self._address, env):
            import ray

            planned = driver.plan(model, env)
            settings = worker_settings(description, inputs.prefix, planned)
            reference = ray.put(model)
            names = [name for name, _ in inputs]
            with _token(output) as token:
                driver.check_nodes(settings, reference, names[0], token)
            _clear(job, output, names)
            left = list(inputs.unanswered(output))
            with _jobs().changing(job) as record:
                record["description"] |= {"TransformStartTime": now(), "AnsweredBefore": len(names) - len(left)}
            if len(left) < len(names):
                print(f"resuming {job}: {len(names) - len(left)} of {len(names)} objects have answers")
            threads = f"{planned.threads} thread{'s' * (planned.threads > 1)}"
            print(f"workers: {planned.workers} of {threads}, batches of {planned.batch_size}", flush=True)
            if left:
                driver.run(settings, reference, planned, left, Results(job, inputs.prefix, len(left)).report)


class Results:
    """Count what came of the objects, and keep the failures."""

    def __init__(self, job: str, prefix: str, count: int) -> None:
        self._job, self._prefix, self._count = job, prefix, count
        self._answers = self._failures = 0
        self._first = ""
        self._printed = time.monotonic()

    def report(self, name: str, error: str, status: int) -> None:
        """Take what came of an object. Raises Failure after the last one if one failed, or when none can succeed."""
        if not error:
            self._answers += 1
        else:
            if status in WRONG_FORMAT and not self._answers:
                raise Failure(f"no object was transformed: the model answers {error}")
            self._failures += 1
            uri = self._prefix + name
            self._first = min(filter(None, (self._first, f"{uri}: {error}")))
            with jsonlines.open(_jobs().directory(self._job) / FAILURES_FILE, "a") as file:
                file.write({"key": name, "uri": uri, "error": error})
        done = self._answers + self._failures
        if time.monotonic() - self._printed > PROGRESS_SECONDS:
            self._printed = time.monotonic()
            print(f"{done} of {self._count} objects", flush=True)
        if done == self._count and self._failures:
            file = _jobs().directory(self._job) / FAILURES_FILE
            count = f"{self._failures} of {self._count} objects failed"
            raise Failure(f"{count}, the first is {self._first}; all: {file}")


def describe(request: TransformRequest) -> dict[str, Any]:
    """Return a request in the form of DescribeTransformJob, as far as it is known before the job runs."""
    output = request.output or storage.uri_of(f"answers/{request.name}")
    parts: dict[str, dict[str, Any]] = {
        "TransformInput": {
            "DataSource": {"S3DataSource": {"S3DataType": request.data_type, "S3Uri": request.source}},
            "ContentType": request.content_type,
            "CompressionType": request.compression_type,
            "SplitType": request.split_type,
        },
        "TransformOutput": {
            "S3OutputPath": output,
            "Accept": request.accept,
            "AssembleWith": request.assemble_with,
        },
        "DataProcessing": {
            "InputFilter": request.input_filter,
            "OutputFilter": request.output_filter,
            "JoinSource": request.join_source,
        },
        "ModelClientConfig": {"InvocationsMaxRetries": request.max_retries},
        "TransformResources": {"InstanceType": instance_types.LOCAL, "InstanceCount": 1},
    }
    given = {
        part: {name: value for name, value in of_part.items() if value is not None} for part, of_part in parts.items()
    }
    return {
        **given,
        "BatchStrategy": request.strategy or "MultiRecord",
        "MaxConcurrentTransforms": request.max_concurrent_transforms,
        "MaxPayloadInMB": request.max_payload,
        "Environment": request.env,
    }


def worker_settings(description: dict[str, Any], prefix: str, planned: driver.Plan) -> worker.Settings:
    """Return what a description asks of each worker; `prefix` + name is an object's URI."""
    source, output = description["TransformInput"], description["TransformOutput"]
    processing = validation.data_processing(description)
    return worker.Settings(
        prefix=prefix,
        output=output["S3OutputPath"],
        content_type=source["ContentType"],
        accept=output["Accept"],
        splitting={
            "split_type": source.get("SplitType", "None"),
            "strategy": description["BatchStrategy"],
            "max_payload_mb": description["MaxPayloadInMB"],
            "gzipped": source.get("CompressionType") == "Gzip",
        },
        end_lines=output.get("AssembleWith") == "Line",
        processing=None if processing.changes_nothing else processing,
        retries=description["ModelClientConfig"].get("InvocationsMaxRetries", validation.RETRIES),
        ahead=description["MaxConcurrentTransforms"],
        batch_size=planned.batch_size,
        threads=planned.threads,
    )


def _jobs() -> Store:
    shape = {"description": {"TransformJobStatus": str, "CreationTime": datetime}, "identity": str}
    return Store(default_home(), "ray-transform-jobs", shape)


def _digest(value: dict) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _begin(name: str, record: dict) -> str:
    """Return the name of the unfinished job of the record's identity, else record a new one. Raises ValueError."""
    jobs = _jobs()
    for earlier in jobs.names():
        with contextlib.suppress(KeyError, ValueError):
            found = jobs.read(earlier)
            if found["identity"] == record["identity"] and found["description"]["TransformJobStatus"] != "Completed":
                return earlier
    times = {"TransformJobName": name, "TransformJobStatus": "InProgress", "CreationTime": now()}
    try:
        jobs.create(name, {**record, "description": {**record["description"], **times}, "cleared": False})
    except FileExistsError:
        raise ValueError(f"transform job {name} exists, of another model, input, output or settings") from None
    return name


@contextlib.contextmanager
def _driving(job: str) -> Iterator[bool]:
    """Be the process that runs a job; yield whether no other one is."""
    with processes.alone(_jobs().directory(job) / "driver.lock") as lock:
        yield lock is not None


@contextlib.contextmanager
def _finishing(job: str) -> Iterator[None]:
    """Record how the body ends."""
    status, reason = "Failed", ""
    (_jobs().directory(job) / FAILURES_FILE).unlink(missing_ok=True)
    with _jobs().changing(job) as record:
        record["description"]["TransformJobStatus"] = "InProgress"
        for name in ("TransformStartTime", "TransformEndTime", "FailureReason"):
            record["description"].pop(name, None)
    try:
        yield
        status = "Completed"
    except KeyboardInterrupt:
        status = "Stopped"
        raise
    except BaseException as error:
        reason = str(error)
        raise
    finally:
        with _jobs().changing(job) as record:
            record["description"] |= {"TransformJobStatus": status, "TransformEndTime": now()}
            record["description"] |= {"FailureReason": reason} if reason else {}


@contextlib.contextmanager
def _token(output: str) -> Iterator[str]:
    """Make a file in an output folder, by which a node shows that it sees the folder; yield its name, empty in S3."""
    if output.startswith("s3://"):
        yield ""
        return
    folder = storage.local_path(output)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(prefix=".", dir=folder) as file:
        yield Path(file.name).name


def _clear(job: str, output: str, names: list[str]) -> None:
    """Remove, once for a job, the answers that others left in its places: from here on an answer is the job's own."""
    jobs = _jobs()
    if jobs.read(job)["cleared"]:
        return
    for name, size in storage.sizes(storage.join(output, ""), sorted(f"{name}.out" for name in names)):
        if size is not None:
            storage.remove(storage.join(output, name))
    with jobs.changing(job) as record:
        record["cleared"] = True
