"""The seam between the commands and the place where jobs run."""

from typing import Protocol

from fastmaker.jobs.backends.requests import EndpointRequest, Request, TrainingRequest, TransformRequest
from fastmaker.jobs.backends.resources import Resource


class Backend(Protocol):
    """A place where jobs run: this machine (`local.Local`) or an account of AWS (`aws.backend.Aws`).

    A Ray cluster (`cluster.Cluster`) runs transform jobs, and has what those need.

    In a dry run nothing is made: `check` or the method after it prints what would be.
    """

    session: object  # the SageMaker SDK's session
    instance_type: (
        str | None
    )  # what the jobs run on; None where the place itself does not matter, as for a serverless endpoint
    region: str | None  # of AWS
    cli_flags: str  # with which another command finds what is made here, such as " --backend aws"
    serving_cli_flags: str  # with which fastmaker deploy serves here what was trained here

    def check(self, request: Request) -> bool:
        """Check what the request needs, before anything is made or costs; return whether to go on with it.

        Raises ValueError for places that cannot be used here, and Failure for what is missing or not allowed.
        """

    def training_arguments(self, name: str) -> dict:
        """Return what the SDK's PyTorch estimator is given for a job of this name: role, image, session, places."""

    def model_arguments(self) -> dict:
        """Return what the SDK's PyTorchModel is given here: role, image, session."""

    def train(self, request: TrainingRequest) -> dict | None:
        """Run a training job and return its description, of DescribeTrainingJob; None in a dry run.

        Raises UnexpectedStatusException if it fails, Failure if it is stopped.
        """

    def deploy(self, request: EndpointRequest) -> bool:
        """Make an endpoint and wait until it is in service; return whether there is one now."""

    def transform(self, request: TransformRequest) -> bool:
        """Run a transform job; return whether there is one now. Raises UnexpectedStatusException if it fails."""

    def describe_transform(self, name: str) -> dict:
        """Return a transform job's description. Raises ClientError or Failure if there is none."""

    def retry_transform(self, description: dict, name: str, manifest: str) -> None:
        """Run a described transform job again, as `name`, over a manifest's objects. Raises as `transform` does."""

    def runtime(self, endpoint: str):
        """Return what has invoke_endpoint, as boto3's sagemaker-runtime; of an asynchronous endpoint it waits."""

    def resources(self, only: list[str] | None = None) -> list[Resource]:
        """Return what the jobs made and is still there, in the order to delete it in; `only` lists KIND/NAME."""

    def delete_endpoint(self, name: str) -> None:
        """Delete an endpoint that the jobs made, its configuration and its models. Raises Failure for another's."""
