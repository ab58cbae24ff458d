"""The page's server: Gradio's, on loopback unless a password is set, which asks nothing of any other host."""

import os
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastmaker.jobs.clients.sources import Source
from fastmaker.jobs.page.batch import MOST_BYTES
from fastmaker.jobs.page.corrections import Corrections

LOOPBACK = "127.0.0.1"
SESSIONS = 50  # whose last image is kept
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
        page = launch(source, examples, corrections, address=address, port=port, auth=auth)
        print(f"page:   {page.local_url}")
        if auth:
            print(f"shared: at {address}, for the user {auth[0]} with the password; it travels unencrypted")
        print("to end: Ctrl-C", flush=True)
        try:
            threading.Event().wait()
        finally:
            page.close(verbose=False)


def launch(
    source: Source,
    examples: Sequence[Path] = (),
    corrections: Corrections | None = None,
    *,
    address: str | None = None,
    port: int | None = None,
    auth: tuple[str, str] | None = None,
) -> Any:
    """Start the page in threads of this process, and return it; its `close` ends it. Raises OSError."""
    check_packages()
    import gradio
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from fastmaker.jobs.page import app, markup

    page = app.build(source, examples, corrections)
    page.launch(
        server_name=address or LOOPBACK,
        server_port=port,
        auth=auth,
        theme=gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=markup.STYLE,
        # Another page in the browser may not pass its host off as this one.
        app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=_hosts(address))]},
        max_file_size=MOST_BYTES * 4,  # of a zip
        state_session_capacity=SESSIONS,
        footer_links=[],
        share=False,
        ssr_mode=False,
        mcp_server=False,
        quiet=True,
        prevent_thread_lock=True,
    )
    return page


def _hosts(address: str | None) -> list[str]:
    """Return the hosts that requests may be for."""
    if address in ("0.0.0.0", "::"):
        return ["*"]
    return [LOOPBACK, "localhost", *([address] if address else [])]
