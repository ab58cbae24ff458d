"""boto3's own clients, whose requests are answered on this machine: without a network, and with nobody's credentials.

Parameters are validated, pages are followed, states are awaited and errors are raised by botocore, as on AWS.
"""

import functools
import os
import threading
import uuid
from collections.abc import Callable, Mapping
from email.utils import formatdate
from typing import Any

import botocore.session
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ClientError, ParamValidationError
from botocore.model import OperationModel, ServiceModel
from botocore.validate import ParamValidator

from fastmaker.local import constraints
from fastmaker.local.arguments import Members, unsupported

Request = dict[str, Any]
Answer = Callable[[OperationModel, Request], dict[str, Any] | None]
# A user's profiles and configuration file are for AWS: they may turn validation off, or not be readable.
NO_CONFIGURATION = {"profile": (None, None, None, None), "config_file": (None, None, os.devnull, None)}
_lock = threading.Lock()  # botocore's session makes one client at a time


@functools.cache
def _session() -> botocore.session.Session:
    """Return the session of all clients: it keeps the models of services, of which SageMaker's takes 0.1 s to read."""
    return botocore.session.Session(NO_CONFIGURATION)


def service_model(service: str) -> ServiceModel:
    """Return what botocore knows of a service."""
    with _lock:
        model: ServiceModel = _session().get_service_model(service)
    return model


def client(
    service: str,
    region: str,
    operations: Mapping[str, Members],
    answer: Answer,
    prepare: Callable[[str, Request], Request] = lambda operation, request: request,
) -> Any:
    """Return boto3's client of a service, for which `answer` answers in place of AWS.

    `operations` are those it answers, by name, with the members of their requests that it honours; any other is a
    ClientError. `prepare` returns a request in the form of botocore's model. What `answer` returns is kept as far as
    the model knows it; a ClientError that it raises becomes the client's own class of that code.
    """
    with _lock:
        made = _session().create_client(
            service, region_name=region, aws_access_key_id="local", aws_secret_access_key="local"
        )
    code = constraints.error_code(made.meta.service_model)

    def take(model: OperationModel, params: Request, context: dict[str, Any], **event: Any) -> Request:
        request = prepare(model.name, params)
        if reasons := reasons_against(model, request, operations):
            raise made.exceptions.from_code(code)(_error(code, reasons), model.name)
        context["local_request"] = request
        return request

    def reply(model: OperationModel, context: dict[str, Any], **event: Any) -> tuple[AWSResponse, dict[str, Any]]:
        parsed = _parsed(model, honoured(context["local_request"], operations[model.name]), answer)
        metadata = parsed["ResponseMetadata"]
        return AWSResponse("local://", metadata["HTTPStatusCode"], metadata["HTTPHeaders"], None), parsed

    name = made.meta.service_model.service_id.hyphenize()
    made.meta.events.register(f"provide-client-params.{name}", take)
    made.meta.events.register(f"before-call.{name}", reply)
    return made


def honoured(request: Request, members: Members) -> Request:
    """Return the members of a request that are honoured: any other, if it is there, asks for nothing."""
    return {name: value for name, value in request.items() if name in members}


def reasons_against(model: OperationModel, request: Request, operations: Mapping[str, Members]) -> str:
    """Return why a request is refused, empty if it is not, or if botocore is about to refuse it."""
    if model.name not in operations:
        return f"{model.name} needs AWS: a local session has no such operation"
    if type_errors(model, request):
        return ""
    # Before botocore makes JSON or headers of it, which not all of Python's values can be.
    return constraints.violations(model.input_shape, request) or unsupported(operations[model.name], request)


def type_errors(model: OperationModel, request: Request) -> str:
    """Return what botocore finds wrong with the types of a request's members, empty if nothing is.

    Raises ParamValidationError for those that it trips over.
    """
    try:
        report = ParamValidator().validate(request, model.input_shape)
    except (RuntimeError, OverflowError) as error:
        times = [name for name, shape in model.input_shape.members.items() if shape.type_name == "timestamp"]
        raise ParamValidationError(report=f"Invalid value for one of {', '.join(times)}: {error}") from None
    return str(report.generate_report())


def _parsed(model: OperationModel, request: Request, answer: Answer) -> dict[str, Any]:
    """Return what botocore makes of an answer, or of an error."""
    try:
        answered = answer(model, request) or {}
    except ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 400)
        return {**error.response, "ResponseMetadata": _metadata(status)}
    members = model.output_shape.members if model.output_shape else {}
    kept = {name: value for name, value in answered.items() if name in members}
    return {**kept, "ResponseMetadata": _metadata(model.http.get("responseCode", 200), answered.get("Headers", {}))}


def _error(code: str, message: str) -> Any:
    return {"Error": {"Code": code, "Message": message}, "ResponseMetadata": _metadata(400)}


def _metadata(status: int, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the ResponseMetadata of an answer."""
    number = str(uuid.uuid4())
    common = {"x-amzn-requestid": number, "date": formatdate(usegmt=True), "content-type": "application/x-amz-json-1.1"}
    return {
        "RequestId": number,
        "HTTPStatusCode": status,
        "HTTPHeaders": {**common, **(headers or {})},
        "RetryAttempts": 0,
    }
