"""`SageMakerRuntime`, which takes the place of ``boto3.client("sagemaker-runtime")`` on this machine.

It is boto3's client, with its methods, answers and errors; `Invocations` answers its requests:
https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpoint.html
"""

import contextlib
import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import urllib3
from botocore.exceptions import ClientError
from botocore.model import OperationModel
from botocore.response import StreamingBody

from fastmaker.local import arguments, boto, constraints
from fastmaker.local.containers import Container
from fastmaker.local.names import ACCOUNT
from fastmaker.local.serving import asynchronous, capture, connections, endpoints, instances, queues
from fastmaker.local.store import DamagedRecord, Store, default_home

CONNECT_SECONDS = 5
CONNECTIONS = 32  # kept open to one server, of all threads
SERVERS = 32
ANSWER_SECONDS = 60  # in which a request that met a dead server must have come to another; AWS's limit of an answer
PAUSE_SECONDS = 0.1
LOST_REQUESTS = 2  # that a server which lives may cut off, as TorchServe does with one that is too large
WORKER_DEATHS = 2  # that one request may see: it may be what kills them
WORKER_DIED = b"Worker died."
HEADERS = {
    "ContentType": "Content-Type",
    "Accept": "Accept",
    "CustomAttributes": "X-Amzn-SageMaker-Custom-Attributes",
    "InferenceId": "X-Amzn-SageMaker-Inference-Id",
}


class SageMakerRuntime:
    """boto3's client for sagemaker-runtime, which invokes the endpoints under `home`.

    The process that answers asynchronous requests gets the `environment`.
    """

    def __init__(
        self,
        home: Path | None = None,
        region: str = "us-west-2",
        environment: Callable[[], dict[str, str]] = lambda: dict(os.environ),
    ) -> None:
        self.config: Any = None  # the SDK sets it
        invocations = Invocations(endpoints.store_below(home or default_home()), environment)
        self._client = boto.client("sagemaker-runtime", region, arguments.RUNTIME, invocations.answer)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # while it is copied or unpickled there is no client
            raise AttributeError(name)
        return getattr(self._client, name)


