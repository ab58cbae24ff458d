"""Requests that TorchServe gives a worker at once, in one list."""

import io

import numpy as np
from ts.context import RequestProcessor


def ask(handle, context, requests) -> list[tuple]:
    """(status, media type, answer) of each of (body, content type, headers), by `handle` with the worker's context."""
    headers = [{"body": {"content-type": kind}, "Content-Type": kind, **more} for _, kind, more in requests]
    context.request_processor = [RequestProcessor(of_request) for of_request in headers]
    context.request_ids = {i: str(i) for i in range(len(requests))}
    answers = handle([{"body": bytearray(body)} for body, _, _ in requests], context)
    statuses = [context.get_response_status(i)[0] for i in range(len(requests))]
    return list(zip(statuses, map(context.get_response_content_type, range(len(requests))), answers, strict=True))


def npy(array) -> bytes:
    """The bytes of an array's file."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()
