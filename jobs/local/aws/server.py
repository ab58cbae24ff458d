"""The server's process: ``python -m fastmaker.local.aws.server PORT HOLD [--proxy]``, until its standard input ends.

It prints a line once it answers, or why it does not. FASTMAKER_HOME/aws holds its key and port, what its S3 holds, and
its log.
"""

import contextlib
import http.client
import logging
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from fastmaker.local import names, processes
from fastmaker.local.aws.settings import (
    BUNDLE,
    LOG,
    READY,
    RUNNING,
    credentials,
    folder_below,
    keep_proxy_port,
    read,
    region,
    settings,
    url_of,
)
from fastmaker.local.aws.signatures import Key
from fastmaker.local.store import default_home

LOCK = "lock"
PROXY = "--proxy"
START_SECONDS = 60.0
LOOK_SECONDS = 0.1


def _bound(port: int) -> socket.socket:
    """Return a socket at a port of loopback. Raises OSError."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(("127.0.0.1", port))
    except OSError as error:
        raise OSError(f"port {port} cannot be had ({error.strerror}); --port gives another") from None
    bound.listen(128)
    return bound


def _environment(url: str, kept: dict[str, Any]) -> None:
    """Set this process's environment, which jobs get: S3 is this server's, with its key."""
    for name in [name for name in os.environ if name.startswith(("AWS_ENDPOINT_URL", "AWS_SESSION", "AWS_PROFILE"))]:
        del os.environ[name]
    os.environ.update(AWS_ENDPOINT_URL=url, AWS_ENDPOINT_URL_S3=url)
    # Policies of AWS's own, such as AmazonSageMakerFullAccess, can be attached to roles.
    os.environ.update(MOTO_ACCOUNT_ID=names.ACCOUNT, MOTO_IAM_LOAD_MANAGED_POLICIES="true")
    os.environ.update(credentials(kept), AWS_REGION=region(), AWS_DEFAULT_REGION=region())


def _serve(folder: Path, port: int, hold: float, with_proxy: bool) -> None:
    kept = settings(folder, port)
    bound = _bound(kept["port"])
    url = url_of(kept["port"])
    _environment(url, kept)
    from fastmaker.local.aws import assembly, connections  # after the environment: moto reads it

    hosts = {f"{name}:{kept['port']}" for name in ("127.0.0.1", "localhost")}
    application = assembly.application(folder, hosts, Key(kept["access"], kept["secret"]), hold)
    server = connections.Server(bound, application, assembly.Handler)
    if with_proxy:  # before the server answers: who has an answer knows whether there is a proxy
        _start_proxy(folder, kept.get("proxy", 0), application)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    application.resume()
    print(READY, flush=True)
    sys.stdout = sys.stderr  # moto prints, and nobody reads on
    sys.stdin.read()


def _start_proxy(folder: Path, port: int, application: Any) -> None:
    """Have AWS's own hosts answered at a port, which is that of the last start unless another program has it."""
    from fastmaker.local.aws.authority import Authority
    from fastmaker.local.aws.proxy import Server

    authority = Authority(folder)
    try:
        bound = _bound(port)
    except OSError:
        bound = _bound(0)
    keep_proxy_port(folder, bound.getsockname()[1])
    authority.write_bundle()
    threading.Thread(target=Server(bound, application, authority).serve_forever, daemon=True).start()


def _wait_for_answer(folder: Path) -> None:
    """Wait until the server of this home answers, which may be starting. Return after START_SECONDS in any case."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", read(folder)["port"], timeout=START_SECONDS)
            with contextlib.closing(connection):
                connection.request("GET", "/")
                connection.getresponse()
                return
        time.sleep(LOOK_SECONDS)


def main(port: int, hold: float, with_proxy: bool) -> int:
    """Serve until standard input ends; return at once where another process serves this home."""
    folder = folder_below(default_home())
    logging.basicConfig(filename=folder / LOG, level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    with processes.alone(folder / LOCK) as lock:
        if lock is None:
            _wait_for_answer(folder)
            print(RUNNING, flush=True)
            return 0
        bundle = folder / BUNDLE
        bundle.unlink(missing_ok=True)  # of a server that was killed
        try:
            _serve(folder, port, hold, with_proxy)
        except (OSError, ImportError) as error:
            print(error, flush=True)
            return 1
        finally:
            bundle.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2]), PROXY in sys.argv[3:]))
