"""The page's server: Gradio's, on loopback unless a password is set, which asks nothing of any other host."""

import contextlib
import errno
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fastmaker.jobs.clients.sources import Source
from fastmaker.jobs.page.batch import MOST_BYTES
from fastmaker.jobs.page.corrections import Corrections

LOOPBACK = "127.0.0.1"
PORTS = range(7860, 7960)  # of which the first free one is taken
# Gradio and what it brings would otherwise call home.
QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}


def check_packages() -> None:
    """Import Gradio, which stays silent from then on. Raises ModuleNotFoundError, which says what to install."""
    os.environ.update(QUIET)
    import gradio  # noqa: F401


def serve(
    source: Source,
    examples: Sequence[Path],
    corrections: Corrections | None,
    *,
    address: str | None = None,
    port: int | None = None,
    auth: tuple[str, str] | None = None,
) -> None:
    """Serve the page until Ctrl-C; `address` is one of this machine, for which `auth` is a name and a password."""
    with tempfile.TemporaryDirectory(prefix="fastmaker-page-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads  # Gradio's own would be one folder for all users of the machine
        with running(source, examples, corrections, address=address, port=port, auth=auth) as url:
            print(f"page:   {url}")
            if auth:
                print(f"shared: at {address}, for the user {auth[0]} with the password, which travels unencrypted")
            print("to end: Ctrl-C", flush=True)
            threading.Event().wait()


@contextlib.contextmanager
def running(
    source: Source,
    examples: Sequence[Path] = (),
    corrections: Corrections | None = None,
    *,
    address: str | None = None,
    port: int | None = None,
    auth: tuple[str, str] | None = None,
) -> Iterator[str]:
    """Yield the URL of the page, which a thread of this process serves. Raises OSError if the port is not free."""
    import uvicorn

    place = address or LOOPBACK
    with _listening(place, port) as listener:
        app = _application(source, examples, corrections, auth=auth, hosts=_hosts(address))
        # At its end it would print a traceback for each tab that is still open; Gradio prints the faults of handlers.
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.05)
            if not server.started:
                raise OSError("the page's server did not start; what it said stands above")
            yield f"http://{f'[{place}]' if ':' in place else place}:{listener.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()


def _application(
    source: Source,
    examples: Sequence[Path],
    corrections: Corrections | None,
    *,
    auth: tuple[str, str] | None,
    hosts: list[str],
) -> Any:
    """Return the page as an application for requests to one of `hosts`."""
    check_packages()
    import fastapi
    import gradio
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from fastmaker.jobs.page import app, markup

    # Another page in the browser may not pass its host off as this one.
    trusted = Middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    return gradio.mount_gradio_app(
        fastapi.FastAPI(middleware=[trusted], openapi_url=None),
        app.build(source, examples, corrections),
        "/",
        auth=auth,
        theme=gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=markup.STYLE,
        max_file_size=MOST_BYTES * 4,  # of a zip
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
    )


def _listening(address: str, port: int | None) -> socket.socket:
    """Return a socket at the port, by default the first free one of PORTS. Raises OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for candidate in [port] if port is not None else PORTS:
        try:
            return socket.create_server((address, candidate), family=family)
        except OSError as error:
            if port is None and error.errno == errno.EADDRINUSE:
                continue
            raise OSError(f"the page cannot be at {address}, port {candidate}: {error.strerror}") from None
    raise OSError(f"the ports {PORTS[0]} to {PORTS[-1]} are all in use: --port names another")


def _hosts(address: str | None) -> list[str]:
    """Return the hosts that requests may be for."""
    if address in ("0.0.0.0", "::"):
        return ["*"]
    return [LOOPBACK, "localhost", *([address] if address else [])]
