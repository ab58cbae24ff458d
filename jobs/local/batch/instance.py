"""One instance of a transform job: its server, and the objects that are its share."""

import contextlib
import itertools
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import urllib3

from fastmaker.jobs import storage
from fastmaker.local.batch import records
from fastmaker.local.batch.data_processing import ProcessingError
from fastmaker.local.batch.validation import MAX_PAYLOAD_MB, RETRIES, TIMEOUT_SECONDS
from fastmaker.local.containers import Container, ContainerError, free_ports
from fastmaker.local.serving import connections, servers, torchserve

if TYPE_CHECKING:
    from fastmaker.local.batch.transform_jobs import Job

OBJECTS_AHEAD = 4  # objects of an instance that are read or written while others are at the server
SERVER_STARTS = 4  # of one instance, after which what is left of its objects fails
FIRST_PAUSE_SECONDS = 0.1  # before a request is tried again; doubled each time
READY_SECONDS = 60  # for a server whose worker died to have another
WRONG_FORMAT = (406, 415)  # no object of the same Content-Type and Accept will fare better
IN_MEMORY = 8 * records.MB  # of an object's answers, before they go to disk


class JobFailure(Exception):
    """The job cannot go on; the message is its FailureReason."""


class Halted(Exception):
    """The job ends: no request is sent any more."""


class ObjectError(Exception):
    """An object gets no answer."""


