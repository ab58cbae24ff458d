"""SageMaker's /invocations and /ping before Ray Serve, as AWS's Ray image has them.

A request goes to the path / of Ray Serve with its body, Content-Type, Accept and X-Amzn-SageMaker-* headers, and the
answer comes back with its status, body, Content-Type and headers of that name
(https://aws.github.io/deep-learning-containers/ray/deployment/sagemaker/).
"""

import asyncio
import time
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
LAST_DEATH = web.AppKey("last_death", Callable[[], float])


def application(backend: str, timeout: float, last_death: Callable[[], float]) -> web.Application:
    """Return what answers for the Ray Serve at the URL `backend`, which has `timeout` seconds for an answer.

    `last_death` returns when one of its replicas died last, by the monotonic clock.
    """
    app = web.Application(client_max_size=2**40)  # how large a body may be is the platform's business
    app[BACKEND], app[LAST_DEATH] = backend, last_death
    app.router.add_post("/invocations", invocations)
    app.router.add_get("/ping", ping)

    async def client(app: web.Application) -> AsyncIterator[None]:
        limit = aiohttp.ClientTimeout(total=timeout)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=limit, connector=connector, auto_decompress=False) as session:
            app[CLIENT] = session
            yield

    app.cleanup_ctx.append(client)
    return app


async def invocations(request: web.Request) -> web.Response:
    """Return Ray Serve's answer to a request; 504 if there is none in time, 503 if nothing listens."""
    headers = _sagemakers(request.headers)
    headers |= {name: request.headers.get(name, DEFAULT) for name in ("Content-Type", "Accept")}
    body = await request.read()
    try:
        return await _ask(request.app, body, headers)
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
            async with app[CLIENT].post(f"{app[BACKEND]}/", data=body, headers=headers) as answer:
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
