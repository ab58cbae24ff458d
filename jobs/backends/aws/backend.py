"""The backend of instance types ml.*: an account of AWS, through the SageMaker Python SDK's own Session."""

import contextlib
import os
from collections.abc import Iterator
from functools import partial

import boto3
import botocore.session
from botocore.config import Config
from sagemaker import get_execution_role, image_uris
from sagemaker.config import MODEL_EXECUTION_ROLE_ARN_PATH, TRAINING_JOB_ROLE_ARN_PATH
from sagemaker.session import NOTEBOOK_METADATA_FILE
from sagemaker.utils import resolve_value_from_config

from fastmaker.jobs import storage
from fastmaker.jobs.backends import asynchronous, pytorch, servers, versions
from fastmaker.jobs.backends.aws import checks, endpoints, inventory, session
from fastmaker.jobs.backends.aws.folders import MARKER, Folders
from fastmaker.jobs.backends.aws.request_recorder import RequestRecorder
from fastmaker.jobs.backends.requests import EndpointRequest, Request, TrainingRequest, TransformRequest
from fastmaker.jobs.backends.resources import Resource, SageMakerResources
from fastmaker.jobs.cli import redaction, tables
from fastmaker.jobs.cli.errors import Failure
from fastmaker.local.sdk import opt_out_of_telemetry

TAG = "fastmaker"  # the key of the tag that everything made here has; its value is the name of the job or endpoint
MAX_ATTEMPTS = 8  # of a request that AWS throttles; AWS_MAX_ATTEMPTS says otherwise
WHILE_RUNNING = "while it runs"
# AWS keeps all jobs that ever were; those that have ended cost nothing and are not listed.
LISTED_JOBS = {"MaxResults": 100, "StatusEquals": "InProgress"}


