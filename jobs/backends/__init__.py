"""An instance type and a backend -> where jobs run and the SageMaker session to use. The only place that asks which."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from functools import partial

from fastmaker.jobs import storage
from fastmaker.jobs.backends import versions
from fastmaker.jobs.backends.inventory import Resource
from fastmaker.local.store import Store, default_home

# The SDK says at each call that version 3 exists; these scripts are written for version 2.
os.environ.setdefault("SAGEMAKER_SUPPRESS_V2_WARNING", "1")
# Its remarks about configuration files that are not there would go to stdout, among the answers; botocore's about where
# each client's credentials and endpoint come from bury the rest.
for noisy in ("sagemaker.config", "botocore"):
    logging.getLogger(noisy).setLevel(logging.WARNING)

LOCAL_TYPES = ("local", "local_gpu")
BACKENDS = ("process", "docker", "aws")
AWS_ALONE = (
    "serverless_memory",
    "async_output",
    "data_capture",
    "max",
    "volume_size",
)  # of fastmaker deploy's arguments


def add_arguments(parser, instances: bool = True) -> None:
    """The arguments that say where a job runs."""
    if instances:
        parser.add_argument(
            "--instance-type", default="local", help="local, local_gpu or, on AWS, ml.* (default: %(default)s)"
        )
        parser.add_argument("--role", help="IAM role (default: SAGEMAKER_ROLE, or the SDK's configuration file)")
        parser.add_argument("--image-uri", help="a Docker image of your own (default: AWS's; processes need none)")
        parser.add_argument("--dry-run", action="store_true", help="check, and print the requests without sending them")
    parser.add_argument(
        "--backend", choices=BACKENDS, default="process", help="of local types process or docker (default: %(default)s)"
    )


def backend(args):
    """Where the jobs of these arguments run: a context, in which things are made.

    A `Local` or, for ml.* types, a `aws.backend.Aws`, which has the same methods. Raises ValueError for an
    instance type that cannot be had.
    """
    instance_type = getattr(args, "instance_type", None)
    typeless = getattr(args, "serverless_memory", None) or getattr(args, "retry_failed", None)
    if args.backend == "aws" and instance_type in LOCAL_TYPES:
        if not typeless:
            raise ValueError("--backend aws: expected an --instance-type that begins with ml.")
        instance_type = None
    if args.backend != "aws" and (instance_type or "local") in LOCAL_TYPES:
        return Local(args)
    if instance_type and not instance_type.startswith("ml."):
        raise ValueError(
            f"--instance-type {instance_type!r}: expected {', '.join(LOCAL_TYPES)} or one that begins with ml."
        )
    with _no_grammars():
        from fastmaker.jobs.backends.aws.backend import Aws
    return Aws(instance_type, *(getattr(args, name, None) for name in ("role", "image_uri", "dry_run")))


class Local:
    """This machine: what a job uses is where it is, and nothing costs."""

    def __init__(self, args=None):
        kind = getattr(args, "backend", "process")
        self.image_uri = getattr(args, "image_uri", None)
        self.cli_flags = "" if kind == "process" else f" --backend {kind}"  # for a command that goes on from here
        self.serving_cli_flags = (
            f"{self.cli_flags} --image-uri {self.image_uri}" if self.cli_flags else ""
        )  # for one that serves
        self.dry_run = getattr(args, "dry_run", False)
        self.session = session(kind)
        self._role = getattr(args, "role", None) or "local"

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        pass

    def keep_created(self) -> None:
        """On AWS: what was made is wanted, whatever comes now."""

    def training(self, job: str) -> dict:
        """Arguments of the SDK's PyTorch estimator."""
        return {"role": self._role, "image_uri": self.image_uri, "sagemaker_session": self.session, **versions.TRAINING}

    def model(self) -> dict:
        """Arguments of the SDK's PyTorchModel."""
        return {
            "role": self._role,
            "image_uri": self.image_uri,
            "sagemaker_session": self.session,
            **versions.INFERENCE,
        }

    def endpoint(self, args, name: str) -> dict:
        """Arguments of the SDK's deploy; says which of those given are for AWS alone."""
        given = [option for option in AWS_ALONE if getattr(args, option)]
        if given:
            print(f"on AWS alone, without effect here: {', '.join('--' + o.replace('_', '-') for o in given)}")
        return {}

    def scale(self, args, name: str) -> None:
        """On AWS: let the number of instances follow the requests."""

    def runtime(self, endpoint: str):
        """What has invoke_endpoint, as boto3's sagemaker-runtime."""
        return self.session.sagemaker_runtime_client

    def tags(self, name: str) -> None:
        """On AWS: the tag of what is made."""

    def check(self, kind: str, name: str, count: int, inputs: Iterable[str] = (), outputs: Iterable[str] = ()) -> bool:
        """Whether to go on. On AWS: find out what a job of this kind may lack."""
        if self.dry_run:
            print("checked; here nothing costs, and no request is made: leave out --dry-run to run it")
        return not self.dry_run

    def upload(self, uri: str, kind: str, name: str, part: str) -> str:
        """On AWS: send what lies on this machine; returns its URI."""
        return uri

    def answers(self, job: str, source: str) -> str | None:
        """Where a transform job's answers go: below this folder for files, into the session's bucket for S3."""
        return storage.uri_of(f"answers/{job}") if source.startswith("file://") else None

    def print_cost_notice(self, kind: str, name: str) -> None:
        """On AWS: say what costs, and how to end it."""

    # What fastmaker cleanup asks.

    deletes_jobs = True
    where = ""  # on AWS: the region
    busy = ()  # on AWS: the states in which an endpoint cannot be deleted
    poll_seconds = 0.5

    def listing(self, kind: str) -> dict:
        """On AWS: arguments that let a List operation leave out what costs nothing."""
        return {}

    def is_ours(self, arn: str) -> bool:
        """On AWS: whether it has the tag."""
        return True

    def costs(self, kind: str) -> str:
        """On AWS: what one pays for."""
        return ""

    def scalings(self, endpoint: str | None = None) -> list[Resource]:
        """On AWS: the policies by which the number of an endpoint's instances changes."""
        return []

    def others(self) -> list[Resource]:
        """Archives of model directories; on AWS images and data."""
        packed = packed_models()
        created = {name: packed.read(name)["CreationTime"] for name in packed.names()}
        return [
            Resource("packed-model", name, "-", time, "", partial(packed.delete, name))
            for name, time in created.items()
        ]


def packed_models() -> Store:
    """The archives that were made of model directories, to be deployed."""
    return Store(default_home(), "packed-models")


def session(backend: str = "process"):
    """The SDK's session for local types."""
    with _no_grammars():
        from fastmaker.local import DockerSession, ProcessSession

        return DockerSession() if backend == "docker" else ProcessSession()


@contextlib.contextmanager
def _no_grammars() -> Iterator[None]:
    """Keep jsonschema, which the SDK imports, from compiling the grammar of IRIs, where Jupyter has brought one.

    It takes a second, as long as the SDK itself, and none of the SDK's schemas holds an IRI.
    """
    name = "rfc3987_syntax"
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # an import of it fails, as where it is not installed
    try:
        yield
    finally:
        del sys.modules[name]
