"""One server of a model on Ray Serve, behind the adapter of AWS's Ray image; for endpoints and transform jobs alike.

What runs is what the model's config.yaml says, or SM_RAYSERVE_APP, as in that image:
https://aws.github.io/deep-learning-containers/ray/deployment/sagemaker/.
"""

import contextlib
import http.client
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import psutil

from fastmaker.jobs import instance_types, runtime
from fastmaker.local import docker
from fastmaker.local.containers import Container, free_ports

# Of AWS, for endpoints: ray:serve-ml-sagemaker-cpu, ray:serve-ml-cuda-v1.
IMAGES = re.compile(r"(^|/)ray:serve-ml-")
LAUNCHER = Path(runtime.__file__).with_name("ray_launcher.py")
FAILED = "Ray Serve could not start: "  # begins the last line of a server that has none
CLASH = "address already in use"
PROBE_SECONDS = 5
REPLICA = "ray::ServeReplica"  # how the name of a process begins that has a copy of the model


def serves(image: str | None) -> bool:
    """Return whether an image serves by Ray Serve rather than by the serving toolkit."""
    return IMAGES.search(image or "") is not None


def missing(image: str | None) -> str | None:
    """Return why no process can serve in place of an image, or None, as for each image of other servers."""
    lacks = serves(image) and any(importlib.util.find_spec(name) is None for name in ("ray", "aiohttp", "starlette"))
    return "Ray Serve is not installed: `pip install 'fastmaker[ray]'` brings it" if lacks else None


def start(container: Container, model: dict[str, Any], instance_type: str, port: int) -> None:
    """Start Ray Serve on the model that was prepared in the container, with its adapter at `port`.

    Raises ContainerError.
    """
    env = dict(model.get("Environment", {}))
    if instance_type == instance_types.LOCAL:
        env["CUDA_VISIBLE_DEVICES"] = ""
    if image := model.get("DockerImage"):
        command = docker.serving_command(container.root, image, instance_type, port, env)
        container.start_server(command, docker.environment(env))
        return
    if instance_types.is_aws(instance_type):
        container.note_stand_in(model.get("Image"))
    (behind,) = free_ports(1)
    env |= {"FASTMAKER_PORT": str(port), "FASTMAKER_RAY_PORT": str(behind)}
    container.start([sys.executable, str(LAUNCHER)], container.environment(env))


def is_ready(port: int) -> bool:
    """Return whether the applications run: the adapter answers once they do."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PROBE_SECONDS)
    try:
        connection.request("GET", "/ping")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def workers(container: Container) -> list[int]:
    """Return the pids of the processes that have a copy of the model."""
    found = []
    for process in container.processes():
        with contextlib.suppress(psutil.Error, OSError):
            if "".join(process.cmdline()).startswith(REPLICA):
                found.append(process.pid)
    return found


def why_not_starting(container: Container) -> str | None:
    """Return why this server will not come up, once that is certain, else None."""
    return None if container.alive() else container.last_line()


def was_killed(container: Container) -> bool:
    """Return whether the server ended without a word about the model: killed, for want of memory, say."""
    return not container.alive() and not container.last_line().startswith(FAILED)


def clashed(container: Container) -> bool:
    """Return whether the server ended because another program had one of its ports."""
    return not container.alive() and CLASH in container.log_tail(50)
