"""What the job scripts ask AWS to make: remembered as it is made, or, in a dry run, printed and not sent.

botocore hands each request over after it has checked it against the service's model, and takes an answer in its place:
https://botocore.amazonaws.com/v1/documentation/api/latest/topics/events.html
"""

import json
from collections.abc import Iterator

from botocore.awsrequest import AWSResponse

# What changes nothing begins with one of these; a dry run sends it, to check what can be checked.
READS = ("BatchGet", "Describe", "Get", "Head", "List", "Search")
# The operations that make what jobs.cleanup finds, with the kinds that it gives them and where their names stand.
MAKES = {
    "CreateModel": ("model", "ModelName"),
    "CreateEndpointConfig": ("endpoint-config", "EndpointConfigName"),
    "CreateEndpoint": ("endpoint", "EndpointName"),
    "CreateTrainingJob": ("training-job", "TrainingJobName"),
    "CreateTransformJob": ("transform-job", "TransformJobName"),
    "CreateRepository": ("image", "repositoryName"),
}
PARAMETERS = "fastmaker_parameters"  # a request's, in the context that botocore passes from event to event


class Requests:
    """The requests of one botocore session's clients, those that are made from it later as well."""

    def __init__(self, botocore_session, dry_run: bool):
        self.dry_run = dry_run
        self.made: list[str] = []  # kind/name, in order
        botocore_session.register("before-parameter-build", self._remember)
        botocore_session.register("after-call", self._note)
        if dry_run:
            botocore_session.register("before-call", self._print)

    @staticmethod
    def _remember(params: dict, context: dict, **_) -> None:
        context[PARAMETERS] = params

    def _note(self, http_response, model, context: dict, **_) -> None:
        if model.name in MAKES and http_response.status_code < 300 and not self.dry_run:
            kind, key = MAKES[model.name]
            self.made.append(f"{kind}/{context[PARAMETERS][key]}")

    @staticmethod
    def _print(model, context: dict, **_) -> tuple[AWSResponse, dict] | None:
        """An answer in place of AWS's for what would change something."""
        if model.name.startswith(READS):
            return None
        service = model.service_model.service_id
        print(f"\n{service} {model.name}\n{json.dumps(shown(context[PARAMETERS]), indent=2, default=str)}")
        return AWSResponse("", 200, {}, None), dict(_empty(model.output_shape))


def shown(value):
    """A request's parameters without the bytes that they carry."""
    if isinstance(value, dict):
        return {name: shown(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [shown(item) for item in value]
    if isinstance(value, bytes | bytearray) or hasattr(value, "read"):
        return "(data)"
    return value


def _empty(shape) -> Iterator[tuple[str, object]]:
    """Names and empty values of the members that callers may look for in an answer."""
    for name, member in shape.members.items() if shape else ():
        if member.type_name == "string":
            yield name, ""
    yield "ResponseMetadata", {"HTTPStatusCode": 200, "HTTPHeaders": {}, "RetryAttempts": 0}
