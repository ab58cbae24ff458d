"""Asynchronous requests from the outside: the process that answers them is started, and what came of one is written.

The process is `async_worker`. It is started by whoever finds requests and no such process.
"""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

from fastmaker.jobs import storage
from fastmaker.local import processes
from fastmaker.local.serving import queues
from fastmaker.local.serving.queues import Outcome, Request
from fastmaker.local.store import FULL, DamagedRecord, Store

MODULE = "fastmaker.local.serving.async_worker"
LOG = "async.log"
# What S3 answers of credentials that may be renewed; the answer waits for the next process.
RENEWABLE = ("AccessDenied", "403", "ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch")
log = logging.getLogger(__name__)


class Later(Exception):
    """S3 cannot be reached, or does not answer; the request stays."""


def ensure(store: Store, name: str, environment: Callable[[], dict[str, str]]) -> None:
    """Start the process of an endpoint's queue if there are requests and it does not live.

    `environment` says where S3 is, and has the credentials. An endpoint that was deleted is none.
    """
    folder = store.directory(name) / queues.FOLDER
    if not queues.waiting(folder) or queues.is_held(folder):
        return
    directory = store.directory(name)
    with contextlib.suppress(KeyError, DamagedRecord), store.changing(name) as record:  # one starts it
        started = processes.Started(directory)
        if record.get("deleting") or started.alive():
            return
        started.run([sys.executable, "-m", MODULE, str(directory)], "/", environment(), directory / LOG)


def resume(store: Store, environment: Callable[[], dict[str, str]]) -> None:
    """Go on with the requests of all endpoints."""
    for name in store.names():
        with contextlib.suppress(OSError):
            ensure(store, name, environment)


def abandon(store: Store, name: str, client: Any) -> None:
    """End the process of an endpoint's queue, and write that the requests in it failed: the endpoint is deleted.

    What cannot be written, as S3 is not there, is left out. Raises KeyError.
    """
    directory = store.directory(name)
    if not (directory / queues.FOLDER).is_dir():
        return
    with contextlib.suppress(OSError, ValueError, DamagedRecord, Later):  # it is deleted all the same
        with store.changing(name) as record:
            record["deleting"] = True
        processes.stop(processes.Started(directory).processes, 0)
        for request in queues.waiting(directory / queues.FOLDER):
            if not request.outcome():
                settle_failure(request, "the endpoint was deleted before the request was answered")
            deliver(request, client)
            request.remove()


def settle_failure(request: Request, message: str) -> None:
    request.settle(Outcome(request.read()["failure"], "text/plain"), message.encode())


def deliver(request: Request, client: Any) -> None:
    """Write a request's outcome to its location; an answer that has no place becomes a failure.

    Raises Later if S3 does not answer.
    """
    outcome = request.outcome()
    if outcome is None or outcome.location is None:
        return
    try:
        _put(request, outcome, client)
    except storage.StorageError as error:
        log.error("%s", error)
        if outcome.location != request.read()["failure"]:
            settle_failure(request, f"the answer could not be written: {error}")
            deliver(request, client)


def _put(request: Request, outcome: Outcome, client: Any) -> None:
    location = outcome.location or ""
    if not location.startswith("s3://"):
        try:
            storage.put(request.body, location)
        except storage.StorageError as error:
            if isinstance(error.__context__, OSError) and error.__context__.errno in FULL:
                raise Later(str(error)) from None
            raise
        return
    bucket, key = storage.bucket_and_key(location)
    options: dict[str, Any] = {"ContentType": outcome.content_type}
    if key_id := request.read()["kms_key"]:
        options |= {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key_id}
    with reaching(location, RENEWABLE), open(request.body, "rb") as file:
        client.upload_fileobj(file, bucket, key, ExtraArgs=options)


@contextlib.contextmanager
def reaching(location: str, later: tuple[str, ...] = ()) -> Iterator[None]:
    """Raise StorageError for what S3 refuses, and Later for what it may answer another time, as the codes `later`."""
    try:
        yield
    except ClientError as error:
        code, status = error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]
        kind = Later if status >= 500 or code in later else storage.StorageError
        raise kind(f"{location}: {error}") from None
    except ParamValidationError as error:
        raise storage.StorageError(f"{location}: {error}") from None
    except (BotoCoreError, Boto3Error) as error:
        raise Later(f"{location}: {error}") from None
