"""The backend of instance types ml.*: the SageMaker Python SDK's own Session, with what each job needs beside it."""

import contextlib
import datetime
import functools
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import ClientError
from sagemaker import get_execution_role, image_uris
from sagemaker.config import MODEL_EXECUTION_ROLE_ARN_PATH, SESSION_DEFAULT_S3_BUCKET_PATH, TRAINING_JOB_ROLE_ARN_PATH
from sagemaker.s3 import s3_path_join
from sagemaker.session import NOTEBOOK_METADATA_FILE, Session
from sagemaker.utils import resolve_value_from_config
from tqdm import tqdm

from fastmaker.jobs import storage
from fastmaker.jobs.backends import versions
from fastmaker.jobs.backends.aws import checks, endpoints, inventory
from fastmaker.jobs.backends.aws.request_recorder import RequestRecorder
from fastmaker.jobs.backends.inventory import Resource, is_missing, paginate
from fastmaker.jobs.cli import redaction, tables
from fastmaker.jobs.cli.errors import Failure
from fastmaker.local.sdk import Interrupted, opt_out_of_telemetry

TAG = "fastmaker"  # the key of the tag that everything made here has; its value is the name of the job or endpoint
FOLDER = "fastmaker"  # of the bucket, below the prefix that the SDK's configuration names
MARKER = "made-by-fastmaker"  # an object in each folder of a job or an endpoint, with the tag as its metadata
UPLOADS = 16  # at once
POLL_SECONDS = 5
MAX_ATTEMPTS = 8  # of a request that AWS throttles; AWS_MAX_ATTEMPTS says otherwise


class _Session(Session):
    """The SDK's Session, which looks every few seconds in place of each 30, and in which Ctrl-C gets through.

    The SDK's fit returns in a ``finally``, which swallows a KeyboardInterrupt.
    """

    def train(self, **request):
        with _interruptible():
            return super().train(**request)

    def wait_for_endpoint(self, endpoint, poll=None, live_logging=False):
        return super().wait_for_endpoint(endpoint, POLL_SECONDS, live_logging)

    def wait_for_transform_job(self, job, poll=None):
        return super().wait_for_transform_job(job, POLL_SECONDS)

    def logs_for_job(self, job_name, wait=False, poll=None, log_type="All", timeout=None):
        with _interruptible():
            return super().logs_for_job(job_name, wait, POLL_SECONDS, log_type, timeout)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted from None


