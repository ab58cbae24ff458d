"""Where jobs run. `connect` is the only place that asks which backend it is; what it returns is a `Backend`."""

from fastmaker.jobs import instance_types
from fastmaker.jobs.backends.local import Local, packed_models, session
from fastmaker.jobs.backends.protocol import Backend
from fastmaker.jobs.backends.requests import EndpointRequest, TrainingRequest, TransformRequest
from fastmaker.jobs.backends.sdk import without_iri_grammar

__all__ = [
    "Backend",
    "EndpointRequest",
    "Local",
    "TrainingRequest",
    "TransformRequest",
    "connect",
    "packed_models",
    "session",
]


def connect(
    instance_type: str | None = None,
    backend: str = "process",
    *,
    role: str | None = None,
    image_uri: str | None = None,
    server: str | None = None,
    address: str | None = None,
    dry_run: bool = False,
) -> Backend:
    """Return where jobs on an instance type run: this machine for local types, AWS for ml.* types.

    `backend` is process or docker, of local types, aws, or for transform jobs ray: a cluster at `address`. Without an
    instance type it alone decides. `server` is one of ray and torchserve, by default the backend's choice; an image of
    one's own says itself what serves.
    Raises ValueError for an instance type that does not exist or is not of the backend, Failure without credentials.
    """
    if instance_type is not None:
        instance_types.validate(instance_type)
    if backend == "aws" and instance_types.is_local(instance_type):
        raise ValueError("--backend aws: expected an --instance-type that begins with ml.")
    if server and image_uri:
        raise ValueError("--server goes without --image-uri: what serves is in the image")
    if backend == "ray":
        return _cluster(instance_type, address, {"--role": role, "--image-uri": image_uri, "--server": server}, dry_run)
    if address:
        raise ValueError("--address goes with --backend ray")
    given = {"role": role, "image_uri": image_uri, "server": server, "dry_run": dry_run}
    if backend != "aws" and not instance_types.is_aws(instance_type):
        return Local(backend, instance_type or instance_types.LOCAL, **given)
    with without_iri_grammar():
        from fastmaker.jobs.backends.aws.backend import Aws
    return Aws(instance_type, **given)


def _cluster(instance_type: str | None, address: str | None, given: dict[str, str | None], dry_run: bool) -> Backend:
    if instance_type not in (None, instance_types.LOCAL):
        raise ValueError("--backend ray goes without --instance-type: the cluster says what its workers have")
    if flag := next((flag for flag, value in given.items() if value), None):
        raise ValueError(f"--backend ray goes without {flag}: it runs the bundle in the cluster's own Python")
    from fastmaker.jobs.backends.cluster import Cluster  # with torch, which other commands do without

    return Cluster(address or "local", dry_run=dry_run)
