"""Everything that serves a bundle of digits, with two workers each."""

import zipfile
from contextlib import contextmanager

import pytest

from fastmaker.jobs.backends.servers import public_ray_image
from fastmaker.jobs.packaging.torchserve import running
from fastmaker.local.containers import free_ports, pack
from fastmaker.local.serving import rayserve, servers, torchserve
from fastmaker.local.serving.instances import container_of
from helpers.abuse import Server
from helpers.local_mode import deployed

RAY_IMAGE = public_ray_image(None)


@contextmanager
def endpoint(session, archive, image=None):
    """An endpoint of local mode; its image says what serves."""
    if reason := rayserve.missing(image):
        pytest.skip(reason)
    arguments = {"image_uri": image} if image else {}
    with deployed(session, archive, env={"SAGEMAKER_MODEL_SERVER_WORKERS": "2"}, **arguments) as predictor:
        endpoints = session.sagemaker_client.endpoints
        [server] = endpoints.read(predictor.endpoint_name)["servers"]
        container, port = container_of(endpoints, predictor.endpoint_name, server), server["port"]
        workers = lambda: servers.workers(container, {"Image": image}, port)  # noqa: E731
        yield Server(f"http://127.0.0.1:{port}/invocations", workers)


@contextmanager
def plain_torchserve(mar):
    (port,) = free_ports(1)
    with running(mar, "digits", port) as (container, url):
        yield Server(url, lambda: torchserve.ready_workers(container, port, "digits"), tolerance=1e-6)


@contextmanager
def endpoint_of_an_archive(session, mar, folder):
    """The archive's content in the serving toolkit."""
    with zipfile.ZipFile(mar) as packed:
        packed.extractall(folder / "unpacked")
    pack(folder / "unpacked", folder / "model.tar.gz")
    with endpoint(session, folder / "model.tar.gz") as server:
        server.tolerance = 1e-6
        yield server


# By names: functions of a session, the bundle's archive, its .mar and a folder.
SERVERS = {
    "bundle": lambda session, archive, mar, folder: endpoint(session, archive),
    "archive": lambda session, archive, mar, folder: plain_torchserve(mar),
    "archive in the toolkit": lambda session, archive, mar, folder: endpoint_of_an_archive(session, mar, folder),
    "Ray Serve": lambda session, archive, mar, folder: endpoint(session, archive, RAY_IMAGE),
}
