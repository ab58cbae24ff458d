"""Endpoints: each instance of each variant is a container that runs TorchServe through the serving toolkit.

No process watches an endpoint: whoever describes or invokes it looks at its servers and updates its status.
"""

import contextlib
import secrets
import shutil
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from fastmaker.jobs import instance_types, storage
from fastmaker.local import processes
from fastmaker.local.containers import ContainerError, end_below
from fastmaker.local.serving import capacities, changes, instances, torchserve
from fastmaker.local.serving.changes import Record
from fastmaker.local.serving.instances import Server, container_of
from fastmaker.local.store import RECORD_FILE, DamagedRecord, Store, now

KIND = "endpoints"
NO_WEIGHT = 1e-9  # of a variant that gets requests if there is no other
Launch = Callable[[Callable[[], None]], None]  # runs what starts the servers, at once or in a thread of its own
SERVER = {"folder": str, "variant": str, "weight": (int, float), "port": int, "ready": bool}
SHAPE = {
    "description": {"EndpointName": str, "EndpointArn": str, "EndpointStatus": str, "CreationTime": datetime},
    "servers": [SERVER],
    "next_servers": [SERVER],
}


def launch_at_once(start: Callable[[], None]) -> None:
    """Start an endpoint's servers before its creation returns, as is seen if that fails."""
    start()


def store_below(home: Path) -> Store:
    """Return the records of endpoints in FASTMAKER_HOME."""
    return Store(home, KIND, SHAPE, partial(end_below, depth=2), ignore_case=True)


def create(
    store: Store,
    name: str,
    arn: str,
    config: dict[str, Any],
    models: dict[str, dict[str, Any]],
    tags: list[dict[str, str]],
    s3: Any,
    launch: Launch,
) -> None:
    """Record the endpoint and have `launch` start its servers; the client `s3` fetches models from S3.

    Raises FileExistsError if the name is taken.
    """
    created = now()
    description = {
        "EndpointName": name,
        "EndpointArn": arn,
        "EndpointConfigName": config["EndpointConfigName"],
        "ProductionVariants": changes.summaries(config),
        **changes.modes(config),
        "EndpointStatus": "Creating",
        "CreationTime": created,
        "LastModifiedTime": created,
    }
    servers = instances.planned(config, models, 1)
    record = {"description": description, "tags": tags, "servers": [], "next_servers": servers}
    store.create(name, {**record, "launcher": processes.identity()})
    launch(partial(_launch, store, name, servers, s3))


def update(
    store: Store,
    name: str,
    config: dict[str, Any],
    models: dict[str, dict[str, Any]],
    retained: list[str],
    s3: Any,
    launch: Launch,
) -> bool:
    """Have `launch` start the servers of `config`; they take over once they are ready (see `describe`).

    Variants keep the `retained` properties. Returns False, and does nothing, if the endpoint is not in service, or is
    being updated by another process. Raises KeyError, and CannotScale.
    """
    generation = _next_generation(store, name)
    with store.changing(name) as record:
        if record["description"]["EndpointStatus"] != "InService":
            return False
        config = capacities.retaining(record, config, retained)
        servers = instances.planned(config, models, generation)
        record["description"].update(EndpointStatus="Updating", LastModifiedTime=now())
        record.update(next_config=config, next_servers=servers, launcher=processes.identity())
    launch(partial(_launch, store, name, servers, s3))
    return True


def rescale(store: Store, name: str, wanted: list[dict[str, Any]], s3: Any, launch: Launch) -> bool:
    """Have `launch` start what other weights and numbers of instances take; the servers that stay go on.

    Returns False as `update` does. Raises KeyError, and CannotScale for what cannot be had.
    """
    generation = _next_generation(store, name)
    with store.changing(name) as record:
        if record["description"]["EndpointStatus"] != "InService":
            return False
        capacities.plan(record, wanted, generation)
        record["description"].update(EndpointStatus="Updating", LastModifiedTime=now())
        servers = record["next_servers"]
        record["launcher"] = processes.identity() if servers else None
    if servers:
        launch(partial(_launch, store, name, servers, s3))
    else:
        changes.refresh(store, name)
    return True


def resume(store: Store, s3: Any, launch: Launch) -> None:
    """Have `launch` start the servers for ``ml.*`` instances whose starter was killed before it had started all."""
    for name in store.names():
        with contextlib.suppress(KeyError, DamagedRecord, OSError):
            with store.changing(name) as record:
                servers, launcher = record["next_servers"], record.get("launcher")
                ours = bool(servers) and all(instance_types.is_aws(server["instance_type"]) for server in servers)
                if not (ours and launcher) or processes.lives(launcher):
                    continue
                record["launcher"] = processes.identity()
                for server in servers:
                    server["boot"] = processes.boot()
            for server in servers:
                instances.end(container_of(store, name, server))
            launch(partial(_launch, store, name, servers, s3))


def describe(store: Store, name: str) -> dict[str, Any]:
    """Return the endpoint as DescribeEndpoint does, after a look at its servers. Raises KeyError."""
    description: dict[str, Any] = changes.refresh(store, name)["description"]
    return description


