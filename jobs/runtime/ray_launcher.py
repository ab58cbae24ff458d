"""Starts Ray Serve in a container's directory, with the adapter before it: ``python ray_launcher.py``.

It does what AWS's Ray image does for /opt/ml/model/config.yaml or SM_RAYSERVE_APP. That image has its machine for
itself. Here each server has a Ray of its own, which listens on loopback, asks for a token, keeps its files in TMPDIR
and ends with this process. FASTMAKER_CONTAINER is shown as /opt/ml, where the machine allows it.
"""

import functools
import os
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose module names are ours alone

import psutil

from fastmaker.jobs.runtime import mounts, server_log

MODEL = Path(mounts.OPT_ML, "model")
if root := os.environ.get("FASTMAKER_CONTAINER"):
    try:
        mounts.enter(Path(root), {}, Path(os.devnull))
    except OSError as error:
        MODEL = Path(root, "model")
        print(f"/opt/ml cannot be had on this machine ({error}): the model is in {MODEL}")

FAILED = "Ray Serve could not start: "  # begins the last line of a server that has none
OBJECT_STORE_BYTES = 256 * 2**20  # of shared memory, for the requests that are under way; what is more goes to disk
LOOK_SECONDS = 0.5
NODE_SECONDS = 120  # in which the processes of a node start; the 30 s of Ray are too few on a very busy machine
SOCKETS = "FASTMAKER_REPLICA_SOCKETS"  # names the folder in which replicas of a bundle have sockets for the adapter
# What Ray puts behind its folder in the path of a socket.
SOCKET = "/session_2026-01-31_12-00-00_123456_1234567/sockets/plasma_store"
# Read when ray is imported.
SETTINGS = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # its processes listen on loopback
    "RAY_AUTH_MODE": "token",  # whoever reaches a port of Ray can run code
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_COLOR_PREFIX": "0",
    "RAY_worker_niceness": "0",  # of its 15 they would wait for whatever else the machine does
    "RAY_SERVE_LOG_TO_STDERR": "1",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",  # of the 0.1 of Ray, which keep a fiftieth of a core busy for nothing
    "RAY_gcs_server_port_wait_time_s": str(NODE_SECONDS),
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # s; a busy machine takes longer than the 5 s of Ray, thrice
}


class StartError(Exception):
    """Why there is no application; the message is one line."""


def configuration() -> dict[str, Any]:
    """Return the applications to run, as Ray Serve's configuration file lists them. Raises StartError."""
    import yaml

    file = MODEL / "config.yaml"
    try:
        if file.is_file():
            found: dict[str, Any] = yaml.safe_load(file.read_bytes())
            return found
    except (yaml.YAMLError, OSError) as error:
        raise StartError(f"config.yaml cannot be read: {error}") from None
    if path := os.environ.get("SM_RAYSERVE_APP"):
        return {"applications": [{"import_path": path, "route_prefix": "/"}]}
    raise StartError("the model has no config.yaml, and SM_RAYSERVE_APP is not set")


