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

from fastmaker import files
from fastmaker.local import names
from fastmaker.local.aws import settings
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
    home: str | os.PathLike[str] | None = None, port: int = 0, hold: float = HOLD_SECONDS
) -> Iterator[dict[str, str]]:
    """Have AWS on this machine while the context lasts; yield the variables by which clients find it.

    Its state is in `home`, by default FASTMAKER_HOME. The key and the port are those of its last start, unless a `port`
    is given. Where a server of this home runs already, it is used, and goes on. A description of a job or an endpoint
    that is not done waits up to `hold` seconds. Raises Unavailable, and ModuleNotFoundError without moto.
    """
    importlib.import_module("moto")
    place = Path(home).absolute() if home else default_home()
    folder = settings.folder_below(place)
    environ = {**os.environ, "FASTMAKER_HOME": str(place)}
    command = [sys.executable, "-m", SERVER, str(port), str(hold)]
    with open(folder / settings.LOG, "ab") as log:
        process = subprocess.Popen(
            command,
            cwd="/",
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # Ctrl-C is for the command that runs meanwhile
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        said = process.stdout.readline().strip()
        if said not in (settings.READY, settings.RUNNING):
            raise Unavailable(f"AWS on this machine did not start: {said or folder / settings.LOG}")
        yield environment(place)
    finally:
        process.stdin.close()
        process.stdout.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
        process.kill()
        process.wait()


def environment(home: Path) -> dict[str, str]:
    """Return the variables by which clients find the server of a home that has been started."""
    folder = settings.folder_below(home)
    kept = settings.settings(folder, 0)
    region = settings.region()
    session = {"DefaultS3Bucket": names.default_bucket(region)}
    config = {
        "SchemaVersion": "1.0",
        "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True, "Session": session}}},
    }
    files.write_text(folder / CONFIG, json.dumps(config))  # which is YAML too
    direct = ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1"]))
    return {
        "AWS_ENDPOINT_URL": settings.url_of(kept["port"]),
        **settings.credentials(kept),
        "AWS_DEFAULT_REGION": region,
        "AWS_REGION": region,
        # Both SDKs name the endpoint of STS in code, which they ask for the account of the default bucket.
        "SAGEMAKER_USER_CONFIG_OVERRIDE": str(folder / CONFIG),
        "NO_PROXY": direct,
    }


def without_others(environ: dict[str, str]) -> dict[str, str]:
    """Return an environment without the variables that would lead its clients elsewhere."""
    return {name: value for name, value in environ.items() if not name.startswith(OTHERS)}
