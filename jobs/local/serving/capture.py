"""Data capture: what an endpoint was asked and what it answered, as JSON lines where its configuration says.

    <DestinationS3Uri>/<endpoint>/<variant>/yyyy/mm/dd/hh/<minute>-<second>-<millisecond>-<id>.jsonl

Whoever invokes the model hands a copy to a thread of its own and waits for nothing, as a disk that is busy keeps
writers waiting. The thread writes whole lines into a file of the endpoint's directory, and puts that where it belongs
after SECONDS (`delivery`). A process that is killed loses what was still in its queue, and no line that was written.
https://docs.aws.amazon.com/sagemaker/latest/dg/model-monitor-data-capture-endpoint.html
"""

import base64
import contextlib
import fcntl
import functools
import json
import logging
import os
import queue
import random
import secrets
import threading
import time
import uuid
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import urllib3

from fastmaker import files
from fastmaker.jobs import storage
from fastmaker.local.serving import delivery, instances
from fastmaker.local.serving.delivery import FOLDER, LINES, PLACE
from fastmaker.local.serving.instances import Server
from fastmaker.local.store import DamagedRecord, Store

NEW = ".new"  # of a file whose lock is not yet held
SECONDS = 5.0  # from the first line of a file until it is in its place; AWS takes minutes
RETRY_SECONDS = 30.0  # after which a file that could not be put in its place is tried again
FILE_BYTES = 32 * 2**20  # of lines, after which a file is full
QUEUE_BYTES = 64 * 2**20  # of requests and answers that wait to be written; more are left out
BODY_BYTES = 8 * 2**20  # of a request or an answer that is captured; an asynchronous one may have more
KEPT_BYTES = 2**30  # of an endpoint's files that cannot be put in their place, after which nothing is captured
EXIT_SECONDS = 20.0  # for what a process has left to write when it ends
MODES = {"Input": ("INPUT",), "Output": ("OUTPUT",), "InputAndOutput": ("INPUT", "OUTPUT")}
NAMES = {"INPUT": "endpointInput", "OUTPUT": "endpointOutput"}
ANY = "application/octet-stream"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Event:
    """One request to a server and its answer. A body comes with its content type."""

    endpoint: str
    server: Server  # with the DataCaptureConfig as `capture`
    input: tuple[bytes, str]
    output: tuple[bytes, str]
    inference_id: str | None
    attributes: str | None
    time: datetime

    @property
    def size(self) -> int:
        return len(self.input[0]) + len(self.output[0])

    @property
    def config(self) -> dict[str, Any]:
        return self.server["capture"]  # type: ignore[no-any-return]

    @property
    def folder(self) -> str:
        """The URI of the folder that the event belongs to."""
        parts = self.endpoint, self.server["variant"], self.time.strftime("%Y/%m/%d/%H")
        return storage.join(self.config["DestinationS3Uri"], *parts)

    @functools.cached_property
    def key(self) -> tuple[str, str]:
        """The endpoint and the folder, which have a file of their own."""
        return self.endpoint, self.folder

    def parts(self, event_id: str) -> list[bytes]:
        """Return the event as the line of a file, in parts: to join them would take as long as to encode them."""
        header = self.config.get("CaptureContentTypeHeader", {})
        modes = {mode for option in self.config["CaptureOptions"] for mode in MODES[option["CaptureMode"]]}
        bodies = {"INPUT": self.input, "OUTPUT": self.output}
        metadata: dict[str, Any] = {"eventId": event_id}
        if self.attributes:
            metadata["customAttributes"] = [self.attributes]
        if self.inference_id:
            metadata["inferenceId"] = self.inference_id
        metadata["inferenceTime"] = self.time.strftime("%Y-%m-%dT%H:%M:%SZ")
        line = [b'{"captureData": {']
        for mode in NAMES:
            if mode in modes:
                line += [b", "] * (len(line) > 1) + _encoded(mode, *bodies[mode], header)
        rest = json.dumps({"eventMetadata": metadata, "eventVersion": "0"}).encode()
        return [*line, b"}, ", rest[1:], b"\n"]


