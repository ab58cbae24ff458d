"""Batch transform jobs; ``python -m fastmaker.local.batch.transform_jobs JOB_DIRECTORY`` runs one.

Every object of a prefix or a manifest goes to a server, and the answer to ``<name of the object>.out``. Objects are
shared out to the instances by key; one that fails has no .out, the others go on, and the job is Failed in the end.
Rules, defaults and limits: https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_CreateTransformJob.html
"""

import contextlib
import itertools
import json
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jsonlines
import urllib3

from fastmaker.jobs import storage
from fastmaker.jobs.storage.listings import InputError, Inputs
from fastmaker.jobs.storage.manifests import ManifestError
from fastmaker.local import supervisor
from fastmaker.local.batch import records
from fastmaker.local.batch.data_processing import DataProcessing, ProcessingError
from fastmaker.local.containers import Container, ContainerError, free_ports
from fastmaker.local.serving import torchserve
from fastmaker.local.store import Store, now
from fastmaker.local.supervisor import FINAL, MAX_REASON

KIND = "transform-jobs"
FAILURES_FILE = "failures.jsonl"  # key, URI and error of each object that failed
# Defaults and limits of CreateTransformJob.
MAX_PAYLOAD_MB = 6
MAX_TOTAL_PAYLOAD_MB = 100
INSTANCES = 100
RETRIES = 3  # https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_ModelClientConfig.html
TIMEOUT_SECONDS = 600
OBJECTS_AHEAD = 4  # objects of an instance that are read or written while others are at the server
SERVER_STARTS = 4  # of one instance, after which what is left of its objects fails
FIRST_PAUSE_SECONDS = 0.1  # before a request is tried again; doubled each time
READY_SECONDS = 60  # for a server whose worker died to have another
REFUSED_FORMAT = (406, 415)  # no object of the same Content-Type and Accept will fare better
IN_MEMORY = 8 * records.MB  # of an object's answers, before they go to disk


def validation_error(request: dict) -> str | None:
    """Why the CreateTransformJob `request` cannot be run here, or None."""
    source, resources = request["TransformInput"], request["TransformResources"]
    if resources["InstanceType"] not in ("local", "local_gpu"):
        return f"the instance type is {resources['InstanceType']!r}; a ProcessSession runs local and local_gpu"
    if not 1 <= resources["InstanceCount"] <= INSTANCES:
        return f"InstanceCount is {resources['InstanceCount']}; expected 1 to {INSTANCES}"
    data_type = source["DataSource"]["S3DataSource"]["S3DataType"]
    choices = {
        "S3DataType": (data_type, ("S3Prefix", "ManifestFile")),
        "SplitType": (source.get("SplitType", "None"), ("None", "Line", "RecordIO")),
        "CompressionType": (source.get("CompressionType", "None"), ("None", "Gzip")),
        "BatchStrategy": (request.get("BatchStrategy", "MultiRecord"), ("MultiRecord", "SingleRecord")),
        "AssembleWith": (request["TransformOutput"].get("AssembleWith", "None"), ("None", "Line")),
        "JoinSource": (request.get("DataProcessing", {}).get("JoinSource", "None"), ("None", "Input")),
    }
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            return f"{name} is {value!r}; expected one of {', '.join(allowed)}"
    if request.get("DataCaptureConfig"):
        return "DataCaptureConfig needs AWS"
    try:
        storage.check(source["DataSource"]["S3DataSource"]["S3Uri"])
        storage.check_scheme(request["TransformOutput"]["S3OutputPath"])
    except storage.StorageError as error:
        return str(error)
    return _limit_exceeded(request) or _data_processing(request).validation_error()