def pick_server(
    store: Store, name: str, variant: str | None, avoid: list[Server], at_once: bool = True
) -> Server | None:
    """Return a server to send a request to: one of `variant`, or of any by the variants' weights, and none of `avoid`.

    Returns None if there is none at the moment. Raises KeyError for an unknown endpoint, LookupError with the reason if
    it has no such server in service, or if the request is to be answered `at_once` and the endpoint is asynchronous.
    """
    record = store.read(name)
    if at_once and "AsyncInferenceConfig" in record["description"]:
        raise LookupError(f"Endpoint {name} is asynchronous; use InvokeEndpointAsync")
    if record["description"]["EndpointStatus"] != "InService" or not all(s["ready"] for s in record["servers"]):
        record = changes.refresh(store, name)
    status = record["description"]["EndpointStatus"]
    if status not in ("InService", "Updating"):
        raise LookupError(f"Endpoint {name} is not in service: its status is {status}")
    servers: list[Server] = [s for s in record["servers"] if variant in (None, s["variant"])]
    if not servers:
        names = sorted({server["variant"] for server in record["servers"]})
        raise LookupError(f"Endpoint {name} has no variant {variant}; its variants are {', '.join(names)}")
    free = [s for s in servers if s["ready"] and instances.entry(avoid, s) is None]
    # A variant's share is its weight, however many instances it has.
    counts = Counter(server["variant"] for server in free)
    weights = [(server["weight"] or NO_WEIGHT) / counts[server["variant"]] for server in free]
    return secrets.SystemRandom().choices(free, weights)[0] if free else None


def holds(store: Store, name: str, server: Server) -> bool:
    """Return whether a server that was picked still takes requests."""
    with contextlib.suppress(KeyError):
        return instances.entry(store.read(name)["servers"], server) is not None
    return False


def is_up(store: Store, name: str, server: Server) -> bool:
    """Return whether a server is up, after one that is not was started again if it may be."""
    with contextlib.suppress(KeyError):
        record = changes.refresh(store, name)
        found = instances.entry(record["servers"], server)
        return (
            found is not None
            and bool(found["ready"])
            and not instances.is_dead(container_of(store, name, found), found)
        )
    return False


def interrupt(store: Store, name: str) -> None:
    """End servers that were starting when the user pressed Ctrl-C: the endpoint is Failed, or what it was before."""
    with contextlib.suppress(KeyError):
        changes.change(store, name, lambda record: True, partial(changes.give_up_starting, reason="it was interrupted"))


def _launch(store: Store, name: str, servers: list[Server], s3: Any) -> None:
    """Start servers that the record has as next_servers, with this process as its launcher."""
    try:
        for server in servers:
            container = container_of(store, name, server)
            _make_folder(container.root.parent)
            torchserve.prepare(container, server["model"], s3)
            instances.choose_port(server)
            with store.changing(name) as record:
                _planned_entry(record, server)["port"] = server["port"]
            with store.changing(name) as record:  # whoever deletes the endpoint waits for this, or comes first
                _planned_entry(record, server)
                instances.start(container, server)
        with store.changing(name) as record:
            _planned_entry(record, servers[0])
            record["launcher"] = None
    except (ContainerError, storage.StorageError) as error:
        _after_failed_launch(store, name, servers, str(error))
    except (changes.Superseded, KeyError):
        _end_superseded(store, name, servers)
    except BaseException as error:
        if isinstance(error, FileNotFoundError) and not _launches(store, name, servers):
            _end_superseded(store, name, servers)
            return
        interrupted = isinstance(error, KeyboardInterrupt)
        reason = "it was interrupted" if interrupted else f"{type(error).__name__}: {error}"
        _after_failed_launch(store, name, servers, reason)
        raise


def _make_folder(folder: Path) -> None:
    """Make a folder in the endpoint's directory. Raises FileNotFoundError if that was deleted."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir()


def _planned_entry(record: Record, server: Server) -> Server:
    """Return the entry of a server that this process is to start. Raises changes.Superseded if it is not any more."""
    found: Server | None = next((s for s in record["next_servers"] if s["folder"] == server["folder"]), None)
    if found is None or record.get("launcher") != processes.identity():
        raise changes.Superseded
    return found


def _after_failed_launch(store: Store, name: str, servers: list[Server], reason: str) -> None:
    """Enter that servers could not be started; what they take on the disk is freed first."""
    for server in servers:
        with contextlib.suppress(KeyError):
            instances.end(container_of(store, name, server))
    if _launches(store, name, servers):
        with contextlib.suppress(KeyError):
            changes.change(
                store, name, partial(_plans, servers=servers), partial(changes.give_up_starting, reason=reason)
            )


def _launches(store: Store, name: str, servers: list[Server]) -> bool:
    """Return whether the record still has this process start the servers."""
    with contextlib.suppress(KeyError):
        record = store.read(name)
        return _plans(record, servers) and record.get("launcher") == processes.identity()
    return False


def _end_superseded(store: Store, name: str, servers: list[Server]) -> None:
    """End what this process has started for an endpoint that another has deleted, failed or rolled back."""
    for server in servers:
        container = container_of(store, name, server)
        instances.end(container)
        if not _is_planned(store, name, servers):
            shutil.rmtree(container.root.parent, ignore_errors=True)
    with contextlib.suppress(OSError):  # this process may have made the directory anew
        if not (store.directory(name) / RECORD_FILE).exists():
            store.directory(name).rmdir()


def _is_planned(store: Store, name: str, servers: list[Server]) -> bool:
    with contextlib.suppress(KeyError):
        return _plans(store.read(name), servers)
    return False


def _plans(record: Record, servers: list[Server]) -> bool:
    folders = {server["folder"] for server in record["next_servers"]}
    return all(server["folder"] in folders for server in servers)


def _next_generation(store: Store, name: str) -> int:
    """Return a number that no folder of an endpoint's servers has yet."""
    return 1 + max((_generation(path) for path in store.directory(name).glob("[0-9]*")), default=0)


def _generation(folder: Path) -> int:
    number = folder.name.partition("-")[0]
    return int(number) if number.isdecimal() else 0
