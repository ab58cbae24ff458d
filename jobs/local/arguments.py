"""The operations that this machine answers, and the members of their requests that it honours; others are refused.

Some members say how AWS's own machines are set up, and have no effect here: roles, keys of volumes, networks, the
sizes of volumes, spot instances, warm pools, the profiler, versions of machine images.
"""

from collections.abc import Mapping
from typing import Any

# A member's name, and which of its own members are honoured; None: all.
Members = Mapping[str, Any]


def _all(names: str) -> dict[str, None]:
    return dict.fromkeys(names.split())


_CONTAINER = {
    **_all("ContainerHostname Image Mode ModelDataUrl Environment"),
    "ModelDataSource": {"S3DataSource": _all("S3Uri S3DataType CompressionType ModelAccessConfig")},
}
_VARIANT = {
    **_all("VariantName ModelName InitialInstanceCount InstanceType InitialVariantWeight"),
    **_all("VolumeSizeInGB InferenceAmiVersion"),
    # How soon a server answers depends on this machine; one that will not is found out by its log.
    **_all("ModelDataDownloadTimeoutInSeconds ContainerStartupHealthCheckTimeoutInSeconds"),
    "RoutingConfig": _all("RoutingStrategy"),
}
_TRAINING_JOB = {
    **_all("TrainingJobName HyperParameters RoleArn Tags StoppingCondition CheckpointConfig Environment"),
    **_all("VpcConfig EnableNetworkIsolation EnableInterContainerTrafficEncryption EnableManagedSpotTraining"),
    **_all("ProfilerConfig RetryStrategy"),
    "DebugHookConfig": _all("S3OutputPath"),  # the SDK sends it where nobody asked for it
    "AlgorithmSpecification": {
        **_all("TrainingImage TrainingInputMode MetricDefinitions EnableSageMakerMetricsTimeSeries"),
        **_all("ContainerEntrypoint ContainerArguments"),
    },
    "InputDataConfig": {
        **_all("ChannelName ContentType CompressionType InputMode"),
        "DataSource": {"S3DataSource": _all("S3DataType S3Uri S3DataDistributionType")},
    },
    "OutputDataConfig": _all("KmsKeyId S3OutputPath CompressionType"),
    "ResourceConfig": _all("InstanceType InstanceCount VolumeSizeInGB VolumeKmsKeyId KeepAlivePeriodInSeconds"),
}
_TRANSFORM_JOB = {
    **_all("TransformJobName ModelName MaxConcurrentTransforms ModelClientConfig MaxPayloadInMB BatchStrategy"),
    **_all("Environment TransformInput TransformOutput TransformResources DataProcessing Tags"),
}
_PAGE = "NextToken MaxResults SortBy SortOrder NameContains CreationTimeBefore CreationTimeAfter"
_MODIFIED = "LastModifiedTimeBefore LastModifiedTimeAfter StatusEquals"

