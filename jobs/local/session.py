"""`ProcessSession`: the SageMaker Python SDK's LocalSession, on processes in place of Docker."""

import os
import re
import secrets
import shutil
import sys
import tempfile
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
from sagemaker.local import LocalSession
from sagemaker.session import Session, _check_job_status
from tqdm import tqdm

from fastmaker.local import names, sdk, supervisor
from fastmaker.local.batch import transform_jobs
from fastmaker.local.client import SageMaker
from fastmaker.local.containers import Container
from fastmaker.local.runtime_client import SageMakerRuntime
from fastmaker.local.serving import endpoints
from fastmaker.local.store import now
from fastmaker.local.training import metrics, training_jobs

POLL_SECONDS = 0.2
DEFAULT_REGION = "us-west-2"


class ProcessSession(sdk.OwnSession, LocalSession):  # type: ignore[misc]  # the SDK is not typed
    """Run jobs and endpoints of instance types ``local`` and ``local_gpu`` without Docker and without an AWS account.

        session = ProcessSession()
        PyTorch(..., instance_type="local", sagemaker_session=session).fit({"train": "file:///data"})

    Takes LocalSession's arguments, and `home`, where state is kept (FASTMAKER_HOME, by default ~/.fastmaker). Code is
    packed as for AWS and kept on this machine; `disable_local_code=True` sends it through S3. S3 is reached at
    `s3_endpoint_url` or AWS_ENDPOINT_URL_S3, or is AWS's; nothing else leaves this machine.
    """

    sagemaker_config: dict[str, Any]
    _default_bucket: str | None
    _use_docker = False

    def __init__(
        self,
        boto_session: boto3.Session | None = None,
        *,
        home: str | os.PathLike[str] | None = None,
        s3_endpoint_url: str | None = None,
        **kwargs: Any,
    ) -> None:
        self._home = Path(home).absolute() if home else None
        boto_session = boto_session or boto3.Session()
        if boto_session.region_name is None:
            boto_session = boto3.Session(region_name=DEFAULT_REGION)
        super().__init__(boto_session, s3_endpoint_url=s3_endpoint_url, **kwargs)

    def _initialize(
        self, boto_session: boto3.Session, sagemaker_client: Any, sagemaker_runtime_client: Any, **kwargs: Any
    ) -> None:
        super()._initialize(boto_session, sagemaker_client, sagemaker_runtime_client, **kwargs)
        self.sagemaker_client = SageMaker(
            self._region_name, self._home, self._job_environment, self.s3_client, lambda image: self._use_docker
        )
        self.sagemaker_runtime_client = SageMakerRuntime(self._home, self._region_name, self._job_environment)
        self.cloudwatch_client = metrics.cloudwatch_client(self._region_name, self.sagemaker_client.training_jobs)
        self.sagemaker_config = sdk.opt_out_of_telemetry(self.sagemaker_config)
        self._packed_code: Path | None = None

    @property
    def config(self) -> dict[str, Any]:
        """The configuration of local mode. Its local_code is off: that mode copies what was not named."""
        config: dict[str, Any] = self._config
        return config

    @config.setter
    def config(self, value: dict[str, Any] | None) -> None:
        value = value or {}
        LocalSession.config.fset(self, {**value, "local": {**(value.get("local") or {}), "local_code": False}})

    # What the SDK uploads, and the wrappers of `sdk` keep here.

    def code_folder(self) -> Path | None:
        """Return a new folder for code that is packed, which goes with this session, None if it goes to S3."""
        if self._disable_local_code:
            return None
        if self._packed_code is None:
            self._packed_code = self.sagemaker_client.packed_code.scratch()
            weakref.finalize(self, shutil.rmtree, self._packed_code, ignore_errors=True)
        return Path(tempfile.mkdtemp(dir=self._packed_code))

    def new_model_archive(self) -> Path:
        """Return where a model is written that is packed anew; it is deleted with the model that is created of it."""
        archives = self.sagemaker_client.repacked_models
        folder: Path = archives.create(secrets.token_hex(8), {"CreationTime": now()})
        return folder / "model.tar.gz"

    def default_output_path(self) -> str | None:
        """Return the place beside the records of training jobs, None if it is in S3."""
        return None if self._disable_local_code else f"file://{self.sagemaker_client.training_jobs.folder}"

    # What the SDK would ask AWS for.

    def default_bucket(self) -> str:
        """Return the bucket given to the session, or a name that no AWS account can own; made where S3 is local."""
        if self._default_bucket is None:
            name = self._default_bucket_name_override or names.default_bucket(self._region_name)
            if self._s3_endpoint():
                self._make_bucket(name)
            self._default_bucket = name
        return self._default_bucket

    def _make_bucket(self, name: str) -> None:
        if name not in {bucket["Name"] for bucket in self.s3_client.list_buckets()["Buckets"]}:
            region = {"CreateBucketConfiguration": {"LocationConstraint": self._region_name}}
            self.s3_client.create_bucket(Bucket=name, **({} if self._region_name == "us-east-1" else region))

    def expand_role(self, role: str) -> str:
        """Return the ARN of a role, which need not exist."""
        return role if "/" in role else f"arn:aws:iam::{names.ACCOUNT}:role/{role}"

    def get_caller_identity_arn(self) -> str:
        """Return the ARN of a role that no AWS account has."""
        return f"arn:aws:iam::{names.ACCOUNT}:role/local"

    def account_id(self) -> str:
        """Return the number of this machine's account."""
        return names.ACCOUNT

    def _get_account_id_if_default_bucket(self, bucket: str) -> None:
        return None

    # Waiting, with what happens shown as it happens.

    def logs_for_job(
        self,
        job_name: str,
        wait: bool = False,
        poll: float = POLL_SECONDS,
        log_type: str = "All",
        timeout: float | None = None,
    ) -> None:
        """Print the job's log, until it ends if `wait`. Ctrl-C stops the job."""
        jobs = self.sagemaker_client.training_jobs
        self._follow("Training", job_name, wait, _print_new_lines(lambda: training_jobs.containers(jobs, job_name)))

    def wait_for_job(self, job: str, poll: float = POLL_SECONDS, timeout: float | None = None) -> dict[str, Any]:
        """Wait for a training job without its log. Raises UnexpectedStatusException if it fails."""
        description = self._follow("Training", job, True, lambda: None)
        if warning := self.sagemaker_client.training_jobs.read(job).get("warning"):
            print(warning, flush=True)
        return description

    def logs_for_transform_job(self, job_name: str, wait: bool = False, poll: float = POLL_SECONDS) -> None:
        """Print the logs of the job's servers, until it ends if `wait`. Ctrl-C stops the job."""
        jobs = self.sagemaker_client.transform_jobs
        self._follow("Transform", job_name, wait, _print_new_lines(lambda: transform_jobs.containers(jobs, job_name)))

    def wait_for_transform_job(self, job: str, poll: float = POLL_SECONDS) -> dict[str, Any]:
        """Wait for a transform job behind a progress bar. Raises UnexpectedStatusException if it fails."""
        with _progress_bar() as bar:

            def show() -> None:
                counts = transform_jobs.progress(self.sagemaker_client.transform_jobs, job)
                done = counts.get("answers", 0) + counts.get("failures", 0)
                if done and not bar.n:
                    bar.reset(counts["objects"])  # the rate counts from the first answer
                if done > bar.n:
                    bar.set_postfix(failed=counts["failures"], refresh=False)
                    bar.update(done - bar.n)

            return self._follow("Transform", job, True, show)

    def wait_for_endpoint(
        self, endpoint: str, poll: float = POLL_SECONDS, live_logging: bool = False
    ) -> dict[str, Any]:
        """Wait until the endpoint's models answer. Ctrl-C ends what was started."""
        try:
            # The SDK's own waiting decides what counts as success; only its pace is ours.
            description: dict[str, Any] = Session.wait_for_endpoint(self, endpoint, POLL_SECONDS, live_logging=False)
            return description
        except KeyboardInterrupt:
            endpoints.interrupt(self.sagemaker_client.endpoints, endpoint)
            raise sdk.Interrupted from None

    def _follow(self, kind: str, name: str, wait: bool, show: Callable[[], None]) -> dict[str, Any]:
        """Call `show` until the job ends, or once, and return its description. Ctrl-C stops the job.

        Raises UnexpectedStatusException if the job that was waited for has failed.
        """
        describe, stop = (getattr(self.sagemaker_client, f"{verb}_{kind.lower()}_job") for verb in ("describe", "stop"))
        job = {f"{kind}JobName": name}

        def until_it_ends() -> dict[str, Any]:
            while True:
                description: dict[str, Any] = describe(**job)
                show()
                if not wait or description[f"{kind}JobStatus"] in supervisor.FINAL:
                    return description
                time.sleep(POLL_SECONDS)

        try:
            description = until_it_ends()
        except KeyboardInterrupt:
            print(f"stopping {kind.lower()} job {name}", flush=True)
            stop(**job)
            until_it_ends()
            raise sdk.Interrupted from None
        if wait:
            _check_job_status(name, description, f"{kind}JobStatus")
        return description

    def _s3_endpoint(self) -> str | None:
        return self.s3_endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")

    def _job_environment(self) -> dict[str, str]:
        """Return the environment of a job's process: the caller's, and this session's region, endpoint and credentials.

        Credentials are passed from process to process and written nowhere.
        """
        env = dict(os.environ) | {"AWS_REGION": self._region_name, "AWS_DEFAULT_REGION": self._region_name}
        if url := self._s3_endpoint():
            env["AWS_ENDPOINT_URL_S3"] = url
        credentials = self.boto_session._session._credentials  # those given or resolved, without a request
        if credentials is not None and credentials.method == "explicit":
            env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"] = credentials.access_key, credentials.secret_key
            if credentials.token:
                env["AWS_SESSION_TOKEN"] = credentials.token
        return env


