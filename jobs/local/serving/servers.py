"""A server of a model: Ray Serve for AWS's Ray images and ours, TorchServe through the toolkit for all others."""

from typing import Any

from fastmaker.local.containers import Container
from fastmaker.local.serving import rayserve, torchserve

Model = dict[str, Any]  # a ContainerDefinition, with the DockerImage to run and whether that serves ByRay


def start(container: Container, model: Model, instance_type: str, port: int) -> None:
    """Start the server of a model that was prepared in the container, at `port`. Raises ContainerError."""
    (rayserve.start if _by_ray(model) else torchserve.start)(container, model, instance_type, port)


def is_ready(container: Container, model: Model, port: int) -> bool:
    """Return whether a server has loaded its model, and it is this server that answers at its port."""
    ready = rayserve.is_ready(port) if _by_ray(model) else torchserve.all_workers_ready(container, port)
    return ready and container.accepts(port)


def why_not_starting(container: Container, model: Model) -> str | None:
    """Return why a server will not come up, once that is certain, else None."""
    return rayserve.why_not_starting(container) if _by_ray(model) else torchserve.why_not_starting(container)


def clashed(container: Container, model: Model) -> bool:
    """Return whether a server ended because another program had one of its ports."""
    return rayserve.clashed(container) if _by_ray(model) else torchserve.clashed(container)


def was_killed(container: Container, model: Model) -> bool:
    """Return whether a server ended without a word about the model or itself: killed, for want of memory, say."""
    return rayserve.was_killed(container) if _by_ray(model) else torchserve.was_killed(container)


def workers(container: Container, model: Model, port: int) -> list[int]:
    """Return the pids of the processes that have loaded the model."""
    return rayserve.workers(container) if _by_ray(model) else torchserve.ready_workers(container, port)


def _by_ray(model: Model) -> bool:
    return model.get("ByRay", False) or rayserve.serves(model.get("Image"))
