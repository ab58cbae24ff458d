"""The operations of sagemaker-runtime over HTTP, which the engine's `Invocations` answers.

https://smithy.io/2.0/aws/protocols/aws-restjson1-protocol.html
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from botocore.exceptions import ClientError
from botocore.model import OperationModel

from fastmaker.local import arguments, boto, constraints, runtime_client
from fastmaker.local.serving import endpoints

OPERATIONS = {
    "invocations": "InvokeEndpoint",
    "async-invocations": "InvokeEndpointAsync",
    "invocations-response-stream": "InvokeEndpointWithResponseStream",
}
ASYNC = "Async"
PATH = re.compile(rf"/endpoints/(?P<name>[^/]*)/(?P<kind>{'|'.join(OPERATIONS)})")
Answer = tuple[int, dict[str, str], bytes]  # status, headers and body


class Runtime:
    """Answer requests to the endpoints under `home`."""

    def __init__(self, home: Path) -> None:
        self._model = boto.service_model("sagemaker-runtime")
        self._invocations = runtime_client.Invocations(endpoints.store_below(home))

    def answer(self, path: str, headers: Mapping[str, str], body: bytes) -> Answer | None:
        """Return the answer to a request, None if its path is no operation's; `headers` have names in lower case."""
        found = PATH.fullmatch(path.partition("?")[0])
        if found is None:
            return None
        model = self._model.operation_model(OPERATIONS[found["kind"]])
        try:
            request = _request(model, unquote(found["name"]), headers, body)
            if reasons := boto.reasons_against(model, request, arguments.RUNTIME) or constraints.violations(
                model.input_shape, request, here=False
            ):
                raise ClientError({"Error": {"Code": "ValidationError", "Message": reasons}}, model.name)
            answered = self._invocations.answer(model, boto.honoured(request, arguments.RUNTIME[model.name]))
        except ClientError as error:
            return _error(model, error)
        return _answer(model, answered)


def _request(model: OperationModel, endpoint: str, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
    """Return the members of a request. Raises ClientError for a header that is no number where one is expected."""
    # Of an asynchronous request the body stands in for a location.
    request: dict[str, Any] = {"EndpointName": endpoint} | ({"Body": body} if body or ASYNC not in model.name else {})
    for name, shape in model.input_shape.members.items():
        value = headers.get(shape.serialization.get("name", "").lower())
        if shape.serialization.get("location") == "header" and value:
            request[name] = value
            if shape.type_name == "integer":
                if not re.fullmatch(r"-?[0-9]{1,18}", value):
                    message = f"{name} is {value!r}; expected a whole number"
                    raise ClientError({"Error": {"Code": "ValidationError", "Message": message}}, model.name)
                request[name] = int(value)
    return request


def _answer(model: OperationModel, answered: dict[str, Any]) -> Answer:
    members = {name: value for name, value in answered.items() if name in model.output_shape.members and value}
    places = {name: model.output_shape.members[name].serialization for name in members}
    headers = {place["name"]: members[name] for name, place in places.items() if place.get("location") == "header"}
    status = model.http.get("responseCode", 200)
    if payload := model.output_shape.serialization.get("payload"):
        return status, headers, answered[payload].read()
    body = json.dumps({name: value for name, value in members.items() if "location" not in places[name]})
    return status, {**headers, "Content-Type": "application/json"}, body.encode()


def _error(model: OperationModel, error: ClientError) -> Answer:
    code = error.response["Error"]["Code"]
    shape = next(shape for shape in model.error_shapes if shape.error_code == code)
    values = {"Message": error.response["Error"]["Message"], **error.response}
    body = {name: values[name] for name in shape.members if name in values}
    headers = {"x-amzn-ErrorType": code, "Content-Type": "application/json"}
    return shape.metadata["error"]["httpStatusCode"], headers, json.dumps(body).encode()
