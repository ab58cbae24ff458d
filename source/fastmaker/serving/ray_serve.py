"""The bundle as an application of Ray Serve; config.yaml, beside the bundle's code/, names it by its import path.

    serve run fastmaker.serving.ray_serve:app model_dir=model

It answers as entry_point.py does, at the path / of Ray Serve. AWS's Ray image has an adapter before it that answers
/invocations and /ping (https://aws.github.io/deep-learning-containers/ray/deployment/sagemaker/).
"""

import asyncio
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from fastmaker.serving import batches, errors, models, replica_socket, wire
from fastmaker.serving.settings import BATCH_DELAY, BATCH_SIZE

# Requests that a replica may have at once: while one is computed, the bytes of others arrive.
ONGOING = 5
Sent = tuple[bytes, str | None, str | None, str | None]  # a body, its Content-Type, Accept and custom attributes
Answered = tuple[int, bytes, str]  # a status, a body and its Content-Type


class Bundle:
    """One copy of the model, which computes one request, or one batch of them, after the other."""

    def __init__(self, model_dir: str, threads: int):
        torch.set_num_threads(threads)
        self.model = models.load(model_dir, "cuda:0" if torch.cuda.is_available() else "cpu")
        self._computing = ThreadPoolExecutor(1)  # while it computes, the bytes of other requests arrive
        self._batch_size, delay = batching()
        self._in_batches = serve.batch(self.respond, max_batch_size=self._batch_size, batch_wait_timeout_s=delay)
        if folder := os.environ.get(replica_socket.FOLDER):
            listening = replica_socket.listen(folder, ongoing(self._batch_size), self._answer_adapter)
            self._listening = asyncio.get_running_loop().create_task(listening)

    async def __call__(self, request: Request) -> Response:
        """Return the response to a request that came through Ray's proxy."""
        status, body, kind = await self._answer(await request.body(), request.headers)
        return Response(body, status, {"content-type": kind})

    async def _answer_adapter(self, request: Any) -> Any:
        from aiohttp import web

        status, body, kind = await self._answer(await request.read(), request.headers)
        return web.Response(status=status, body=body, headers={"content-type": kind})

    async def _answer(self, body: bytes, headers: Mapping[str, str]) -> Answered:
        kind, accept, attributes = map(headers.get, ("content-type", "accept", wire.CUSTOM_ATTRIBUTES))
        sent = (body, kind, accept, attributes)
        if self._batch_size > 1:
            return await self._in_batches(sent)
        [answered] = await self.respond([sent])
        return answered

    async def respond(self, requests: list[Sent]) -> list[Answered]:
        """Return the answer to each request."""
        return await asyncio.get_running_loop().run_in_executor(self._computing, self._respond, requests)

    def _respond(self, requests: list[Sent]) -> list[Answered]:
        decoders = [partial(wire.decode, body, kind, attributes) for body, kind, _, attributes in requests]
        images = batches.decode(decoders, [len(body) for body, *_ in requests])
        answers = batches.predict(self.model, images)
        pairs = zip(answers, requests, strict=True)
        return [_answered(batches.encode(answer, accept)) for answer, (_, _, accept, _) in pairs]


def app(args: dict[str, Any]) -> serve.Application:
    """Return the application: a replica for each GPU, else for each core, or as many as the environment says.

    `args` may have model_dir, a bundle; the default is the one that this file is in the code/ of.
    """
    model_dir = args.get("model_dir") or Path(__file__).resolve().parents[3]
    resources = ray.cluster_resources()
    cores, gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
    replicas = gpus or models.workers(cores)
    size, _ = batching()
    deployment = serve.deployment(
        Bundle,
        num_replicas=replicas,
        ray_actor_options={"num_cpus": min(1, cores / replicas), "num_gpus": 1 if gpus else 0},
        max_ongoing_requests=ongoing(size),
        logging_config={"enable_access_log": False},  # a line for each request, through three processes
    )
    return deployment.bind(str(model_dir), models.threads_per_worker(replicas, model_dir))


def batching() -> tuple[int, float]:
    """Return how many requests are computed together, by default one, and the seconds that the first waits for others.

    Raises ValueError.
    """
    return int(os.environ.get(BATCH_SIZE) or 1), float(os.environ.get(BATCH_DELAY) or 100) / 1000


def ongoing(batch_size: int) -> int:
    """Return how many requests a replica may have at once."""
    return max(ONGOING, 2 * batch_size)


def _answered(encoded: tuple[bytes, str] | errors.RequestError) -> Answered:
    if isinstance(encoded, errors.RequestError):
        return encoded.status_code, encoded.message.encode(), "text/plain; charset=utf-8"
    body, media_type = encoded
    return 200, body, media_type
