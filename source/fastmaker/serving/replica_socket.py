"""A socket at which a replica of Ray Serve answers the adapter of this package, without Ray's proxy between them.

The launcher that starts Ray and the adapter names the folder of the sockets in FOLDER. AWS's image names none.
"""

import os
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

FOLDER = "FASTMAKER_REPLICA_SOCKETS"
NAME = "replica-{ongoing}-{token}"  # requests that it may have at once, and what no other has


async def listen(folder: str, ongoing: int, answer: Callable[[Any], Awaitable[Any]]) -> Any:
    """Answer requests at a new socket in `folder`, of which the adapter sends at most `ongoing` at once.

    `answer` is given an aiohttp.web.Request and returns an aiohttp.web.Response. Return what listens, as long as it is
    referred to.
    """
    from aiohttp import web

    app = web.Application(client_max_size=2**40)
    app.router.add_post("/", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    name = NAME.format(ongoing=ongoing, token=uuid.uuid4().hex[:8])
    starting = os.path.join(folder, f".{name}")
    await web.UnixSite(runner, starting).start()
    os.rename(starting, os.path.join(folder, name))  # now connections are accepted
    return runner
