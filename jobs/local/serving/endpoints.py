"""Endpoints: each instance of each variant is a container that runs TorchServe through the serving toolkit.

No process watches over an endpoint: whoever describes or invokes it looks at its servers and moves its status on.
"""

import random
from pathlib import Path

from fastmaker.jobs import storage
from fastmaker.local.containers import Container, ContainerError, free_ports
from fastmaker.local.serving import torchserve
from fastmaker.local.store import Store, now

KIND = "endpoints"
DRAIN_SECONDS = 5  # for the answers under way when other servers take over; one that is deleted gets none


def create(store: Store, name: str, arn: str, config: dict, models: dict[str, dict], tags: list, s3) -> None:
    """Record the endpoint and start its servers, models in S3 fetched by the client `s3`.

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


def update(store: Store, name: str, config: dict, models: dict[str, dict], s3) -> None:
    """Start the servers of `config`; they take over once they are ready (see `describe`). Raises KeyError."""
    with store.changing(name) as record:
        record["description"].update(EndpointStatus="Updating", LastModifiedTime=now())
        record["next_config"] = config
    _launch(store, name, config, models, s3)


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


def _launch(store: Store, name: str, config: dict, models: dict[str, dict], s3) -> None:
    """Start a server for each instance of each variant, as the record's next_servers."""
    directory = store.directory(name)
    generation = 1 + max((int(path.name) for path in directory.glob("[0-9]*")), default=0)
    try:
        with store.changing(name) as record:
            record["launching"] = True  # nobody takes the first server to be ready for all of them
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
        _failed_to_start(store, name, str(error))
    except BaseException:
        interrupt(store, name)
        raise


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
            server["ready"] = torchserve.all_workers_ready(server["port"])
        if not server["ready"] and (reason := torchserve.why_not_starting(container)):
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
        description.update(EndpointStatus="InService", LastModifiedTime=now())
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


def _stop(store: Store, name: str, servers: list[dict], grace_seconds: float = 0) -> None:
    for server in servers:
        _container(store, name, server).close(grace_seconds)


def _container(store: Store, name: str, server: dict) -> Container:
    return Container(store.directory(name) / server["folder"])


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
