"""How the record of an endpoint follows its servers: looks at them, and changes of the record.

A change is made under the record's lock, after a second look. What ends with it is ended before it is written: whoever
finds a change half made makes it again.
"""

import contextlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fastmaker.local import processes
from fastmaker.local.containers import ContainerError
from fastmaker.local.serving import capacities, instances
from fastmaker.local.serving.instances import Server, container_of
from fastmaker.local.store import Store, now

Record = dict[str, Any]


class Superseded(Exception):
    """Another process has deleted the endpoint, or ended what this one was starting."""


def refresh(store: Store, name: str) -> Record:
    """Return the record, after its status was brought up to date with the servers. Raises KeyError.

    On a full disk it stays as it was.
    """
    record = store.read(name)
    with contextlib.suppress(OSError):
        if record["description"]["EndpointStatus"] in ("Creating", "Updating"):
            _check_new_servers(store, name, record)
            record = store.read(name)
        if record["description"]["EndpointStatus"] in ("InService", "Updating"):
            for server in record["servers"]:
                _check_server(store, name, server)
        _end_retired(store, name, 0)
    return store.read(name)


def _check_new_servers(store: Store, name: str, record: Record) -> None:
    """Have new servers take over once all are ready; end them if one of them will not be."""
    servers, launcher = record["next_servers"], record.get("launcher")
    still = partial(_unchanged, before=record)
    if launcher or record.get("launching"):  # the second is of an earlier version
        if not processes.lives(launcher):
            give_up = partial(give_up_starting, reason="the process that deployed it has died")
            change(store, name, still, give_up)
        return
    pending = False
    for server in servers:
        container = container_of(store, name, server)
        if server["ready"] or instances.is_ready(container, server):
            continue
        pending = True
        reason = instances.why_not_starting(container, server)
        if reason and (instances.clashed(container, server) or server.get("starter")) and instances.may_restart(server):
            _restart(store, name, server)
        elif reason:
            change(store, name, still, partial(give_up_starting, reason=reason))
            return
    if not pending and change(store, name, still, _take_over):
        _end_retired(store, name, instances.DRAIN_SECONDS)


def _check_server(store: Store, name: str, server: Server) -> None:
    """Note that a server that was started anew is ready, or start anew one that has died."""
    container = container_of(store, name, server)
    if not server["ready"] and not server.get("given_up") and instances.is_ready(container, server):
        change(store, name, partial(_lists, server=server), partial(_set, server=server, ready=True))
    elif instances.is_dead(container, server) or (
        not server["ready"] and instances.why_not_starting(container, server)
    ):
        if instances.may_restart(server):
            _restart(store, name, server)
        elif not server.get("given_up"):
            change(store, name, partial(_lists, server=server), partial(_give_up_server, server=server))


def _restart(store: Store, name: str, server: Server) -> None:
    """Start a server anew, unless another process does."""

    def announce(store: Store, name: str, record: Record) -> None:
        instances.announce(found := _entry(record, server))
        announced.append(dict(found))

    def start(store: Store, name: str, record: Record) -> None:
        try:
            instances.restart(container_of(store, name, server), _entry(record, announced[0]))
        except (ContainerError, OSError) as error:
            _entry(record, announced[0])["starter"] = None
            container_of(store, name, server).note(f"the server could not be started again: {error}")

    announced: list[Server] = []
    if change(store, name, partial(_lists, server=server), announce):
        change(store, name, lambda record: _lists(record, announced[0]), start)


def change(
    store: Store, name: str, still: Callable[[Record], bool], change: Callable[[Store, str, Record], None]
) -> bool:
    """Make a change under the record's lock, if `still` holds; return whether it was made. Raises KeyError."""
    with store.changing(name) as record:
        if made := still(record):
            change(store, name, record)
        return made


def _unchanged(record: Record, before: Record) -> bool:
    """Return whether the new servers are the same, and started by the same process, as in an earlier look."""
    pairs = zip(record["next_servers"], before["next_servers"], strict=False)
    same_servers = len(record["next_servers"]) == len(before["next_servers"]) and all(
        instances.same(one, other) for one, other in pairs
    )
    return (
        same_servers
        and record.get("launcher") == before.get("launcher")
        and record["description"]["EndpointStatus"] == before["description"]["EndpointStatus"]
    )


def _entry(record: Record, server: Server) -> Server:
    found = instances.entry(record["servers"] + record["next_servers"], server)
    if found is None:
        raise Superseded
    return found


