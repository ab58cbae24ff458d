"""A bundle in plain TorchServe, without the serving toolkit: the handler of `fastmaker package torchserve`.

TorchServe collects requests, up to batchSize of them within maxBatchDelay ms, and hands them over as one list
(https://pytorch.org/serve/batch_inference_with_ts.html). The images of all of them go through the network together;
each request has its own answer or its own error, as entry_point.py gives them.
"""

import logging
import os
from collections.abc import Callable

import torch

from fastmaker import preprocess
from fastmaker.serving import models, wire

logger = logging.getLogger(__name__)


class Handler:
    """What TorchServe makes one of in each worker. A request that failed is an exception in place of its answer."""

    def initialize(self, context) -> None:
        """Load the bundle that the archive holds, on this worker's GPU if it has one. Raises bundle.BundleError."""
        # TorchServe parses JSON and text itself, and so hides the bytes that were sent; it asks at each request.
        os.environ["TS_DECODE_INPUT_REQUEST"] = "false"
        properties = context.system_properties
        gpu = properties.get("gpu_id") if torch.cuda.is_available() else None
        config = context.model_yaml_config or {}
        torch.set_num_threads(models.threads_per_worker(config.get("maxWorkers")))
        self.model = models.load(properties["model_dir"], "cpu" if gpu is None else f"cuda:{gpu}")

    def handle(self, data: list[dict], context) -> list[bytes | str]:
        """An answer for each request of `data`, in order, its status and content type in `context`."""
        return self.postprocess(self.inference(self.preprocess(data, context)), context)

    def preprocess(self, data: list[dict], context) -> list[wire.Images | Exception]:
        """Each request's images."""

        def decode(item: dict, headers: dict) -> wire.Images:
            attributes = wire.header(headers, wire.CUSTOM_ATTRIBUTES)
            return wire.decode(item.get("body"), wire.header(headers, "content-type"), attributes)

        return [_tried(decode, item, context.get_all_request_header(i)) for i, item in enumerate(data)]

    def inference(self, requests: list[wire.Images | Exception]) -> list[wire.Answer | Exception]:
        """The predictions for each request's images, computed together."""
        prepared = [_tried(self._tensors, request) for request in requests]
        tensors = [tensor for of_request in prepared if not isinstance(of_request, Exception) for tensor in of_request]
        if len(requests) > 1:
            logger.info("%d requests: %d images go through the network together", len(requests), len(tensors))
        outputs = iter(list(self.model.outputs(tensors)))
        return [_tried(self._answer, *pair, outputs) for pair in zip(prepared, requests, strict=True)]

    def postprocess(self, answers: list[wire.Answer | Exception], context) -> list[bytes | str]:
        """The answers' bytes, of the type that each request accepts, or the line that says why there is none."""
        return [self._respond(answer, context, i) for i, answer in enumerate(answers)]

    def _tensors(self, request: wire.Images) -> list[torch.Tensor]:
        return [self.model.to_tensor(image) for image in request.images]

    def _answer(self, tensors: list[torch.Tensor], request: wire.Images, outputs) -> wire.Answer:
        found = [next(outputs) for _ in tensors]  # all of them, even if one has no answer: others' come next
        pairs = zip(found, request.images, strict=True)
        return wire.Answer([self.model.answer(*pair, request.mask_size) for pair in pairs], request.single)

    def _respond(self, answer: wire.Answer | Exception, context, i: int) -> bytes | str:
        def encode(answer: wire.Answer, accept: str) -> tuple[bytes, str]:
            return wire.check_response_size(*wire.encode(answer, accept))

        encoded = _tried(encode, answer, wire.header(context.get_all_request_header(i), "accept"))
        if isinstance(encoded, wire.RequestError):
            context.set_response_status(encoded.status_code, encoded.phrase, i)
            return encoded.message
        body, media_type = encoded
        context.set_response_content_type(i, media_type)
        return body


def _tried(step: Callable, value, *arguments):
    """step(value, ...), or the exception that keeps this one request from an answer, if need be the one of before."""
    if isinstance(value, Exception):
        return value
    try:
        return step(value, *arguments)
    except wire.RequestError as error:
        return error
    except preprocess.ImageError as error:
        return wire.BadRequest(str(error))
    except Exception as error:  # a fault of ours, of which the others in the batch should not hear
        logger.exception("a request failed")
        return wire.InternalError(f"{type(error).__name__}: {error}")
