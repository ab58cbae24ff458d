"""Answers held against botocore's own service models."""

import botocore.loaders
from botocore.model import ServiceModel
from botocore.validate import ParamValidator

_models = {}


def assert_answers_as(operation: str, answer: dict, service: str = "sagemaker") -> None:
    """`answer` has the output shape of `operation`: required members, no unknown ones, the right types."""
    if service not in _models:
        _models[service] = ServiceModel(botocore.loaders.Loader().load_service_model(service, "service-2"), service)
    shape = _models[service].operation_model(operation).output_shape
    answer = {key: value for key, value in answer.items() if key != "ResponseMetadata"}
    report = ParamValidator().validate(answer, shape)
    assert not report.has_errors(), report.generate_report()
