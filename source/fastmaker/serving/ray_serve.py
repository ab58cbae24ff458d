"""The bundle as an application of Ray Serve; config.yaml, beside the bundle's code/, names it by its import path.

    serve run fastmaker.serving.ray_serve:app model_dir=model

It answers as entry_point.py does, at the path / of Ray Serve. AWS's Ray image has an adapter before it that answers
/invocations and /ping (https://aws.github.io/deep-learning-containers/ray/deployment/sagemaker/).
"""

import os
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from fastmaker.serving import batches, errors, models, wire
from fastmaker.serving.settings import BATCH_DELAY, BATCH_SIZE

# Requests that a replica may have at once: while one is computed, the bytes of others arrive.
ONGOING = 5
Sent = tuple[bytes, str | None, str | None, str | None]  # a body, its Content-Type, Accept and custom attributes


class Bundle:
    """One copy of the model, which computes one request, or one batch of them, after the other."""

    def __init__(self, model_dir: str, threads: int):
        torch.set_num_threads(threads)
        self.model = models.load(model_dir, "cuda:0" if torch.cuda.is_available() else "cpu")
        self._batch_size, delay = batching()
        self._in_batches = serve.batch(self.respond, max_batch_size=self._batch_size, batch_wait_timeout_s=delay)

    async def __call__(self, request: Request) -> Response:
        """Return the response to a request of HTTP."""
        headers = request.headers
        kind, accept, attributes = map(headers.get, ("content-type", "accept", wire.CUSTOM_ATTRIBUTES))
        sent = (await request.body(), kind, accept, attributes)
        if self._batch_size > 1:
            return await self._in_batches(sent)
        [response] = await self.respond([sent])
        return response

    async def respond(self, requests: list[Sent]) -> list[Response]:
        """Return a response for each request."""
        decoders = [partial(wire.decode, body, kind, attributes) for body, kind, _, attributes in requests]
        images = batches.decode(decoders, [len(body) for body, *_ in requests])
        answers = batches.predict(self.model, images)
        pairs = zip(answers, requests, strict=True)
        return [_response(batches.encode(answer, accept)) for answer, (_, _, accept, _) in pairs]


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
        max_ongoing_requests=max(ONGOING, 2 * size),
        logging_config={"enable_access_log": False},  # a line for each request, through three processes
    )
    return deployment.bind(str(model_dir), models.threads_per_worker(replicas, model_dir))


def batching() -> tuple[int, float]:
    """Return how many requests are computed together, by default one, and the seconds that the first waits for others.

    Raises ValueError.
    """
    return int(os.environ.get(BATCH_SIZE) or 1), float(os.environ.get(BATCH_DELAY) or 100) / 1000


def _response(encoded: tuple[bytes, str] | errors.RequestError) -> Response:
    if isinstance(encoded, errors.RequestError):
        return Response(encoded.message, encoded.status_code, media_type="text/plain")
    body, media_type = encoded
    return Response(body, headers={"content-type": media_type})
