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

from fastmaker.local import arguments, boto, runtime_client
from fastmaker.local.serving import endpoints

OPERATIONS = {
    "invocations": "InvokeEndpoint",
    "async-invocations": "InvokeEndpointAsync",
    "invocations-response-stream": "InvokeEndpointWithResponseStream",
}
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
        request: dict[str, Any] = {"EndpointName": unquote(found["name"]), "Body": body}
        for name, shape in model.input_shape.members.items():
            value = headers.get(shape.serialization.get("name", "").lower())
            if shape.serialization.get("location") == "header" and value:
                request[name] = value
        try:
            if reasons := boto.reasons_against(model, request, arguments.RUNTIME):
                raise ClientError({"Error": {"Code": "ValidationError", "Message": reasons}}, model.name)
            answered = self._invocations.answer(model, boto.honoured(request, arguments.RUNTIME[model.name]))
        except ClientError as error:
            return _error(model, error)
        return _answer(model, answered)


def _answer(model: OperationModel, answered: dict[str, Any]) -> Answer:
    headers = {
        shape.serialization["name"]: answered[name]
        for name, shape in model.output_shape.members.items()
        if shape.serialization.get("location") == "header" and answered.get(name)
    }
    return 200, headers, answered["Body"].read()


def _error(model: OperationModel, error: ClientError) -> Answer:
    code = error.response["Error"]["Code"]
    shape = next(shape for shape in model.error_shapes if shape.error_code == code)
    values = {"Message": error.response["Error"]["Message"], **error.response}
    body = {name: values[name] for name in shape.members if name in values}
    headers = {"x-amzn-ErrorType": code, "Content-Type": "application/json"}
    return shape.metadata["error"]["httpStatusCode"], headers, json.dumps(body).encode()
