"""A server with a thread for each connection, of which so many may be open that no client keeps others out."""

import contextlib
import socket
import threading
from http import HTTPStatus
from typing import Any

from moto.moto_server.werkzeug_app import MotoRequestHandler
from werkzeug.serving import ThreadedWSGIServer

from fastmaker.local.aws.application import SIGNED, Application

MAX_CONNECTIONS = 256
IDLE_SECONDS = 120.0  # after which a connection without a request is closed


class Server(ThreadedWSGIServer):
    """Serves at a bound socket."""

    def __init__(self, bound: socket.socket, application: Application, handler: "type[Handler]") -> None:
        host, port = bound.getsockname()
        super().__init__(host, port, application, handler, fd=bound.fileno())
        self.daemon_threads = True
        self._open: list[Handler] = []
        self._lock = threading.Lock()

    def enter(self, handler: "Handler") -> bool:
        """Return whether a connection may stay. One too many ends the oldest that waits for a request.

        One that has sent a signed request stays longer than one that has not, and its client connects again.
        """
        with self._lock:
            if len(self._open) >= MAX_CONNECTIONS:
                waiting = [other for other in self._open if not other.busy]
                if not waiting:
                    return False
                oldest = min(waiting, key=lambda other: other.signed)
                self._open.remove(oldest)
                oldest.end()
            self._open.append(handler)
            return True

    def leave(self, handler: "Handler") -> None:
        """Note that a connection has ended."""
        with self._lock, contextlib.suppress(ValueError):
            self._open.remove(handler)


class Handler(MotoRequestHandler):  # type: ignore[misc]  # moto is typed in part
    """Answers the requests of one connection."""

    timeout = IDLE_SECONDS
    server: Server
    environ: dict[str, Any]  # of the last request
    answering = False
    signed = False  # whether a request was signed with this machine's key

    @property
    def busy(self) -> bool:
        """Return whether a signed request is being answered. Who only sends slowly is not busy."""
        return self.answering and SIGNED in self.environ

    def handle(self) -> None:
        """Answer requests until the connection ends."""
        if not self.server.enter(self):
            self.refuse(HTTPStatus.SERVICE_UNAVAILABLE, f"{MAX_CONNECTIONS} requests are being answered")
            return
        try:
            super().handle()
        finally:
            self.server.leave(self)

    def make_environ(self) -> dict[str, Any]:
        self.environ = super().make_environ()
        return self.environ

    def end(self) -> None:
        """Have reads and writes of the connection's own thread end."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.connection, socket.SHUT_RDWR)

    def refuse(self, status: HTTPStatus, reason: str) -> None:
        """End the connection, and say why in the status line, which clients show of a proxy's answer."""
        self.close_connection = True
        text = "".join(letter if letter.isascii() and letter.isprintable() else "?" for letter in reason[:300])
        head = f"HTTP/1.1 {status.value} {text}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        with contextlib.suppress(OSError):
            self.wfile.write(head.encode())
            self.wfile.flush()
