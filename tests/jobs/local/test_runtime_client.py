"""What InvokeEndpoint takes: what boto3 takes, and of that what SageMaker does; anything else is boto3's error."""

import io

import pytest
from botocore.exceptions import ClientError, ParamValidationError

from fastmaker.local.runtime_client import SageMakerRuntime


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"EndpointName": 5}, "EndpointName"),
        ({"Body": 5}, "Body"),
        ({"Body": None}, "Body"),
        ({"Body": object()}, "Body"),
        ({"Nonsense": 1}, "Nonsense"),
        ({"Accept": 3}, "Accept"),
        ({"TargetVariant": 7}, "TargetVariant"),
    ],
)
def test_what_boto3_does_not_take_is_its_error(tmp_path, request_, reason):
    with pytest.raises(ParamValidationError, match=reason):
        SageMakerRuntime(tmp_path).invoke_endpoint(**{"EndpointName": "e", **request_})


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"EndpointName": ""}, "not found"),
        ({"EndpointName": "../../outside"}, "not found"),
        ({"EndpointName": "e\0"}, "not found"),
        ({"EndpointName": "\udc80"}, "not found"),
        ({"EndpointName": "e" * 5000}, "not found"),
        ({"ContentType": "text/x\r\nHost: elsewhere"}, "ContentType"),
        ({"ContentType": "text/\xe9"}, "ContentType"),
        ({"CustomAttributes": "a\n"}, "CustomAttributes"),
        ({"SessionId": "s"}, "SessionId needs AWS"),
        ({"Body": io.BytesIO(b"x")}, "not found"),
    ],
)
def test_what_sagemaker_does_not_take_is_a_validation_error(tmp_path, request_, reason):
    with pytest.raises(ClientError, match=reason) as caught:
        SageMakerRuntime(tmp_path).invoke_endpoint(**{"EndpointName": "e", **request_})
    assert caught.value.response["Error"]["Code"] == "ValidationError"
