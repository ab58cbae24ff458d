"""A server of a model: Ray Serve for AWS's Ray images, TorchServe through the serving toolkit for all others."""

from typing import Any

from fastmaker.local.containers import Container
from fastmaker.local.serving import rayserve, torchserve

Model = dict[str, Any]  # a ContainerDefinition


def start(container: Container, model: Model, instance_type: str, port: int) -> None:
    """Start the server of a model that was prepared in the container, at `port`. Raises ContainerError."""
    by_ray = rayserve.serves(model.get("Image"))
    (rayserve.start if by_ray else torchserve.start)(container, model, instance_type, port)


def is_ready(container: Container, model: Model, port: int) -> bool:
    """Return whether a server has loaded its model, and it is this server that answers at its port."""
    by_ray = rayserve.serves(model.get("Image"))
    ready = rayserve.is_ready(port) if by_ray else torchserve.all_workers_ready(container, port)
    return ready and container.accepts(port)


def why_not_starting(container: Container, model: Model) -> str | None:
    """Return why a server will not come up, once that is certain, else None."""
    by_ray = rayserve.serves(model.get("Image"))
    return rayserve.why_not_starting(container) if by_ray else torchserve.why_not_starting(container)


def clashed(container: Container, model: Model) -> bool:
    """Return whether a server ended because another program had one of its ports."""
    by_ray = rayserve.serves(model.get("Image"))
    return rayserve.clashed(container) if by_ray else torchserve.clashed(container)


def was_killed(container: Container, model: Model) -> bool:
    """Return whether a server ended without a word about the model or itself: killed, for want of memory, say."""
    by_ray = rayserve.serves(model.get("Image"))
    return rayserve.was_killed(container) if by_ray else torchserve.was_killed(container)


def workers(container: Container, model: Model, port: int) -> list[int]:
    """Return the pids of the processes that have loaded the model."""
    by_ray = rayserve.serves(model.get("Image"))
    return rayserve.workers(container) if by_ray else torchserve.ready_workers(container, port)