def _limit_exceeded(request: dict) -> str | None:
    concurrency, payload = request.get("MaxConcurrentTransforms", 0), request.get("MaxPayloadInMB", MAX_PAYLOAD_MB)
    client = request.get("ModelClientConfig", {})
    limits = {
        "MaxConcurrentTransforms": (concurrency, 0, sys.maxsize),
        "MaxPayloadInMB": (payload, 0, MAX_TOTAL_PAYLOAD_MB),
        "InvocationsMaxRetries": (client.get("InvocationsMaxRetries", RETRIES), 0, RETRIES),
        "InvocationsTimeoutInSeconds": (client.get("InvocationsTimeoutInSeconds", TIMEOUT_SECONDS), 1, 3600),
    }
    for name, (value, least, most) in limits.items():
        if not isinstance(value, int) or not least <= value <= most:
            return f"{name} is {value!r}; expected a whole number " + (
                f"from {least} to {most}" if most < sys.maxsize else f"of at least {least}"
            )
    if concurrency * payload > MAX_TOTAL_PAYLOAD_MB:
        return (
            f"MaxConcurrentTransforms ({concurrency}) times MaxPayloadInMB ({payload}) is {concurrency * payload} MB; "
            f"expected at most {MAX_TOTAL_PAYLOAD_MB}"
        )
    return None


def start(store: Store, request: dict, arn: str, model: dict, env: dict[str, str]) -> None:
    """Record the job and start the process that runs it. Raises FileExistsError if the name is taken."""
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
    record = {"description": description, "model": model, "tags": request.get("Tags", [])}
    supervisor.start(store, request["TransformJobName"], record, "fastmaker.local.batch.transform_jobs", env)


def describe(store: Store, name: str) -> dict:
    """The job as DescribeTransformJob answers it; a job whose processes have died is Failed. Raises KeyError."""
    record = store.read(name)
    if record["description"]["TransformJobStatus"] not in FINAL and not supervisor.running(record):
        with store.changing(name) as record:
            if record["description"]["TransformJobStatus"] not in FINAL:  # it may have ended while we looked
                stopping = record["description"]["TransformJobStatus"] == "Stopping"
                reason = None if stopping else "InternalServerError: the process that ran the job has died"
                _finish(record["description"], "Stopped" if stopping else "Failed", reason)
        for container in containers(store, name):
            container.close()
    return record["description"]


def stop(store: Store, name: str) -> None:
    """Ask the job to stop: requests under way are given up, what was written stays. Raises KeyError."""
    with store.changing(name) as record:
        if record["description"]["TransformJobStatus"] in FINAL:
            return
        record["description"]["TransformJobStatus"] = "Stopping"
    supervisor.ask_to_stop(record)


def containers(store: Store, name: str) -> list[Container]:
    """Every container that the job has started, in that order for each instance."""
    return [Container(path) for path in sorted(store.directory(name).glob("instance-*"))]


def progress(store: Store, name: str) -> dict[str, int]:
    """``objects`` of the job, how many have an ``answers`` and how many ``failures``; empty before they are known."""
    try:
        return json.loads((store.directory(name) / "progress.json").read_text())
    except FileNotFoundError:
        return {}


class Refused(Exception):
    """The job cannot go on; the message is its FailureReason."""


class Halted(Exception):
    """The job ends: no request is sent any more."""


class ObjectError(Exception):
    """An object gets no answer."""


