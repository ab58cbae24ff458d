"""Instance types: ``local`` and ``local_gpu`` are this machine, ``ml.*`` are AWS's."""

from collections.abc import Callable

Check = Callable[[str | None], bool]  # of a type of instances
LOCAL = "local"
LOCAL_GPU = "local_gpu"
LOCAL_TYPES = (LOCAL, LOCAL_GPU)
AWS_PREFIX = "ml."


def is_local(instance_type: str | None) -> bool:
    """Return whether the type is this machine."""
    return instance_type in LOCAL_TYPES


def is_gpu(instance_type: str | None) -> bool:
    """Return whether the type is this machine with its NVIDIA GPUs."""
    return instance_type == LOCAL_GPU


def is_aws(instance_type: str | None) -> bool:
    """Return whether the type is one of AWS's; which of them exist is found out by the checks of the AWS backend."""
    return instance_type is not None and instance_type.startswith(AWS_PREFIX)


def runs_here(instance_type: str | None) -> bool:
    """Return whether the type is this machine, or one of AWS's that this machine stands in for."""
    return is_local(instance_type) or is_aws(instance_type)


def validate(instance_type: str | None) -> str:
    """Return the type. Raises ValueError, listing the right ones, unless it is this machine or one of AWS's."""
    if instance_type is not None and (is_local(instance_type) or is_aws(instance_type)):
        return instance_type
    raise ValueError(
        f"instance type {instance_type!r}: expected {', '.join(LOCAL_TYPES)} or one that begins with {AWS_PREFIX}"
    )
