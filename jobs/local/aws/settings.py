"""What the server keeps from one start to the next, in FASTMAKER_HOME/aws: its key and its port."""

import contextlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

from fastmaker import files
from fastmaker.local.containers import free_ports

FOLDER = "aws"  # below FASTMAKER_HOME
SETTINGS = "settings.json"
LOG = "server.log"
BUNDLE = "ca-bundle.pem"  # what clients of the proxy trust; there while it runs
# How clients are told which certificates to trust: boto3's, requests, curl, and those that use OpenSSL's own.
BUNDLE_VARIABLES = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
READY, RUNNING = "ready", "running"  # what the server prints: it answers, or another process of this home does


def folder_below(home: Path) -> Path:
    """Return where the server keeps what is its own, which other users cannot read; it is made."""
    folder = home / FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


def settings(folder: Path, port: int) -> dict[str, Any]:
    """Return the server's key and port, which stay from one start to the next; a `port` that is given is kept."""
    file = folder / SETTINGS
    with contextlib.suppress(FileNotFoundError):
        kept = read(folder)
        if port in (0, kept["port"]):
            return kept
        return _keep(file, {**kept, "port": port})
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
    access = "AKIA" + "".join(secrets.choice(letters) for _ in range(16))
    return _keep(file, {"port": port or free_ports(1)[0], "access": access, "secret": secrets.token_urlsafe(30)})


def read(folder: Path) -> dict[str, Any]:
    """Return what is kept. Raises OSError and ValueError."""
    kept: dict[str, Any] = json.loads(files.read_regular(folder / SETTINGS, 2**16))
    return kept


def keep_proxy_port(folder: Path, port: int) -> None:
    """Keep the port of the proxy, which the next start takes if it can be had."""
    _keep(folder / SETTINGS, {**read(folder), "proxy": port})


def _keep(file: Path, values: dict[str, Any]) -> dict[str, Any]:
    with files.atomic(file) as partial:
        partial.touch(0o600)
        partial.write_text(json.dumps(values))
    return values


def url_of(port: int) -> str:
    """Return what AWS_ENDPOINT_URL is."""
    return f"http://127.0.0.1:{port}"


def region() -> str:
    """Return the caller's region, else one."""
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-west-2"


def credentials(kept: dict[str, Any]) -> dict[str, str]:
    """Return the variables by which clients sign requests."""
    return {"AWS_ACCESS_KEY_ID": kept["access"], "AWS_SECRET_ACCESS_KEY": kept["secret"]}
