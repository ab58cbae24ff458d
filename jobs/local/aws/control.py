"""SageMaker's operations over HTTP: requests and answers of the JSON protocol, which the engine's `Operations` answers.

https://smithy.io/2.0/aws/protocols/aws-json-1_1-protocol.html
"""

import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError, ParamValidationError
from botocore.model import OperationModel, ServiceModel, Shape

from fastmaker.jobs import instance_types
from fastmaker.local import arguments, boto, constraints, docker
from fastmaker.local.client import Operations
from fastmaker.local.errors import invalid
from fastmaker.local.serving import asynchronous, delivery, endpoints, rayserve

NOT_FINAL = ("InProgress", "Creating", "Updating", "Stopping", "Deleting")
LOOK_SECONDS = 0.2  # between two looks at what a Describe waits for
# Images whose script mode this environment stands in for, by their repositories.
IMAGES = re.compile(r"(^|/)(sagemaker-)?pytorch-(training|inference)(-[\w-]+)?([:@]|$)")
log = logging.getLogger("fastmaker.aws")


class ControlPlane:
    """Answer SageMaker's operations with what is kept under `home`.

    `environment` returns the environment of jobs of a region, `s3` a client for models. A Describe waits up to `hold`
    seconds for a job or an endpoint that is not done.
    """

    def __init__(
        self, home: Path, environment: Callable[[str], dict[str, str]], s3: Callable[[], Any], hold: float
    ) -> None:
        self._home, self._environment, self._s3, self._hold = home, environment, s3, hold
        self._engines: dict[str, Operations] = {}
        self._lock = threading.Lock()
        self.model: ServiceModel = boto.service_model("sagemaker")

    def answer(self, operation: str, body: bytes, region: str) -> bytes:
        """Return the answer to a request. Raises ClientError with a code that the operation's model lists."""
        if operation not in self.model.operation_names:
            raise invalid(operation, f"SageMaker has no operation {operation}")
        model = self.model.operation_model(operation)
        try:
            request = _request(model, body)
            engine = self._engine(region)
            answered = engine.answer(model, request) or {}
            if operation.startswith("Describe"):
                answered = self._held(engine, model, request, answered)
                _check_whole(model, answered)
        except ClientError as error:
            raise _listed(model, error) from None
        shape = model.output_shape
        return json.dumps(serialized(shape, answered) if shape else {}).encode()

    def resume(self) -> None:
        """Go on with what an earlier server was starting when it was killed."""
        store = endpoints.store_below(self._home)
        endpoints.resume(store, self._s3(), _in_thread)
        asynchronous.resume(store, lambda: dict(os.environ))
        delivery.resume(store, lambda: dict(os.environ))

    def _held(
        self, engine: Operations, model: OperationModel, request: dict[str, Any], answered: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the description once its status is final, or after `hold` seconds: clients look every 30 s."""
        deadline = time.monotonic() + self._hold
        status = f"{model.name.removeprefix('Describe')}Status"
        while answered.get(status) in NOT_FINAL and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
            answered = engine.answer(model, request) or {}
        return answered

    def _engine(self, region: str) -> Operations:
        with self._lock:
            if region not in self._engines:
                self._engines[region] = Operations(
                    region,
                    self._home,
                    lambda: self._environment(region),
                    self._s3(),
                    use_docker=lambda image: not stands_in(image),
                    runs=instance_types.runs_here,
                    launch=_in_thread,
                )
            return self._engines[region]


def _in_thread(start: Callable[[], None]) -> None:
    threading.Thread(target=start, daemon=True).start()


def _request(model: OperationModel, body: bytes) -> dict[str, Any]:
    """Return a request's members, which are checked by botocore's model. Raises ClientError."""
    members = arguments.SAGEMAKER.get(model.name)
    if members is None:
        raise invalid(model.name, f"{model.name} needs AWS: `fastmaker aws` has no such operation")
    try:
        given = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise invalid(model.name, f"the body is no JSON: {error}") from None
    if not isinstance(given, dict):
        raise invalid(model.name, "the body is no JSON object")
    try:
        request = _without_nulls(given)
        if errors := boto.type_errors(model, request):
            raise invalid(model.name, " ".join(errors.split()))
    except (ParamValidationError, RecursionError) as error:
        raise invalid(model.name, str(error)) from None
    reasons = constraints.violations(model.input_shape, request, here=False) or boto.reasons_against(
        model, request, arguments.SAGEMAKER
    )
    if reasons := reasons or unknown_image(request):
        raise invalid(model.name, reasons)
    return boto.honoured(request, members)


def _check_whole(model: OperationModel, answered: dict[str, Any]) -> None:
    """Check that a description has what the model requires; of a damaged record it lacks some. Raises ClientError."""
    if lacking := sorted(set(model.output_shape.required_members) - answered.keys()):
        raise invalid(model.name, answered.get("FailureReason", f"the record lacks {', '.join(lacking)}"))


def stands_in(image: str | None) -> bool:
    """Return whether processes of this machine stand in for an image; another is the user's own, for Docker."""
    return not image or IMAGES.search(image) is not None or rayserve.serves(image)


def unknown_image(request: Mapping[str, Any]) -> str:
    """Return that nothing here stands in for an image that a request names, nor Docker runs it; empty if one does."""
    containers = [request.get("PrimaryContainer", {}), *request.get("Containers", ())]
    training = request.get("AlgorithmSpecification", {}).get("TrainingImage")
    if rayserve.serves(training):
        return f"the image {training} is for endpoints and batch jobs, and trains nothing"
    for image in [training, *(container.get("Image") for container in containers)]:
        if not stands_in(image) and (reason := docker.missing(image)):
            expected = (
                "the images of AWS that can be rehearsed are pytorch-training, pytorch-inference and ray:serve-ml-*"
            )
            return (
                f"nothing on this machine stands in for the image {image}: {expected}; Docker runs others, but {reason}"
            )
    return ""


def _without_nulls(value: Any) -> Any:
    """Return JSON without its nulls, which AWS takes for what is not there."""
    if isinstance(value, dict):
        return {name: _without_nulls(member) for name, member in value.items() if member is not None}
    return [_without_nulls(element) for element in value if element is not None] if isinstance(value, list) else value


def _listed(model: OperationModel, error: ClientError) -> ClientError:
    """Return an error with a code that an operation has: one that its model lists, or that each has."""
    given = error.response["Error"]
    codes = {shape.error_code for shape in model.error_shapes}
    return error if given["Code"] in codes else invalid(model.name, given["Message"])


def serialized(shape: Shape, value: Any) -> Any:
    """Return a value in JSON's types, as a shape of the model has it; a member that it lacks is left out and logged."""
    if isinstance(value, datetime):
        return value.timestamp()
    if shape.type_name == "structure":
        for name in value.keys() - shape.members.keys():
            log.error("%s has no member %s", shape.name, name)
        known = {name: member for name, member in value.items() if name in shape.members and member is not None}
        return {name: serialized(shape.members[name], member) for name, member in known.items()}
    if shape.type_name == "list":
        return [serialized(shape.member, element) for element in value]
    if shape.type_name == "map":
        return {name: serialized(shape.value, member) for name, member in value.items()}
    return value
