"""The requests that make something on AWS: recorded as they are sent or, in a dry run, printed in place of that.

botocore hands each request over after it has checked it against the service's model, and takes an answer in its place:
https://botocore.amazonaws.com/v1/documentation/api/latest/topics/events.html
"""

import json
import re
from collections.abc import Iterator

from botocore.awsrequest import AWSResponse

# Operations that change nothing begin with one of these; a dry run sends them, for its checks.
READS = ("BatchGet", "Describe", "Get", "Head", "List", "Search")
# Services that credentials come from: boto3 asks them by itself, and the requests hold secrets.
CREDENTIALS = ("signin", "sso", "sso-oidc", "sts")
SECRET = re.compile(r"credential|key|password|secret|token", re.IGNORECASE)  # names of variables that hold such
# The operations that make what fastmaker cleanup finds, with the kinds that it gives them and where their names stand.
MAKES = {
    "RegisterScalableTarget": ("scaling", "ResourceId"),
    "CreateModel": ("model", "ModelName"),
    "CreateEndpointConfig": ("endpoint-config", "EndpointConfigName"),
    "CreateEndpoint": ("endpoint", "EndpointName"),
    "CreateTrainingJob": ("training-job", "TrainingJobName"),
    "CreateTransformJob": ("transform-job", "TransformJobName"),
    "CreateRepository": ("image", "repositoryName"),
}
PARAMETERS = "fastmaker_parameters"  # a request's, in the context that botocore passes from event to event


class RequestRecorder:
    """The requests of one botocore session's clients, those that are made from it later as well."""

    def __init__(self, botocore_session, dry_run: bool):
        self.made: list[str] = []  # kind/name, in order
        botocore_session.register("before-parameter-build", self._keep_parameters)
        if dry_run:
            botocore_session.register("before-call", self._print)
        else:
            botocore_session.register("before-call", self._record)
            botocore_session.register("after-call", self._drop_refused)

    @staticmethod
    def _keep_parameters(params: dict, context: dict, **_) -> None:
        context[PARAMETERS] = params

    def _record(self, model, context: dict, **_) -> None:
        """Record a request before its answer, which may be lost where the request is not."""
        if model.name in MAKES:
            kind, key = MAKES[model.name]
            name = context[PARAMETERS][key]
            self.made.append(f"{kind}/{name.split('/')[1] if kind == 'scaling' else name}")

    def _drop_refused(self, http_response, parsed: dict, model, **_) -> None:
        """Drop a request that was refused at once; one refused at a second try may have been granted at the first."""
        refused = 400 <= http_response.status_code < 500
        if model.name in MAKES and refused and not parsed["ResponseMetadata"].get("RetryAttempts"):
            self.made.pop()

    @staticmethod
    def _print(model, context: dict, **_) -> tuple[AWSResponse, dict] | None:
        """Print a request that would change something, and return an answer in place of AWS's."""
        if model.service_model.service_name in CREDENTIALS or model.name.startswith(READS):
            return None
        service = model.service_model.service_id
        parameters = json.dumps(redacted_parameters(context[PARAMETERS]), indent=2, default=str)
        print(f"\n{service} {model.name}\n{parameters}")
        return AWSResponse("", 200, {}, None), dict(_empty(model.output_shape))


def redacted_parameters(value):
    """Return a request's parameters without the bytes that they carry, and without the values of secret variables."""
    if isinstance(value, dict):
        return {name: "***" if _is_secret(name, item) else redacted_parameters(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redacted_parameters(item) for item in value]
    if isinstance(value, bytes | bytearray) or hasattr(value, "read"):
        return "(data)"
    return value


def _is_secret(name: str, value) -> bool:
    """Return whether it is a variable of a container, or a hyperparameter, whose name is that of a secret."""
    return isinstance(value, str) and bool(SECRET.search(name)) and (name.isupper() or name.islower())


def _empty(shape) -> Iterator[tuple[str, object]]:
    """Yield names and empty values of the members that callers may look for in an answer."""
    for name, member in shape.members.items() if shape else ():
        if member.type_name == "string":
            yield name, ""
    yield "ResponseMetadata", {"HTTPStatusCode": 200, "HTTPHeaders": {}, "RetryAttempts": 0}
