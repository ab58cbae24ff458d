"""Services that are moto's: what it lacks is refused at once, by name."""

import pytest
from botocore.exceptions import ClientError
from helpers.front import send, signed
from helpers.front_jobs import HERE

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
    refused_at_once(lambda: getattr(clients(service), operation)(**arguments), 400, f"stands in for .* {operation}")


def refused_at_once(call, status, words):
    with pytest.raises(ClientError, match=words) as caught:
        call()
    metadata = caught.value.response["ResponseMetadata"]
    assert (metadata["HTTPStatusCode"], metadata["RetryAttempts"]) == (status, 0)
    assert caught.value.response["Error"]["Code"] in ("UnknownOperationException", "InvalidParameterException")


QUERY = {"startTime": 0, "endTime": 1, "queryString": "fields @message"}
GROUP = "/aws/sagemaker/Endpoints/e"
REFUSED = {
    "a service": ("sagemaker-geospatial", "list_earth_observation_jobs", {}, 400, "stands in for sagemaker-geospatial"),
    "features": (
        "sagemaker-featurestore-runtime",
        "get_record",
        {"FeatureGroupName": "f", "RecordIdentifierValueAsString": "1"},
        404,
        "GET /FeatureGroup/f needs AWS",
    ),
    "devices": (
        "sagemaker-edge",
        "send_heartbeat",
        {"AgentVersion": "1", "DeviceName": "d", "DeviceFleetName": "f"},
        404,
        "POST /SendHeartbeat needs AWS",
    ),
    "metrics": (
        "sagemaker-metrics",
        "batch_put_metrics",
        {"TrialComponentName": "t", "MetricData": [{"MetricName": "m", "Timestamp": 1, "Value": 1.0}]},
        404,
        "PUT /BatchPutMetrics needs AWS",
    ),
    "a query": ("logs", "start_query", {"logGroupName": GROUP, **QUERY}, 400, f"StartQuery of {GROUP} needs AWS"),
    "a query of groups": (
        "logs",
        "start_query",
        {"logGroupNames": ["other", GROUP], **QUERY},
        400,
        f"StartQuery of {GROUP} needs AWS",
    ),
    "a line": (
        "logs",
        "put_log_events",
        {"logGroupName": GROUP, "logStreamName": "s", "logEvents": [{"timestamp": 1, "message": "m"}]},
        400,
        f"PutLogEvents of {GROUP} needs AWS",
    ),
    "a group": ("logs", "delete_log_group", {"logGroupName": GROUP}, 400, f"DeleteLogGroup of {GROUP} needs AWS"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_this_machine_has_not_is_refused_by_name_in_the_form_of_its_protocol(clients, case):
    service, operation, arguments, status, words = REFUSED[case]
    refused_at_once(lambda: getattr(clients(service), operation)(**arguments), status, words)


def test_what_a_service_of_moto_needs_and_is_not_installed_is_refused_by_its_name(clients):
    s3 = clients("s3")
    s3.create_bucket(Bucket="selected", CreateBucketConfiguration=HERE)
    s3.put_object(Bucket="selected", Key="rows.csv", Body=b"a,b\n1,2\n")
    asked = {"Expression": "select * from s3object", "ExpressionType": "SQL"}
    formats = {"InputSerialization": {"CSV": {}}, "OutputSerialization": {"CSV": {}}}
    call = lambda: s3.select_object_content(Bucket="selected", Key="rows.csv", **asked, **formats)  # noqa: E731
    refused_at_once(call, 400, "stands in for s3, does not have it: No module named 'py_partiql_parser'")


def test_what_moto_prints_does_not_stop_the_server(front):
    """A pipe holds 64 KB, and moto has a line for each request to a service that it does not know."""
    headers = signed(front, "no-such-service", "GET", "/")
    for _ in range(600):
        assert send(front, "GET", "/", b"", headers).status == 400
