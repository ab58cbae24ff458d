"""What the tests that need a Docker engine share: the command, containers that serve, and an engine of one's own."""

import io
import os
import subprocess
import tarfile
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sagemaker import image_uris

from fastmaker.local import DockerSession
from fastmaker.local.containers import free_ports
from fastmaker.local.docker import LABEL
from helpers import PATIENCE
from helpers.local_mode import wait_until

ONE_WORKER = ["--env", "SAGEMAKER_MODEL_SERVER_WORKERS=1"]


def docker(*words, check=True, **arguments) -> str:
    """What the command prints, on either stream, in the order in which it does."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(["docker", *map(str, words)], **streams, text=True, **arguments)
    assert done.returncode == 0 or not check, done.stdout[-3000:]
    return done.stdout.strip()


@contextmanager
def started(image, model, *options):
    """The name of a container that serves the directory `model`, None for what is in the image, or tries to.

    It is gone afterwards.
    """
    name = f"fastmaker-test-{uuid.uuid4()}"
    volume = ["-v", f"{model}:/opt/ml/model:ro"] if model else []
    docker("run", "--detach", "--name", name, *volume, *options, image, "serve")
    try:
        yield name
    finally:
        docker("rm", "--force", name)


@contextmanager
def serving_container(image, model, *options, port_inside=8080):
    """The container's name and the URL of its port on this machine, once it is healthy."""
    (port,) = free_ports(1)
    with started(image, model, "-p", f"127.0.0.1:{port}:{port_inside}", *options) as name:
        await_health(name)
        yield name, f"http://127.0.0.1:{port}"


def await_health(name) -> None:
    def healthy() -> bool:
        assert docker("inspect", "--format", "{{.State.Running}}", name) == "true", docker("logs", name)
        # Without what a test has on PYTHONPATH: that may import torch, each time.
        asked = ["docker", "exec", "--env", "PYTHONPATH=", name, "python", "/opt/fastmaker/run.py", "healthy"]
        return subprocess.run(asked).returncode == 0

    wait_until(healthy)


@contextmanager
def own_engine(*options, hosts: str = "127.0.0.1 localhost\n") -> Iterator[tuple[dict[str, str], int]]:
    """A Docker engine of the test's own: the environment of a `docker` that talks to it, and its process.

    It has a network of its own, of loopback alone, and reads `hosts` as /etc/hosts; its containers have no network.
    """
    with tempfile.TemporaryDirectory(prefix="engine-") as folder:  # short: sockets lie there
        log, address = Path(folder, "log"), f"unix://{folder}/docker.sock"
        Path(folder, "hosts").write_text(hosts)
        prepare = f'ip link set lo up && mount --bind {folder}/hosts /etc/hosts && exec "$@"'
        command = ["unshare", "--mount", "--net", "sh", "-c", prepare, "sh", "dockerd", "--host", address]
        command += ["--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec", "--pidfile", f"{folder}/pid"]
        command += ["--bridge", "none", "--iptables=false", *map(str, options)]
        environment = {**os.environ, "DOCKER_HOST": address}
        with open(log, "w") as stream:
            engine = subprocess.Popen(command, stdout=stream, stderr=stream)
        try:

            def answers() -> bool:
                assert engine.poll() is None, log.read_text()[-3000:]
                return subprocess.run(["docker", "version"], env=environment, capture_output=True).returncode == 0

            wait_until(answers)
            yield environment, engine.pid
        finally:
            engine.terminate()
            engine.wait(PATIENCE)


def tiny_image(name: str, environment) -> None:
    """An image that holds one file."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(__file__, "file")
    subprocess.run(["docker", "import", "-", name], input=archive.getvalue(), env=environment, check=True)


def containers_below(folder) -> list[str]:
    """The names of containers that belong to a directory below `folder`."""
    listed = docker("ps", "--all", "--filter", f"label={LABEL}", "--format", f'{{{{.Names}}}} {{{{.Label "{LABEL}"}}}}')
    names = dict(line.split(maxsplit=1) for line in listed.splitlines())
    return [name for name, root in names.items() if root.startswith(f"{folder}{os.sep}")]


@contextmanager
def docker_session(home, image) -> Iterator[DockerSession]:
    """A session that takes `image` where the SDK names AWS's; no container is left behind."""
    session = DockerSession(home=home)
    arguments = {"py_version": "py312", "instance_type": "ml.c5.large"}
    versions = {"training": "2.8.0", "inference": "2.6.0"}
    names = [
        image_uris.retrieve("pytorch", session.boto_region_name, version, image_scope=scope, **arguments)
        for scope, version in versions.items()
    ]
    for name in names:
        docker("tag", image, name)
    yield session
    for name in names:
        docker("image", "rm", name)
    assert not containers_below(home)
