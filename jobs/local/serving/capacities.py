"""Other weights and numbers of instances for the variants of an endpoint, whose other servers stay as they are."""

import secrets
from typing import Any

from fastmaker.local import processes
from fastmaker.local.serving.instances import Server
from fastmaker.local.validation import MAX_INSTANCES

Record = dict[str, Any]


def plan(record: Record, wanted: list[dict[str, Any]], generation: int) -> None:
    """Enter in an endpoint's record what its variants are to have: which servers stay, and which are to be started.

    `wanted` is UpdateEndpointWeightsAndCapacities' list. Raises ValueError with the reason if it cannot be had.
    """
    variants = {variant["VariantName"]: variant for variant in record["description"]["ProductionVariants"]}
    asked = [one["VariantName"] for one in wanted]
    if unknown := sorted(set(asked) - variants.keys()):
        raise ValueError(f"the endpoint has no variant {unknown[0]}; its variants are {', '.join(sorted(variants))}")
    if len(set(asked)) < len(asked):
        raise ValueError("a variant is named twice")
    for one in wanted:
        if one.get("DesiredInstanceCount") == 0:
            raise ValueError(f"variant {one['VariantName']}: DesiredInstanceCount 0 needs AWS; use 1 or more")
        changed = {name: one[name] for name in ("DesiredWeight", "DesiredInstanceCount") if name in one}
        variants[one["VariantName"]].update(changed)
    if (count := sum(variant["DesiredInstanceCount"] for variant in variants.values())) > MAX_INSTANCES:
        raise ValueError(f"the variants would have {count} instances; expected at most {MAX_INSTANCES}")
    folder = f"{generation}-{secrets.token_hex(4)}"
    kept: list[Server] = []
    added: list[Server] = []
    for name, variant in variants.items():
        servers = [server for server in record["servers"] if server["variant"] == name]
        count = variant["DesiredInstanceCount"]
        kept += sorted(servers, key=lambda server: not server["ready"])[:count]
        added += [_another(servers[0], f"{folder}/{name}-{number}") for number in range(len(servers) + 1, count + 1)]
    record.update(next_servers=added, next_kept=[server["folder"] for server in kept])


def _another(server: Server, folder: str) -> Server:
    """Return a server, yet to be started, of the same variant."""
    same = {name: server.get(name) for name in ("variant", "weight", "model", "instance_type", "capture")}
    return {**same, "folder": folder, "boot": processes.boot(), "port": 0, "ready": False}


def settle(record: Record) -> None:
    """Enter that the variants have what they were to have."""
    weights = {}
    for variant in record["description"]["ProductionVariants"]:
        variant.update(CurrentWeight=variant["DesiredWeight"], CurrentInstanceCount=variant["DesiredInstanceCount"])
        weights[variant["VariantName"]] = variant["DesiredWeight"]
    for server in record["servers"]:
        server["weight"] = weights[server["variant"]]


def give_up(record: Record) -> None:
    """Enter that the variants keep what they have."""
    record.pop("next_kept", None)
    for variant in record["description"]["ProductionVariants"]:
        variant.update(DesiredWeight=variant["CurrentWeight"], DesiredInstanceCount=variant["CurrentInstanceCount"])