def _encoded(mode: str, body: bytes, content_type: str, header: dict[str, list[str]]) -> list[bytes]:
    """Return one side of an event in JSON, in parts: text if its content type is listed as CSV or JSON, else base64.

    Base64 needs no escapes, and a json.dumps of it would take longer than all else.
    """
    encoding, kind = "BASE64", content_type.partition(";")[0].strip().lower()
    for name in ("Csv", "Json"):
        if kind in map(str.lower, header.get(f"{name}ContentTypes", ())):
            encoding = name.upper()
    try:
        data = [] if encoding == "BASE64" else [json.dumps(body.decode()).encode()]
    except UnicodeDecodeError:  # it is not what its content type says
        encoding = "BASE64"
    if encoding == "BASE64":
        data = [b'"', base64.b64encode(body), b'"']
    head = f'"{NAMES[mode]}": {{"observedContentType": {json.dumps(content_type)}, "mode": "{mode}", "data": '
    return [head.encode(), *data, f', "encoding": "{encoding}"}}'.encode()]


class Captures:
    """Capture events of the endpoints in a store; `environment` says where S3 is, and has the credentials."""

    def __init__(self, store: Store, environment: Callable[[], dict[str, str]]) -> None:
        self._store, self._environment = store, environment
        self._writer: _Writer | None = None
        self._lock = threading.Lock()

    def see(
        self,
        endpoint: str,
        server: Server,
        body: bytes | Path,
        request: dict[str, Any],
        answer: urllib3.BaseHTTPResponse,
    ) -> None:
        """Have a request and its answer written soon if they are drawn, or count them as left out if too many wait."""
        config = server.get("capture")
        if not config or not config.get("EnableCapture", True):
            return
        percentage = config["InitialSamplingPercentage"]
        if percentage < 100 and secrets.SystemRandom().random() * 100 >= percentage:
            return
        event = Event(
            endpoint,
            server,
            (body if isinstance(body, bytes) else _start_of(body), request.get("ContentType") or ANY),
            (answer.data, answer.headers.get("Content-Type", ANY)),
            request.get("InferenceId"),
            request.get("CustomAttributes"),
            datetime.now(timezone.utc),
        )
        with self._lock:
            if self._writer is None or self._writer.process != os.getpid():  # a fork has no threads
                self._writer = _Writer(self._store, self._environment)
                weakref.finalize(self, self._writer.close)
            writer = self._writer
        writer.add(event)


def _start_of(file: Path) -> bytes:
    """Return a file's content, and no more of it than shows that it is too large to be captured."""
    with open(file, "rb") as stream:
        return stream.read(BODY_BYTES + 1)


