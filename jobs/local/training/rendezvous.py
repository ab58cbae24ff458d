"""The port at which the SDK's drivers have the hosts of a job meet: jobs of several hosts take turns at it.

On AWS each host is a machine of its own. Hosts of two jobs that met at one port of this machine would take each other
for their own.
"""

import contextlib
import errno
import socket
import time
from collections.abc import Callable, Iterator

from fastmaker.local.containers import ContainerError

PORT = 7777  # SM_MASTER_PORT of the drivers
NAME = f"\0fastmaker-port-{PORT}"  # of a socket that a job has for its turn; it ends with the job's process
LOOK_SECONDS = 0.2
FREE_SECONDS = 15  # within which a job that has had its turn has left the port


@contextlib.contextmanager
def turn(check: Callable[[], None], note: Callable[[str], None]) -> Iterator[None]:
    """Have the port for this job while the context lasts, after other jobs, as is noted; `check` is called meanwhile.

    Raises ContainerError if another program has the port, and what `check` raises.
    """
    with socket.socket(socket.AF_UNIX) as place:
        waits = False
        while not _bound(place, NAME):
            if not waits:
                note(f"this job waits for another of several hosts, which meet at port {PORT}")
            waits = True
            check()
            time.sleep(LOOK_SECONDS)
        deadline = time.monotonic() + FREE_SECONDS
        while not _is_free():
            if time.monotonic() > deadline:
                raise ContainerError(f"port {PORT}, at which the hosts meet, is taken by another program")
            check()
            time.sleep(LOOK_SECONDS)
        yield


def _is_free() -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return _bound(probe, ("", PORT))


def _bound(unbound: socket.socket, address: str | tuple[str, int]) -> bool:
    try:
        unbound.bind(address)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True
