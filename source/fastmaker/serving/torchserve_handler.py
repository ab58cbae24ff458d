"""The handler of a bundle in TorchServe without the serving toolkit, for `fastmaker package torchserve`.

TorchServe collects up to batchSize requests within maxBatchDelay ms, and passes them as one list
(https://pytorch.org/serve/batch_inference_with_ts.html). The images of all requests are computed in one batch, but for
requests of many; each request has its own answer or error, the same as from entry_point.py.
"""

import os
from functools import partial
from typing import Any

import torch

from fastmaker.serving import batches, errors, models, wire


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
        decoders = [partial(_decode, item, context.get_all_request_header(i)) for i, item in enumerate(data)]
        return batches.decode(decoders, [wire.size_of(item) for item in data])

    def inference(self, requests: list[wire.Images | Exception]) -> list[wire.Answer | Exception]:
        """Return the answer to each request. The small ones are computed in one batch."""
        return batches.predict(self.model, requests)

    def postprocess(self, answers: list[wire.Answer | Exception], context: Any) -> list[bytes | str]:
        """Return the bytes of each answer, in a type that the request accepts, or its error message."""
        return [self._respond(answer, context, i) for i, answer in enumerate(answers)]

    def _respond(self, answer: wire.Answer | Exception, context: Any, i: int) -> bytes | str:
        encoded = batches.encode(answer, wire.header(context.get_all_request_header(i), "accept"))
        if isinstance(encoded, errors.RequestError):
            context.set_response_status(encoded.status_code, encoded.phrase, i)
            return encoded.message
        body, media_type = encoded
        context.set_response_content_type(i, media_type)
        return body


def _decode(parts: dict[str, Any], headers: dict[str, Any]) -> wire.Images:
    """Return the images of one request of TorchServe: its parts by their names, and its headers."""
    attributes = wire.header(headers, wire.CUSTOM_ATTRIBUTES)
    return wire.decode(wire.body_of(parts), wire.header(headers, "content-type"), attributes)
