"""The proxy for clients that name AWS's hosts in code: it is those hosts to them, and asks no other machine.

A client sends CONNECT with a host, speaks TLS with a certificate of `Authority`, and its requests are answered by the
same application as those at AWS_ENDPOINT_URL. No connection is ever made to another host.
"""

import contextlib
import socket
import ssl
import threading
from http import HTTPStatus
from typing import Any

from werkzeug.serving import ThreadedWSGIServer

from fastmaker.local.aws.application import SIGNED, TUNNEL, Application
from fastmaker.local.aws.assembly import Handler
from fastmaker.local.aws.authority import Authority
from fastmaker.local.aws.domains import is_aws

MAX_CONNECTIONS = 256
PORT = "443"  # of a host that is asked for


class Server(ThreadedWSGIServer):
    """Serves at a bound socket. Each connection has a thread, and at most MAX_CONNECTIONS are open."""

    daemon_threads = True

    def __init__(self, bound: socket.socket, application: Application, authority: Authority) -> None:
        host, port = bound.getsockname()
        super().__init__(host, port, application, TunnelHandler, fd=bound.fileno())
        self.authority = authority
        self._open: list[TunnelHandler] = []
        self._lock = threading.Lock()

    def enter(self, handler: "TunnelHandler") -> bool:
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

    def leave(self, handler: "TunnelHandler") -> None:
        """Note that a connection has ended."""
        with self._lock, contextlib.suppress(ValueError):
            self._open.remove(handler)


class TunnelHandler(Handler):
    """Answers CONNECT for hosts of AWS, and then requests to that host."""

    server: Server
    environ: dict[str, Any]  # of the last request
    tunnel = ""  # the host that was asked for
    signed = False  # whether a request was signed with this machine's key
    answering = False

    @property
    def busy(self) -> bool:
        """Return whether a signed request is being answered. Who only sends slowly is not busy."""
        return self.answering and SIGNED in self.environ

    def handle(self) -> None:
        """Answer requests until the connection ends, which it does without a word for who speaks no TLS."""
        if not self.server.enter(self):
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, f"{MAX_CONNECTIONS} connections are open")
            return
        try:
            with contextlib.suppress(ssl.SSLError):
                super().handle()
        finally:
            self.server.leave(self)

    def end(self) -> None:
        """Have another thread's reads and writes end."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.connection, socket.SHUT_RDWR)

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().finish()
        self.connection.close()

    def make_environ(self) -> dict[str, Any]:
        self.environ = {**super().make_environ(), TUNNEL: self.tunnel, "wsgi.url_scheme": "https"}
        return self.environ

    def run_wsgi(self) -> None:
        """Answer one request."""
        if self.tunnel:
            self.environ, self.answering = {}, True
            super().run_wsgi()
            self.answering, self.signed = False, self.signed or SIGNED in self.environ
        else:
            self._connect()

    def _connect(self) -> None:
        host, _, port = self.path.lower().rpartition(":")
        if self.command != "CONNECT":
            self._refuse(HTTPStatus.FORBIDDEN, "this proxy of fastmaker aws takes CONNECT alone")
        elif port != PORT or not is_aws(host):
            reason = f"{host or self.path} is no host of AWS; NO_PROXY names hosts that are asked without this proxy"
            self._refuse(HTTPStatus.FORBIDDEN, reason if port == PORT else f"a port of AWS is {PORT}, and not {port}")
        else:
            self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            self.wfile.flush()
            self.connection = self.server.authority.context(host).wrap_socket(self.connection, server_side=True)
            self.rfile = self.connection.makefile("rb")
            self.wfile = self.connection.makefile("wb")
            self.tunnel, self.close_connection = host, False

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        """Say in the status line why not: it is what clients show of a proxy's answer."""
        self.close_connection = True
        text = reason.encode("ascii", "replace")
        printable = bytes(byte if 32 <= byte < 127 else ord("?") for byte in text)[:300]
        head = b"HTTP/1.1 %d %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % (status, printable)
        with contextlib.suppress(OSError):
            self.wfile.write(head)
            self.wfile.flush()
