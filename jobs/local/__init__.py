"""Local mode of the SageMaker Python SDK without Docker: AWS's own toolkits, as processes on this machine.

from jobs.local import ProcessSession
estimator = PyTorch(..., instance_type="local", sagemaker_session=ProcessSession())

A DockerSession keeps the same rules in containers of the image that an estimator or model names.
"""


def __getattr__(name):
    # The SDK takes seconds to import, and the process that runs a training job does without it.
    if name in ("ProcessSession", "DockerSession"):
        from jobs.local import session

        return getattr(session, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
