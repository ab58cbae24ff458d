"""Other weights and numbers of instances for the variants of an endpoint, whose other servers stay as they are."""

import secrets
from collections.abc import Iterable
from typing import Any

from fastmaker.local import processes
from fastmaker.local.serving.instances import Server
from fastmaker.local.validation import MAX_INSTANCES

Record = dict[str, Any]
# What an update of an endpoint may keep of its variants, and where a configuration has it.
PROPERTIES = {"DesiredInstanceCount": "InitialInstanceCount", "DesiredWeight": "InitialVariantWeight"}


class CannotScale(ValueError):
    """Weights or numbers of instances that cannot be had; the message says why."""


def retained(
    RetainAllVariantProperties: bool = False, ExcludeRetainedVariantProperties: Iterable[dict[str, str]] = ()
) -> list[str]:
    """Return the PROPERTIES that variants keep through an update that has these members."""
    excluded = [one["VariantPropertyType"] for one in ExcludeRetainedVariantProperties]
    return [name for name in PROPERTIES if RetainAllVariantProperties and name not in excluded]


def retaining(record: Record, config: dict[str, Any], properties: list[str]) -> dict[str, Any]:
    """Return a configuration whose variants have some properties of those that the endpoint has by the same names.

    Raises CannotScale if that is too many instances.
    """
    before = {variant["VariantName"]: variant for variant in record["description"]["ProductionVariants"]}
    variants = [
        {**variant, **{PROPERTIES[name]: before[variant["VariantName"]][name] for name in properties}}
        if variant["VariantName"] in before
        else variant
        for variant in config["ProductionVariants"]
    ]
    _check_count(variant.get("InitialInstanceCount", 1) for variant in variants)
    return {**config, "ProductionVariants": variants}


def plan(record: Record, wanted: list[dict[str, Any]], generation: int) -> None:
    """Enter in an endpoint's record what its variants are to have: which servers stay, and which are to be started.

    `wanted` is UpdateEndpointWeightsAndCapacities' list. Raises CannotScale if it cannot be had.
    """
    variants = {variant["VariantName"]: variant for variant in record["description"]["ProductionVariants"]}
    asked = [one["VariantName"] for one in wanted]
    if unknown := sorted(set(asked) - variants.keys()):
        raise CannotScale(f"the endpoint has no variant {unknown[0]}; its variants are {', '.join(sorted(variants))}")
    if len(set(asked)) < len(asked):
        raise CannotScale("a variant is named twice")
    for one in wanted:
        if one.get("DesiredInstanceCount") == 0:
            raise CannotScale(f"variant {one['VariantName']}: DesiredInstanceCount 0 needs AWS; use 1 or more")
        changed = {name: one[name] for name in ("DesiredWeight", "DesiredInstanceCount") if name in one}
        variants[one["VariantName"]].update(changed)
    _check_count(variant["DesiredInstanceCount"] for variant in variants.values())
    folder = f"{generation}-{secrets.token_hex(4)}"
    kept: list[Server] = []
    added: list[Server] = []
    for name, variant in variants.items():
        servers = [server for server in record["servers"] if server["variant"] == name]
        count = variant["DesiredInstanceCount"]
        kept += sorted(servers, key=lambda server: not server["ready"])[:count]
        added += [_another(servers[0], f"{folder}/{name}-{number}") for number in range(len(servers) + 1, count + 1)]
    record.update(next_servers=added, next_kept=[server["folder"] for server in kept])


def _check_count(counts: Iterable[int]) -> None:
    if (count := sum(counts)) > MAX_INSTANCES:
        raise CannotScale(f"the variants would have {count} instances; expected at most {MAX_INSTANCES}")


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
