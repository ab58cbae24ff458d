"""The handler of a bundle in TorchServe without the serving toolkit, for `fastmaker package torchserve`.

TorchServe collects up to batchSize requests within maxBatchDelay ms, and passes them as one list
(https://pytorch.org/serve/batch_inference_with_ts.html). The images of all requests are computed in one batch, but for
requests of many; each request has its own answer or error, the same as from entry_point.py.
"""

import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from fastmaker import preprocess
from fastmaker.serving import errors, limits, models, wire

logger = logging.getLogger(__name__)


class Handler:
    """The class that TorchServe creates in each worker.

    Between the steps, the exception of a failed request takes the place of its images or its answer.
    """

    def initialize(self, context: Any) -> None:
        """Load the bundle in the archive, on this worker's GPU if it has one. Raises bundle.BundleError."""
        # Keeps TorchServe from parsing JSON and text, which would hide the bytes that were sent. Read at each request.
        os.environ["TS_DECODE_INPUT_REQUEST"] = "false"
        properties = context.system_properties
        gpu = properties.get("gpu_id") if torch.cuda.is_available() else None
        config = context.model_yaml_config or {}
        torch.set_num_threads(models.threads_per_worker(config.get("maxWorkers"), properties["model_dir"]))
        self.model = models.load(properties["model_dir"], "cpu" if gpu is None else f"cuda:{gpu}")

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[bytes | str]:
        """Return the response body for each request of `data`; statuses and content types go to `context`."""
        return self.postprocess(self.inference(self.preprocess(data, context)), context)

    def preprocess(self, data: list[dict[str, Any]], context: Any) -> list[wire.Images | Exception]:
        """Return the images of each request."""

        def decode(item: dict[str, Any], headers: dict[str, Any]) -> wire.Images:
            attributes = wire.header(headers, wire.CUSTOM_ATTRIBUTES)
            return wire.decode(wire.body_of(item), wire.header(headers, "content-type"), attributes)

        turns = limits.in_turn([wire.size_of(item) for item in data])
        decoded = {i: _catch(decode, data[i], context.get_all_request_header(i)) for i in turns}
        return [decoded[i] for i in range(len(data))]

    def inference(self, requests: list[wire.Images | Exception]) -> list[wire.Answer | Exception]:
        """Return the answer to each request. Those of up to MAX_BATCH images are computed in one batch."""
        prepared = [_catch(self._tensors, request) for request in requests]
        tensors = [tensor for of_request in prepared if isinstance(of_request, list) for tensor in of_request]
        if len(requests) > 1:
            logger.info("%d requests: %d images in one batch", len(requests), len(tensors))
        try:
            outputs = iter(list(self.model.outputs(tensors)))
        except Exception:  # it does not say whose image it is
            prepared = [tensors if isinstance(tensors, Exception) else None for tensors in prepared]
            outputs = iter(())
        pairs = list(zip(prepared, requests, strict=True))
        answers = {i: _catch(self._answer, *pairs[i], outputs) for i in range(len(pairs)) if pairs[i][0] is not None}
        alone = [(i, it) for i, it in enumerate(requests) if i not in answers and isinstance(it, wire.Images)]
        for turn in limits.in_turn([len(request.images) for _, request in alone]):
            number, request = alone[turn]
            answers[number] = _catch(self._alone, request)
        return [answers[i] for i in range(len(requests))]

    def postprocess(self, answers: list[wire.Answer | Exception], context: Any) -> list[bytes | str]:
        """Return the bytes of each answer, in a type that the request accepts, or its error message."""
        return [self._respond(answer, context, i) for i, answer in enumerate(answers)]

    def _tensors(self, request: wire.Images) -> list[torch.Tensor] | None:
        """Return the tensors of a request, None for one that is computed alone."""
        if len(request.images) > models.MAX_BATCH:
            return None
        return [self.model.to_tensor(image) for image in request.images]

    def _alone(self, request: wire.Images) -> wire.Answer:
        return wire.Answer(self.model.predict_in_time(request.images, request.mask_size), request.single)

    def _answer(self, tensors: list[torch.Tensor], request: wire.Images, outputs: Iterator[np.ndarray]) -> wire.Answer:
        own = [next(outputs) for _ in tensors]  # all, even if an answer fails: the next request's outputs follow
        pairs = zip(own, request.images, strict=True)
        return wire.Answer([self.model.answer(*pair, request.mask_size) for pair in pairs], request.single)

    def _respond(self, answer: wire.Answer | Exception, context: Any, i: int) -> bytes | str:
        def encode(answer: wire.Answer, accept: str) -> tuple[bytes, str]:
            return wire.check_response_size(*wire.encode(answer, accept))

        encoded = _catch(encode, answer, wire.header(context.get_all_request_header(i), "accept"))
        if isinstance(encoded, errors.RequestError):
            context.set_response_status(encoded.status_code, encoded.phrase, i)
            return encoded.message
        body, media_type = encoded
        context.set_response_content_type(i, media_type)
        return body


def _catch(step: Callable[..., Any], value: Any, *arguments: Any) -> Any:
    """Return step(value, ...), or the RequestError of this request; `value` itself if an earlier step failed."""
    if isinstance(value, Exception):
        return value
    try:
        return step(value, *arguments)
    except errors.RequestError as error:
        return error
    except preprocess.ImageError as error:
        return errors.BadRequest(str(error))
    except Exception as error:  # a fault of the server, which must not fail the other requests of the batch
        logger.exception("a request failed")
        return errors.InternalError(f"{type(error).__name__}: {error}")
