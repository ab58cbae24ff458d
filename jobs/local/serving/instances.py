"""Instances of an endpoint: the servers that its record lists, each a container that runs TorchServe or Ray Serve.

    {"folder": ..., "variant": ..., "weight": ..., "port": ..., "ready": ..., "model": ..., "instance_type": ...,
     "capture": ...}

A server that has died is started again by whoever notices, in two steps: its new port and its starter are written
first, so that a starter that is killed leaves a server that the next one starts anew.
"""

import contextlib
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from fastmaker.local import processes
from fastmaker.local.containers import Container, free_ports
from fastmaker.local.serving import servers
from fastmaker.local.store import DamagedRecord, Store

Server = dict[str, Any]
RESTARTS = 4  # of one server within RESTART_SECONDS, after which it is given up
RESTART_SECONDS = 600
START_SECONDS = 60  # from the announcement of a start until another process may make one
DRAIN_SECONDS = 60  # for the answers under way of a server that was replaced, as long as a model has for an answer
REQUESTS_FILE = ".requests"  # in a server's folder: who has a request under way shares its lock


def planned(config: dict[str, Any], models: dict[str, dict[str, Any]], generation: int) -> list[Server]:
    """Return a server, yet to be started, for each instance of each variant of a configuration."""
    folder = f"{generation}-{secrets.token_hex(4)}"  # another deployment of the same name writes elsewhere
    return [
        {
            "folder": f"{folder}/{variant['VariantName']}-{number}",
            "variant": variant["VariantName"],
            "weight": variant.get("InitialVariantWeight", 1.0),
            "model": models[variant["ModelName"]],
            "instance_type": variant["InstanceType"],
            "capture": config.get("DataCaptureConfig"),
            "boot": processes.boot(),
            "port": 0,
            "ready": False,
        }
        for variant in config["ProductionVariants"]
        for number in range(1, variant.get("InitialInstanceCount", 1) + 1)
    ]


def container_of(store: Store, name: str, server: Server) -> Container:
    """Return the container of a server. Raises DamagedRecord for a folder that is not the endpoint's own."""
    folder = PurePosixPath(server["folder"])
    if folder.is_absolute() or ".." in folder.parts or not folder.parts:
        raise DamagedRecord(f"endpoint {name}: the folder {server['folder']!r} is not its own")
    return Container(store.directory(name) / folder)


def same(server: Server, other: Server) -> bool:
    """Return whether two entries are one start of one server."""
    return (server["folder"], server["port"]) == (other["folder"], other["port"])


def entry(servers: list[Server], server: Server) -> Server | None:
    """Return the entry of `server` among `servers`, None if it was replaced or started anew."""
    return next((found for found in servers if same(found, server)), None)


def start(container: Container, server: Server) -> None:
    """Start a server at the port of its entry. Raises ContainerError."""
    (container.root / REQUESTS_FILE).touch()
    servers.start(container, server["model"], server["instance_type"], server["port"])


def is_ready(container: Container, server: Server) -> bool:
    """Return whether a server has loaded its model, and it is this server that answers at its port."""
    return servers.is_ready(container, server.get("model", {}), server["port"])


def is_dead(container: Container, server: Server) -> bool:
    """Return whether a server has ended, and nobody is starting it."""
    if starter := server.get("starter"):
        return not processes.lives(starter) or time.time() - starter["at"] > START_SECONDS
    return not container.alive()


def why_not_starting(container: Container, server: Server) -> str | None:
    """Return why a server that is not ready will not be, None if it may."""
    if server.get("starter"):
        return "the process that started the server has died" if is_dead(container, server) else None
    return servers.why_not_starting(container, server.get("model", {}))


def clashed(container: Container, server: Server) -> bool:
    """Return whether a server ended because another program had one of its ports."""
    return servers.clashed(container, server.get("model", {}))


def may_restart(server: Server) -> bool:
    """Return whether a server that has died is to be started again: not after a reboot, which ended it for good.

    One of an earlier version cannot be.
    """
    of_this_boot = "model" in server and server.get("boot") == processes.boot()
    return of_this_boot and not server.get("given_up") and len(_recent(server)) < RESTARTS


def choose_port(server: Server) -> None:
    """Enter a port that nothing listens on."""
    (server["port"],) = free_ports(1)


def announce(server: Server) -> None:
    """Enter in a server's entry that this process is about to start it anew, at another port."""
    server["restarts"] = [*_recent(server), time.time()]
    choose_port(server)
    server.update(ready=False, starter={**processes.identity(), "at": time.time()})


def restart(container: Container, server: Server) -> None:
    """End what is left of a server and start it anew, as was announced. Raises ContainerError and OSError."""
    container.stop(0)
    container.set_log_aside()
    container.renew_temporary()  # TorchServe left its pid there, and refuses to start beside that
    start(container, server)
    server["starter"] = None


@contextlib.contextmanager
def request(container: Container) -> Iterator[bool]:
    """Hold a server while a request is under way; yield False if it is about to be ended."""
    try:
        lock = os.open(container.root / REQUESTS_FILE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:  # ended, or of an earlier version: the record knows
        yield container.root.is_dir()
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        fcntl.flock(lock, fcntl.LOCK_UN)  # a process that was forked meanwhile has the descriptor too
        os.close(lock)


def drained(container: Container, seconds: float) -> bool:
    """Wait until no request is under way at a server, which takes none from then on; return whether that came."""
    try:
        lock = os.open(container.root / REQUESTS_FILE, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return True
    deadline = time.monotonic() + seconds
    try:
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                (container.root / REQUESTS_FILE).unlink(missing_ok=True)
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)
    finally:
        os.close(lock)


def end(container: Container, grace_seconds: float = 0) -> None:
    """End a server and remove its model; its log stays."""
    container.close(grace_seconds)
    shutil.rmtree(container.root / "model", ignore_errors=True)


def _recent(server: Server) -> list[float]:
    return [moment for moment in server.get("restarts", ()) if time.time() - moment < RESTART_SECONDS]