def _lists(record: Record, server: Server) -> bool:
    """Return whether the record lists a server as it was at an earlier look."""
    found = instances.entry(record["servers"] + record["next_servers"], server)
    return found is not None and found.get("starter") == server.get("starter") and found["ready"] == server["ready"]


def _set(store: Store, name: str, record: Record, server: Server, **values: Any) -> None:
    _entry(record, server).update(values)


def _take_over(store: Store, name: str, record: Record) -> None:
    until = time.time() + instances.DRAIN_SECONDS
    folders = record.pop("next_kept", [])
    kept = [server for server in record["servers"] if server["folder"] in folders]
    replaced = [{**server, "until": until} for server in record["servers"] if server not in kept]
    record["retired"] = record.get("retired", []) + replaced
    record.update(servers=kept + [{**server, "ready": True} for server in record["next_servers"]], next_servers=[])
    description = record["description"]
    description.update(EndpointStatus="InService", LastModifiedTime=now())
    description.pop("FailureReason", None)
    if config := record.pop("next_config", None):
        description["EndpointConfigName"] = config["EndpointConfigName"]
        description["ProductionVariants"] = summaries(config)
        for name in ("AsyncInferenceConfig", "DataCaptureConfig"):
            description.pop(name, None)
        description.update(modes(config))
    capacities.settle(record)


def _end_retired(store: Store, name: str, seconds: float) -> None:
    """End servers that were replaced, once no request is under way at them, or their time is over."""
    record = store.read(name)
    for server in record.get("retired", ()):
        container = container_of(store, name, server)
        if instances.drained(container, seconds) or time.time() > server["until"]:
            instances.end(container)
            with store.changing(name) as record:
                record["retired"] = [s for s in record.get("retired", ()) if s["folder"] != server["folder"]]


def give_up_starting(store: Store, name: str, record: Record, reason: str) -> None:
    """End the new servers: the endpoint is Failed, or keeps the servers that are in service, as on AWS."""
    description, new = record["description"], record["next_servers"]
    updating = description["EndpointStatus"] == "Updating"
    if description["EndpointStatus"] not in ("Creating", "Updating"):
        return
    if updating:
        reason = f"The update failed and was rolled back: {reason}"
    else:
        reason = "\n".join([reason, *(container_of(store, name, server).log_tail(15) for server in new[:1])])
    for server in new:
        instances.end(container_of(store, name, server))
    record.pop("next_config", None)
    capacities.give_up(record)
    record.update(launcher=None, launching=False, next_servers=[] if updating else new)
    status = "InService" if updating else "Failed"
    description.update(EndpointStatus=status, FailureReason=reason[:1024], LastModifiedTime=now())


def _give_up_server(store: Store, name: str, record: Record, server: Server) -> None:
    """Start a server no more; the endpoint is Failed once it has no other."""
    found = _entry(record, server)
    found.update(given_up=True, ready=False)
    if found in record["servers"] and all(other.get("given_up") for other in record["servers"]):
        container = container_of(store, name, server)
        reason = "\n".join([f"the server of {Path(server['folder']).name} has died", container.log_tail(15)])
        for other in record["servers"] + record["next_servers"]:
            container_of(store, name, other).close()
        record.update(launcher=None, launching=False)
        record["description"].update(EndpointStatus="Failed", FailureReason=reason[:1024], LastModifiedTime=now())


def modes(config: dict[str, Any]) -> dict[str, Any]:
    """Return the members of a configuration that an endpoint's description has, too."""
    found = {name: config[name] for name in ("AsyncInferenceConfig",) if name in config}
    if "DataCaptureConfig" in config:
        found["DataCaptureConfig"] = _capture_summary(config["DataCaptureConfig"])
    return found


def summaries(config: dict[str, Any]) -> list[dict[str, Any]]:
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


def _capture_summary(config: dict[str, Any]) -> dict[str, Any]:
    """Return a DataCaptureConfig as DescribeEndpoint has it."""
    enabled = config.get("EnableCapture", True)
    return {
        "EnableCapture": enabled,
        "CaptureStatus": "Started" if enabled else "Stopped",
        "CurrentSamplingPercentage": config["InitialSamplingPercentage"],
        "DestinationS3Uri": config["DestinationS3Uri"],
        "KmsKeyId": config.get("KmsKeyId", ""),
    }
