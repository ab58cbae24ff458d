"""The functions that a worker of the serving toolkit, sagemaker_inference, calls for requests, and what it lacks.

It lacks bodies that are no text, and several requests at once: with SAGEMAKER_TS_BATCH_SIZE TorchServe passes them on
in one list. The toolkit takes the headers of the first for all of them, gives the type of the last answer to the first
alone, computes one after the other, and answers none if one of them is bad.
"""

import copy
import traceback
from functools import partial
from typing import Any

from fastmaker.serving import errors, limits, wire


def input_fn(body, content_type, context=None):
    """Return a request body as `wire.Images`. Raises an `errors.RequestError`, whose status is the response's."""
    headers = context.get_all_request_header(0) if context else {}
    return wire.decode(body, content_type, wire.header(headers, wire.CUSTOM_ATTRIBUTES))


def predict_fn(request, model):
    """Return the `wire.Answer` to `wire.Images`. Raises `errors.BadRequest`."""
    from fastmaker.serving import batches

    return batches.answer_alone(request, model)


def output_fn(answer, accept):
    """Return the answer's bytes and their content type. Raises `errors.NotAcceptable`."""
    return wire.check_response_size(*wire.encode(answer, accept))


def prepare() -> None:
    """Let the toolkit of this process answer each request of a list by itself, and pass on its body as it was sent.

    Their images go through the network in one batch, unless the model or a function is the user's own.
    """
    from sagemaker_inference import content_types
    from sagemaker_inference.transformer import Transformer

    content_types.UTF8_TYPES.clear()  # it decodes bodies of these types, and answers what is not UTF-8 with 500
    transform = Transformer.transform
    if transform.__module__ == __name__:  # another model of this worker came first
        return

    def transform_each(self: Any, data: list[dict[str, Any]], context: Any) -> list[Any]:
        contexts = [_of_one(context, number) for number in range(len(data))]
        if len(data) > 1 and _is_ours(self):
            return _together(self, data, contexts)
        answers = dict.fromkeys(range(len(data)))
        for number in limits.in_turn([wire.size_of(parts) for parts in data], steps=2):
            answers[number] = _alone(self, transform, data[number], contexts[number])
        return list(answers.values())

    Transformer.transform = transform_each


def _of_one(context: Any, number: int) -> Any:
    """Return the context of one request of a list. What is entered in it goes to `context`."""
    one = copy.copy(context)
    one.request_processor = [context.request_processor[number]]
    one.request_ids = {0: (context.request_ids or {}).get(number)}
    return one


def _is_ours(transformer: Any) -> bool:
    """Return whether the toolkit would call the functions of this module, and nothing else, for a request."""
    from fastmaker.serving import models

    own = (transformer._input_fn, transformer._predict_fn, transformer._output_fn) == (input_fn, predict_fn, output_fn)
    own = own and transformer._transform_fn == transformer._default_transform_fn
    return own and type(transformer._model) is models.Model


def _together(transformer: Any, data: list[dict[str, Any]], contexts: list[Any]) -> list[Any]:
    """Return the answers to the requests of a list, whose images are computed in one batch."""
    from fastmaker.serving import batches

    decoders = [partial(_decode, *request) for request in zip(data, contexts, strict=True)]
    images = batches.decode(decoders, [wire.size_of(parts) for parts in data])
    answers = batches.predict(transformer._model, images)
    return [_respond(transformer, *pair) for pair in zip(answers, contexts, strict=True)]


def _decode(parts: dict[str, Any], context: Any) -> wire.Images:
    from sagemaker_inference import utils

    kind = utils.retrieve_content_type_header(context.get_all_request_header(0))
    return input_fn(wire.body_of(parts), kind, context)


def _respond(transformer: Any, answer: wire.Answer | Exception, context: Any) -> bytes | str:
    """Return the body of the response to one request, as the toolkit makes it; status and type go to `context`."""
    from fastmaker.serving import batches

    accept = wire.header(context.get_all_request_header(0), "accept")
    if accept in ("", "*/*"):
        accept = transformer._environment.default_accept
    encoded = batches.encode(answer, accept)
    if isinstance(encoded, errors.RequestError):
        [line] = transformer.handle_error(context, encoded, "".join(traceback.format_exception(encoded)))
        return line
    body, kind = encoded
    context.set_response_content_type(0, kind)
    return body


def _alone(transformer: Any, transform: Any, parts: dict[str, Any], context: Any) -> Any:
    """Return the answer of the toolkit to one request of a list."""
    try:
        body = wire.body_of(parts)
    except errors.RequestError as error:
        [answer] = transformer.handle_error(context, error, "")
        return answer
    transformer._context = context  # it is what the functions of the entry point are given
    [answer] = transform(transformer, [{"body": body}], context)
    return answer
