"""The SageMaker SDK's PyTorch classes for our entry point and bundles. What differs between backends they are given."""

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from fastmaker.jobs import files, storage
from fastmaker.jobs.backends.requests import DEFAULT_MAX_PAYLOAD, TrainingRequest, TransformRequest
from fastmaker.jobs.cli.errors import Failure
from fastmaker.local import archives

if TYPE_CHECKING:
    from fastmaker.jobs.backends.protocol import Backend

METRIC_DEFINITIONS = [
    {"Name": "train:loss", "Regex": r"train_loss=([0-9.]+)"},
    {"Name": "valid:loss", "Regex": r"valid_loss=([0-9.]+)"},
    {"Name": "valid:accuracy", "Regex": r"accuracy=([0-9.]+)"},
    *(
        {"Name": f"valid:{name}", "Regex": rf"\b{name}=([0-9.]+)"}
        for name in ("accuracy_multi", "f1", "mae", "rmse", "point_error", "mean_iou")
    ),
    {"Name": "train:images_per_second", "Regex": r"images_per_second=([0-9.]+)"},
]


def estimator(request: TrainingRequest, backend: "Backend"):
    """Return the SDK's PyTorch estimator for a training job of source/entry_point.py."""
    from sagemaker.pytorch import PyTorch

    arguments = {
        "entry_point": "entry_point.py",
        "source_dir": str(files.SOURCE),
        "instance_count": request.instance_count,
        "instance_type": backend.instance_type,
        "volume_size": request.volume_size,
        "hyperparameters": request.hyperparameters,
        "metric_definitions": METRIC_DEFINITIONS,
        "container_log_level": logging.WARNING,  # the toolkit's own lines would bury the script's
        "distribution": {request.distribution: {"enabled": True}} if request.distribution else None,
        "max_run": request.max_run,
        "use_spot_instances": request.spot,
        "max_wait": request.max_wait,
        "checkpoint_s3_uri": request.checkpoints,
        "disable_profiler": True,
        "debugger_hook_config": False,
        **backend.training_arguments(request.name),
    }
    if request.output:
        arguments["output_path"] = request.output
    return PyTorch(**arguments)


def completed_training_job(sagemaker_session, name: str) -> dict:
    """Return the description of a training job. Raises Failure unless it has completed.

    The SDK's fit is content with a job that --max-run, or somebody, has stopped.
    """
    description = sagemaker_session.describe_training_job(name)
    if (status := description["TrainingJobStatus"]) != "Completed":
        raise Failure(f"training job {name} is {status}: {description.get('SecondaryStatus')}")
    return description


def fetch_report(model_data: str, folder: Path, sagemaker_session) -> Path | None:
    """Unpack the output.tar.gz beside a job's model.tar.gz into `folder`; return None if the job left none."""
    from sagemaker.s3 import S3Downloader

    uri = model_data.rpartition("/")[0] + "/output.tar.gz"
    with tempfile.TemporaryDirectory() as scratch:
        if uri.startswith("s3://"):
            S3Downloader.download(uri, scratch, sagemaker_session=sagemaker_session)
            archive = Path(scratch, "output.tar.gz")
        else:
            archive = storage.local_path(uri)
        if not archive.is_file():
            return None
        archives.unpack(archive, folder)
    return folder


def pytorch_model(model_data: str, *, env: dict[str, str], backend: "Backend", image: str | None = None):
    """Return the SDK's PyTorchModel of a bundle's archive, which brings its own code and so needs no repacking.

    `model_data` is its URI, `env` are variables for the container, `image` is in place of the backend's.
    """
    from sagemaker.pytorch import PyTorchModel

    return PyTorchModel(
        model_data=model_data,
        entry_point=None,
        env={"SAGEMAKER_PROGRAM": "entry_point.py", **env},
        **backend.model_arguments() | ({"image_uri": image} if image else {}),
    )


def run_transform(
    model, request: TransformRequest, instance_type: str, *, source: str, output: str | None, tags=None, wait=True
) -> None:
    """Run a transform job of the SDK's model, with these URIs. Raises UnexpectedStatusException if it fails."""
    env = dict(request.env)
    if request.max_payload > DEFAULT_MAX_PAYLOAD:
        env.setdefault("TS_MAX_REQUEST_SIZE", str((request.max_payload + 1) * 2**20))
    transformer = model.transformer(
        request.instance_count,
        instance_type,
        strategy=request.strategy,
        assemble_with=request.assemble_with,
        output_path=output,
        accept=request.accept,
        env=env,
        max_concurrent_transforms=request.max_concurrent_transforms,
        max_payload=request.max_payload,
        tags=tags,
    )
    client = {"InvocationsMaxRetries": request.max_retries, "InvocationsTimeoutInSeconds": request.timeout}
    transformer.transform(
        source,
        request.data_type,
        content_type=request.content_type,
        compression_type=request.compression_type,
        split_type=request.split_type,
        input_filter=request.input_filter,
        output_filter=request.output_filter,
        join_source=request.join_source,
        model_client_config={name: value for name, value in client.items() if value is not None} or None,
        job_name=request.name,
        logs=False,
        wait=wait,
    )


def retry_transform(sagemaker_session, description: dict, name: str, manifest: str, tags=None) -> None:
    """Run the job of a description again as `name`, over a manifest. Raises UnexpectedStatusException if it fails."""
    from sagemaker.transformer import Transformer

    source, processing = description["TransformInput"], description.get("DataProcessing", {})
    transformer = Transformer.attach(description["TransformJobName"], sagemaker_session)
    transformer.env = description.get("Environment")
    transformer.tags = tags
    transformer.transform(
        manifest,
        "ManifestFile",
        content_type=source.get("ContentType"),
        compression_type=source.get("CompressionType"),
        split_type=source.get("SplitType"),
        input_filter=processing.get("InputFilter"),
        output_filter=processing.get("OutputFilter"),
        join_source=processing.get("JoinSource"),
        model_client_config=description.get("ModelClientConfig"),
        job_name=name,
        logs=False,
    )
