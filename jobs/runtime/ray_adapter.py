"""SageMaker's /invocations and /ping before Ray Serve, as AWS's Ray image has them.

A request goes to the path / of Ray Serve with its body, Content-Type, Accept and X-Amzn-SageMaker-* headers, and the
answer comes back with its status, body, Content-Type and headers of that name
(https://aws.github.io/deep-learning-containers/ray/deployment/sagemaker/).
"""

import asyncio
import contextlib
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping

import aiohttp
from aiohttp import web

OURS = "x-amzn-sagemaker-"  # how the names of SageMaker's headers begin
DEFAULT = "application/json"  # what a request is, and accepts, that does not say
PING_SECONDS = 5
ATTEMPTS = 3  # for a request that processes die of
RESTART_SECONDS = 60  # in which Ray Serve listens again; AWS's limit of an answer
PAUSE_SECONDS = 0.25
NO_ROUTES = b"Path '/' not found. Ping http://.../-/routes"  # says a proxy that was started anew, until it knows them
CLIENT = web.AppKey("client", aiohttp.ClientSession)
BACKEND = web.AppKey("backend", str)
TIMEOUT = web.AppKey("timeout", float)
LAST_DEATH = web.AppKey("last_death", Callable[[], float])


def application(backend: str, timeout: float, last_death: Callable[[], float], folder: str) -> web.Application:
    """Return what answers for the Ray Serve at the URL `backend`, which has `timeout` seconds for an answer.

    `last_death` returns when one of its replicas died last, by the monotonic clock. In `folder` are the sockets of
    replicas that have one.
    """
    app = web.Application(client_max_size=2**40)  # how large a body may be is the platform's business
    app[BACKEND], app[LAST_DEATH], app[TIMEOUT] = backend, last_death, timeout
    app.router.add_post("/invocations", invocations)
    app.router.add_get("/ping", ping)

    async def client(app: web.Application) -> AsyncIterator[None]:
        app[SOCKETS] = Sockets(folder, timeout)
        async with _client(aiohttp.TCPConnector(limit=0), timeout) as session:
            app[CLIENT] = session
            yield
        await app[SOCKETS].close()

    app.cleanup_ctx.append(client)
    return app


def _client(connector: aiohttp.BaseConnector, timeout: float) -> aiohttp.ClientSession:
    limit = aiohttp.ClientTimeout(total=timeout)
    return aiohttp.ClientSession(timeout=limit, connector=connector, auto_decompress=False)


class Sockets:
    """The replicas that have a socket in a folder, and the requests that each has."""

    def __init__(self, folder: str, timeout: float):
        self._folder, self._timeout = folder, timeout
        self._clients: dict[str, aiohttp.ClientSession] = {}
        self._busy: Counter[str | None] = Counter()
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def replica(self) -> AsyncIterator[aiohttp.ClientSession | None]:
        """Yield a client of the replica that has the fewest requests, once one may have more; None without sockets."""
        async with self._changed:
            await self._changed.wait_for(lambda: not (names := self._names()) or any(map(self._has_room, names)))
            name = min(self._names(), key=self._busy.__getitem__, default=None)
            self._busy[name] += 1
        try:
            yield self._client_of(name) if name else None
        except aiohttp.ClientConnectorError:
            if name:  # the replica has died
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(self._folder, name))
            raise
        finally:
            self._busy[name] -= 1
            async with self._changed:
                self._changed.notify_all()

    def _names(self) -> list[str]:
        return [name for name in os.listdir(self._folder) if name.startswith("replica-")]

    def _has_room(self, name: str) -> bool:
        return self._busy[name] < int(name.split("-")[1])

    def _client_of(self, name: str) -> aiohttp.ClientSession:
        if name not in self._clients:
            path = os.path.join(self._folder, name)
            self._clients[name] = _client(aiohttp.UnixConnector(path, limit=0), self._timeout)
        return self._clients[name]

    async def close(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            await client.close()


SOCKETS = web.AppKey("sockets", Sockets)


async def invocations(request: web.Request) -> web.Response:
    """Return Ray Serve's answer to a request; 504 if there is none in time, 503 if nothing listens."""
    headers = _sagemakers(request.headers)
    headers |= {name: request.headers.get(name, DEFAULT) for name in ("Content-Type", "Accept")}
    body = await request.read()
    try:
        return await asyncio.wait_for(_ask(request.app, body, headers), request.app[TIMEOUT])
    except asyncio.TimeoutError:
        return web.json_response({"error": "Request timeout"}, status=504)
    except aiohttp.ClientConnectorError:
        return web.json_response({"error": "Service unavailable"}, status=503)
    except aiohttp.ClientError as error:
        return web.json_response({"error": str(error)}, status=500)


async def _ask(app: web.Application, body: bytes, headers: dict[str, str]) -> web.Response:
    """Return Ray Serve's answer. What a process has died of is sent again, while Ray starts that anew.

    AWS's adapter answers 500 or 503 at once. Raises aiohttp.ClientError and asyncio.TimeoutError.
    """
    attempts, begun = 0, time.monotonic()
    while True:
        asked = time.monotonic()
        try:
            async with app[SOCKETS].replica() as replica:
                client = replica or app[CLIENT]
                async with client.post(f"{app[BACKEND]}/", data=body, headers=headers) as answer:
                    content = await answer.read()
            starting = answer.status == 404 and content.startswith(NO_ROUTES) and asked - begun < RESTART_SECONDS
            attempts += not starting
            died_of = answer.status == 500 and attempts < ATTEMPTS and app[LAST_DEATH]() >= asked
            if not (starting or died_of):
                kind = answer.headers.get("Content-Type", headers["Accept"])
                if kind.startswith("text/") and "charset=" not in kind.lower():
                    kind += "; charset=utf-8"  # as the web framework of AWS's adapter does
                kept = _sagemakers(answer.headers) | {"Content-Type": kind}
                return web.Response(body=content, status=answer.status, headers=kept)
        except aiohttp.ClientConnectorError:
            if time.monotonic() - begun > RESTART_SECONDS:
                raise
        except aiohttp.ClientConnectionError:
            attempts += 1
            if attempts == ATTEMPTS:
                raise
        await asyncio.sleep(PAUSE_SECONDS)


async def ping(request: web.Request) -> web.Response:
    """Return 200 if Ray Serve says that it is well, 503 if not."""
    limit = aiohttp.ClientTimeout(total=PING_SECONDS)
    try:
        async with request.app[CLIENT].get(f"{request.app[BACKEND]}/-/healthz", timeout=limit) as answer:
            return web.Response(status=200 if answer.status == 200 else 503)
    except (aiohttp.ClientError, asyncio.TimeoutError):
        return web.Response(status=503)


def _sagemakers(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower().startswith(OURS)}
