"""AWS on this machine: a server at a loopback port that is SageMaker and S3 to whatever client speaks to AWS.

    with aws.running() as environment:
        subprocess.run([sys.executable, "train_on_sagemaker.py"], env={**os.environ, **environ})

Its SageMaker is the engine, its S3 keeps what it holds in FASTMAKER_HOME, and the other services are moto's:
https://docs.getmoto.org/en/latest/docs/server_mode.html
"""

import contextlib
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastmaker import files
from fastmaker.local import names
from fastmaker.local.aws import domains, settings
from fastmaker.local.store import default_home

HOLD_SECONDS = 20.0
END_SECONDS = 10
SERVER = "fastmaker.local.aws.server"
CONFIG = "sagemaker-config.yaml"
# Variables that would lead a client elsewhere: endpoints of single services, and credentials of AWS's.
OTHERS = ("AWS_ENDPOINT_URL_", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_IGNORE_CONFIGURED")


class Unavailable(OSError):
    """The server could not be started; the message says why."""


@contextlib.contextmanager
def running(
    home: str | os.PathLike[str] | None = None, port: int = 0, hold: float = HOLD_SECONDS, proxy: bool = False
) -> Iterator[dict[str, str]]:
    """Have AWS on this machine while the context lasts; yield the variables by which clients find it.

    Its state is in `home`, by default FASTMAKER_HOME. The key and the port are those of its last start, unless a `port`
    is given. Where a server of this home runs already, it is used, and goes on. A description of a job or an endpoint
    that is not done waits up to `hold` seconds. With `proxy`, clients that name AWS's hosts in code find it too. Raises
    Unavailable, and ModuleNotFoundError without moto.
    """
    importlib.import_module("moto")
    place = Path(home).absolute() if home else default_home()
    folder = settings.folder_below(place)
    process = _started(place, [str(port), str(hold), *(["--proxy"] if proxy else [])])
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        said = process.stdout.readline().strip()
        if said not in (settings.READY, settings.RUNNING):
            raise Unavailable(f"AWS on this machine did not start: {said or folder / settings.LOG}")
        if proxy and not (folder / settings.BUNDLE).exists():
            raise Unavailable("AWS on this machine runs already, without a proxy: end it, and start it with --proxy")
        yield environment(place, proxy)
    finally:
        process.stdin.close()
        process.stdout.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
        process.kill()
        process.wait()


def _started(home: Path, words: list[str]) -> "subprocess.Popen[str]":
    with open(settings.folder_below(home) / settings.LOG, "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", SERVER, *words],
            cwd="/",
            env={**os.environ, "FASTMAKER_HOME": str(home)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # Ctrl-C is for the command that runs meanwhile
        )


def environment(home: Path, proxy: bool = False) -> dict[str, str]:
    """Return the variables by which clients find the server, or its proxy too, of a home that has been started."""
    folder = settings.folder_below(home)
    kept = settings.settings(folder, 0)
    region = settings.region()
    session = {"DefaultS3Bucket": names.default_bucket(region)}
    config = {
        "SchemaVersion": "1.0",
        "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True, "Session": session}}},
    }
    files.write_text(folder / CONFIG, json.dumps(config))  # which is YAML too
    return {
        "AWS_ENDPOINT_URL": settings.url_of(kept["port"]),
        **settings.credentials(kept),
        "AWS_DEFAULT_REGION": region,
        "AWS_REGION": region,
        # Both SDKs name the endpoint of STS in code, which they ask for the account of the default bucket.
        "SAGEMAKER_USER_CONFIG_OVERRIDE": str(folder / CONFIG),
        **_proxies(folder, kept, proxy),
    }


def _proxies(folder: Path, kept: dict[str, Any], proxy: bool) -> dict[str, str]:
    """Return the variables that say which hosts a client asks by a proxy. Of two names, the one in lower case wins."""
    names = [name for name in ("NO_PROXY", "no_proxy") if name == "NO_PROXY" or name in os.environ]
    direct = {name: os.environ.get(name, "") for name in names}
    if not proxy:
        return {name: ",".join(filter(None, [hosts, "127.0.0.1"])) for name, hosts in direct.items()}
    direct = {name: ",".join([*domains.without_aws(hosts), "127.0.0.1", "localhost"]) for name, hosts in direct.items()}
    bundle = dict.fromkeys(settings.BUNDLE_VARIABLES, str(folder / settings.BUNDLE))
    return {**direct, **dict.fromkeys(("HTTPS_PROXY", "https_proxy"), settings.url_of(kept["proxy"])), **bundle}


def without_others(environ: dict[str, str]) -> dict[str, str]:
    """Return an environment without the variables that would lead its clients elsewhere."""
    return {name: value for name, value in environ.items() if not name.startswith(OTHERS)}
