"""Whether S3 has what a request reads. AWS looks before it creates anything, and refuses in these words.

Files of this machine are looked for where the rest of a request is checked. A job's process reads its input with the
environment that it gets, and so does the check.
"""

from collections.abc import Mapping
from typing import Any

from fastmaker.jobs import storage
from fastmaker.local.errors import invalid

S3 = "s3://"


def check_channels(request: dict[str, Any], region: str, env: Mapping[str, str]) -> None:
    """Check the channels of a CreateTrainingJob request, whose job has the environment `env`. Raises ClientError."""
    sources = [channel["DataSource"]["S3DataSource"] for channel in request.get("InputDataConfig", ())]
    _check_sources("CreateTrainingJob", sources, request["RoleArn"], region, env)


def check_transform(request: dict[str, Any], model: dict[str, Any], region: str, env: Mapping[str, str]) -> None:
    """Check what a CreateTransformJob request reads, and that its model's data are an archive. Raises ClientError."""
    operation, source = "CreateTransformJob", request["TransformInput"]["DataSource"]["S3DataSource"]
    if any("ModelDataSource" in container for container in _containers(model)):
        raise invalid(operation, "a transform job takes no model with a ModelDataSource, here as on AWS")
    _check_sources(operation, [source], model.get("ExecutionRoleArn", ""), region, env)


def check_model_data(operation: str, container: dict[str, Any], s3: Any) -> None:
    """Check by `s3`, or the client of this process, that a ContainerDefinition's model data are there.

    Raises ClientError.
    """
    source = container.get("ModelDataSource", {}).get("S3DataSource", {})
    uri = container.get("ModelDataUrl") or source.get("S3Uri") or ""
    look = storage.s3.has_objects if source.get("S3DataType") == "S3Prefix" else storage.s3.has_object
    try:
        there = not uri.startswith(S3) or look(uri, s3)
    except storage.StorageError as error:
        raise invalid(operation, f"Could not access model data at {error}") from None
    if not there:
        raise invalid(operation, f"Could not find model data at {uri}.")


def _check_sources(
    operation: str, sources: list[dict[str, Any]], role: str, region: str, env: Mapping[str, str]
) -> None:
    in_s3 = [source for source in sources if source["S3Uri"].startswith(S3)]
    s3 = storage.s3.client_of(env) if in_s3 else None
    for source in in_s3:
        _check_source(operation, source, role, region, s3)


def _check_source(operation: str, source: dict[str, Any], role: str, region: str, s3: Any) -> None:
    uri = source["S3Uri"]
    look = storage.s3.has_object if source.get("S3DataType") == "ManifestFile" else storage.s3.has_objects
    try:
        there = look(uri, s3)
    except storage.StorageError as error:
        raise invalid(operation, str(error)) from None
    if not there:
        bucket, _ = storage.bucket_and_key(uri)
        message = (
            f'No S3 objects found under S3 URL "{uri}" given in input data source. Please ensure that the bucket '
            f"exists in the selected region ({region}), that objects exist under that S3 prefix, and that the role "
            f'"{role}" has "s3:ListBucket" permissions on bucket "{bucket}".'
        )
        raise invalid(operation, message)


def _containers(model: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the containers of a model as DescribeModel has them."""
    return model.get("Containers") or [model["PrimaryContainer"]]
