"""What the tests of local mode share: models and estimators of a session."""

import functools
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from helpers.waiting import nothing_runs_below, running_below, wait_until  # noqa: F401  found here by whoever has a session

os.environ.setdefault("SAGEMAKER_SUPPRESS_V2_WARNING", "1")

from sagemaker.pytorch import PyTorch, PyTorchModel

from fastmaker.local.serving import torchserve
from fastmaker.local.serving.instances import container_of


@functools.cache
def without_opt_ml() -> bool:
    """Whether this machine allows no mount namespace to this user; by a process that has no threads."""
    program = (
        "import pathlib; from fastmaker.jobs.runtime import mounts; exit(mounts.unavailable(pathlib.Path('/tmp')))"
    )
    return subprocess.run([sys.executable, "-c", program], capture_output=True).returncode != 0


@contextmanager
def deployed(session, archive, instance_count=1, **arguments):
    predictor = bundle_model(session, archive, **arguments).deploy(instance_count, "local")
    try:
        yield predictor
    finally:
        predictor.delete_model()
        predictor.delete_endpoint()


def bundle_model(session, archive, env=None, **arguments) -> PyTorchModel:
    """A model of a bundle that brings its own code, or with `entry_point` of any archive."""
    arguments = {"entry_point": None, "framework_version": "2.6.0", "py_version": "py312", **arguments}
    env = {"SAGEMAKER_PROGRAM": "entry_point.py", "SAGEMAKER_MODEL_SERVER_WORKERS": "1", **(env or {})}
    return PyTorchModel(model_data=f"file://{archive}", role="local", env=env, sagemaker_session=session, **arguments)


def script_mode(session, archive, **env):
    return bundle_model(session, archive, env={"SAGEMAKER_PROGRAM": "inference.py", **env})


def estimator(session, source: Path, **arguments) -> PyTorch:
    arguments = {"entry_point": "train.py", "instance_count": 1, "instance_type": "local", **arguments}
    arguments = {"framework_version": "2.8.0", "py_version": "py312", "role": "local", **arguments}
    return PyTorch(**{"source_dir": str(source), **arguments}, sagemaker_session=session)


def start(session, source, **arguments):
    """A job of a script, not waited for."""
    job = estimator(session, source, **arguments)
    job.fit(wait=False)
    return job.latest_training_job.name


def log_of(session, name):
    log = session.sagemaker_client.training_jobs.directory(name) / "algo-1" / "container.log"
    return log.read_text() if log.exists() else ""


def workers_of(session, name):
    """The pids of the serving workers, as TorchServe gives them."""
    endpoints = session.sagemaker_client.endpoints
    servers = [(container_of(endpoints, name, server), server["port"]) for server in endpoints.read(name)["servers"]]
    return [pid for container, port in servers for pid in torchserve.ready_workers(container, port)]