class _Writer:
    """The thread that writes events, and the files that it has open."""

    def __init__(self, store: Store, environment: Callable[[], dict[str, str]]) -> None:
        self.process = os.getpid()
        self._store, self._environment = store, environment
        self._random = random.Random()  # of this process alone; the system's takes a call for each number
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._waiting = 0  # bytes
        self._lock = threading.Lock()
        self._files: dict[tuple[str, str], _File] = {}
        self._left_out: Counter[tuple[str, str]] = Counter()  # by endpoint and reason
        self._servers: dict[str, Server] = {}
        self._retry: dict[str, float] = {}  # endpoints with files that are yet to be put in their place: when
        self._thread = threading.Thread(target=self._run, name="data capture", daemon=True)
        self._thread.start()

    def add(self, event: Event) -> None:
        with self._lock:
            small = max(len(event.input[0]), len(event.output[0])) <= BODY_BYTES
            fits = small and self._waiting + event.size <= QUEUE_BYTES
            self._waiting += event.size * fits
        if fits:
            self._events.put(event)
        else:
            too_large = f"they or their answers have more than {BODY_BYTES:,} bytes"
            self._leave_out(event, "more came than could be written" if small else too_large)

    def _new_id(self) -> str:
        return str(uuid.UUID(int=self._random.getrandbits(128), version=4))

    def close(self) -> None:
        """Wait until what was added is written and in its place, but not for long."""
        if self.process == os.getpid() and threading.current_thread() is not self._thread:
            self._events.put(None)
            self._thread.join(EXIT_SECONDS)

    def _run(self) -> None:
        last = False
        while not last:
            try:
                event = self._events.get(timeout=self._seconds_to_next())
                if event is None:
                    last = True
                else:
                    self._write(event)
            except queue.Empty:
                pass
            try:
                self._put_due(last)
            except Exception:  # of a thing that was not foreseen the rest is captured all the same
                log.exception("data capture")

    def _seconds_to_next(self) -> float | None:
        due = [file.due for file in self._files.values()] + list(self._retry.values())
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _write(self, event: Event) -> None:
        self._servers[event.endpoint] = event.server
        try:
            if event.key not in self._files:
                self._retry.setdefault(event.endpoint, 0.0)  # look what a killed process has left
                self._files[event.key] = _File(self._store, event)
            self._files[event.key].write(event.parts(self._new_id()))
        except (OSError, KeyError) as error:
            self._leave_out(event, f"{getattr(error, 'strerror', '') or 'the endpoint was deleted'}")
        finally:
            with self._lock:
                self._waiting -= event.size

    def _put_due(self, all_: bool) -> None:
        now = time.monotonic()
        for key, file in list(self._files.items()):
            if all_ or file.due <= now or file.size >= FILE_BYTES:
                del self._files[key]
                if not file.finish(self._environment):
                    self._retry[key[0]] = now + RETRY_SECONDS
        for endpoint, due in list(self._retry.items()):
            if all_ or due <= now:
                del self._retry[endpoint]
                if not delivery.deliver(self._store, endpoint, self._environment):
                    self._retry[endpoint] = now + RETRY_SECONDS
        if all_:
            self._retry.clear()
        self._tell_left_out()

    def _leave_out(self, event: Event, reason: str) -> None:
        with self._lock:
            self._left_out[event.endpoint, reason] += 1

    def _tell_left_out(self) -> None:
        """Say in the endpoint's log how many events were left out."""
        with self._lock:
            told, self._left_out = self._left_out, Counter()
        for (endpoint, reason), count in told.items():
            line = f"data capture left out {count} requests: {reason}"
            log.error("%s: %s", endpoint, line)
            with contextlib.suppress(OSError, KeyError, DamagedRecord):
                if server := self._servers.get(endpoint):
                    instances.container_of(self._store, endpoint, server).note(line)


class _File:
    """A file of lines that is being written; its lock is held."""

    def __init__(self, store: Store, event: Event) -> None:
        """Raises OSError, and KeyError without endpoint."""
        self._folder = store.directory(event.endpoint) / FOLDER
        try:
            with contextlib.suppress(FileExistsError):
                self._folder.mkdir()
        except FileNotFoundError:
            raise KeyError(event.endpoint) from None
        if sum(file.stat().st_size for file in self._folder.iterdir()) > KEPT_BYTES:
            raise OSError(None, "the files that are yet to be put in their place are too large")
        name = f"{event.time:%M-%S}-{event.time.microsecond // 1000:03}-{uuid.uuid4()}"
        self._stem = self._folder / name
        uri = storage.join(event.folder, f"{name}{LINES}")
        self._place = {"uri": uri, "kms_key": event.config.get("KmsKeyId")}
        files.write_text(self._stem.with_name(name + PLACE), json.dumps(self._place))
        new = self._stem.with_name(name + NEW)
        self._stream = open(new, "x+b", buffering=0)  # noqa: SIM115 - until `finish`
        fcntl.flock(self._stream, fcntl.LOCK_EX)
        new.rename(self._stem.with_name(name + LINES))
        self.size, self.due = 0, time.monotonic() + SECONDS

    def write(self, parts: list[bytes]) -> None:
        """Write a line, whole or not at all. Raises OSError."""
        size = sum(map(len, parts))
        try:
            done = os.writev(self._stream.fileno(), parts)
            rest = memoryview(b"".join(parts))[done:] if done < size else b""
            while rest:
                rest = rest[self._stream.write(rest) :]
        except OSError:
            self._stream.truncate(self.size)
            self._stream.seek(self.size)
            raise
        self.size += size

    def finish(self, environment: Callable[[], dict[str, str]]) -> bool:
        """Put the lines in their place, also those of an endpoint that was deleted; return whether they are there."""
        with self._stream:
            return delivery.finish(self._stem, self._stream, self._place, environment)