class DockerSession(ProcessSession):
    """Run jobs and endpoints as a ProcessSession does, in Docker containers of each one's image (`image_uri`)."""

    _use_docker = True


def _print_new_lines(containers: Callable[[], list[Container]]) -> Callable[[], None]:
    """Return a function that prints what the logs of containers have gained since it was last called.

    `containers` returns them; once there are several, each line begins with the container's name.
    """
    positions: dict[Path, int] = {}

    def print_new() -> None:
        found = [container for container in containers() if container.log.is_file()]
        for container in found:
            with open(container.log, "rb") as log:
                if positions.get(container.log, 0) > os.fstat(log.fileno()).st_size:  # it was set aside
                    positions[container.log] = 0
                log.seek(positions.get(container.log, 0))
                new = log.read()
            if len(found) > 1:
                new = new[: new.rfind(b"\n") + 1]  # a line that is being written is printed when it is whole
            positions[container.log] = positions.get(container.log, 0) + len(new)
            text = new.decode("utf-8", "replace")
            prefix = f"{container.root.name} | "
            sys.stdout.write(re.sub("^(?=.)", prefix, text, flags=re.MULTILINE) if len(found) > 1 else text)
        sys.stdout.flush()

    return print_new


def _progress_bar() -> "tqdm[Any]":
    """Return a bar with rate and time left, which shows on a terminal and in a notebook alone."""
    visible = sys.stderr.isatty() or "ipykernel" in sys.modules
    pace = 0.1 if sys.stderr.isatty() else 2.0  # seconds; a notebook keeps every line
    return tqdm(unit=" objects", dynamic_ncols=True, mininterval=pace, disable=not visible)
