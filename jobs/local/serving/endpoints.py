"""Endpoints: each instance of each variant is a container that runs TorchServe through the serving toolkit.

No process watches an endpoint: whoever describes or invokes it looks at its servers and updates its status.
"""

import random
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from fastmaker.jobs import storage
from fastmaker.local.containers import Container, ContainerError, end_below, free_ports
from fastmaker.local.serving import torchserve
from fastmaker.local.store import Store, now

KIND = "endpoints"
SERVER = {"folder": str, "variant": str, "weight": (int, float), "port": int, "ready": bool}
SHAPE = {
    "description": {"EndpointName": str, "EndpointArn": str, "EndpointStatus": str, "CreationTime": datetime},
    "servers": [SERVER],
    "next_servers": [SERVER],
}
DRAIN_SECONDS = 5  # for requests under way when other servers take over; a deleted endpoint waits for none


def store_below(home: Path) -> Store:
    """Return the records of endpoints in FASTMAKER_HOME."""
    return Store(home, KIND, SHAPE, partial(end_below, depth=2))


def create(
    store: Store,
    name: str,
    arn: str,
    config: dict[str, Any],
    models: dict[str, dict[str, Any]],
    tags: list[dict[str, str]],
    s3: Any,
) -> None:
    """Record the endpoint and start its servers; the client `s3` fetches models from S3.

    Raises FileExistsError if the name is taken.
    """
    created = now()
    description = {
        "EndpointName": name,
        "EndpointArn": arn,
        "EndpointConfigName": config["EndpointConfigName"],
        "ProductionVariants": _summaries(config),
        "EndpointStatus": "Creating",
        "CreationTime": created,
        "LastModifiedTime": created,
    }
    store.create(name, {"description": description, "tags": tags, "servers": [], "next_servers": [], "launching": True})
    _launch(store, name, config, models, s3)


def update(store: Store, name: str, config: dict[str, Any], models: dict[str, dict[str, Any]], s3: Any) -> None:
    """Start the servers of `config`; they take over once they are ready (see `describe`). Raises KeyError."""
    with store.changing(name) as record:
        record["description"].update(EndpointStatus="Updating", LastModifiedTime=now())
        record["next_config"] = config
    _launch(store, name, config, models, s3)


def describe(store: Store, name: str) -> dict[str, Any]:
    """Return the endpoint as DescribeEndpoint does, after a look at its servers. Raises KeyError."""
    description: dict[str, Any] = _refresh(store, name)["description"]
    return description


def pick_server(store: Store, name: str, variant: str | None) -> dict[str, Any]:
    """Return a server to send a request to: one of `variant`, or of any by the variants' weights.

    Raises KeyError for an unknown endpoint, LookupError with the reason if it has no such server in service.
    """
    record = store.read(name)
    if record["description"]["EndpointStatus"] != "InService":
        record = _refresh(store, name)
    status = record["description"]["EndpointStatus"]
    if status not in ("InService", "Updating"):
        raise LookupError(f"Endpoint {name} is not in service: its status is {status}")
    servers: list[dict[str, Any]] = [s for s in record["servers"] if variant in (None, s["variant"])]
    if not servers:
        names = sorted({server["variant"] for server in record["servers"]})
        raise LookupError(f"Endpoint {name} has no variant {variant}; its variants are {', '.join(names)}")
    return random.choices(servers, [server["weight"] for server in servers])[0]


def interrupt(store: Store, name: str) -> None:
    """End servers that were starting when the user pressed Ctrl-C: the endpoint is Failed, or what it was before."""
    record = store.read(name)
    if record["description"]["EndpointStatus"] == "Updating":
        _roll_back(store, name, "the update was interrupted")
    elif record["description"]["EndpointStatus"] == "Creating":
        _fail(store, name, "the deployment was interrupted")


