"""`SageMakerRuntime`, which takes the place of ``boto3.client("sagemaker-runtime")`` on this machine.

https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpoint.html
"""

import io
from pathlib import Path
from typing import Any

import urllib3
from botocore.exceptions import ClientError
from botocore.response import StreamingBody

from fastmaker.local.errors import modeled_exceptions
from fastmaker.local.names import ACCOUNT
from fastmaker.local.serving import endpoints
from fastmaker.local.store import default_home

CONNECT_SECONDS = 5
CONNECTIONS = 32  # kept open, of all threads


class SageMakerRuntime:
    """Invoke the endpoints under `home`."""

    def __init__(self, home: Path | None = None) -> None:
        self._endpoints = endpoints.store_below(home or default_home())
        timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=None)
        self._http = urllib3.PoolManager(retries=False, maxsize=CONNECTIONS, timeout=timeout)
        self.config: Any = None  # the SDK sets it

    @property
    def exceptions(self) -> Any:
        """The exception classes of boto3's client."""
        return modeled_exceptions("sagemaker-runtime")

    def invoke_endpoint(
        self, EndpointName: str, Body: bytes | str = b"", TargetVariant: str | None = None, **request: Any
    ) -> dict[str, Any]:
        """Send a request to a model, as boto3's invoke_endpoint does.

        An answer of 4xx or 5xx raises ModelError, with the status and the body.
        """
        server = self._pick_server(EndpointName, TargetVariant)
        body = Body.encode("utf-8") if isinstance(Body, str) else Body
        url = f"http://127.0.0.1:{server['port']}/invocations"
        try:
            answer = self._http.request("POST", url, body=body, headers=_headers(request))
        except urllib3.exceptions.HTTPError as error:
            raise self._model_error(server, 500, f"the server did not answer: {error}") from None
        if answer.status >= 400:
            raise self._model_error(server, answer.status, answer.data.decode("utf-8", "replace"))
        return _result(answer, server["variant"])

    def _pick_server(self, endpoint: str, variant: str | None) -> dict[str, Any]:
        try:
            return endpoints.pick_server(self._endpoints, endpoint, variant)
        except KeyError:
            raise self._invalid(f"Endpoint {endpoint} of account {ACCOUNT} not found.") from None
        except LookupError as error:
            raise self._invalid(str(error)) from None

    def _invalid(self, message: str) -> ClientError:
        error = {"Error": {"Code": "ValidationError", "Message": message}}
        invalid: ClientError = self.exceptions.from_code("ValidationError")(error, "InvokeEndpoint")
        return invalid

    def _model_error(self, server: dict[str, Any], status: int, text: str) -> ClientError:
        kind = "client" if status < 500 else "server"
        message = f'Received {kind} error ({status}) from {server["variant"]} with message "{text}".'
        error = {
            "Error": {"Code": "ModelError", "Message": message},
            "OriginalStatusCode": status,
            "OriginalMessage": text,
            "ResponseMetadata": {"HTTPStatusCode": 424, "RetryAttempts": 0},
        }
        model_error: ClientError = self.exceptions.ModelError(error, "InvokeEndpoint")
        return model_error


def _headers(request: dict[str, Any]) -> dict[str, str]:
    """Return the headers that SageMaker sends a container for the members of an InvokeEndpoint request."""
    headers = {
        "Content-Type": request.get("ContentType") or "application/octet-stream",
        "Accept": request.get("Accept") or "*/*",
        "X-Amzn-SageMaker-Custom-Attributes": request.get("CustomAttributes"),
        "X-Amzn-SageMaker-Target-Model": request.get("TargetModel"),
        "X-Amzn-SageMaker-Inference-Id": request.get("InferenceId"),
    }
    return {name: value for name, value in headers.items() if value is not None}


def _result(answer: urllib3.BaseHTTPResponse, variant: str) -> dict[str, Any]:
    """Return what boto3's invoke_endpoint returns for a container's answer."""
    result = {
        "ResponseMetadata": {"HTTPStatusCode": 200, "HTTPHeaders": dict(answer.headers), "RetryAttempts": 0},
        "Body": StreamingBody(io.BytesIO(answer.data), len(answer.data)),
        "ContentType": answer.headers.get("Content-Type", "application/octet-stream"),
        "InvokedProductionVariant": variant,
    }
    if attributes := answer.headers.get("X-Amzn-SageMaker-Custom-Attributes"):
        result["CustomAttributes"] = attributes
    return result
