"""What serves a model: TorchServe in AWS's PyTorch images, or Ray Serve in its Ray images.

https://aws.github.io/deep-learning-containers/ray/ has the images; they take the account and domain of AWS's others.
"""

from fastmaker.jobs import storage
from fastmaker.jobs.backends import versions
from fastmaker.jobs.backends.requests import EndpointRequest, TransformRequest
from fastmaker.local import archives

RAY, TORCHSERVE = "ray", "torchserve"
CONFIG = "config.yaml"  # by which a Ray image finds the application of a model
UNPATCHED = f"AWS has not patched its PyTorch inference images since {versions.UNPATCHED_SINCE}"


def choose(given: str | None, request: EndpointRequest | TransformRequest, instance_type: str | None) -> str:
    """Return what serves on an instance type of AWS: what was given, else the one that AWS patches where it can run."""
    return given or (TORCHSERVE if reason_against_ray(request, instance_type) else RAY)


def reason_against_ray(request: EndpointRequest | TransformRequest, instance_type: str | None) -> str | None:
    """Return why AWS's Ray images do not suit a request, or None."""
    if request.kind == "endpoint" and request.serverless_memory:
        return "Ray's own processes need a gigabyte beside the model, which serverless endpoints lack"
    if (instance_type or "").startswith(versions.VOLTA):
        return f"the PyTorch of the Ray images has no code for {instance_type}"
    if request.kind == "transform" and is_gpu(instance_type):
        return "the Ray image for GPUs needs a driver that can be chosen for endpoints alone"
    return None


def ray_image(instance_type: str | None) -> str:
    """Return the name of AWS's Ray image for an instance type."""
    return f"{versions.RAY_REPOSITORY}:serve-ml-sagemaker-{'cuda' if is_gpu(instance_type) else 'cpu'}"


def public_ray_image(instance_type: str | None) -> str:
    """Return the name of that image in AWS's public registry, which needs no account."""
    return f"public.ecr.aws/deep-learning-containers/{ray_image(instance_type)}"


def is_gpu(instance_type: str | None) -> bool:
    """Return whether instances of an ml.* type, or this machine as local_gpu, have GPUs of NVIDIA."""
    return instance_type == "local_gpu" or (instance_type or "").startswith(("ml.g", "ml.p"))


def check(uri: str) -> None:
    """Check that Ray Serve finds its application in a model on this machine. Raises ValueError."""
    if not uri.startswith("file://"):
        return
    path = storage.local_path(uri)
    if not ((path / CONFIG).is_file() if path.is_dir() else CONFIG in archives.names(path)):
        raise ValueError(
            f"{path} has no {CONFIG}, by which Ray Serve finds its application: an earlier version of fastmaker wrote"
            f" it. Save the model again, or give --server {TORCHSERVE}"
        )


def summary(given: str | None, request: EndpointRequest | TransformRequest, instance_type: str | None) -> str:
    """Return what serves and why. Raises ValueError for a server that cannot."""
    reason = reason_against_ray(request, instance_type)
    if choose(given, request, instance_type) == TORCHSERVE:
        return f"TorchServe. {UNPATCHED}" + ("" if given else f", and Ray Serve does not suit: {reason}")
    if reason:
        raise ValueError(f"--server {RAY}: {reason}")
    return f"Ray Serve. {UNPATCHED}; --server {TORCHSERVE} takes them"
