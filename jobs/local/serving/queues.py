"""Asynchronous requests of an endpoint: on disk from before they are accepted until their answers are written.

    <endpoint>/async/<time>-<id>.json             a request
                                .input            its input, if that came with the call
                                .body, .outcome   what the model answered, and where that goes, until it is there

The model is not asked again once the outcome is on disk. So a process that was killed loses no request, and the next
one gives none a second answer.
"""

import contextlib
import fcntl
import json
import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastmaker import files
from fastmaker.jobs import storage
from fastmaker.local import processes
from fastmaker.local.store import Store

FOLDER, LOCK = "async", ".lock"  # below an endpoint's directory; the lock is held by the process that works
REQUEST, INPUT, BODY, OUTCOME = ".json", ".input", ".body", ".outcome"
TTL_SECONDS, TIMEOUT_SECONDS = 21600, 900  # AWS's defaults
MAX_REQUEST = 2**20  # bytes of a request's file; its members have less
ORPHAN_SECONDS = 60  # after which a file without its request is one that a killed process left
CONTAINER_MEMBERS = ("ContentType", "Accept", "CustomAttributes", "InferenceId")


@dataclass(frozen=True)
class Outcome:
    """What a request came to: `location` is where its body goes, None for a failure that has no place to go to."""

    location: str | None
    content_type: str


@dataclass(frozen=True)
class Request:
    """A request that was accepted, in the folder of its endpoint's queue."""

    folder: Path
    stem: str

    def read(self) -> dict[str, Any]:
        """Return what was asked. Raises OSError and ValueError."""
        asked: dict[str, Any] = json.loads(files.read_regular(self._file(REQUEST), MAX_REQUEST))
        return asked

    @property
    def input(self) -> Path:
        """The file for the request's input."""
        return self._file(INPUT)

    @property
    def body(self) -> Path:
        """The file with the outcome's body."""
        return self._file(BODY)

    def outcome(self) -> Outcome | None:
        """Return what the request came to, None if the model is yet to be asked."""
        with contextlib.suppress(OSError, ValueError):
            return Outcome(**json.loads(files.read_regular(self._file(OUTCOME), MAX_REQUEST)))
        return None

    def settle(self, outcome: Outcome, body: bytes) -> None:
        """Write what the request came to. Raises OSError."""
        with files.atomic(self.body) as partial:
            partial.write_bytes(body)
        files.write_text(self._file(OUTCOME), json.dumps(outcome.__dict__))

    def remove(self) -> None:
        """Remove the request, after which it is not asked again, and then the rest of it."""
        for kind in (REQUEST, INPUT, BODY, OUTCOME):
            self._file(kind).unlink(missing_ok=True)

    def _file(self, kind: str) -> Path:
        return self.folder / f"{self.stem}{kind}"


def accept(store: Store, name: str, request: dict[str, Any], body: bytes | None) -> dict[str, Any]:
    """Keep a request of InvokeEndpointAsync, whose members were checked, and return the answer.

    Raises KeyError for an unknown endpoint, LookupError with the reason if it takes no such request.
    """
    description = store.read(name)["description"]
    config = description.get("AsyncInferenceConfig")
    if config is None:
        raise LookupError(f"Endpoint {name} is not asynchronous; use InvokeEndpoint")
    if description["EndpointStatus"] not in ("InService", "Updating"):
        raise LookupError(f"Endpoint {name} is not in service: its status is {description['EndpointStatus']}")
    location = request.get("InputLocation")
    if (location is None) == (body is None):
        raise LookupError("expected an InputLocation or a Body, and not both")
    identifier = request.get("InferenceId") or str(uuid.uuid4())
    asked = {
        "members": {member: request[member] for member in CONTAINER_MEMBERS if request.get(member)},
        "input": location and storage.absolute(location),
        "accepted": time.time(),
        "ttl": request.get("RequestTTLSeconds", TTL_SECONDS),
        "timeout": request.get("InvocationTimeoutSeconds", TIMEOUT_SECONDS),
        "kms_key": config["OutputConfig"].get("KmsKeyId"),
        **_locations(config["OutputConfig"], identifier, request),
    }
    asked["members"]["InferenceId"] = identifier
    kept = Request(store.directory(name) / FOLDER, f"{time.time_ns():020}-{uuid.uuid4().hex}")
    try:
        with contextlib.suppress(FileExistsError):
            kept.folder.mkdir()
        if body is not None:
            with files.atomic(kept.input) as partial:
                partial.write_bytes(body)
        files.write_text(kept.folder / f"{kept.stem}{REQUEST}", json.dumps(asked))
    except FileNotFoundError:
        raise KeyError(name) from None  # deleted meanwhile
    failure = {"FailureLocation": asked["failure"]} if asked["failure"] else {}
    return {"InferenceId": identifier, "OutputLocation": asked["output"], **failure}


def _locations(output: dict[str, Any], identifier: str, request: dict[str, Any]) -> dict[str, str | None]:
    """Return where an answer goes, and a failure, None if the configuration has no place for it.

    Raises LookupError for an extension that leads out of the output path.
    """
    extension = request.get("S3OutputPathExtension", "").strip("/")
    if ".." in extension.split("/"):
        raise LookupError(f"S3OutputPathExtension is {extension!r}; expected a path without ..")
    parts = [extension] if extension else []
    stem = quote(identifier, safe="")
    failures = output.get("S3FailurePath")
    return {
        "output": storage.join(output["S3OutputPath"], *parts, request.get("Filename", f"{stem}.out")),
        "failure": failures and storage.join(failures, *parts, f"{request.get('Filename', stem)}-error.out"),
    }


def waiting(folder: Path) -> list[Request]:
    """Return the requests of a queue, the oldest first; none where there is no queue."""
    return [Request(folder, name.removesuffix(REQUEST)) for name in _names(folder) if name.endswith(REQUEST)]


def sweep(folder: Path) -> None:
    """Remove what a killed process has left of requests that are gone."""
    stems = {request.stem for request in waiting(folder)}
    for name in _names(folder):
        with contextlib.suppress(OSError):
            old = time.time() - os.lstat(folder / name).st_mtime > ORPHAN_SECONDS
            if name != LOCK and name.partition(".")[0] not in stems and old:
                (folder / name).unlink()


def _names(folder: Path) -> list[str]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return sorted(os.listdir(folder))
    return []


def held(folder: Path) -> contextlib.AbstractContextManager[int | None]:
    """Hold a queue while the context lasts, as one process does at a time; yield its lock, None if another has it."""
    return processes.alone(folder / LOCK)


def is_held(folder: Path) -> bool:
    """Return whether a process works the queue off."""
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False
