"""The proxy for clients that name AWS's hosts in code: it is those hosts to them, and asks no other machine.

A client sends CONNECT with a host, speaks TLS with a certificate of `Authority`, and its requests are answered by the
same application as those at AWS_ENDPOINT_URL. No connection is ever made to another host.
"""

import contextlib
import socket
import ssl
from http import HTTPStatus
from typing import Any

from fastmaker.local.aws import connections
from fastmaker.local.aws.application import TUNNEL, Application
from fastmaker.local.aws.assembly import Handler
from fastmaker.local.aws.authority import Authority
from fastmaker.local.aws.domains import is_aws

PORT = "443"  # of a host that is asked for


class Server(connections.Server):
    """Serves at a bound socket with the certificates of an authority."""

    def __init__(self, bound: socket.socket, application: Application, authority: Authority) -> None:
        super().__init__(bound, application, TunnelHandler)
        self.authority = authority


class TunnelHandler(Handler):
    """Answers CONNECT for hosts of AWS, and then requests to that host."""

    server: Server
    tunnel = ""  # the host that was asked for

    def handle(self) -> None:
        """Answer requests until the connection ends, which it does without a word for who speaks no TLS."""
        with contextlib.suppress(ssl.SSLError):
            super().handle()

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().finish()
        self.connection.close()

    def make_environ(self) -> dict[str, Any]:
        environ = super().make_environ()
        environ.update({TUNNEL: self.tunnel, "wsgi.url_scheme": "https"})
        return environ

    def run_wsgi(self) -> None:
        """Answer one request."""
        if self.tunnel:
            super().run_wsgi()
        else:
            self._connect()

    def _connect(self) -> None:
        host, _, port = self.path.lower().rpartition(":")
        if self.command != "CONNECT":
            self.refuse(HTTPStatus.FORBIDDEN, "this proxy of fastmaker aws takes CONNECT alone")
        elif port != PORT:
            self.refuse(HTTPStatus.FORBIDDEN, f"a port of AWS is {PORT}, and not {port}")
        elif not is_aws(host):
            reason = f"{host} is no host of AWS; NO_PROXY names hosts that are asked without this proxy"
            self.refuse(HTTPStatus.FORBIDDEN, reason)
        else:
            self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            self.wfile.flush()
            self.connection = self.server.authority.context(host).wrap_socket(self.connection, server_side=True)
            self.rfile = self.connection.makefile("rb")
            self.wfile = self.connection.makefile("wb")
            self.tunnel, self.close_connection = host, False
