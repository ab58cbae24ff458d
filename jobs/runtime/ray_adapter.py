"""SageMaker's /invocations and /ping before Ray Serve, as AWS's Ray image has them.

A request goes to the path / of Ray Serve with its body, Content-Type, Accept and X-Amzn-SageMaker-* headers, and the
answer comes back with its status, body, Content-Type and headers of that name
(https://aws.github.io/deep-learning-containers/ray/deployment/sagemaker/).
"""

import asyncio
from collections.abc import AsyncIterator, Mapping

import aiohttp
from aiohttp import web

OURS = "x-amzn-sagemaker-"  # how the names of SageMaker's headers begin
DEFAULT = "application/json"  # what a request is, and accepts, that does not say
PING_SECONDS = 5
CLIENT = web.AppKey("client", aiohttp.ClientSession)
BACKEND = web.AppKey("backend", str)


def application(backend: str, timeout: float) -> web.Application:
    """Return what answers for the Ray Serve at the URL `backend`, which has `timeout` seconds for an answer."""
    app = web.Application(client_max_size=2**40)  # how large a body may be is the platform's business
    app[BACKEND] = backend
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
        async with request.app[CLIENT].post(f"{request.app[BACKEND]}/", data=body, headers=headers) as answer:
            kept = _sagemakers(answer.headers) | {"Content-Type": answer.headers.get("Content-Type", headers["Accept"])}
            return web.Response(body=await answer.read(), status=answer.status, headers=kept)
    except asyncio.TimeoutError:
        return web.json_response({"error": "Request timeout"}, status=504)
    except aiohttp.ClientConnectorError:
        return web.json_response({"error": "Service unavailable"}, status=503)
    except aiohttp.ClientError as error:
        return web.json_response({"error": str(error)}, status=500)


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
