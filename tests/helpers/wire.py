"""What a server sent, held against botocore's model of the service before botocore's parser makes anything of it."""

import json
import math
import re

from fastmaker.local import constraints

# Errors that every operation of a service of AWS may answer, beside those that its model lists.
COMMON = {"ValidationException", "AccessDeniedException", "InternalFailure", "UnknownOperationException"}


def misfits(shape, value, where="answer"):
    """Yield what keeps JSON from having an output shape."""
    kind = shape.type_name
    expected = {"structure": dict, "map": dict, "list": list, "string": str, "boolean": bool, "timestamp": (int, float)}
    expected |= dict.fromkeys(("integer", "long"), int) | dict.fromkeys(("float", "double"), (int, float))
    if not isinstance(value, expected[kind]) or (isinstance(value, bool) and kind != "boolean"):
        yield f"{where} is {value!r}; expected a {kind}"
        return
    if kind == "structure":
        yield from (f"{where} has an unknown member {name}" for name in value.keys() - shape.members.keys())
        yield from (f"{where} lacks {name}" for name in set(shape.required_members) - value.keys())
        for name in value.keys() & shape.members.keys():
            yield from misfits(shape.members[name], value[name], f"{where}.{name}")
    elif kind == "list":
        for number, member in enumerate(value):
            yield from misfits(shape.member, member, f"{where}[{number}]")
    elif kind == "map":
        for name, member in value.items():
            yield from misfits(shape.value, member, f"{where}.{name}")
    elif kind == "timestamp":
        if not (math.isfinite(value) and 1e9 < value < 1e10):
            yield f"{where} is {value!r}; expected seconds of the era"
    elif reason := constraints.violations(shape, value, here=False):
        yield f"{where}: {reason}"


def check(model, status, headers, body):
    """Check an answer of SageMaker or its runtime."""
    found = list(_misfits(model, status, {name.lower(): text for name, text in headers.items()}, body))
    assert not found, f"{model.name}: {found}"


def _misfits(model, status, headers, body):
    service = model.service_model
    runtime = service.service_name == "sagemaker-runtime"
    if status >= 300:
        yield from _misfits_of_error(model, status, headers, body, runtime)
        return
    shape = model.output_shape
    if status != model.http.get("responseCode", 200):
        yield f"its status is {status}"
    if not runtime:
        yield from misfits(shape, json.loads(body)) if shape else [] if body == b"{}" else [f"its body is {body!r}"]
        return
    if not shape.serialization.get("payload"):
        yield from (f"body has {name}" for name in json.loads(body) if "location" in shape.members[name].serialization)
    for name, member in shape.members.items():
        if member.serialization.get("location") == "header":
            text = headers.get(member.serialization["name"].lower())
            if text is not None and (reason := constraints.violations(member, text)):
                yield f"the header of {name}: {reason}"


def _misfits_of_error(model, status, headers, body, runtime):
    told = json.loads(body)
    code = headers["x-amzn-errortype"]
    listed = {shape.error_code: shape for shape in model.error_shapes}
    if code not in listed and (runtime or code not in COMMON):
        yield f"its code is {code}; the model lists {sorted(listed)}"
    if not runtime:
        if told.keys() != {"__type", "message"} or told["__type"] != code or not told["message"] or status != 400:
            yield f"an error of status {status}: {told}"
    elif code in listed:
        yield from (f"{code} has an unknown member {name}" for name in told.keys() - listed[code].members.keys())
        if status != listed[code].metadata["error"]["httpStatusCode"]:
            yield f"{code} has the status {status}"
    if not re.fullmatch(r"[0-9a-f-]{36}", headers.get("x-amzn-requestid", "")):
        yield "it has no id"


def checked(client):
    """boto3's client, each of whose answers is checked as it came; those of moto's services are not."""
    name = client.meta.service_model.service_name
    if name in ("sagemaker", "sagemaker-runtime"):
        client.meta.events.register(f"before-parse.{client.meta.service_model.service_id.hyphenize()}", _check)
    return client


def _check(operation_model, response_dict, **event):
    body = response_dict["body"]
    body = body if isinstance(body, bytes) else b""  # of an answer that is read as a stream
    if not (response_dict["status_code"] >= 300 and not body):
        check(operation_model, response_dict["status_code"], dict(response_dict["headers"]), body)
