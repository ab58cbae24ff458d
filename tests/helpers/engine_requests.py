"""Requests to the engine as boto3 makes them, for a model that answers with its name and what it was sent."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from botocore.exceptions import ClientError

from fastmaker.local.client import SageMaker
from helpers.waiting import nothing_runs_below, wait_until

ECHO = """
def model_fn(model_dir): return {name!r}
def input_fn(body, content_type): return bytes(body)
def predict_fn(body, model): return model.encode() + b":" + body
def output_fn(answer, accept): return answer, accept
"""
IMAGE = {"Image": "x", "Environment": {"SAGEMAKER_PROGRAM": "inference.py", "SAGEMAKER_MODEL_SERVER_WORKERS": "1"}}


@contextmanager
def client_of(home: Path) -> Iterator[SageMaker]:
    """A client of the engine at `home`; its endpoints are deleted in the end, and then nothing may run there."""
    client = SageMaker("us-west-2", home)
    yield client
    for name in client.endpoints.names():
        client.delete_endpoint(EndpointName=name)
    assert nothing_runs_below(home)


def make_model(client, archive, name, count=1):
    """A model, and a configuration of the same name."""
    client.create_model(ModelName=name, PrimaryContainer={**IMAGE, "ModelDataUrl": f"file://{archive}"})
    variant = {"VariantName": "v", "ModelName": name, "InstanceType": "local", "InitialInstanceCount": count}
    client.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])


def settled(client, name="e"):
    """The endpoint's status once it is none that a process has to end; None if there is no endpoint."""

    def status():
        try:
            found = client.describe_endpoint(EndpointName=name)["EndpointStatus"]
        except ClientError:
            return "none"
        return found if found in ("InService", "Failed") else None

    return wait_until(status)


def training_request(name, source, output):
    return {
        "TrainingJobName": name,
        "AlgorithmSpecification": {"TrainingImage": "x", "TrainingInputMode": "File"},
        "RoleArn": "arn:aws:iam::000000000000:role/r",
        "OutputDataConfig": {"S3OutputPath": f"file://{output}"},
        "ResourceConfig": {"InstanceType": "local", "InstanceCount": 1, "VolumeSizeInGB": 1},
        "HyperParameters": {
            "sagemaker_program": '"train.py"',
            "sagemaker_submit_directory": f'"file://{source}"',
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": 600},
    }


def transform_request(name, model, source, output):
    return {
        "TransformJobName": name,
        "ModelName": model,
        "TransformInput": {
            "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"file://{source}"}},
            "ContentType": "text/x",
        },
        "TransformOutput": {"S3OutputPath": f"file://{output}"},
        "TransformResources": {"InstanceType": "local", "InstanceCount": 1},
    }
