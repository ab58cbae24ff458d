"""The SageMaker API on this machine: the SDK's local mode on AWS's own toolkits, as processes and without Docker.

    from fastmaker.local import ProcessSession
    estimator = PyTorch(..., instance_type="local", sagemaker_session=ProcessSession())

A DockerSession keeps the same rules in containers of the image that an estimator or model names.
"""

import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastmaker.local.session import DockerSession, ProcessSession

__all__ = ["DockerSession", "ProcessSession"]


def __getattr__(name: str) -> Any:
    # The SDK takes seconds to import, and the process that runs a training job does without it.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if __name__ != "fastmaker.local":
        warnings.warn(f"{__name__}.{name} is fastmaker.local.{name}", DeprecationWarning, stacklevel=2)
    from fastmaker.local import session

    return getattr(session, name)
