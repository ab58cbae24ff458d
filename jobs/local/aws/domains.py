"""Hosts that are AWS's, by the domains in botocore's data, which the proxy answers for."""

import functools
import re
from collections.abc import Iterable

from botocore.loaders import Loader

LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?")
MAX_HOST = 253  # characters of a name of DNS
# Hosts of S3's objects: of all buckets, or of the bucket whose name comes first.
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/VirtualHosting.html
S3 = re.compile(r"((?P<bucket>.+)\.)?s3(-fips|-accelerate|-external-1)?([.-][a-z]{2}(-[a-z]+)+-\d|\.dualstack)*")


@functools.lru_cache
def domains() -> tuple[str, ...]:
    """Return the domains of AWS's endpoints in all its partitions, China's and GovCloud's too."""
    partitions = Loader().load_data("partitions")["partitions"]
    kinds = ("dnsSuffix", "dualStackDnsSuffix")
    return tuple(sorted({partition["outputs"][kind] for partition in partitions for kind in kinds}))


def is_aws(host: str) -> bool:
    """Return whether a host, in lower case, has a name below one of AWS's domains."""
    return (
        len(host) <= MAX_HOST
        and host.endswith(tuple(f".{domain}" for domain in domains()))
        and all(LABEL.fullmatch(label) for label in host.split("."))
    )


def path_on(host: str, path: str) -> str | None:
    """Return the path that names its bucket, of a path on a host of S3; None if the host is none of S3's objects."""
    domain = next(domain for domain in domains() if host.endswith(f".{domain}"))
    found = S3.fullmatch(host.removesuffix(f".{domain}"))
    if found is None:
        return None
    return f"/{found['bucket']}{path}" if found["bucket"] else path


def without_aws(no_proxy: str) -> list[str]:
    """Return the hosts of NO_PROXY, without those that would have AWS itself asked in place of the proxy."""
    return [host for host in re.split(r"[\s,]+", no_proxy) if host and not _holds_aws(host)]


def _holds_aws(host: str) -> bool:
    name = host.lower().lstrip("*.").partition(":")[0]
    return not name or _related(name, domains())


def _related(name: str, others: Iterable[str]) -> bool:
    """Return whether a name is above or below one of the others, or is it."""
    return any(f".{name}".endswith(f".{other}") or f".{other}".endswith(f".{name}") for other in others)
