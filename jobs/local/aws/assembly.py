"""The application put together: the engine, and moto's server for the services that are not SageMaker's."""

import os
from pathlib import Path
from typing import Any

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app

from fastmaker.local import names
from fastmaker.local.aws.application import HEADERS, Application
from fastmaker.local.aws.control import ControlPlane
from fastmaker.local.aws.invocations import Runtime
from fastmaker.local.aws.logs import Logs
from fastmaker.local.aws.objects import KeptObjects
from fastmaker.local.aws.settings import region
from fastmaker.local.aws.signatures import Key


def application(folder: Path, hosts: set[str], key: Key, hold: float) -> Application:
    """Return the application of a server that keeps what is its own in `folder`, below FASTMAKER_HOME."""
    home = folder.parent
    control = ControlPlane(home, _job_environment, lambda: boto3.client("s3"), hold)
    moto = KeptObjects(DomainDispatcherApplication(create_backend_app), folder / "s3", names.ACCOUNT)
    moto.create_bucket(names.default_bucket(region()), region())
    return Application(hosts, key, control, Runtime(home), moto, Logs(home).answer)


def handler(idle_seconds: float) -> type:
    """Return the class that reads requests, which keeps their headers as they came."""

    class Handler(MotoRequestHandler):  # type: ignore[misc]  # moto is not typed
        timeout = idle_seconds
        server_version = "fastmaker"

        def make_environ(self) -> dict[str, Any]:
            environ: dict[str, Any] = super().make_environ()
            received: dict[str, str] = {}
            for name, value in self.headers.items():
                name = name.lower()
                received[name] = f"{received[name]},{value}" if name in received else value
            environ[HEADERS] = received
            return environ

        def log(self, *_: Any) -> None:
            """Write no line for a request."""

    return Handler


def _job_environment(region: str) -> dict[str, str]:
    return {**os.environ, "AWS_REGION": region, "AWS_DEFAULT_REGION": region}
