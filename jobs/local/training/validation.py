"""Whether a training job can be run here.

https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_CreateTrainingJob.html
"""

import json
import re
from pathlib import PurePosixPath
from typing import Any

from fastmaker.jobs import instance_types, storage
from fastmaker.local.training.checkpoints import DEFAULT_PATH, OPT_ML

# What the toolkit starts by programs of AWS's images and their clusters.
LAUNCHERS = {
    "sagemaker_mpi_enabled": "MPI",
    "sagemaker_distributed_dataparallel_enabled": "the SageMaker data parallel library",
    "sagemaker_pytorch_ddp_enabled": "pytorchddp",
    "sagemaker_pytorch_xla_multi_worker_enabled": "PyTorch/XLA",
    "mp_parameters": "the SageMaker model parallel library",
}
MAX_RUNTIME_SECONDS = 28 * 24 * 3600  # as StoppingCondition's reference says
DEFAULT_RUNTIME_SECONDS = 24 * 3600
MAX_HOSTS = 20  # https://docs.aws.amazon.com/sagemaker/latest/dg/regions-quotas.html


def validation_error(request: dict[str, Any], runs: instance_types.Check = instance_types.is_local) -> str | None:
    """Return why the CreateTrainingJob `request` cannot be run here, or None; `runs` knows the types of instances."""
    return (
        _resources_error(request.get("ResourceConfig", {}), runs)
        or _algorithm_error(request.get("AlgorithmSpecification", {}), request)
        or _locations_error(request)
        or _channels_error(request)
        or _times_error(request.get("StoppingCondition", {}))
    )


def hyperparameter(request: dict[str, Any], name: str) -> Any:
    """Return a hyperparameter as the toolkit reads it: the value of its JSON or, if it is none, its text.

    Return an empty string for one that was not given.
    """
    text = request.get("HyperParameters", {}).get(name, "")
    try:
        return json.loads(text)
    except (ValueError, TypeError):
        return text


def entrypoint(request: dict[str, Any]) -> list[str]:
    """Return the command that takes the place of the image's own, empty where there is none."""
    algorithm = request["AlgorithmSpecification"]
    return [*algorithm.get("ContainerEntrypoint", ()), *algorithm.get("ContainerArguments", ())]


def channel_uri(channel: dict[str, Any]) -> str | None:
    """Return where the data of a channel is, in S3 or on this machine, None for other kinds of sources."""
    source = channel["DataSource"]
    uri: str | None = source.get("S3DataSource", {}).get("S3Uri") or source.get("FileDataSource", {}).get("FileUri")
    return uri


def _resources_error(resources: dict[str, Any], runs: instance_types.Check) -> str | None:
    if not runs(resources.get("InstanceType")):
        return f"the instance type is {resources.get('InstanceType')!r}; a ProcessSession runs local and local_gpu"
    if not 1 <= resources.get("InstanceCount", 1) <= MAX_HOSTS:
        return f"InstanceCount is {resources['InstanceCount']}; a ProcessSession trains on 1 to {MAX_HOSTS} hosts"
    return None


def _algorithm_error(algorithm: dict[str, Any], request: dict[str, Any]) -> str | None:
    if "TrainingImage" not in algorithm:
        return "AlgorithmSpecification names no TrainingImage; algorithms from the marketplace do not run locally"
    if algorithm.get("ContainerArguments") and not algorithm.get("ContainerEntrypoint"):
        return "ContainerArguments need a ContainerEntrypoint: the image's own is not on this machine"
    if not (entrypoint(request) or hyperparameter(request, "sagemaker_program")):
        return "the request names no entry_point; a ProcessSession runs PyTorch's script mode, not the image itself"
    for name, launcher in LAUNCHERS.items():
        if hyperparameter(request, name) not in ("", None, False, {}):
            return f"{launcher} needs AWS; use distribution={{'torch_distributed': {{'enabled': True}}}} ({name})"
    for definition in algorithm.get("MetricDefinitions", ()):
        try:
            re.compile(definition["Regex"])
        except re.error as error:
            return f"metric {definition['Name']!r}: {definition['Regex']!r} is no regular expression: {error}"
    return None


def _locations_error(request: dict[str, Any]) -> str | None:
    checkpoints = request.get("CheckpointConfig", {})
    below = PurePosixPath(checkpoints.get("LocalPath", DEFAULT_PATH)).parts[1:]
    if below[:2] != ("opt", "ml") or len(below) < 3 or ".." in below:
        return f"checkpoint_local_path is {checkpoints['LocalPath']!r}; expected a path below {OPT_ML}"
    source = str(hyperparameter(request, "sagemaker_submit_directory"))
    locations = {
        "output_path": request["OutputDataConfig"].get("S3OutputPath"),  # without one, outputs go to FASTMAKER_HOME
        "checkpoint_s3_uri": checkpoints.get("S3Uri"),
        "source_dir": source if source.startswith("file://") else None,
    }
    for argument, uri in locations.items():
        try:
            if uri:
                (storage.check if argument == "source_dir" else storage.check_scheme)(uri)
        except storage.StorageError as error:
            return f"{argument}: {error}"
    return None


def _channels_error(request: dict[str, Any]) -> str | None:
    mode = request["AlgorithmSpecification"].get("TrainingInputMode", "File")
    names = [channel["ChannelName"] for channel in request.get("InputDataConfig", ())]
    if twice := next((name for name in names if names.count(name) > 1), None):
        return f"two channels are named {twice!r}"
    if odd := next((name for name in names if not name.strip(".")), None):
        return f"a channel is named {odd!r}, which is no name of a folder"
    for channel in request.get("InputDataConfig", ()):
        if reason := _channel_error(channel, mode):
            return f"channel {channel['ChannelName']!r}: {reason}"
    return None


def _times_error(condition: dict[str, Any]) -> str | None:
    runtime = condition.get("MaxRuntimeInSeconds", DEFAULT_RUNTIME_SECONDS)
    if runtime > MAX_RUNTIME_SECONDS:
        return f"MaxRuntimeInSeconds is {runtime}; expected at most {MAX_RUNTIME_SECONDS}, which is 28 days"
    if (wait := condition.get("MaxWaitTimeInSeconds", runtime)) < runtime:
        return f"MaxWaitTimeInSeconds is {wait}; expected at least MaxRuntimeInSeconds, which is {runtime}"
    return None


def _channel_error(channel: dict[str, Any], mode: str) -> str | None:
    source = channel["DataSource"]
    if channel.get("InputMode", mode) == "Pipe":
        return "input mode Pipe cannot be had locally; use File or FastFile"
    if channel.get("CompressionType", "None") != "None":
        return f"CompressionType {channel['CompressionType']} cannot be had locally"
    if source.get("S3DataSource", {}).get("S3DataType", "S3Prefix") != "S3Prefix":
        return f"S3DataType {source['S3DataSource']['S3DataType']} cannot be had locally"
    uri = channel_uri(channel)
    if uri is None:
        return "expected an S3DataSource, or a FileDataSource of local mode"
    try:
        storage.check(uri)
    except storage.StorageError as error:
        return str(error)
    return None