class Aws:
    """The account and region that boto3 finds. Raises Failure if there are none, ClientError if AWS refuses them.

    Used as a context, it lists what was made if something then fails, with the command that removes it.
    """

    cli_flags = " --backend aws"  # for a command that goes on from here
    serving_cli_flags = " --instance-type ml.c5.xlarge"  # for one that serves

    def __init__(self, instance_type: str | None = None, role=None, image_uri=None, dry_run=False):
        self.instance_type, self.dry_run = instance_type, dry_run
        self._given_role = role
        core = botocore.session.Session()
        attempts = core.get_config_variable("max_attempts") or MAX_ATTEMPTS
        core.set_default_client_config(Config(retries={"mode": "adaptive", "total_max_attempts": int(attempts)}))
        self._requests = RequestRecorder(core, dry_run)
        self.boto = boto3.Session(botocore_session=core)
        if self.boto.region_name is None:
            raise Failure("no AWS region: set AWS_DEFAULT_REGION, or run `aws configure`")
        self._caller = checks.caller(self.boto)
        redaction.own_accounts.add(self._caller["Account"])
        self.image_uri = image_uri and self._in_registry(image_uri)
        self.session = _Session(self.boto)
        self.session.sagemaker_config = opt_out_of_telemetry(self.session.sagemaker_config)
        # The SDK would make it, where nothing is put into it, and asks for an account at an address that is fixed.
        self.session._default_bucket = self._named_bucket or self._own_bucket
        self._folders: set[str] = set()  # that were made
        self._data_of_models: dict[tuple[str, datetime.datetime], list[str]] = {}

    def __enter__(self):
        return self

    def __exit__(self, _, error, __) -> None:
        made = self._requests.made + [f"s3/{name}" for name in sorted(self._folders)]
        if self.dry_run and error is None:
            print("\nnothing was sent; without --dry-run the requests above are made")
        elif error is not None and made and not self.dry_run:
            print(f"\nmade before this ended: {', '.join(made)}")
            print(f"to remove it: fastmaker cleanup --backend aws --only {' '.join(made)} --yes", flush=True)

    def keep_created(self) -> None:
        """What was made is wanted, whatever comes now."""
        self._requests.made.clear()
        self._folders.clear()

    def training(self, job: str) -> dict:
        """Arguments of the SDK's PyTorch estimator."""
        output = self.folder("training-job", job).rpartition("/")[0]  # SageMaker and the SDK add the job's name
        return {
            "role": self.role("training"),
            "image_uri": self.image_uri,
            "tags": self.tags(job),
            "output_path": output,
            "code_location": output,
            "sagemaker_session": self.session,
            **self._training_version,
        }

    def model(self) -> dict:
        """Arguments of the SDK's PyTorchModel."""
        return {
            "role": self.role("endpoint"),
            "image_uri": self.image_uri,
            "sagemaker_session": self.session,
            **versions.INFERENCE,
        }

    def endpoint(self, args, name: str) -> dict:
        """Arguments of the SDK's deploy: what kind of endpoint it is."""
        captured = functools.partial(self.folder, "endpoint", name)
        return {"tags": self.tags(name), **endpoints.configured(args, self.session, captured)}

    def scale(self, args, name: str) -> None:
        """Let the number of the endpoint's instances follow its requests, if that is wanted."""
        if args.max:
            endpoints.scale(self.boto, name, args)
            print(f"scales: {args.min} to {args.max} instances")

    def runtime(self, endpoint: str):
        """What has invoke_endpoint, as boto3's sagemaker-runtime; of an asynchronous endpoint it waits for answers."""
        client = self.session.sagemaker_client
        config = client.describe_endpoint(EndpointName=endpoint)["EndpointConfigName"]
        if "AsyncInferenceConfig" not in client.describe_endpoint_config(EndpointConfigName=config):
            return self.session.sagemaker_runtime_client
        return endpoints.AsyncRuntime(self.boto, self.folder("endpoint", endpoint))

    def tags(self, name: str) -> list[dict]:
        return [{"Key": TAG, "Value": name}]

    def role(self, kind: str) -> str:
        """The ARN for jobs of a kind: --role, SAGEMAKER_ROLE, the SDK's configuration, a SageMaker notebook's own."""
        path = TRAINING_JOB_ROLE_ARN_PATH if kind.endswith("training") else MODEL_EXECUTION_ROLE_ARN_PATH
        given = self._given_role or os.environ.get("SAGEMAKER_ROLE")
        role = given or resolve_value_from_config(None, path, sagemaker_session=self.session)
        if role:
            return self.session.expand_role(role)
        if ":assumed-role/" in self._caller["Arn"] or os.path.exists(NOTEBOOK_METADATA_FILE):
            return get_execution_role(self.session)
        raise Failure("no IAM role: give --role, set SAGEMAKER_ROLE or name one in the SDK's configuration file")

    @functools.cached_property
    def root(self) -> str:
        """The URI, without a slash at its end, of what jobs put into S3."""
        return s3_path_join("s3://", self._named_bucket or self._own_bucket, self.session.default_bucket_prefix, FOLDER)

    @property
    def _named_bucket(self) -> str | None:
        return resolve_value_from_config(None, SESSION_DEFAULT_S3_BUCKET_PATH, sagemaker_session=self.session)

    @property
    def _own_bucket(self) -> str:
        """The SDK's default one."""
        return f"sagemaker-{self.boto.region_name}-{self._caller['Account']}"

    @functools.cached_property
    def bucket(self) -> str:
        """The one that the SDK's configuration names, which has to exist, or the SDK's default one, made if missing."""
        name = self._named_bucket or self._own_bucket
        own = None if self._named_bucket else self._caller["Account"]
        if not checks.bucket_exists(self.boto, name, own):
            if self._named_bucket:
                raise Failure(f"there is no bucket {name}, which the SDK's configuration names")
            place = {"CreateBucketConfiguration": {"LocationConstraint": self.boto.region_name}}
            self.session.s3_client.create_bucket(Bucket=name, **({} if self.boto.region_name == "us-east-1" else place))
        return name

    def folder(self, kind: str, name: str) -> str:
        """The URI, without a slash at its end, of what a job or an endpoint has in S3; marked as made here.

        Raises Failure if there is something of others.
        """
        uri = f"{self.root}/{kind}/{name}"
        if f"{kind}/{name}" in self._folders:
            return uri
        key = storage.bucket_and_key(f"{uri}/{MARKER}")[1]
        client = self.session.s3_client
        if not inventory.is_marked(client, self.bucket, key, TAG):
            if inventory.holds_any(client, self.bucket, key.removesuffix(MARKER)):
                raise Failure(f"{uri} holds what these scripts did not make: choose another name")
            client.put_object(Bucket=self.bucket, Key=key, Body=b"", Metadata={TAG: name})
            self._folders.add(f"{kind}/{name}")
        return uri

    def upload(self, uri: str, kind: str, name: str, part: str) -> str:
        """Send what lies on this machine to `part` of the folder of a job or an endpoint; returns its URI in S3.

        What is in S3 stays where it is.
        """
        if uri.startswith("s3://"):
            return uri
        root, listed = storage.list_objects(uri)
        files = list(listed)
        target = f"{self.folder(kind, name)}/{part}"
        size = sum(size for _, size in files)
        verb = "would upload" if self.dry_run else "uploading"
        print(f"{verb} {len(files)} files, {size / 1e6:.1f} MB, to {target}", flush=True)
        if not self.dry_run:
            self._send(root, files, target, size)
        return f"{target}/" if storage.local_path(uri).is_dir() else f"{target}/{files[0][0]}"

    def _send(self, root: str, files: list[tuple[str, int]], target: str, size: int) -> None:
        bucket, prefix = storage.bucket_and_key(target)
        client = self.boto.client("s3", config=Config(max_pool_connections=4 * UPLOADS))
        with (
            tqdm(total=size, unit="B", unit_scale=True, leave=False, disable=None) as bar,  # on a terminal alone
            ThreadPoolExecutor(UPLOADS) as pool,
        ):

            def send(name: str) -> None:
                client.upload_file(storage.local_path(root + name), bucket, f"{prefix}/{name}", Callback=bar.update)

            list(pool.map(send, (name for name, _ in files)))

    def check(self, kind: str, name: str, count: int, inputs: Iterable[str] = (), outputs: Iterable[str] = ()) -> bool:
        """Whether to go on: finds out, before anything is made or costs, what a job or an endpoint may lack.

        `kind` is one of checks.QUOTAS, `count` of instances, `inputs` and `outputs` are URIs that it reads and writes.
        Raises Failure.
        """
        inputs, outputs = list(inputs), list(outputs)
        for uri in [*inputs, *outputs]:
            if uri and not uri.startswith(("s3://", "file://") if uri in inputs else "s3://"):
                raise ValueError(f"{uri}: on AWS expected a URI that begins with s3://")
        checks.name(self.session.sagemaker_client, kind, name)
        known = self.instance_type and checks.instance_type(self.session.sagemaker_client, kind, self.instance_type)
        rows = [
            ["credentials", "accepted"],
            *([[self.instance_type, known]] if known else ()),
            ["role", checks.role(self.boto, self.role(kind))],
            ["image", checks.image(self.boto, self.image_uri) if self.image_uri else self._managed_image(kind)],
            *(["data", checks.data(self.boto, uri)] for uri in inputs if uri.startswith("s3://")),
            *([f"bucket {storage.bucket_and_key(uri)[0]}", checks.bucket(self.boto, uri)] for uri in outputs if uri),
        ]
        if self.instance_type:
            rows.append(["quota", checks.quota(self.boto, kind, self.instance_type, count)])
        print(tables.table(["checked", "found"], rows), flush=True)
        return True

    def answers(self, job: str, source: str) -> str:
        """Where a transform job's answers go."""
        return f"{self.folder('transform-job', job)}/answers"

    def print_cost_notice(self, kind: str, name: str) -> None:
        """Say what costs, and how to end it."""
        if self.dry_run:
            return
        ends = "until it is deleted" if kind == "endpoint" else "while it runs"
        what = f"--endpoint {name}" if kind == "endpoint" else f"--only {kind}/{name} --yes"
        print(f"costs {ends}; to end it: fastmaker cleanup --backend aws {what}", flush=True)

    # What fastmaker cleanup asks.

    deletes_jobs = False  # AWS keeps what has ended
    busy = ("Creating", "Updating", "SystemUpdating", "RollingBack")
    poll_seconds = property(lambda self: POLL_SECONDS)

    @property
    def where(self) -> str:
        return f" in {self.boto.region_name}"

    def listing(self, kind: str) -> dict:
        """Arguments that let a List operation leave out what costs nothing: AWS keeps all jobs that ever were."""
        return {"MaxResults": 100, **({"StatusEquals": "InProgress"} if kind.endswith("job") else {})}

    def is_ours(self, arn: str) -> bool:
        """Whether it has the tag; what is gone has none."""
        try:
            tags = self.session.sagemaker_client.list_tags(ResourceArn=arn)["Tags"]
        except ClientError as error:
            if is_missing(error):
                return False
            raise
        return inventory.tag_of(tags, TAG) is not None

    def costs(self, kind: str) -> str:
        """What one pays for."""
        return {"endpoint": "while it exists", "training-job": "while it runs", "transform-job": "while it runs"}.get(
            kind, ""
        )

    def scalings(self, endpoint: str | None = None) -> list[Resource]:
        """The policies by which the number of an endpoint's instances, or of all our endpoints', changes."""
        return inventory.scalings(self.boto, self._is_our_endpoint, endpoint)

    def others(self) -> list[Resource]:
        """Images and data."""
        client = self.session.s3_client
        return [
            *inventory.images(self.boto, TAG),
            *inventory.folders(client, self.root, MARKER, TAG, self._models_below),
        ]

    def _models_below(self, uri: str) -> list[str]:
        """The models, anybody's, whose data lie below a URI."""
        models = paginate(self.session.sagemaker_client, "list_models", "Models", MaxResults=100)
        made = [(summary["ModelName"], summary["CreationTime"]) for summary in models]
        return [name for name, time in made if any(data.startswith(uri) for data in self._data_of_model(name, time))]

    def _data_of_model(self, name: str, made: datetime.datetime) -> list[str]:
        """The URIs of a model's data. A model never changes: what is made later under its name has another time."""
        if (name, made) not in self._data_of_models:
            try:
                model = self.session.sagemaker_client.describe_model(ModelName=name)
            except ClientError as error:
                if is_missing(error):  # by now
                    return []
                raise
            self._data_of_models[name, made] = list(inventory.data_of(model))
        return self._data_of_models[name, made]

    def _is_our_endpoint(self, name: str, if_gone: bool) -> bool:
        """Whether an endpoint was made by the jobs; `if_gone` is the answer for one that is not there any more."""
        try:
            return self.is_ours(self.session.describe_endpoint(name)["EndpointArn"])
        except ClientError as error:
            if is_missing(error):
                return if_gone
            raise

    def _in_registry(self, image: str) -> str:
        """The URI of an image: one without a host is of this account's own registry."""
        if "/" in image and any(sign in image.partition("/")[0] for sign in ".:"):
            return image
        region = self.boto.region_name
        suffix = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
        return f"{self._caller['Account']}.dkr.ecr.{region}.{suffix}/{image}"

    @property
    def _training_version(self) -> dict:
        return versions.VOLTA_TRAINING if self.instance_type.startswith(versions.VOLTA) else versions.TRAINING

    def _managed_image(self, kind: str) -> str:
        """What the SDK knows of AWS's own image for this kind of job. Raises ValueError if it knows none."""
        training = kind.endswith("training")
        version = self._training_version if training else versions.INFERENCE
        if not training and (self.instance_type or "").startswith(versions.BLACKWELL):
            raise Failure(
                f"AWS's newest inference image, of PyTorch 2.6.0, has no code for {self.instance_type}: "
                "give an --image-uri of your own"
            )
        uri = image_uris.retrieve(
            "pytorch",
            self.boto.region_name,
            version=version["framework_version"],
            py_version=version["py_version"],
            instance_type=self.instance_type or "ml.c5.xlarge",  # serverless endpoints run on processors
            image_scope="training" if training else "inference",
        )
        return f"{uri.rpartition('/')[2]} of AWS"
