"""What other users of this machine reach of a server: the port for requests, and nothing else."""

import os
import socket
import stat
import sys

import pytest
import urllib3
from helpers.local_mode import workers_of

from fastmaker.local.serving import torchserve
from fastmaker.local.serving.instances import container_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the management API stays at the port")
NOBODY = 65534


@pytest.fixture(scope="module")
def server(session, digits_predictor):
    """(container, port) of a server."""
    store = session.sagemaker_client.endpoints
    (server,) = store.read(digits_predictor.endpoint_name)["servers"]
    return container_of(store, digits_predictor.endpoint_name, server), server["port"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/models"),
        ("GET", "/models/model"),
        ("GET", "/models/model/all"),
        ("PUT", "/models/model?min_worker=0&max_worker=0&synchronous=true"),
        ("PUT", "/models/model?min_worker=64"),
        ("POST", "/models?url=http://127.0.0.1:1/evil.mar"),
        ("POST", "/models?url=/etc/passwd"),
        ("DELETE", "/models/model"),
        ("PUT", "/models/model/1.0/set-default"),
        ("GET", "/workflows"),
        ("POST", "/workflows?url=http://127.0.0.1:1/evil.war"),
        ("GET", "/metrics"),
        ("GET", "/token?type=management"),
        ("POST", "/shutdown"),
    ],
)
def test_the_port_for_requests_manages_nothing(session, digits_predictor, server, method, path):
    _, port = server
    before = workers_of(session, digits_predictor.endpoint_name)
    answer = urllib3.request(method, f"http://127.0.0.1:{port}{path}")
    assert answer.status in (404, 405), answer.data
    assert workers_of(session, digits_predictor.endpoint_name) == before
    assert len(before) == 1


def test_no_other_port_takes_a_connection(server):
    container, port = server
    listening = {
        (connection.laddr.ip.removeprefix("::ffff:"), connection.laddr.port)
        for process in container.processes()
        for connection in process.net_connections("inet")
        if connection.status == "LISTEN"
    }
    assert ("127.0.0.1", port) in listening
    assert len(listening) == 3
    for ip, other in listening - {("127.0.0.1", port)}:
        for host in (ip, "127.0.0.1", socket.gethostbyname(socket.gethostname())):
            with pytest.raises(OSError, match=r"refused|unreachable"):
                socket.create_connection((host, other), timeout=5)


def test_another_user_reaches_neither_the_sockets_nor_the_store(server, home):
    container, _ = server
    temporary = os.path.realpath(container.tmp)
    sockets = [name for name in os.listdir(temporary) if stat.S_ISSOCK(os.stat(f"{temporary}/{name}").st_mode)]
    assert {"management.sock", "metrics.sock"} < set(sockets)
    assert not stat.S_IMODE(os.stat(temporary).st_mode) & 0o077
    if os.getuid() == 0:
        assert [as_nobody(f"{temporary}/{name}") for name in sockets] == ["PermissionError"] * len(sockets)


def as_nobody(path: str) -> str:
    """What another user gets for a connection to a socket."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.setuid(NOBODY)
            socket.socket(socket.AF_UNIX).connect(path)
            os.write(write, b"connected")
        except OSError as error:
            os.write(write, type(error).__name__.encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as file:
        return file.read()


def test_who_may_manage_it_can(server):
    container, port = server
    described = torchserve.describe(container, port)
    assert described["modelName"] == "model"
    assert described["workers"][0]["status"] == "READY"
