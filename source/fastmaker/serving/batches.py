"""Requests that came at once: their images are computed in one batch, and each has its own answer or error.

Between the steps, the exception of a failed request takes the place of its images or its answer.
"""

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from fastmaker import preprocess
from fastmaker.serving import errors, limits, models, wire

logger = logging.getLogger(__name__)


def decode(requests: Sequence[Callable[[], wire.Images]], sizes: list[int]) -> list[wire.Images | Exception]:
    """Return what each function that decodes a request returns, the smallest body being decoded first."""
    decoded = {i: _catch(lambda decode: decode(), requests[i]) for i in limits.in_turn(sizes)}
    return [decoded[i] for i in range(len(requests))]


def predict(model: models.Model, requests: list[wire.Images | Exception]) -> list[wire.Answer | Exception]:
    """Return the answer to each of several requests. The small ones are computed in one batch.

    One that came alone, or that is large, is answered as by the entry point.
    """
    small = _small(requests)
    prepared = [_catch(_tensors, request, model, i in small) for i, request in enumerate(requests)]
    tensors = [tensor for of_request in prepared if isinstance(of_request, list) for tensor in of_request]
    if len(requests) > 1:
        logger.info("%d requests: %d images in one batch", len(requests), len(tensors))
    try:
        outputs = iter(list(model.outputs(tensors)))
    except Exception:  # it does not say whose image it is
        prepared = [tensors if isinstance(tensors, Exception) else None for tensors in prepared]
        outputs = iter(())
    pairs = list(zip(prepared, requests, strict=True))
    answers = {i: _catch(_answer, *pairs[i], outputs, model) for i in range(len(pairs)) if pairs[i][0] is not None}
    alone = [(i, it) for i, it in enumerate(requests) if i not in answers and isinstance(it, wire.Images)]
    for turn in limits.in_turn([len(request.images) for _, request in alone]):
        number, request = alone[turn]
        answers[number] = _catch(answer_alone, request, model)
    return [answers[i] for i in range(len(requests))]


def encode(answer: wire.Answer | Exception, accept: str | None) -> tuple[bytes, str] | errors.RequestError:
    """Return the bytes of an answer and their media type, or the error of its request."""
    encoded = _catch(_encode, answer, accept)
    if isinstance(encoded, (tuple, errors.RequestError)):
        return encoded
    return errors.InternalError(f"{type(encoded).__name__}: {encoded}")


def _encode(answer: wire.Answer, accept: str | None) -> tuple[bytes, str]:
    return wire.check_response_size(*wire.encode(answer, accept))


def answer_alone(request: wire.Images, model: models.Model) -> wire.Answer:
    """Return the answer to one request. Raises errors.BadRequest."""
    try:
        return wire.Answer(model.predict_in_time(request.images, request.mask_size), request.single)
    except preprocess.ImageError as error:
        raise errors.BadRequest(str(error)) from None


def _small(requests: list[wire.Images | Exception]) -> set[int]:
    """Return the numbers of the requests that go together: the smallest ones, of MAX_BATCH images in all or one each.

    More images at once could take longer than the server waits.
    """
    room = max(models.MAX_BATCH, len(requests))
    sizes = sorted((len(it.images), i) for i, it in enumerate(requests) if isinstance(it, wire.Images))
    totals = itertools.accumulate(size for size, _ in sizes)
    found = {i for (_, i), total in zip(sizes, totals, strict=True) if total <= room}
    return found if len(found) > 1 else set()


def _tensors(request: wire.Images, model: models.Model, together: bool) -> list[torch.Tensor] | None:
    """Return the tensors of a request, None if it does not go together with others."""
    return [model.to_tensor(image) for image in request.images] if together else None


def _answer(
    tensors: list[torch.Tensor], request: wire.Images, outputs: Iterator[np.ndarray], model: models.Model
) -> wire.Answer:
    own = [next(outputs) for _ in tensors]  # all, even if an answer fails: the next request's outputs follow
    pairs = zip(own, request.images, strict=True)
    return wire.Answer([model.answer(*pair, request.mask_size) for pair in pairs], request.single)


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
