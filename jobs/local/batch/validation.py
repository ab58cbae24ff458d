"""Whether a transform job can be run here: CreateTransformJob's choices, defaults and limits.

https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_CreateTransformJob.html
"""

from typing import Any

from fastmaker.jobs import instance_types, storage
from fastmaker.local.batch.data_processing import DataProcessing

MAX_PAYLOAD_MB = 6
MAX_TOTAL_PAYLOAD_MB = 100
INSTANCES = 100
RETRIES = 3  # https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_ModelClientConfig.html
TIMEOUT_SECONDS = 600


def validation_error(request: dict[str, Any], runs: instance_types.Check = instance_types.is_local) -> str | None:
    """Return why the CreateTransformJob `request`, which botocore's model takes, cannot be run here, or None.

    `runs` knows the types of instances that can be.
    """
    source, resources = request["TransformInput"], request["TransformResources"]
    if not runs(resources["InstanceType"]):
        return f"the instance type is {resources['InstanceType']!r}; a ProcessSession runs local and local_gpu"
    data_type = source["DataSource"]["S3DataSource"]["S3DataType"]
    choices = {  # of AWS's
        "S3DataType": (data_type, ("S3Prefix", "ManifestFile")),
        "SplitType": (source.get("SplitType", "None"), ("None", "Line", "RecordIO")),
    }
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            return f"{name} is {value!r}; expected one of {', '.join(allowed)}"
    try:
        storage.check(source["DataSource"]["S3DataSource"]["S3Uri"])
        storage.check_scheme(request["TransformOutput"]["S3OutputPath"])
    except storage.StorageError as error:
        return str(error)
    return _limit_exceeded(request) or data_processing(request).validation_error()


def _limit_exceeded(request: dict[str, Any]) -> str | None:
    """Return which limit of CreateTransformJob the request exceeds, or None."""
    concurrency, payload = request.get("MaxConcurrentTransforms", 0), request.get("MaxPayloadInMB", MAX_PAYLOAD_MB)
    limits = {
        "InstanceCount": (request["TransformResources"]["InstanceCount"], INSTANCES),
        "MaxPayloadInMB": (payload, MAX_TOTAL_PAYLOAD_MB),
    }
    for name, (value, most) in limits.items():
        if value > most:
            return f"{name} is {value}; expected at most {most}"
    if concurrency * payload > MAX_TOTAL_PAYLOAD_MB:
        return (
            f"MaxConcurrentTransforms ({concurrency}) times MaxPayloadInMB ({payload}) is {concurrency * payload} MB; "
            f"expected at most {MAX_TOTAL_PAYLOAD_MB}"
        )
    return None


def data_processing(request: dict[str, Any]) -> DataProcessing:
    """Return the filters and the join that a CreateTransformJob request asks for."""
    wanted = request.get("DataProcessing", {})
    return DataProcessing(
        wanted.get("InputFilter", "$"),
        wanted.get("OutputFilter", "$"),
        wanted.get("JoinSource", "None"),
        request["TransformInput"].get("ContentType", ""),
        request["TransformOutput"].get("Accept", ""),
    )