class Invocations:
    """Send requests to the servers of the endpoints in a store.

    The process that answers asynchronous requests gets the `environment`. It sends a server `per_instance()` at once.
    """

    def __init__(
        self,
        store: Store,
        environment: Callable[[], dict[str, str]] = lambda: dict(os.environ),
        per_instance: Callable[[], int] | None = None,
    ) -> None:
        self._endpoints, self._environment, self._per_instance = store, environment, per_instance
        self._captures = capture.Captures(store, environment)
        self._turns: dict[Path, threading.BoundedSemaphore] = {}
        self._pools: dict[tuple[Path, int], urllib3.HTTPConnectionPool] = {}
        self._lock = threading.Lock()

    def answer(self, model: OperationModel, request: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a request that botocore has validated. Raises ClientError."""
        given = "Body" in request
        body = self._bytes_of(request.pop("Body", b""))
        if reason := constraints.violations(model.input_shape, {"Body": body}):
            raise self._invalid(reason)
        if model.name == "InvokeEndpointAsync":
            return self._accept(body if given else None, **request)
        return self._invoke(body, **request)

    def invoke_whole(self, body: Path, endpoint: str, members: dict[str, str], seconds: float) -> dict[str, Any]:
        """Return the answer to a request that was accepted as an asynchronous one, with the content of a file as body.

        The model has `seconds` for it. Raises ClientError, and KeyError if the endpoint was deleted.
        """
        return self._invoke(body, endpoint, seconds=seconds, **members)

    def _accept(self, body: bytes | None, EndpointName: str, **request: Any) -> dict[str, Any]:
        """Keep an asynchronous request, and have a process answer it."""
        self._headers({name: value for name, value in request.items() if name in HEADERS})
        with self._found(EndpointName):
            answer = queues.accept(self._endpoints, EndpointName, request, body)
        asynchronous.ensure(self._endpoints, EndpointName, self._environment)
        return answer

    def _invoke(
        self,
        body: bytes | Path,
        EndpointName: str,
        TargetVariant: str | None = None,
        seconds: float | None = None,
        **request: Any,
    ) -> dict[str, Any]:
        """Send a request to a model. An answer of 4xx or 5xx raises ModelError, with the status and the body."""
        headers, failures = self._headers(request), _Failures(seconds or ANSWER_SECONDS)
        while True:
            server = self._pick_server(EndpointName, TargetVariant, failures.avoid)
            if failures.are_final():
                raise self._model_error(failures.variant, 500, f"the server did not answer: {failures.reason}")
            if server is None:  # each was asked, or none is up: one that died is being started again
                failures.avoid.clear()
                time.sleep(PAUSE_SECONDS)
                continue
            try:
                answer = self._ask(EndpointName, server, body, headers, seconds)
            except urllib3.exceptions.ReadTimeoutError:
                raise self._model_error(server["variant"], 504, f"there was no answer within {seconds} s") from None
            except urllib3.exceptions.HTTPError as error:
                time.sleep(PAUSE_SECONDS)  # a process that was killed takes a moment to be gone
                failures.add(server, error, endpoints.is_up(self._endpoints, EndpointName, server))
                continue
            if answer is None or (WORKER_DIED in answer.data and failures.add_dead_worker(server, answer.status)):
                continue
            if answer.status >= 400:
                raise self._model_error(server["variant"], answer.status, answer.data.decode("utf-8", "replace"))
            self._captures.see(EndpointName, server, body, request, answer)
            return _result(answer, server["variant"])

    def _ask(
        self,
        endpoint: str,
        server: dict[str, Any],
        body: bytes | Path,
        headers: dict[str, str],
        seconds: float | None,
    ) -> urllib3.BaseHTTPResponse | None:
        """Return a server's answer, None if it takes no request any more. Raises urllib3's HTTPError."""
        container = instances.container_of(self._endpoints, endpoint, server)
        with self._turn(container), instances.request(container) as held:
            if not (held and endpoints.holds(self._endpoints, endpoint, server)):
                return None
            pool = self._pool(container, server["port"])
            if isinstance(body, bytes):
                return pool.request("POST", "/invocations", body=body, headers=headers)
            headers = {**headers, "Content-Length": str(body.stat().st_size)}
            timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=seconds)
            with open(body, "rb") as content:
                return pool.request("POST", "/invocations", body=content, headers=headers, timeout=timeout)

    def _turn(self, container: Container) -> contextlib.AbstractContextManager[Any]:
        """Return what to hold while a server has a request, where it has a certain number at most."""
        if self._per_instance is None:
            return contextlib.nullcontext()
        with self._lock:
            if container.root not in self._turns:
                self._turns[container.root] = threading.BoundedSemaphore(self._per_instance())
            return self._turns[container.root]

    def _pool(self, container: Container, port: int) -> urllib3.HTTPConnectionPool:
        """Return the connections to a server, those of the last SERVERS servers being kept."""
        key = (container.root, port)
        with self._lock:
            pool = self._pools.pop(key, None)
            if pool is None:
                timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=None)
                pool = connections.pool_of(container, port, maxsize=CONNECTIONS, timeout=timeout)
            self._pools[key] = pool
            for old in list(self._pools)[:-SERVERS]:
                self._pools.pop(old).close()
        return pool

    def _pick_server(self, endpoint: str, variant: str | None, avoid: list[dict[str, Any]]) -> dict[str, Any] | None:
        with self._found(endpoint):
            return endpoints.pick_server(self._endpoints, endpoint, variant, avoid, self._per_instance is None)

    @contextlib.contextmanager
    def _found(self, endpoint: str) -> Iterator[None]:
        """Turn what keeps an endpoint from taking a request into the ClientError that AWS answers."""
        try:
            yield
        except KeyError:
            raise self._invalid(f"Endpoint {endpoint} of account {ACCOUNT} not found.") from None
        except (LookupError, DamagedRecord) as error:
            raise self._invalid(str(error)) from None

    def _bytes_of(self, body: Any) -> bytes:
        """Return the bytes of a body: text, bytes or an open file, as boto3 takes them. Raises ClientError."""
        try:
            content = body.read() if hasattr(body, "read") else body
            content = content.encode("utf-8") if isinstance(content, str) else content
            if isinstance(content, (bytes, bytearray)):
                return bytes(content)
            error: Exception = TypeError(f"it holds {type(content).__name__}")
        except (OSError, ValueError) as unreadable:
            error = unreadable
        raise self._invalid(f"the Body cannot be read: {error}")

    def _headers(self, request: dict[str, Any]) -> dict[str, str]:
        """Return the headers that SageMaker sends a container for the members of an InvokeEndpoint request."""
        given = {"ContentType": "application/octet-stream", "Accept": "*/*"} | {k: v for k, v in request.items() if v}
        for name, value in given.items():
            if not (value.isprintable() and value.isascii()):
                raise self._invalid(f"{name} is {value!r}; expected printable ASCII")
        return {HEADERS[name]: value for name, value in given.items()}

    def _invalid(self, message: str) -> ClientError:
        return ClientError({"Error": {"Code": "ValidationError", "Message": message}}, "InvokeEndpoint")

    def _model_error(self, variant: str, status: int, text: str) -> ClientError:
        kind = "client" if status < 500 else "server"
        message = f'Received {kind} error ({status}) from {variant} with message "{text}".'
        error: Any = {
            "Error": {"Code": "ModelError", "Message": message},
            "OriginalStatusCode": status,
            "OriginalMessage": text,
            "ResponseMetadata": {"HTTPStatusCode": 424},
        }
        return ClientError(error, "InvokeEndpoint")


class _Failures:
    """What has happened to one request. InvokeEndpoint may be sent again: it changes nothing."""

    def __init__(self, seconds: float) -> None:
        self.avoid: list[dict[str, Any]] = []  # servers not to ask for now
        self.variant, self.reason = "the endpoint", "no server of it is up"
        self._deadline = time.monotonic() + max(seconds, ANSWER_SECONDS)
        self._lost = self._dead_workers = 0

    def add(self, server: dict[str, Any], error: urllib3.exceptions.HTTPError, is_up: bool) -> None:
        """Note a request that got no answer from a server; one that never left counts for nothing."""
        self.avoid.append(server)
        self.variant, self.reason = server["variant"], str(error)
        self._lost += is_up and not isinstance(error, urllib3.exceptions.NewConnectionError)

    def add_dead_worker(self, server: dict[str, Any], status: int) -> bool:
        """Note that the worker died that had the request; return whether to send it again."""
        self.avoid.append(server)
        self._dead_workers += 1
        return status >= 500 and self._dead_workers <= WORKER_DEATHS

    def are_final(self) -> bool:
        """Return whether the request is given up."""
        return self._lost >= LOST_REQUESTS or time.monotonic() > self._deadline


def _result(answer: urllib3.BaseHTTPResponse, variant: str) -> dict[str, Any]:
    """Return what boto3's invoke_endpoint returns for a container's answer."""
    kind = answer.headers.get("Content-Type", "application/octet-stream")
    headers = {
        "content-type": kind,
        "content-length": str(len(answer.data)),
        "x-amzn-invoked-production-variant": variant,
    }
    result = {
        "Body": StreamingBody(io.BytesIO(answer.data), len(answer.data)),
        "ContentType": kind,
        "InvokedProductionVariant": variant,
    }
    if attributes := answer.headers.get("X-Amzn-SageMaker-Custom-Attributes"):
        headers["x-amzn-sagemaker-custom-attributes"] = result["CustomAttributes"] = attributes
    return {**result, "Headers": headers}
