"""Jobs and endpoints of ml.* instances, by boto3: what AWS would answer, and what runs."""

import io
import json
import tarfile
import time

import pytest
from botocore.exceptions import ClientError
from helpers.front import client_of, kill_server
from helpers.front_jobs import HERE, IMAGE, ROLE, SERVE, SERVING_IMAGE, TRAIN, packed, training_request
from helpers.waiting import nothing_runs_below, wait_until

from fastmaker.local import aws

pytestmark = pytest.mark.server
GROUP = "/aws/sagemaker/TrainingJobs"


def events_of(logs, stream, **limits):
    """All events of a stream, by pages."""
    asked, found = {"logGroupName": GROUP, "logStreamName": stream, "startFromHead": True, **limits}, []
    while True:
        page = logs.get_log_events(**asked)
        found += page["events"]
        if page["nextForwardToken"] == asked.get("nextToken"):
            return found
        asked["nextToken"] = page["nextForwardToken"]


def came_back_as_asked(job, request):
    """All members of a request but those that AWS completes."""
    kept = request.keys() - {"Tags", "OutputDataConfig", "InputDataConfig"}
    assert {name: job[name] for name in kept} == {name: request[name] for name in kept}


def times_are_those_of_writing(logs, stream, events):
    """The steps of the script are half a second apart."""
    times = [event["timestamp"] for event in events]
    steps = [event["timestamp"] for event in events if event["message"].startswith("step")]
    assert times == sorted(times)
    assert len(steps) == 6
    assert 1900 < steps[-1] - steps[0] < 6000
    assert events_of(logs, stream, startTime=steps[3])[0]["timestamp"] == steps[3]
    (found,) = logs.filter_log_events(logGroupName=GROUP, filterPattern='"step 3"')["events"]
    assert found["timestamp"] == steps[3]


PATTERNS = {"step": 6, '"step 3"': 1, "step 3": 1, 'step -"step 3"': 5, '?"step 1" ?"step 2"': 2, "step -weights": 6}


def the_group_is_listed_and_patterns_find_their_lines(logs):
    assert [group["logGroupName"] for group in logs.describe_log_groups()["logGroups"]] == [GROUP]
    for pattern, count in PATTERNS.items():
        found = [
            event["message"]
            for event in logs.filter_log_events(logGroupName=GROUP, filterPattern=pattern)["events"]
            if event["message"].startswith("step")
        ]
        assert len(found) == count, (pattern, found)
    for pattern in ("?step 3", "{ $.a = 1 }", "[a, b]", "%step%"):
        with pytest.raises(logs.exceptions.InvalidParameterException, match="needs AWS; expected words"):
            logs.filter_log_events(logGroupName=GROUP, filterPattern=pattern)


def a_tail_sees_each_line_once(logs, events):
    """As `aws logs tail --follow` asks: again from the time of the last event on, for those whose ids it has not."""
    seen, since = {}, 0
    for _ in range(2):
        asked = {"logGroupName": GROUP, "interleaved": True, "startTime": since}
        for page in logs.get_paginator("filter_log_events").paginate(**asked, PaginationConfig={"PageSize": 2}):
            seen |= {event["eventId"]: event["message"] for event in page["events"]}
            since = max([since, *(event["timestamp"] for event in page["events"])])
    assert list(seen.values()) == [event["message"] for event in events]


def metrics_are_those_of_the_log(cloudwatch):
    dimensions = [{"Name": "TrainingJobName", "Value": "job"}]
    span = {"StartTime": time.time() - 600, "EndTime": time.time() + 60}
    metric = {"Namespace": GROUP, "MetricName": "step", "Dimensions": dimensions}
    listed = cloudwatch.list_metrics(Namespace=GROUP)["Metrics"]
    assert listed == [metric]
    points = cloudwatch.get_metric_statistics(**metric, **span, Period=600, Statistics=["Maximum", "SampleCount"])
    assert {(point["Maximum"], point["SampleCount"]) for point in points["Datapoints"]} == {(5.0, 6.0)}
    query = {"Id": "q", "MetricStat": {"Metric": metric, "Period": 1200, "Stat": "Sum"}}
    assert cloudwatch.get_metric_data(MetricDataQueries=[query], **span)["MetricDataResults"][0]["Values"] == [15.0]


