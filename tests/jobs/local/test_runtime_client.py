"""What InvokeEndpoint takes: what boto3 takes, and of that what SageMaker does; anything else is boto3's error."""

import io

import pytest
from botocore.exceptions import ClientError, ParamValidationError

from fastmaker.local.runtime_client import SageMakerRuntime

MOST = 6_291_456  # bytes of a body, in botocore's model
TOO_LARGE = "'body' failed to satisfy constraint: Member must have length less than or equal to 6291456"


class Holding:
    """A file whose content may be anything."""

    def __init__(self, content):
        self.content = content

    def read(self):
        return self.content


class Unreadable(io.RawIOBase):
    """A file whose disk has gone."""

    def read(self, size=-1):
        raise OSError("no such disk")


def closed():
    file = io.BytesIO(b"x")
    file.close()
    return file


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
        SageMakerRuntime(tmp_path).invoke_endpoint(**{"EndpointName": "e", "Body": b"x", **request_})


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"EndpointName": "nobodys"}, "not found"),
        ({"EndpointName": ""}, "'endpointName' failed to satisfy constraint: Member must satisfy regular expression"),
        ({"EndpointName": "../../outside"}, "endpointName"),
        ({"EndpointName": "e\0"}, "endpointName"),
        ({"EndpointName": "\udc80"}, "endpointName"),
        ({"EndpointName": "e" * 5000}, "length less than or equal to 63"),
        ({"ContentType": "text/x\r\nHost: elsewhere"}, "ContentType"),
        ({"ContentType": "text/\xe9"}, "contentType"),
        ({"CustomAttributes": "a\n"}, "CustomAttributes"),
        ({"SessionId": "s"}, "SessionId needs AWS"),
        ({"TargetModel": "other.tar.gz"}, "TargetModel needs AWS"),
        ({"Body": Unreadable()}, "the Body cannot be read: no such disk"),
        ({"Body": closed()}, "the Body cannot be read: I/O operation on closed file"),
        ({"Body": "\ud800"}, "'body' failed to satisfy constraint: Member must be text that can be encoded"),
        ({"Body": io.StringIO("\ud800")}, "the Body cannot be read"),
        ({"Body": Holding(None)}, "the Body cannot be read: it holds NoneType"),
        ({"Body": io.BytesIO(b"x")}, "not found"),
        ({"Body": b"x" * MOST}, "not found"),
        ({"Body": b"x" * (MOST + 1)}, TOO_LARGE),
        ({"Body": bytearray(MOST + 1)}, TOO_LARGE),
        ({"Body": "é" * (MOST // 2 + 1)}, TOO_LARGE),
        ({"Body": io.BytesIO(bytes(MOST + 1))}, TOO_LARGE),
    ],
)
def test_what_sagemaker_does_not_take_is_a_validation_error(tmp_path, request_, reason):
    with pytest.raises(ClientError, match=reason) as caught:
        SageMakerRuntime(tmp_path).invoke_endpoint(**{"EndpointName": "e", "Body": b"x", **request_})
    assert caught.value.response["Error"]["Code"] == "ValidationError"
