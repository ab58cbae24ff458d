"""The application put together: the engine, and moto's server for the services that are not SageMaker's."""

import importlib
import os
from pathlib import Path
from typing import Any

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

from fastmaker.local import names
from fastmaker.local.aws import connections
from fastmaker.local.aws.application import HEADERS, SIGNED, Application
from fastmaker.local.aws.control import ControlPlane
from fastmaker.local.aws.invocations import Runtime
from fastmaker.local.aws.logs import Logs
from fastmaker.local.aws.objects import KeptObjects
from fastmaker.local.aws.settings import region
from fastmaker.local.aws.signatures import Key

MAX_LEFT = 2**26  # bytes of a refused request's body that are read, so that its client reads the answer
BLOCK = 2**16  # bytes


def application(folder: Path, hosts: set[str], key: Key, hold: float) -> Application:
    """Return the application of a server that keeps what is its own in `folder`, below FASTMAKER_HOME."""
    home = folder.parent
    importlib.import_module("fastmaker.local.aws.metrics")  # which moto's CloudWatch finds
    control = ControlPlane(home, _job_environment, lambda: boto3.client("s3"), hold)
    moto = KeptObjects(DomainDispatcherApplication(_app_of), folder / "s3", names.ACCOUNT)
    moto.create_bucket(names.default_bucket(region()), region())
    return Application(hosts, key, control, Runtime(home), moto, Logs(home))


class Handler(connections.Handler):
    """Reads requests and keeps their headers as they came. werkzeug's own ends a connection with each answer."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer leaves in one piece
    disable_nagle_algorithm = True

    def make_environ(self) -> dict[str, Any]:
        environ = super().make_environ()
        received: dict[str, str] = {}
        for name, value in self.headers.items():
            name = name.lower()
            received[name] = f"{received[name]},{value}" if name in received else value
        environ[HEADERS] = received
        return environ

    def run_wsgi(self) -> None:
        """Answer one request, whole."""
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.wfile.flush()
        self.answering = True
        environ = self.make_environ()
        stream = environ["wsgi.input"]
        answered: list[Any] = []
        start: Any = lambda *head: answered.append(head)  # noqa: E731
        body = b"".join(self.server.app(environ, start))
        if environ["wsgi.input"] is stream:
            self._leave_body(environ)
        status, headers = answered[-1][:2]
        self.send_response(int(status[:3]), status[4:])
        for name, value in headers:
            if name.lower() not in ("date", "server", "connection", "content-length"):
                self.send_header(name, value)
        given = {name.lower(): value for name, value in headers}.get("content-length")
        self.send_header("Content-Length", given if given and self.command == "HEAD" else str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.answering, self.signed = False, self.signed or SIGNED in environ

    def _leave_body(self, environ: dict[str, Any]) -> None:
        """Read the body of a request that was refused without it, or have the connection end if it is too long."""
        length = environ.get("CONTENT_LENGTH") or "0"
        if environ.get("wsgi.input_terminated") or not length.isdecimal() or int(length) > MAX_LEFT:
            self.close_connection = True
        else:
            left = int(length)
            while left > 0 and (block := environ["wsgi.input"].read(min(left, BLOCK))):
                left -= len(block)

    def log_request(self, *_: Any) -> None:
        """Make no line for a request."""

    def log(self, *_: Any) -> None:
        """Write no line."""


def _app_of(service: Any) -> Any:
    """Return moto's application of a service. Raises NotImplementedError for one that moto does not know."""
    if service is None:
        raise NotImplementedError("the service")
    return create_backend_app(service)


def _job_environment(region: str) -> dict[str, str]:
    return {**os.environ, "AWS_REGION": region, "AWS_DEFAULT_REGION": region}