class Instance:
    """Run the server of one instance of a job, and transform the objects that are its share."""

    def __init__(self, job: "Job", number: int, count: int) -> None:
        self.job = job
        self.number = number
        self.count = count
        request = job.request
        source = request["TransformInput"]
        # Left unset, a container may answer at /execution-parameters; the PyTorch container has no such page.
        self.concurrency = request.get("MaxConcurrentTransforms") or 1
        self.splitting: dict[str, Any] = {
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
        self.starts = 0  # of the server
        self.port = 0
        self._share_lock = threading.Lock()
        self._recovery_lock = threading.Lock()
        self._request_slots = threading.Semaphore(self.concurrency)  # requests under way
        # Payloads that were read and whose answers were not yet written: they bound what is held in memory.
        self._payload_slots = threading.Semaphore(2 * self.concurrency)

    def run(self) -> None:
        """Start the server and transform each object of the share."""
        with self._errors_end_the_job():
            self._start_server()
            if self.job.inputs.hidden and self.container and self.number == 0:
                hidden = f"{self.job.inputs.hidden} hidden objects of {self.job.inputs.prefix}"
                self.container.note(f"left out {hidden}, which a job on AWS sends to the model as well")
            every = enumerate(self.job.inputs)
            self._share = ((number, name) for number, (name, _) in every if number % self.count == self.number)
            workers = self.concurrency + OBJECTS_AHEAD
            with ThreadPoolExecutor(self.concurrency) as self._requests, ThreadPoolExecutor(workers) as objects:
                for _ in range(workers):
                    objects.submit(self._transform_objects)
        self.close()

    def close(self) -> None:
        """End the server, and with it the requests under way; its log stays."""
        if self.container:
            self.container.close()
            shutil.rmtree(self.container.root / "model", ignore_errors=True)

    @contextlib.contextmanager
    def _errors_end_the_job(self) -> Iterator[None]:
        """End the job for an error of the body, which goes no further."""
        try:
            yield
        except Halted:
            pass
        except (ContainerError, storage.StorageError, JobFailure) as error:
            self.job.fail(f"AlgorithmError: {error}")
        except BaseException as error:
            self.job.fail_internally(error)

    def _transform_objects(self) -> None:
        """Transform objects of the share, beside other threads, until none is left."""
        with self._errors_end_the_job():
            while not self.job.halted.is_set():
                with self._share_lock:
                    share = next(self._share, None)
                if share is None:
                    return
                self._transform_object(*share)

    def _transform_object(self, number: int, name: str) -> None:
        """Send an object's payloads to the server and write the answers, or count its failure."""
        try:
            with (
                storage.open_object(self.job.inputs.prefix + name) as stream,
                tempfile.SpooledTemporaryFile(IN_MEMORY, dir=str(self.job.directory)) as answers,
            ):
                for answer in self._transform(records.payloads(stream, **self.splitting)):
                    answers.write(answer)
                    if self.job.output.get("AssembleWith") == "Line" and not answer.endswith(b"\n"):
                        answers.write(b"\n")
                answers.seek(0)
                output = self.job.output
                storage.put_stream(answers, records.output_uri(output["S3OutputPath"], name), output.get("KmsKeyId"))
        except (ObjectError, records.RecordError, ProcessingError, storage.StorageError) as error:
            self.job.record_failure(number, name, error)
        else:
            self.job.record_answer()

    def _transform(self, payloads: Iterator[bytes]) -> Iterator[bytes]:
        """Yield the answer to each payload, in their order; several are at the server at once."""
        payloads = itertools.chain(start := list(itertools.islice(payloads, 2)), payloads)
        if len(start) == 1:  # as most objects have: sent from here it needs no other thread
            with self._payload_slots:
                yield self._transform_payload(start[0])
            return
        waiting: deque[Future[bytes]] = deque()
        try:
            for payload in payloads:
                while not self._payload_slots.acquire(blocking=not waiting):
                    yield self._next_answer(waiting)
                waiting.append(self._requests.submit(self._transform_payload, payload))
            while waiting:
                yield self._next_answer(waiting)
        finally:
            for future in waiting:
                future.cancel()
                self._payload_slots.release()

    def _next_answer(self, waiting: deque[Future[bytes]]) -> bytes:
        """Wait for the first answer and free its slot."""
        try:
            return waiting[0].result()
        finally:
            waiting.popleft()
            self._payload_slots.release()

    def _transform_payload(self, payload: bytes) -> bytes:
        """Return what is stored for a payload: the answer to the filtered payload, filtered and joined."""
        body = self.job.processing.input(payload)
        return self.job.processing.output(payload, self._invoke(body))

    def _invoke(self, body: bytes) -> bytes:
        """Return the server's answer to `body`. Raises ObjectError for an error that stays after the retries.

        A request whose server died is sent again and does not count as a retry.
        """
        attempts = 0
        while True:
            if self.job.halted.is_set():
                raise Halted
            starts = self.starts
            try:
                with self._request_slots:
                    answer = self._http.request("POST", "/invocations", body=body, headers=self.headers)
            except urllib3.exceptions.ReadTimeoutError:
                why = f"no answer within {self.timeout} s"
            except urllib3.exceptions.HTTPError as error:
                why = f"the server did not answer: {error}"
            else:
                if answer.status < 400:
                    return bytes(answer.data)
                why = _error_line(answer)
                if answer.status in WRONG_FORMAT and not self.job.answers:
                    self.job.fail(f"ClientError: no object was transformed: the model answers {why}")
                if answer.status < 500 and answer.status != 429:
                    raise ObjectError(why)
            if not self._recovered(starts):
                attempts += 1
                if attempts > self.retries:
                    raise ObjectError(f"{why} (tried {attempts} times)")
                self.job.halted.wait(FIRST_PAUSE_SECONDS * 2**attempts)

    def _recovered(self, starts: int) -> bool:
        """Wait until the server answers again; return whether it had died since it was started `starts` times."""
        with self._recovery_lock:
            deadline = time.monotonic() + READY_SECONDS
            while time.monotonic() < deadline:
                if self.job.halted.is_set():
                    raise Halted
                if self.starts > starts:
                    return True
                if self._is_ready():
                    return False
                if not (self.container and self.container.alive()):
                    self._start_server()
                time.sleep(0.1)
        raise ObjectError(f"the server has had no worker for {READY_SECONDS} s")

    def _start_server(self) -> None:
        """Start the server and wait for its workers. Raises JobFailure with the reason if it does not come up.

        One that has died is started again on what was unpacked for it: the model may have been deleted or replaced.
        """
        if self.starts == SERVER_STARTS:
            raise ObjectError(f"the server has died {self.starts} times")
        env = {**self.job.model.get("Environment", {}), **self._environment()}
        model = {**self.job.model, "Environment": env}
        if container := self.container:
            self._start_again(container, model)
        else:
            container = self.container = Container(self.job.directory / f"instance-{self.number + 1}")
            torchserve.prepare(container, model)
            self._start_process(container, model)
        attempts = 1
        while not self._is_ready():
            if self.job.halted.is_set():
                raise Halted
            ended = servers.clashed(container, model) or servers.was_killed(container, model)
            if ended and attempts < SERVER_STARTS:
                attempts += 1
                self._start_again(container, model)
            elif reason := servers.why_not_starting(container, model):
                raise JobFailure("\n".join([reason, container.log_tail(15)]))
            time.sleep(0.1)
        self._http = connections.pool_of(container, self.port, maxsize=self.concurrency, timeout=self.timeout)
        self.starts += 1

    def _start_again(self, container: Container, model: dict[str, Any]) -> None:
        """End what is left of the server of a container and start it anew."""
        container.stop(0)
        container.renew_temporary()
        container.set_log_aside()
        self._start_process(container, model)

    def _start_process(self, container: Container, model: dict[str, Any]) -> None:
        """Start the server of a container at a free port."""
        (self.port,) = free_ports(1)
        servers.start(container, model, self.job.request["TransformResources"]["InstanceType"], self.port)

    def _is_ready(self) -> bool:
        """Return whether the server has loaded its model, and it is this server that answers at its port."""
        container = self.container
        return container is not None and servers.is_ready(container, self.job.model, self.port)

    def _environment(self) -> dict[str, str]:
        """Return the container's variables: those that tell of the job, and the job's Environment.

        https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-batch-code.html
        """
        single = self.splitting["strategy"] == "SingleRecord"
        return {
            "SAGEMAKER_BATCH": "true",
            "SAGEMAKER_MAX_PAYLOAD_IN_MB": str(self.splitting["max_payload_mb"]),
            "SAGEMAKER_BATCH_STRATEGY": "SINGLE_RECORD" if single else "MULTI_RECORD",
            "SAGEMAKER_MAX_CONCURRENT_TRANSFORMS": str(self.concurrency),
            **self.job.request.get("Environment", {}),
        }


def _error_line(answer: urllib3.BaseHTTPResponse) -> str:
    """Return the status and the first line of a server's error."""
    lines = answer.data.decode("utf-8", "replace").strip().splitlines()
    text = f"{answer.status}: {lines[0]}" if lines else str(answer.status)
    if answer.status == 413:
        text += " (TorchServe takes TS_MAX_REQUEST_SIZE bytes, 6553500 if the job's env does not say otherwise)"
    return text