def put_sources(s3, bucket):
    s3.create_bucket(Bucket=bucket, CreateBucketConfiguration=HERE)
    s3.put_object(Bucket=bucket, Key="data/a.txt", Body=b"text")
    s3.put_object(Bucket=bucket, Key="source.tar.gz", Body=packed(train__py=TRAIN))


def test_a_job_goes_on_while_the_server_is_killed_and_nothing_of_it_is_lost(tmp_path):
    with aws.running(tmp_path, hold=0) as environment:
        put_sources(client_of(environment, "s3"), "killed")
        sagemaker, logs = client_of(environment, "sagemaker"), client_of(environment, "logs")
        request = training_request("killed", "job")
        request["AlgorithmSpecification"]["MetricDefinitions"] = [{"Name": "step", "Regex": "step ([0-9])"}]
        arn = sagemaker.create_training_job(**request)["TrainingJobArn"]
        assert arn == "arn:aws:sagemaker:us-west-2:000000000000:training-job/job"
        with pytest.raises(sagemaker.exceptions.ResourceInUse):
            sagemaker.create_training_job(**request)

        def stream():
            found = logs.describe_log_streams(logGroupName=GROUP, logStreamNamePrefix="job/")["logStreams"]
            return found[0]["logStreamName"] if found else None

        name = wait_until(stream)
        before = wait_until(
            lambda: [e for e in events_of(logs, name) if "step 1" in e["message"]] and events_of(logs, name)
        )
        kill_server()
    with aws.running(tmp_path) as environment:  # a description waits for the end
        sagemaker, logs = client_of(environment, "sagemaker"), client_of(environment, "logs")
        job = sagemaker.describe_training_job(TrainingJobName="job")
        assert job["TrainingJobStatus"] == "Completed", job.get("FailureReason")
        came_back_as_asked(job, request)
        assert sagemaker.list_tags(ResourceArn=arn)["Tags"] == request["Tags"]
        artifacts = client_of(environment, "s3").get_object(Bucket="killed", Key="out/job/output/model.tar.gz")
        with tarfile.open(fileobj=io.BytesIO(artifacts["Body"].read())) as tar:
            assert tar.getnames() == ["weights.txt"]
        after = events_of(logs, name, limit=7)
        assert after[0]["message"].endswith(f"stand in for {IMAGE}")
        assert after[: len(before)] == before
        assert any("on ml.g4dn.xlarge text" in event["message"] for event in after)
        times_are_those_of_writing(logs, name, after)
        the_group_is_listed_and_patterns_find_their_lines(logs)
        a_tail_sees_each_line_once(logs, after)
        metrics_are_those_of_the_log(client_of(environment, "cloudwatch"))
    assert nothing_runs_below(tmp_path)
    assert "has no member" not in (tmp_path / "aws" / "server.log").read_text()


@pytest.fixture(scope="module")
def endpoint(clients):
    """An endpoint that is in service."""
    s3, sagemaker = clients("s3"), clients("sagemaker")
    create_endpoint(s3, sagemaker)
    yield "endpoint"
    delete_endpoint(sagemaker)


