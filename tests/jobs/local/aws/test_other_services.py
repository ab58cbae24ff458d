"""Services that are moto's: what it lacks is refused at once, by name."""

import pytest
from botocore.exceptions import ClientError

pytestmark = pytest.mark.server


@pytest.mark.parametrize(
    ("service", "operation", "arguments"),
    [
        ("service-quotas", "list_service_quotas", {"ServiceCode": "sagemaker"}),
        ("iam", "simulate_custom_policy", {"PolicyInputList": ["{}"], "ActionNames": ["s3:GetObject"]}),
        ("ecr", "start_lifecycle_policy_preview", {"repositoryName": "repository"}),
    ],
)
def test_what_moto_lacks_is_refused_by_name_and_not_asked_for_again(clients, service, operation, arguments):
    with pytest.raises(ClientError, match=f"stands in for .* {operation}") as caught:
        getattr(clients(service), operation)(**arguments)
    metadata = caught.value.response["ResponseMetadata"]
    assert (metadata["HTTPStatusCode"], metadata["RetryAttempts"]) == (400, 0)
