"""Connections to a server of ours: a port's number alone says nothing of who answers there."""

from typing import Any

import urllib3
from urllib3.exceptions import NewConnectionError

from fastmaker.local.containers import Container


def pool_of(container: Container, port: int, **options: Any) -> urllib3.HTTPConnectionPool:
    """Return a pool of connections to the server that runs in `container`, at `port` of loopback.

    A connection is refused with NewConnectionError if another program listens there. Once it is made, it leads to the
    process that took it.
    """

    class Connection(urllib3.connection.HTTPConnection):
        def connect(self) -> None:
            self._check()
            super().connect()
            try:
                self._check()  # no other has come in between: a server listens from its start to its end
            except NewConnectionError:
                self.close()
                raise

        def _check(self) -> None:
            if not container.accepts(port):
                raise NewConnectionError(self, f"no server of this model listens at port {port}")

    pool = urllib3.HTTPConnectionPool("127.0.0.1", port, retries=False, **options)
    pool.ConnectionCls = Connection
    return pool