def create_endpoint(s3, sagemaker):
    s3.create_bucket(Bucket="models", CreateBucketConfiguration=HERE)
    archive = packed(weights__txt="weights", code___inference__py=SERVE)
    s3.put_object(Bucket="models", Key="model.tar.gz", Body=archive)
    container = {
        "Image": SERVING_IMAGE,
        "ModelDataUrl": "s3://models/model.tar.gz",
        "Environment": {"SAGEMAKER_PROGRAM": "inference.py", "SAGEMAKER_MODEL_SERVER_WORKERS": "1"},
    }
    sagemaker.create_model(ModelName="model", PrimaryContainer=container, ExecutionRoleArn=ROLE)
    variant = {"VariantName": "v", "ModelName": "model", "InstanceType": "ml.m5.xlarge", "InitialInstanceCount": 1}
    sagemaker.create_endpoint_config(EndpointConfigName="config", ProductionVariants=[variant])
    began = time.monotonic()
    sagemaker.create_endpoint(EndpointName="endpoint", EndpointConfigName="config")
    assert time.monotonic() - began < 5, "the servers are started after the answer"


def delete_endpoint(sagemaker):
    sagemaker.delete_endpoint(EndpointName="endpoint")
    sagemaker.delete_endpoint_config(EndpointConfigName="config")
    sagemaker.delete_model(ModelName="model")


def settled(sagemaker, endpoint):
    """The endpoint's description once it is not being created, which the server waits for."""
    found = sagemaker.describe_endpoint(EndpointName=endpoint)
    return found if found["EndpointStatus"] != "Creating" else None


def test_an_endpoint_answers_as_on_aws(clients, endpoint, front_home):
    sagemaker, runtime = clients("sagemaker"), clients("sagemaker-runtime")
    found = wait_until(lambda: settled(sagemaker, endpoint))
    assert found["EndpointStatus"] == "InService", found.get("FailureReason")
    config = sagemaker.describe_endpoint_config(EndpointConfigName="config")
    assert config["ProductionVariants"][0]["InstanceType"] == "ml.m5.xlarge"
    assert sagemaker.describe_model(ModelName="model")["ExecutionRoleArn"] == ROLE
    answer = runtime.invoke_endpoint(EndpointName=endpoint, Body=b"body", ContentType="text/x", Accept="text/y")
    assert answer["Body"].read() == b"weights:body"
    assert (answer["ContentType"], answer["InvokedProductionVariant"]) == ("text/y", "v")
    with pytest.raises(runtime.exceptions.ModelError) as caught:
        runtime.invoke_endpoint(EndpointName=endpoint, Body=b"bad", ContentType="text/x")
    assert caught.value.response["OriginalStatusCode"] == 500
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 424
    with pytest.raises(runtime.exceptions.ValidationError, match="not found"):
        runtime.invoke_endpoint(EndpointName="another", Body=b"x")
    with pytest.raises(ClientError, match="TargetModel needs AWS"):
        runtime.invoke_endpoint(EndpointName=endpoint, Body=b"x", TargetModel="m.tar.gz")
    logs = clients("logs")
    group = f"/aws/sagemaker/Endpoints/{endpoint}"
    (stream,) = logs.describe_log_streams(logGroupName=group)["logStreams"]
    assert stream["logStreamName"].startswith("v/i-")
    assert wait_until(lambda: logs.filter_log_events(logGroupName=group, filterPattern='"/invocations"')["events"])
    assert "has no member" not in (front_home / "aws" / "server.log").read_text()
    assert json.dumps(sagemaker.list_endpoints()["Endpoints"], default=str).count("InService") == 1


@pytest.mark.slow
def test_an_endpoint_that_was_being_created_when_the_server_was_killed_comes_into_service(tmp_path):
    with aws.running(tmp_path, hold=0) as environment:
        create_endpoint(client_of(environment, "s3"), client_of(environment, "sagemaker"))
        kill_server()
    with aws.running(tmp_path) as environment:
        sagemaker = client_of(environment, "sagemaker")
        found = wait_until(lambda: settled(sagemaker, "endpoint"))
        assert found["EndpointStatus"] == "InService", found.get("FailureReason")
        answer = client_of(environment, "sagemaker-runtime").invoke_endpoint(EndpointName="endpoint", Body=b"body")
        assert answer["Body"].read() == b"weights:body"
        delete_endpoint(sagemaker)
    assert nothing_runs_below(tmp_path)