def start_ray() -> None:
    """Start a Ray that no other program has to do with."""
    os.environ.update(SETTINGS)
    paths = [str(MODEL), str(MODEL / "code"), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    sys.argv = [str(MODEL / "serve")]  # ray adds the folder of the program to the path of each of its processes
    os.chdir(MODEL)
    import ray
    from ray._private import node, services, utils

    # The processes of Ray, to which a function of this module goes, may not find the module.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    # What a dashboard and a second machine would need, which takes time, memory and a port that is always the same.
    node.Node.start_api_server = lambda self, **options: setattr(self, "_webui_url", None)
    node.Node.start_monitor = lambda self: None
    utils.get_dashboard_dependency_error = lambda: ImportError("there is no dashboard")
    services.get_node = functools.partial(_node_once_it_is_known, services.get_node)
    folder = short_path(os.path.realpath(tempfile.gettempdir()))
    os.environ[SOCKETS] = tempfile.mkdtemp(dir=folder)
    ray.init(
        address="local",
        namespace="serve",
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        runtime_env={"worker_process_setup_hook": prepare_process},
        _temp_dir=folder,
    )


def _node_once_it_is_known(get_node: Callable[..., Any], *arguments: Any) -> Any:
    """Return what `get_node` returns for arguments, within NODE_SECONDS. Raises RuntimeError."""
    deadline = time.monotonic() + NODE_SECONDS
    while True:
        try:
            return get_node(*arguments)
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
            time.sleep(LOOK_SECONDS)


def short_path(folder: str) -> str:
    """Return a path of a folder that leaves room for those of Ray's sockets; it holds while this process lives.

    Raises StartError where the system has no such path.
    """
    most = (107 if sys.platform == "linux" else 103) - len(SOCKET)  # what the systems allow
    if len(os.fsencode(folder)) <= most:
        return folder
    if sys.platform != "linux":
        raise StartError(f"{folder}: Ray needs a temporary folder whose path has {most} bytes at most; set TMPDIR")
    return f"/proc/{os.getpid()}/fd/{os.open(folder, os.O_RDONLY | os.O_DIRECTORY)}"


def prepare_process() -> None:
    """Keep a process of Ray from what another machine or a dashboard would need.

    Replicas, which unpickle what they are sent, would listen on every address. Each request would be counted in some
    ten metrics, which nobody can read.
    """
    from grpc.aio import _server
    from ray.util import metrics

    metrics.Metric._record = lambda self, value, tags=None: None
    add = _server.Server.add_insecure_port
    _server.Server.add_insecure_port = lambda self, address: add(self, address.replace("[::]", "127.0.0.1"))


def run_applications(configured: dict[str, Any], port: int) -> None:
    """Start Ray Serve at `port` of loopback, and return when the applications run. Raises StartError."""
    from pydantic import ValidationError
    from ray import serve
    from ray.serve.schema import ApplicationStatus, ServeDeploySchema

    try:
        schema = ServeDeploySchema.model_validate(configured)
    except ValidationError as error:
        raise StartError(f"config.yaml: {' '.join(str(error).split())}") from None
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": "127.0.0.1", "port": port},
        logging_config=schema.logging_config or {"enable_access_log": False},  # of the proxy: a line a request
    )
    serve.context._get_global_client().deploy_apps(schema)
    while True:
        states = serve.status().applications
        for state in states.values():
            if state.status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
                raise StartError(_reason(state))
        if states and all(state.status == ApplicationStatus.RUNNING for state in states.values()):
            return
        time.sleep(LOOK_SECONDS)


def _reason(state: Any) -> str:
    """Return the last line of what an application that failed says: of a traceback, the exception."""
    messages = [deployment.message for deployment in state.deployments.values()] + [state.message]
    lines = [line.strip() for line in next(filter(None, messages), "").splitlines() if line.strip()]
    return lines[-1] if lines else str(state.status)


class Replicas:
    """The processes that have a copy of the model."""

    def __init__(self) -> None:
        self._known: set[psutil.Process] = set()
        self._last_death = 0.0

    def last_death(self) -> float:
        """Return when one of them was last seen to be gone, by the monotonic clock, after a look at them."""
        living = {process for process in psutil.Process().children(recursive=True) if _is_replica(process)}
        if self._known - living:
            self._last_death = time.monotonic()
        self._known = living
        return self._last_death


def _is_replica(process: psutil.Process) -> bool:
    try:
        return "".join(process.cmdline()).startswith("ray::ServeReplica")
    except psutil.Error:
        return False


def end_with_ray(replicas: Replicas) -> None:
    """End this process once a process without which there is no Ray has ended, in a thread that looks at replicas."""
    import ray

    def watch() -> None:
        while not ray._private.worker._global_node.dead_processes():
            replicas.last_death()
            time.sleep(LOOK_SECONDS)
        print("a process of Ray has died", flush=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    """Serve until the process is ended, and return the exit status."""
    server_log.bound(Path(os.environ.get("FASTMAKER_CONTAINER", mounts.OPT_ML), "container.log"))
    port, backend = (int(os.environ[name]) for name in ("FASTMAKER_PORT", "FASTMAKER_RAY_PORT"))
    try:
        configured = configuration()
        start_ray()
        run_applications(configured, backend)
    except Exception as error:
        import ray

        ray.shutdown()  # first, so that what its processes have printed stands before
        name = "" if isinstance(error, StartError) else f"{type(error).__name__}: "
        print(f"{FAILED}{name}{' '.join(str(error).split())}", flush=True)
        return 1
    end_with_ray(replicas := Replicas())
    from aiohttp import web

    from fastmaker.jobs.runtime import ray_adapter

    timeout = float(os.environ.get("RAYSERVE_BACKEND_TIMEOUT", 300))
    app = ray_adapter.application(f"http://127.0.0.1:{backend}", timeout, replicas.last_death, os.environ[SOCKETS])
    host = os.environ.get("FASTMAKER_HOST", "127.0.0.1")
    web.run_app(app, host=host, port=port, access_log=None, print=None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
