"""What the serving toolkit, sagemaker_inference, lacks: several requests at once, and bodies that are no text.

With SAGEMAKER_TS_BATCH_SIZE TorchServe passes on several requests in one list. The toolkit takes the headers of the
first for all of them, gives the type of the last answer to the first alone, and answers none if one of them is bad.
"""

import copy
from typing import Any

from fastmaker.serving import limits, wire
from fastmaker.serving.errors import RequestError


def prepare() -> None:
    """Let the toolkit of this process pass on each request as if it had come alone, and its body as it was sent."""
    from sagemaker_inference import content_types
    from sagemaker_inference.transformer import Transformer

    content_types.UTF8_TYPES.clear()  # it decodes bodies of these types, and answers what is not UTF-8 with 500
    transform = Transformer.transform
    if transform.__module__ == __name__:  # another model of this worker came first
        return

    def transform_each(self: Any, data: list[dict[str, Any]], context: Any) -> list[Any]:
        answers = dict.fromkeys(range(len(data)))
        for number in limits.in_turn([wire.size_of(parts) for parts in data], steps=2):
            answers[number] = _alone(self, transform, data[number], context, number)
        return list(answers.values())

    Transformer.transform = transform_each


def _alone(transformer: Any, transform: Any, parts: dict[str, Any], context: Any, number: int) -> Any:
    """Return the answer to one request of a list. What is entered in its context goes to `context`."""
    one = copy.copy(context)
    one.request_processor = [context.request_processor[number]]
    one.request_ids = {0: (context.request_ids or {}).get(number)}
    try:
        body = wire.body_of(parts)
    except RequestError as error:
        [answer] = transformer.handle_error(one, error, "")
        return answer
    transformer._context = one  # it is what the functions of the entry point are given
    [answer] = transform(transformer, [{"body": body}], one)
    return answer