SAGEMAKER: dict[str, Members] = {
    "CreateTrainingJob": _TRAINING_JOB,
    "CreateTransformJob": _TRANSFORM_JOB,
    "CreateModel": {
        **_all("ModelName ExecutionRoleArn Tags VpcConfig EnableNetworkIsolation"),
        "PrimaryContainer": _CONTAINER,
        "Containers": _CONTAINER,
    },
    "CreateEndpointConfig": {
        **_all("EndpointConfigName Tags KmsKeyId ExecutionRoleArn VpcConfig EnableNetworkIsolation"),
        "ProductionVariants": _VARIANT,
        # Topics of notifications are kept, and nothing is sent to them; the endpoint's log says so.
        "AsyncInferenceConfig": None,
        "DataCaptureConfig": None,
    },
    "CreateEndpoint": _all("EndpointName EndpointConfigName Tags"),
    "UpdateEndpoint": _all(
        "EndpointName EndpointConfigName RetainAllVariantProperties ExcludeRetainedVariantProperties"
    ),
    "UpdateEndpointWeightsAndCapacities": {
        "EndpointName": None,
        "DesiredWeightsAndCapacities": _all("VariantName DesiredWeight DesiredInstanceCount"),
    },
    **{f"{verb}TrainingJob": _all("TrainingJobName") for verb in ("Describe", "Stop", "Delete")},
    **{f"{verb}TransformJob": _all("TransformJobName") for verb in ("Describe", "Stop")},
    **{f"{verb}Model": _all("ModelName") for verb in ("Describe", "Delete")},
    **{f"{verb}EndpointConfig": _all("EndpointConfigName") for verb in ("Describe", "Delete")},
    **{f"{verb}Endpoint": _all("EndpointName") for verb in ("Describe", "Delete")},
    **{f"List{kind}s": _all(f"{_PAGE} {_MODIFIED}") for kind in ("TrainingJob", "TransformJob", "Endpoint")},
    **{f"List{kind}s": _all(_PAGE) for kind in ("Model", "EndpointConfig")},
    "ListTags": _all("ResourceArn NextToken MaxResults"),
    "AddTags": _all("ResourceArn Tags"),
    "DeleteTags": _all("ResourceArn TagKeys"),
}
RUNTIME: dict[str, Members] = {
    "InvokeEndpoint": _all("EndpointName Body ContentType Accept CustomAttributes TargetVariant InferenceId"),
    "InvokeEndpointAsync": {
        **_all("EndpointName Body ContentType Accept CustomAttributes InferenceId InputLocation"),
        **_all("S3OutputPathExtension Filename RequestTTLSeconds InvocationTimeoutSeconds"),
    },
}
CLOUDWATCH: dict[str, Members] = {
    "GetMetricStatistics": _all("Namespace MetricName Dimensions StartTime EndTime Period Statistics"),
}


def modeled(operation: str, request: dict[str, Any]) -> dict[str, Any]:
    """Return a request of the SDK's local mode in the form of AWS's: a channel's FileDataSource is an S3DataSource."""
    channels = request.get("InputDataConfig")
    if operation != "CreateTrainingJob" or not isinstance(channels, list):
        return request
    return {**request, "InputDataConfig": [_with_s3_source(channel) for channel in channels]}


def _with_s3_source(channel: Any) -> Any:
    renamed = {"FileUri": "S3Uri", "FileDataDistributionType": "S3DataDistributionType"}
    source = channel.get("DataSource") if isinstance(channel, dict) else None
    if not isinstance(source, dict) or source.keys() != {"FileDataSource"}:
        return channel
    file = source["FileDataSource"]
    if not isinstance(file, dict) or file.keys() - renamed.keys():
        return channel
    s3 = {"S3DataType": "S3Prefix", **{renamed[key]: value for key, value in file.items()}}
    return {**channel, "DataSource": {"S3DataSource": s3}}


def unsupported(honoured: Members, request: Mapping[str, Any]) -> str:
    """Return that a member of a request needs AWS, empty if all are honoured or ask for nothing."""
    found = _unsupported(honoured, request)
    return f"{found} needs AWS" if found else ""


def _unsupported(honoured: Members | None, value: Any) -> str:
    """Return the path of the first member that is not honoured, empty if there is none."""
    if honoured is None:
        return ""
    if isinstance(value, list):
        return next(filter(None, (_unsupported(honoured, element) for element in value)), "")
    for name, member in value.items():
        if name not in honoured:
            if not _asks_for_nothing(member):
                return str(name)
        elif below := _unsupported(honoured[name], member):
            return f"{name}.{below}"
    return ""


def _asks_for_nothing(value: Any) -> bool:
    """Return whether a member says what would hold without it, such as False, ``None`` as a type, or an empty list."""
    if isinstance(value, dict):
        return all(map(_asks_for_nothing, value.values()))
    return value in ("None", "") or not value