def _launch(store: Store, name: str, config: dict[str, Any], models: dict[str, dict[str, Any]], s3: Any) -> None:
    """Start a server for each instance of each variant, as the record's next_servers."""
    directory = store.directory(name)
    generation = 1 + max((int(path.name) for path in directory.glob("[0-9]*")), default=0)
    try:
        with store.changing(name) as record:
            record["launching"] = True  # until all servers are listed, a ready one is not taken for all of them
        for variant in config["ProductionVariants"]:
            for instance in range(variant.get("InitialInstanceCount", 1)):
                folder = f"{generation}/{variant['VariantName']}-{instance + 1}"
                (port,) = free_ports(1)
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
                torchserve.start(container, models[variant["ModelName"]], variant["InstanceType"], port, s3)
        with store.changing(name) as record:
            record["launching"] = False
    except (ContainerError, storage.StorageError) as error:
        _fail_start(store, name, str(error))
    except BaseException:
        interrupt(store, name)
        raise


def _refresh(store: Store, name: str) -> dict[str, Any]:
    """Return the record, after its status was brought up to date with the servers."""
    record = store.read(name)
    status = record["description"]["EndpointStatus"]
    if status in ("Creating", "Updating"):
        _check_new_servers(store, name, record)
        record = store.read(name)
    for server in record["servers"] if status in ("InService", "Updating") else ():
        # A server that was replaced since the record was read was stopped on purpose.
        if not _container(store, name, server).alive() and server in store.read(name)["servers"]:
            _fail(store, name, f"the server of {Path(server['folder']).name} has died")
            break
    return store.read(name)


def _check_new_servers(store: Store, name: str, record: dict[str, Any]) -> None:
    servers = record["next_servers"]
    for server in servers:
        container = _container(store, name, server)
        if not server["ready"]:
            server["ready"] = torchserve.all_workers_ready(server["port"])
        if not server["ready"] and (reason := torchserve.why_not_starting(container)):
            _fail_start(store, name, reason)
            return
    if not record["launching"] and all(server["ready"] for server in servers):
        _take_over(store, name, servers)


def _take_over(store: Store, name: str, servers: list[dict[str, Any]]) -> None:
    with store.changing(name) as record:
        if not servers or record["next_servers"] != [{**server, "ready": False} for server in servers]:
            return  # another process has done it
        old = record["servers"]
        record.update(servers=servers, next_servers=[])
        description = record["description"]
        description.update(EndpointStatus="InService", LastModifiedTime=now())
        description.pop("FailureReason", None)
        if config := record.pop("next_config", None):
            description["EndpointConfigName"] = config["EndpointConfigName"]
            description["ProductionVariants"] = _summaries(config)
    _stop(store, name, old, DRAIN_SECONDS)


def _fail_start(store: Store, name: str, reason: str) -> None:
    if store.read(name)["description"]["EndpointStatus"] == "Updating":
        _roll_back(store, name, reason)
    else:
        _fail(store, name, reason)


def _fail(store: Store, name: str, reason: str) -> None:
    with store.changing(name) as record:
        servers = record["servers"] + record["next_servers"]
        tails = [_container(store, name, server).log_tail(15) for server in servers[:1]]
        reason = "\n".join([reason, *tails])[:1024]
        record["description"].update(EndpointStatus="Failed", FailureReason=reason, LastModifiedTime=now())
    _stop(store, name, servers)


def _roll_back(store: Store, name: str, reason: str) -> None:
    """Keep the servers that are in service, as AWS does when an update fails."""
    with store.changing(name) as record:
        new = record["next_servers"]
        record.update(next_servers=[])
        record.pop("next_config", None)
        reason = f"The update failed and was rolled back: {reason}"[:1024]
        record["description"].update(EndpointStatus="InService", FailureReason=reason, LastModifiedTime=now())
    _stop(store, name, new)


def _stop(store: Store, name: str, servers: list[dict[str, Any]], grace_seconds: float = 0) -> None:
    for server in servers:
        _container(store, name, server).close(grace_seconds)


def _container(store: Store, name: str, server: dict[str, Any]) -> Container:
    return Container(store.directory(name) / server["folder"])


def _summaries(config: dict[str, Any]) -> list[dict[str, Any]]:
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
