"""The process that works off the asynchronous requests of an endpoint: ``python -m ... [--settle] DIRECTORY``.

It ends when there was no request for a while. If it is killed, its guard starts another one.
"""

import contextlib
import fcntl
import logging
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from fastmaker.jobs import storage
from fastmaker.jobs.storage import s3
from fastmaker.local import processes, supervisor
from fastmaker.local.runtime_client import Invocations
from fastmaker.local.serving import endpoints, instances, queues
from fastmaker.local.serving.asynchronous import MODULE, Later, deliver, ensure, reaching, settle_failure
from fastmaker.local.serving.queues import Outcome, Request

CONCURRENT = 4  # requests at an instance, unless the configuration says; AWS chooses a number, too
MOST = 64  # requests under way in this process
POLL_SECONDS = 0.1
IDLE_SECONDS = 30.0  # without a request, after which the process ends
RETRY_SECONDS = 2.0  # after which what may pass is tried again
UNREACHABLE_SECONDS = 900.0  # without an answer of S3, after which the process ends; the next one finds the requests
MAX_INPUT = 2**30  # bytes, as on AWS
UNKNOWN = "binary/octet-stream"  # S3's type of an object that was put without one
log = logging.getLogger(MODULE)


class Worker:
    """Work off the queue of one endpoint in threads, as many as its configuration says."""

    def __init__(self, directory: Path) -> None:
        self._store, self._name = endpoints.store_below(directory.parents[1]), directory.name
        self._folder = directory / queues.FOLDER
        self._under_way: set[Request] = set()
        self._postponed: dict[Request, float] = {}
        self._wake = threading.Event()
        self._unreachable: float | None = None  # since when
        self._client = s3.client()
        self._invocations = Invocations(self._store, per_instance=self._per_instance)

    def run(self, lock: int) -> None:
        """Work until there was no request for a while, or S3 did not answer for long. Raises KeyError."""
        idle = time.monotonic()
        queues.sweep(self._folder)
        self._note_topics()
        with ThreadPoolExecutor(MOST) as pool:
            while self._unreachable is None or time.monotonic() - self._unreachable < UNREACHABLE_SECONDS:
                self._wake.clear()
                found = queues.waiting(self._folder)
                if found or self._under_way:
                    idle = time.monotonic()
                elif time.monotonic() - idle > IDLE_SECONDS and self._leaves(lock):
                    return
                free = min(MOST, self._most()) - len(self._under_way)
                ready = [r for r in found if r not in self._under_way and self._postponed.get(r, 0) < time.monotonic()]
                for request in ready[: max(free, 0)]:
                    self._under_way.add(request)
                    pool.submit(self._work, request)
                self._wake.wait(POLL_SECONDS)

    def _leaves(self, lock: int) -> bool:
        """Give up the queue's lock, and return whether that is final: a request may have come meanwhile.

        Whoever starts the process waits for the record's lock, or has found the queue's lock free.
        """
        with self._store.changing(self._name):
            fcntl.flock(lock, fcntl.LOCK_UN)
            if queues.waiting(self._folder):
                fcntl.flock(lock, fcntl.LOCK_EX)
                return False
            processes.Started(self._store.directory(self._name)).file.unlink(missing_ok=True)
            return True

    def _record(self) -> dict[str, Any]:
        return self._store.read(self._name)

    def _per_instance(self) -> int:
        client = self._record()["description"].get("AsyncInferenceConfig", {}).get("ClientConfig", {})
        return int(client.get("MaxConcurrentInvocationsPerInstance", CONCURRENT))

    def _most(self) -> int:
        return self._per_instance() * max(1, len(self._record()["servers"]))

    def _work(self, request: Request) -> None:
        """Answer one request, or leave it for later."""
        try:
            if not request.outcome():
                self._settle(request)
            deliver(request, self._client)
            request.remove()
            self._unreachable = None
        except KeyError:  # the endpoint was deleted, which writes what is left
            pass
        except Exception as error:
            if isinstance(error, Later):
                self._unreachable = self._unreachable or time.monotonic()
            if request not in self._postponed:
                log.error("%s: %s: %s", request.stem, type(error).__name__, error)
            self._postponed[request] = time.monotonic() + RETRY_SECONDS
        finally:
            self._under_way.discard(request)
            self._wake.set()

    def _settle(self, request: Request) -> None:
        """Ask the model, and write what came of it on the disk. Raises Later, OSError, KeyError without endpoint."""
        asked = request.read()
        if time.time() > asked["accepted"] + asked["ttl"]:
            self._fail(request, f"the request waited for more than {asked['ttl']} s, its RequestTTLSeconds")
            return
        try:
            content, kind = self._fetched(request, asked["input"])
            members = {"ContentType": kind, **asked["members"]}
            answer = self._invocations.invoke_whole(content, self._name, members, asked["timeout"])
        except (ClientError, storage.StorageError) as error:
            self._record()  # of an endpoint that was deleted nothing is written here
            message = error.response["Error"]["Message"] if isinstance(error, ClientError) else str(error)
            self._fail(request, message)
        else:
            request.settle(Outcome(asked["output"], answer["ContentType"]), answer["Body"].read())

    def _fetched(self, request: Request, location: str | None) -> tuple[Path, str]:
        """Return a file with a request's input, and the input's type as S3 knows it, empty if it does not.

        The SDK gives the type to the object alone. Raises StorageError, and Later if S3 does not answer.
        """
        kind = ""
        if location is None:
            return request.input, kind
        storage.check_scheme(location)
        if not location.startswith("s3://"):
            storage.check(location)
            file = storage.local_path(location)
            size = file.stat().st_size
        else:
            file, (bucket, key) = request.input, storage.bucket_and_key(location)
            with reaching(location):
                found = self._client.head_object(Bucket=bucket, Key=key)
                size, kind = found["ContentLength"], found.get("ContentType", "")
                if size <= MAX_INPUT:
                    self._client.download_file(bucket, key, str(file))
        if size > MAX_INPUT:
            raise storage.StorageError(f"{location} has {size:,} bytes; expected at most {MAX_INPUT:,}")
        return file, "" if kind == UNKNOWN else kind

    def _note_topics(self) -> None:
        """Say in the endpoint's log that nothing is sent to the topics of its configuration."""
        output = self._record()["description"].get("AsyncInferenceConfig", {}).get("OutputConfig", {})
        topics = [text for text in output.get("NotificationConfig", {}).values() if isinstance(text, str)]
        if topics:
            self._note(f"no notification is sent here to {', '.join(topics)}")

    def _note(self, line: str) -> None:
        for server in self._record()["servers"][:1]:
            instances.container_of(self._store, self._name, server).note(line)

    def _fail(self, request: Request, message: str) -> None:
        settle_failure(request, message)
        asked = request.read()
        if asked["failure"] is None:
            line = f"asynchronous request {asked['members']['InferenceId']} failed: {' '.join(message.split())}"
            self._note(line)
            log.error("%s", line)


def main() -> None:
    """Work off the queue of a directory, or start the process that does so in place of one that was killed."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    directory = Path(sys.argv[-1])
    if supervisor.SETTLE in sys.argv:
        ensure(endpoints.store_below(directory.parents[1]), directory.name, lambda: dict(os.environ))
    elif processes.Started(directory).is_this():
        with contextlib.suppress(KeyError, FileNotFoundError), queues.held(directory / queues.FOLDER) as lock:
            if lock is not None:
                with supervisor.guarded(MODULE, directory):
                    Worker(directory).run(lock)


if __name__ == "__main__":
    main()