class Job:
    """One run of a transform job, from its record to its last object."""

    def __init__(self, directory: Path):
        self.name = directory.name
        self.directory = directory
        self.store = Store(directory.parent.parent, KIND)
        record = self.store.read(self.name)
        self.request, self.model = record["description"], record["model"]
        self.processing = _data_processing(self.request)
        self.output = self.request["TransformOutput"]
        self.inputs = Inputs(directory / "inputs.sqlite")
        self.halted = threading.Event()
        self.stop_requested = False
        self.answers = self.failures = 0
        self.first_failure = (sys.maxsize, "")  # the object's number, and why
        self.refusal: str | None = None
        self.fault: BaseException | None = None
        self._reading = False
        self._lock = threading.Lock()

    def run(self) -> None:
        """From the list of objects to a final status; whatever goes wrong becomes the FailureReason."""
        signal.signal(signal.SIGTERM, self._request_stop)
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
        self._write_progress()
        self.inputs.close()
        with self.store.changing(self.name) as record:
            _finish(record["description"], status, reason)

    def succeeded(self) -> None:
        with self._lock:
            self.answers += 1

    def failed(self, number: int, name: str, error: Exception) -> None:
        """Count it. An answer that an earlier job left in the same place would pass as this job's: it is removed."""
        uri = self.inputs.prefix + name
        try:
            storage.remove(_out(self.output["S3OutputPath"], name))
        except ObjectError:  # there is no place for its answer, hence none
            pass
        except storage.StorageError as kept:
            error = ObjectError(f"{error}; an answer of an earlier job may still be there: {kept}")
        with self._lock:
            self.failures += 1
            self.first_failure = min(self.first_failure, (number, f"{uri}: {error}"))
            with jsonlines.open(self.directory / FAILURES_FILE, "a") as file:
                file.write({"key": name, "uri": uri, "error": str(error)})

    def refuse(self, reason: str) -> None:
        """End the job: nothing that follows can succeed."""
        with self._lock:
            self.refusal = self.refusal or reason
        self.halted.set()

    def abort(self, fault: BaseException) -> None:
        """End the job for a fault of ours. What goes wrong because the job is ending is none."""
        if not self.halted.is_set():
            self.fault = fault
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
                        instance.give_up()
                self._write_progress()
                time.sleep(0.1)
        if self.fault:
            raise self.fault

    def _outcome(self) -> tuple[str, str | None]:
        if self.stop_requested:
            return "Stopped", None
        if self.refusal:
            return "Failed", self.refusal
        if self.failures:
            count = f"{self.failures} of {self.inputs.count} objects failed"
            first = self.first_failure[1][: MAX_REASON // 2]
            return "Failed", f"ClientError: {count}, the first is {first}; all: {self.directory / FAILURES_FILE}"
        return "Completed", None

    def _write_progress(self) -> None:
        counts = {"objects": self.inputs.count, "answers": self.answers, "failures": self.failures}
        partial = self.directory / "progress.json.partial"
        partial.write_text(json.dumps(counts))
        partial.replace(self.directory / "progress.json")

    def _request_stop(self, number, frame) -> None:
        self.stop_requested = True
        self.halted.set()
        if self._reading:
            raise Halted


class Instance:
    """One instance of a job: its server, and the objects that are its share."""

    def __init__(self, job: Job, number: int, count: int):
        self.job = job
        self.number = number
        self.count = count
        request = job.request
        source = request["TransformInput"]
        # Left unset, a container may answer at /execution-parameters; the PyTorch container has no such page.
        self.concurrency = request.get("MaxConcurrentTransforms") or 1
        self.splitting = {
            "split_type": source.get("SplitType", "None"),
            "strategy": request.get("BatchStrategy", "MultiRecord"),
            "max_payload_mb": request.get("MaxPayloadInMB", MAX_PAYLOAD_MB),
            "gzipped": source.get("CompressionType") == "Gzip",
        }
        client = request.get("ModelClientConfig", {})
        self.retries = client.get("InvocationsMaxRetries", RETRIES)
        self.timeout = client.get("InvocationsTimeoutInSeconds", TIMEOUT_SECONDS)
        self.headers = {
            "Content-Type": source.get("ContentType", "application/octet-stream"),
            "Accept": job.output.get("Accept", "*/*"),
        }
        self.container: Container | None = None
        self.starts = 0
        self.port = 0
        self._taking = threading.Lock()
        self._recovering = threading.Lock()
        self._slots = threading.Semaphore(self.concurrency)  # requests under way
        # Payloads that were read and whose answers were not yet written: they bound what is held in memory.
        self._places = threading.Semaphore(2 * self.concurrency)

    def run(self) -> None:
        """Start the server and transform each object of the share."""
        with self._errors_end_the_job():
            self._start_server()
            every = enumerate(self.job.inputs)
            self._share = ((number, name) for number, (name, _) in every if number % self.count == self.number)
            workers = self.concurrency + OBJECTS_AHEAD
            with ThreadPoolExecutor(self.concurrency) as self._requests, ThreadPoolExecutor(workers) as objects:
                for _ in range(workers):
                    objects.submit(self._transform_objects)
        self.give_up()

    def give_up(self) -> None:
        """End the server, and with it the requests under way; its log stays."""
        if self.container:
            self.container.close()
            shutil.rmtree(self.container.root / "model", ignore_errors=True)

    @contextlib.contextmanager
    def _errors_end_the_job(self) -> Iterator[None]:
        try:
            yield
        except Halted:
            pass
        except (ContainerError, storage.StorageError, Refused) as error:
            self.job.refuse(f"AlgorithmError: {error}")
        except BaseException as error:
            self.job.abort(error)

    def _transform_objects(self) -> None:
        with self._errors_end_the_job():
            while not self.job.halted.is_set():
                with self._taking:
                    number, name = next(self._share, (None, None))
                if name is None:
                    return
                self._transform_object(number, name)

    def _transform_object(self, number: int, name: str) -> None:
        try:
            with (
                storage.open_object(self.job.inputs.prefix + name) as stream,
                tempfile.SpooledTemporaryFile(IN_MEMORY, dir=self.job.directory) as answers,
            ):
                for answer in self._answers(records.payloads(stream, **self.splitting)):
                    answers.write(answer)
                    if self.job.output.get("AssembleWith") == "Line" and not answer.endswith(b"\n"):
                        answers.write(b"\n")
                answers.seek(0)
                output = self.job.output
                storage.put_stream(answers, _out(output["S3OutputPath"], name), output.get("KmsKeyId"))
        except (ObjectError, records.RecordError, ProcessingError, storage.StorageError) as error:
            self.job.failed(number, name, error)
        else:
            self.job.succeeded()

    def _answers(self, payloads: Iterator[bytes]) -> Iterator[bytes]:
        """What the model gives for each payload, in their order; several are at the server at once."""
        payloads = itertools.chain(start := list(itertools.islice(payloads, 2)), payloads)
        if len(start) == 1:  # most objects are: asked here, they need no other thread
            with self._places:
                yield self._answer(start[0])
            return
        waiting: deque[Future] = deque()
        try:
            for payload in payloads:
                while not self._places.acquire(blocking=not waiting):
                    yield self._taken(waiting)
                waiting.append(self._requests.submit(self._answer, payload))
            while waiting:
                yield self._taken(waiting)
        finally:
            for future in waiting:
                future.cancel()
                self._places.release()

    def _taken(self, waiting: deque) -> bytes:
        try:
            return waiting[0].result()
        finally:
            waiting.popleft()
            self._places.release()

    def _answer(self, payload: bytes) -> bytes:
        body = self.job.processing.input(payload)
        return self.job.processing.output(payload, self._invoke(body))

    def _invoke(self, body: bytes) -> bytes:
        """The server's answer. What may pass is tried again; a request whose server died is no attempt."""
        attempts = 0
        while True:
            if self.job.halted.is_set():
                raise Halted
            starts = self.starts
            try:
                with self._slots:
                    answer = self._http.request("POST", "/invocations", body=body, headers=self.headers)
            except urllib3.exceptions.ReadTimeoutError:
                why = f"no answer within {self.timeout} s"
            except urllib3.exceptions.HTTPError as error:
                why = f"the server did not answer: {error}"
            else:
                if answer.status < 400:
                    return answer.data
                why = _refusal_of(answer)
                if answer.status in REFUSED_FORMAT and not self.job.answers:
                    self.job.refuse(f"ClientError: no object was transformed: the model answers {why}")
                if answer.status < 500 and answer.status != 429:
                    raise ObjectError(why)
            if not self._recovered(starts):
                attempts += 1
                if attempts > self.retries:
                    raise ObjectError(f"{why} (tried {attempts} times)")
                self.job.halted.wait(FIRST_PAUSE_SECONDS * 2**attempts)

    def _recovered(self, starts: int) -> bool:
        """Wait until the server can be asked again; returns whether it had died since it was started `starts` times."""
        with self._recovering:
            deadline = time.monotonic() + READY_SECONDS
            while time.monotonic() < deadline:
                if self.job.halted.is_set():
                    raise Halted
                if self.starts > starts:
                    return True
                if torchserve.all_workers_ready(self.port):
                    return False
                if not self.container.alive():
                    self._start_server()
                time.sleep(0.1)
        raise ObjectError(f"the server has had no worker for {READY_SECONDS} s")

    def _start_server(self) -> None:
        """Raises Refused with the reason, if the server does not come up."""
        if self.starts == SERVER_STARTS:
            raise ObjectError(f"the server has died {self.starts} times")
        self.give_up()
        container = Container(self.job.directory / f"instance-{self.number + 1}-{self.starts + 1}")
        self.container = container
        (self.port,) = free_ports(1)
        env = {**self.job.model.get("Environment", {}), **self._environment()}
        instance_type = self.job.request["TransformResources"]["InstanceType"]
        torchserve.start(container, {**self.job.model, "Environment": env}, instance_type, self.port)
        while not torchserve.all_workers_ready(self.port):
            if self.job.halted.is_set():
                raise Halted
            if reason := torchserve.why_not_starting(container):
                raise Refused("\n".join([reason, container.log_tail(15)]))
            time.sleep(0.1)
        self._http = urllib3.HTTPConnectionPool(
            "127.0.0.1", self.port, maxsize=self.concurrency, retries=False, timeout=self.timeout
        )
        self.starts += 1

    def _environment(self) -> dict[str, str]:
        """What a container is told of the job, by
        https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-batch-code.html, then the job's Environment.
        """
        single = self.splitting["strategy"] == "SingleRecord"
        return {
            "SAGEMAKER_BATCH": "true",
            "SAGEMAKER_MAX_PAYLOAD_IN_MB": str(self.splitting["max_payload_mb"]),
            "SAGEMAKER_BATCH_STRATEGY": "SINGLE_RECORD" if single else "MULTI_RECORD",
            "SAGEMAKER_MAX_CONCURRENT_TRANSFORMS": str(self.concurrency),
            **self.job.request.get("Environment", {}),
        }


def _refusal_of(answer) -> str:
    """The status and the first line of a server's error."""
    lines = answer.data.decode("utf-8", "replace").strip().splitlines()
    text = f"{answer.status}: {lines[0]}" if lines else str(answer.status)
    if answer.status == 413:
        text += " (TorchServe takes TS_MAX_REQUEST_SIZE bytes, 6553500 if the job's env does not say otherwise)"
    return text


def _out(output_path: str, name: str) -> str:
    if ".." in name.split("/"):
        raise ObjectError("its name leads out of the output location")
    return storage.join(output_path, name + ".out")


def _data_processing(request: dict) -> DataProcessing:
    wanted = request.get("DataProcessing", {})
    return DataProcessing(
        wanted.get("InputFilter", "$"),
        wanted.get("OutputFilter", "$"),
        wanted.get("JoinSource", "None"),
        request["TransformInput"].get("ContentType", ""),
        request["TransformOutput"].get("Accept", ""),
    )


def _finish(description: dict, status: str, reason: str | None) -> None:
    if reason:
        description["FailureReason"] = reason[:MAX_REASON]
    description.update(TransformJobStatus=status, TransformEndTime=now())


if __name__ == "__main__":
    supervisor.run(Job(Path(sys.argv[1])))
