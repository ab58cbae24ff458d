"""Checks of requests that create resources, before anything is started; what fails is boto3's ClientError.

Those of jobs stand beside the jobs: `training.validation` and `batch.validation`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastmaker.jobs import instance_types, storage
from fastmaker.jobs.runtime import mounts
from fastmaker.local import docker, names
from fastmaker.local.errors import invalid
from fastmaker.local.serving import rayserve, torchserve
from fastmaker.local.training.validation import entrypoint

MAX_INSTANCES = 100  # of an endpoint
ROUTING = ("RANDOM", "LEAST_OUTSTANDING_REQUESTS")
MAX_ENVIRONMENT = 32 * 2**10  # bytes of all names and values; the constraints of each are in characters
MAX_VARIABLE = 1024  # bytes of a name or a value
S3_ENDPOINTS = {"AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"}  # variables that say where S3 is, if it is not AWS's


def check_gpu(operation: str, instance_type: str) -> None:
    """Check that this machine has a GPU if the type wants one. Raises ClientError."""
    if instance_types.is_gpu(instance_type) and not Path("/proc/driver/nvidia/version").exists():
        raise invalid(operation, "the instance type is local_gpu, and this machine has no NVIDIA GPU; use local")


def check_image(operation: str, image: str | None, use_docker: bool) -> None:
    """Check that Docker can start containers of `image`, or that processes serve in its place. Raises ClientError."""
    if reason := docker.missing(image or "") if use_docker else rayserve.missing(image):
        raise invalid(operation, reason)


def check_entrypoint(operation: str, request: dict[str, Any], folder: Path, use_docker: bool) -> None:
    """Check that a job below `folder` can run its ContainerEntrypoint, if it has one. Raises ClientError."""
    if not entrypoint(request):
        return
    if use_docker:
        raise invalid(operation, "a ContainerEntrypoint runs in processes of this machine; use a ProcessSession")
    folder.mkdir(parents=True, exist_ok=True)
    if reason := mounts.unavailable(folder):
        why = f"/opt/ml cannot be had on this machine ({reason})"
        raise invalid(operation, f"a ContainerEntrypoint finds its files in /opt/ml, and {why}")


def check_model(
    operation: str, primary: dict[str, Any] | None, containers: list[dict[str, Any]] | None
) -> dict[str, Any]:
    """Return the one ContainerDefinition of a CreateModel request, its URI made absolute. Raises ClientError."""
    given = [*([primary] if primary else []), *(containers or [])]
    if len(given) != 1:
        raise invalid(operation, f"the model has {len(given)} containers; expected one: pipelines of several need AWS")
    (container,) = given
    if container.get("Mode") == "MultiModel":
        raise invalid(operation, "multi-model containers need AWS")
    sizes = [len(text.encode()) for pair in container.get("Environment", {}).items() for text in pair]
    if max(sizes, default=0) > MAX_VARIABLE:
        raise invalid(
            operation, f"a name or value in Environment has {max(sizes)} bytes; expected at most {MAX_VARIABLE}"
        )
    if sum(sizes) > MAX_ENVIRONMENT:
        raise invalid(operation, f"Environment has {sum(sizes):,} bytes; expected at most {MAX_ENVIRONMENT:,}")
    url, source = container.get("ModelDataUrl"), container.get("ModelDataSource", {}).get("S3DataSource")
    if url and source:
        raise invalid(operation, "expected a ModelDataUrl or a ModelDataSource, not both")
    if source and source["S3DataType"] == "S3Prefix":
        if source["CompressionType"] != "None":
            raise invalid(operation, "an S3Prefix has the CompressionType None; an archive is an S3Object")
        if not source["S3Uri"].endswith("/"):
            raise invalid(operation, f"the S3Uri of an S3Prefix ends with a slash, and {source['S3Uri']!r} does not")
    try:
        if uri := torchserve.model_uri(container):
            storage.check(uri)
    except storage.StorageError as error:
        raise invalid(operation, f"Could not find model data: {error}") from None
    if source:
        uri = storage.absolute(source["S3Uri"])
        uri = storage.join(uri, "") if source["S3DataType"] == "S3Prefix" else uri
        return {**container, "ModelDataSource": {"S3DataSource": {**source, "S3Uri": uri}}}
    return {**container, **({"ModelDataUrl": storage.absolute(url)} if url else {})}


def check_variants(operation: str, variants: list[dict[str, Any]], runs: instance_types.Check) -> None:
    """Check the variants of a CreateEndpointConfig request; `runs` knows the types of instances. Raises ClientError."""
    for variant in variants:
        label, instance_type = f"the variant {variant['VariantName']!r}", variant.get("InstanceType")
        if missing := {"ModelName", "InstanceType"} - variant.keys():
            raise invalid(operation, f"{label} lacks {sorted(missing)[0]}")
        if not runs(instance_type):
            raise invalid(operation, f"the instance type is {instance_type!r}; a ProcessSession serves on local")
        check_gpu(operation, variant["InstanceType"])
        if (strategy := variant.get("RoutingConfig", {}).get("RoutingStrategy", ROUTING[0])) not in ROUTING:
            raise invalid(operation, f"{label}: RoutingStrategy {strategy} needs AWS; use {' or '.join(ROUTING)}")
    if len({variant["VariantName"] for variant in variants}) < len(variants):
        raise invalid(operation, "two variants have one name")
    if (count := sum(variant.get("InitialInstanceCount", 1) for variant in variants)) > MAX_INSTANCES:
        raise invalid(operation, f"the variants have {count} instances; expected at most {MAX_INSTANCES}")


def check_modes(operation: str, request: dict[str, Any], region: str, env: Mapping[str, str]) -> dict[str, Any]:
    """Return a CreateEndpointConfig request with the place of captured data made absolute. Raises ClientError.

    Where data are captured, and where answers and failures of asynchronous requests go, must be places.
    """
    if "AsyncInferenceConfig" in request:
        output = request["AsyncInferenceConfig"]["OutputConfig"]
        if not output.get("S3OutputPath"):
            raise invalid(operation, "AsyncInferenceConfig.OutputConfig lacks S3OutputPath")
        for member in ("S3OutputPath", "S3FailurePath"):
            if location := output.get(member):
                _check_place(operation, member, location, region, env)
    captured = request.get("DataCaptureConfig")
    if captured is None:
        return request
    destination = captured["DestinationS3Uri"]
    _check_place(operation, "DestinationS3Uri", destination, region, env)
    if captured.get("KmsKeyId") and not destination.startswith("s3://"):
        raise invalid(operation, f"KmsKeyId encrypts objects in S3; leave it out with {destination}")
    return {**request, "DataCaptureConfig": {**captured, "DestinationS3Uri": storage.absolute(destination)}}


def _check_place(operation: str, member: str, location: str, region: str, env: Mapping[str, str]) -> None:
    """Check that objects can be written below the location of a member. Raises ClientError."""
    try:
        storage.check_scheme(location)
    except storage.StorageError as error:
        raise invalid(operation, f"{member}: {error}") from None
    check_output_bucket(operation, location, region, env)


def check_output_bucket(operation: str, output: str, region: str, env: Mapping[str, str]) -> None:
    """Check that `output` is not in the default bucket where S3 is AWS's, which lacks it. Raises ClientError."""
    if output.startswith(f"s3://{names.default_bucket(region)}/") and not env.keys() & S3_ENDPOINTS:
        here = "output_path='file:///...', or a session with s3_endpoint_url or default_bucket"
        raise invalid(operation, f"{output} is no place outside of AWS; expected {here}")
