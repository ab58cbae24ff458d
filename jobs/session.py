"""An instance type and a backend -> the SageMaker session to use. The only place that asks which it is."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator

# The SDK says at each call that version 3 exists; these scripts are written for version 2.
os.environ.setdefault("SAGEMAKER_SUPPRESS_V2_WARNING", "1")
# Its remarks about configuration files that are not there would go to stdout, among the answers; botocore's about where
# each client's credentials and endpoint come from bury the rest.
for noisy in ("sagemaker.config", "botocore"):
    logging.getLogger(noisy).setLevel(logging.WARNING)

LOCAL_TYPES = ("local", "local_gpu")
BACKENDS = ("process", "docker")
# The newest images that SDK v2 knows (https://github.com/aws/deep-learning-containers/blob/master/available_images.md).
TRAINING_VERSION = {"framework_version": "2.8.0", "py_version": "py312"}
INFERENCE_VERSION = {"framework_version": "2.6.0", "py_version": "py312"}


def add_arguments(parser, instances: bool = True) -> None:
    """The arguments that say where a job runs."""
    if instances:
        parser.add_argument("--instance-type", default="local", help="local or local_gpu (default: %(default)s)")
        parser.add_argument("--role", default="local", help="IAM role; local instances need none")
        parser.add_argument("--image-uri", help="a Docker image of your own (default: AWS's; processes need none)")
    parser.add_argument("--backend", choices=BACKENDS, default="process", help="of local types (default: %(default)s)")


def session(instance_type: str = "local", backend: str = "process"):
    """Raises ValueError for an instance type that cannot be had."""
    if instance_type not in LOCAL_TYPES:
        raise ValueError(f"--instance-type {instance_type!r}: expected one of {', '.join(LOCAL_TYPES)}")
    with _no_grammars():
        from jobs.local import DockerSession, ProcessSession

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