class Aws:
    """A `Backend`: the account and region that boto3 finds.

    Raises Failure if there are none, ClientError if AWS refuses them.
    """

    cli_flags = " --backend aws"
    serving_cli_flags = " --instance-type ml.c5.xlarge"

    def __init__(self, instance_type: str | None = None, *, role=None, image_uri=None, server=None, dry_run=False):
        self.instance_type, self._given_server, self._dry_run = instance_type, server, dry_run
        self._given_role = role
        core = botocore.session.Session()
        attempts = core.get_config_variable("max_attempts") or MAX_ATTEMPTS
        core.set_default_client_config(Config(retries={"mode": "adaptive", "total_max_attempts": int(attempts)}))
        self._requests = RequestRecorder(core, dry_run)
        self._boto = boto3.Session(botocore_session=core)
        self.region = self._boto.region_name
        if self.region is None:
            raise Failure("no AWS region: set AWS_DEFAULT_REGION, or run `aws configure`")
        self._caller = checks.caller(self._boto)
        redaction.own_accounts.add(self._caller["Account"])
        self._image_uri = image_uri and self._in_registry(image_uri)
        self.session = session.ResponsiveSession(self._boto)
        self.session.sagemaker_config = opt_out_of_telemetry(self.session.sagemaker_config)
        self._folders = Folders(self._boto, self.session, self._caller["Account"], TAG, dry_run)
        # Named here, since the SDK would also make it where nothing is put into it.
        self.session._default_bucket = self._folders.bucket_name

    def check(self, request: Request) -> bool:
        for uri in request.reads:
            if not uri.startswith(("s3://", "file://")):
                raise ValueError(f"{uri}: on AWS expected a URI that begins with s3://")
        for uri in request.writes:
            if not uri.startswith("s3://"):
                raise ValueError(f"{uri}: on AWS expected a URI that begins with s3://")
        print(tables.table(["checked", "found"], list(self._checked(request))), flush=True)
        return True

    def training_arguments(self, name: str) -> dict:
        output = self._folders.folder("training-job", name).rpartition("/")[0]  # SageMaker and the SDK add the name
        return {
            "role": self._role("training"),
            "image_uri": self._image_uri,
            "tags": _tags(name),
            "output_path": output,
            "code_location": output,
            "sagemaker_session": self.session,
            **self._training_version,
        }

    def model_arguments(self) -> dict:
        return {
            "role": self._role("endpoint"),
            "image_uri": self._image_uri,
            "sagemaker_session": self.session,
            **versions.INFERENCE,
        }

    def train(self, request: TrainingRequest) -> dict | None:
        with self._creations_listed_on_failure():
            inputs = {
                name: self._folders.upload(uri, "training-job", request.name, f"data/{name}")
                for name, uri in request.channels.items()
            }
            estimator = pytorch.estimator(request, self)
            self._print_cost_notice(WHILE_RUNNING, f"--only training-job/{request.name} --yes")
            estimator.fit(inputs, job_name=request.name, wait=not self._dry_run)
            return None if self._dry_run else pytorch.completed_training_job(self.session, request.name)

    def deploy(self, request: EndpointRequest) -> bool:
        with self._creations_listed_on_failure():
            model_data = self._folders.upload(request.model_data, "endpoint", request.name, "model")
            image = self._ray_image(request)
            model = pytorch.pytorch_model(model_data, env=request.env, backend=self, image=image)
            gpu_by_ray = image and servers.is_gpu(self.instance_type)
            ami = {"inference_ami_version": versions.RAY_GPU_AMI} if gpu_by_ray else {}
            self._print_cost_notice("until it is deleted", f"--endpoint {request.name}")
            folder = partial(self._folders.folder, "endpoint", request.name)
            model.deploy(
                request.instance_count,
                self.instance_type,
                endpoint_name=request.name,
                wait=not self._dry_run,
                tags=_tags(request.name),
                **endpoints.configurations(request, self.session, folder),
                **ami,
            )
            if request.max_instances:
                endpoints.scale(self._boto, request)
                print(f"scales: {request.min_instances} to {request.max_instances} instances")
        return not self._dry_run

    def transform(self, request: TransformRequest) -> bool:
        upload = partial(self._folders.upload, kind="transform-job", name=request.name)
        with self._creations_listed_on_failure():
            model_data, image = upload(request.model_data, part="model"), self._ray_image(request)
            model = pytorch.pytorch_model(model_data, env=request.env, backend=self, image=image)
            source = upload(request.source, part="inputs")
            output = request.output or f"{self._folders.folder('transform-job', request.name)}/answers"
            self._print_cost_notice(WHILE_RUNNING, f"--only transform-job/{request.name} --yes")
            pytorch.run_transform(
                model,
                request,
                self.instance_type,
                source=source,
                output=output,
                tags=_tags(request.name),
                wait=not self._dry_run,
            )
        return not self._dry_run

    def describe_transform(self, name: str) -> dict:
        return self.session.sagemaker_client.describe_transform_job(TransformJobName=name)

    def retry_transform(self, description: dict, name: str, manifest: str) -> None:
        with self._creations_listed_on_failure():
            self._print_cost_notice(WHILE_RUNNING, f"--only transform-job/{name} --yes")
            pytorch.retry_transform(self.session, description, name, manifest, _tags(name))

    def runtime(self, endpoint: str):
        """Return what has invoke_endpoint; that of an asynchronous endpoint waits for answers."""
        if not asynchronous.output_of(self.session.sagemaker_client, endpoint):
            return self.session.sagemaker_runtime_client
        clients = self._boto.client("sagemaker-runtime"), self._boto.client("s3")
        return asynchronous.AsyncRuntime(*clients, self._folders.folder("endpoint", endpoint))

    def resources(self, only: list[str] | None = None) -> list[Resource]:
        model_data = inventory.ModelData(self.session.sagemaker_client)
        found = [
            *inventory.scaling_policies(self._boto, self._is_our_endpoint),
            *self._resources.listed(only),
            *inventory.images(self._boto, TAG),
            *inventory.folders(self.session.s3_client, self._folders.root, MARKER, TAG, model_data.models_below),
        ]
        return [resource for resource in found if only is None or resource.label in only]

    def delete_endpoint(self, name: str) -> None:
        self.session.sagemaker_client.describe_endpoint(EndpointName=name)  # raises ClientError if there is none
        for scaling in inventory.scaling_policies(self._boto, self._is_our_endpoint, name):
            scaling.delete()
        self._resources.delete_endpoint(name)

    @contextlib.contextmanager
    def _creations_listed_on_failure(self) -> Iterator[None]:
        """Print, if the body fails, what it made until then and the command that removes it."""
        try:
            yield
        except BaseException:
            made = self._requests.made + [f"s3/{name}" for name in sorted(self._folders.created)]
            if made and not self._dry_run:
                print(f"\nmade before this ended: {', '.join(made)}")
                print(f"to remove it: fastmaker cleanup --backend aws --only {' '.join(made)} --yes", flush=True)
            raise
        if self._dry_run:
            print("\nnothing was sent; without --dry-run the requests above are made")

    def _checked(self, request: Request) -> Iterator[list[str]]:
        """Yield rows of what was checked and what was found. Raises Failure for what a job or an endpoint lacks."""
        kind, client = request.kind, self.session.sagemaker_client
        checks.name(client, kind, request.name)
        known = self.instance_type and checks.instance_type(client, kind, self.instance_type)
        yield ["credentials", "accepted"]
        if known:
            yield [self.instance_type, known]
        yield ["role", checks.role(self._boto, self._role(kind))]
        yield ["image", checks.image(self._boto, self._image_uri) if self._image_uri else self._managed_image(request)]
        if not (kind.endswith("training") or self._image_uri):
            yield ["server", servers.summary(self._given_server, request, self.instance_type)]
        for uri in request.reads:
            if uri.startswith("s3://"):
                yield ["data", checks.data(self._boto, uri)]
        for uri in request.writes:
            yield [f"bucket {storage.bucket_and_key(uri)[0]}", checks.bucket(self._boto, uri)]
        if self.instance_type:
            yield ["quota", checks.quota(self._boto, kind, self.instance_type, request.most_instances)]

    def _print_cost_notice(self, duration: str, cleanup_flags: str) -> None:
        """Print how long it costs, and the command that ends it."""
        if not self._dry_run:
            print(f"costs {duration}; to end it: fastmaker cleanup --backend aws {cleanup_flags}", flush=True)

    def _role(self, kind: str) -> str:
        """Return the ARN for a kind: of --role, SAGEMAKER_ROLE, the SDK's configuration or a SageMaker notebook's own.

        Raises Failure if there is none.
        """
        path = TRAINING_JOB_ROLE_ARN_PATH if kind.endswith("training") else MODEL_EXECUTION_ROLE_ARN_PATH
        given = self._given_role or os.environ.get("SAGEMAKER_ROLE")
        role = given or resolve_value_from_config(None, path, sagemaker_session=self.session)
        if role:
            return self.session.expand_role(role)
        if ":assumed-role/" in self._caller["Arn"] or os.path.exists(NOTEBOOK_METADATA_FILE):
            return get_execution_role(self.session)
        raise Failure("no IAM role: give --role, set SAGEMAKER_ROLE or name one in the SDK's configuration file")

    @property
    def _resources(self) -> SageMakerResources:
        return SageMakerResources(
            self.session.sagemaker_client,
            is_ours=self._is_ours,
            filters={
                "endpoint": {"MaxResults": 100},
                "endpoint-config": {"MaxResults": 100},
                "model": {"MaxResults": 100},
                "training-job": LISTED_JOBS,
                "transform-job": LISTED_JOBS,
            },
            costs={"endpoint": "while it exists", "training-job": WHILE_RUNNING, "transform-job": WHILE_RUNNING},
            changing=("Creating", "Updating", "SystemUpdating", "RollingBack"),
            keeps_jobs=True,
            poll_seconds=session.POLL_SECONDS,
        )

    def _is_ours(self, arn: str) -> bool:
        return inventory.has_tag(self.session.sagemaker_client, arn, TAG)

    def _is_our_endpoint(self, name: str, if_gone: bool) -> bool:
        return inventory.is_our_endpoint(self.session.sagemaker_client, name, TAG, if_gone)

    def _in_registry(self, image: str) -> str:
        """Return the URI of an image; a name without a host is of this account's own registry."""
        if "/" in image and any(sign in image.partition("/")[0] for sign in ".:"):
            return image
        suffix = "amazonaws.com.cn" if self.region.startswith("cn-") else "amazonaws.com"
        return f"{self._caller['Account']}.dkr.ecr.{self.region}.{suffix}/{image}"

    @property
    def _training_version(self) -> dict:
        return versions.VOLTA_TRAINING if self.instance_type.startswith(versions.VOLTA) else versions.TRAINING

    def _ray_image(self, request: EndpointRequest | TransformRequest) -> str | None:
        """Return the URI of AWS's Ray image, in the registry of its PyTorch images, or None if another serves."""
        if self._image_uri or servers.choose(self._given_server, request, self.instance_type) != servers.RAY:
            return None
        return f"{self._pytorch_image(request.kind).rpartition('/')[0]}/{servers.ray_image(self.instance_type)}"

    def _managed_image(self, request: Request) -> str:
        """Return the name of AWS's own image for a job. Raises ValueError if the SDK knows none."""
        if not request.kind.endswith("training") and (image := self._ray_image(request)):
            servers.check(request.model_data)
            return f"{image.rpartition('/')[2]} of AWS"
        if request.kind in ("endpoint", "transform") and (self.instance_type or "").startswith(versions.BLACKWELL):
            raise Failure(
                f"AWS's newest PyTorch inference image, of PyTorch 2.6.0, has no code for {self.instance_type}: "
                "give an --image-uri of your own, or for an endpoint --server ray"
            )
        return f"{self._pytorch_image(request.kind).rpartition('/')[2]} of AWS"

    def _pytorch_image(self, kind: str) -> str:
        """Return the URI of AWS's PyTorch image for a kind of job. Raises ValueError if the SDK knows none."""
        training = kind.endswith("training")
        version = self._training_version if training else versions.INFERENCE
        return image_uris.retrieve(
            "pytorch",
            self.region,
            version=version["framework_version"],
            py_version=version["py_version"],
            instance_type=self.instance_type or "ml.c5.xlarge",  # serverless endpoints run on processors
            image_scope="training" if training else "inference",
        )


def _tags(name: str) -> list[dict]:
    return [{"Key": TAG, "Value": name}]
