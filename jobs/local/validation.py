"""Checks of requests that create resources, before anything is started; what fails is boto3's ClientError.

Those of jobs stand beside the jobs: `training.validation` and `batch.validation`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastmaker.jobs import instance_types, storage
from fastmaker.local import docker, names
from fastmaker.local.errors import invalid
from fastmaker.local.serving import torchserve

S3_ENDPOINTS = {"AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"}  # variables that say where S3 is, if it is not AWS's


def check_name(operation: str, name: Any) -> str:
    """Return `name` if AWS takes it for a resource. Raises ClientError."""
    if not names.is_valid(name):
        raise invalid(operation, f"the name {name!r} is not 1 to 63 letters, digits and hyphens")
    return str(name)


def check_gpu(operation: str, instance_type: str) -> None:
    """Check that this machine has a GPU if the type wants one. Raises ClientError."""
    if instance_types.is_gpu(instance_type) and not Path("/proc/driver/nvidia/version").exists():
        raise invalid(operation, "the instance type is local_gpu, and this machine has no NVIDIA GPU; use local")


def check_image(operation: str, image: str | None) -> None:
    """Check that Docker can start containers of `image`. Raises ClientError."""
    if reason := docker.missing(image or ""):
        raise invalid(operation, reason)


def check_model(
    operation: str, primary: dict[str, Any] | None, containers: list[dict[str, Any]] | None
) -> dict[str, Any]:
    """Return the one ContainerDefinition of a CreateModel request. Raises ClientError."""
    container = primary or (containers[0] if containers and len(containers) == 1 else None)
    if container is None:
        raise invalid(operation, "expected a PrimaryContainer: several containers in one model need AWS")
    if container.get("Mode") == "MultiModel":
        raise invalid(operation, "multi-model containers need AWS")
    try:
        if uri := torchserve.model_uri(container):
            storage.check(uri)
    except storage.StorageError as error:
        raise invalid(operation, f"Could not find model data: {error}") from None
    return container


def check_endpoint_config(operation: str, variants: list[dict[str, Any]], options: Mapping[str, Any]) -> None:
    """Check the variants and the other members of a CreateEndpointConfig request. Raises ClientError."""
    for unsupported in ("AsyncInferenceConfig", "DataCaptureConfig", "ShadowProductionVariants"):
        if options.get(unsupported):
            raise invalid(operation, f"{unsupported} needs AWS; a ProcessSession serves real-time variants")
    for variant in variants:
        check_name(operation, variant["VariantName"])
        instance_type = variant.get("InstanceType")
        if variant.get("ServerlessConfig"):
            raise invalid(operation, "ServerlessConfig needs AWS; give an instance type of local or local_gpu")
        if not instance_types.is_local(instance_type):
            raise invalid(operation, f"the instance type is {instance_type!r}; a ProcessSession serves on local")
        check_gpu(operation, variant["InstanceType"])


def check_output_bucket(operation: str, output: str, region: str, env: Mapping[str, str]) -> None:
    """Check that `output` is not in the default bucket where S3 is AWS's, which lacks it. Raises ClientError."""
    if output.startswith(f"s3://{names.default_bucket(region)}/") and not env.keys() & S3_ENDPOINTS:
        here = "output_path='file:///...', or a session with s3_endpoint_url or default_bucket"
        raise invalid(operation, f"{output} is no place outside of AWS; expected {here}")
