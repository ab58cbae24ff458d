"""Every operation over HTTP, from creation to deletion; each answer is held against the service's model as it came."""

import json

import pytest
from botocore import xform_name
from botocore.exceptions import ClientError
from helpers.front import client_of
from helpers.front_jobs import HERE, ROLE, SERVE, SERVING_IMAGE, TRAIN, packed, training_request
from helpers.waiting import wait_until
from helpers.wire import misfits

from fastmaker.local import arguments, aws, boto

pytestmark = pytest.mark.server
SUMMARY = boto.service_model("sagemaker").shape_for("DescribeEndpointOutput")
ENDPOINT = {
    "EndpointName": "e",
    "EndpointArn": "arn:aws:sagemaker:us-west-2:000000000000:endpoint/e",
    "EndpointStatus": "InService",
    "CreationTime": 1.8e9,
    "LastModifiedTime": 1.8e9,
}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, []),
        ({"Nonsense": 1}, ["answer has an unknown member Nonsense"]),
        ({"EndpointArn": None}, ["answer.EndpointArn is None; expected a string"]),
        ({"EndpointStatus": "Fine"}, ["answer.EndpointStatus: 1 validation error detected: Value 'Fine'"]),
        ({"CreationTime": "2026-01-01"}, ["answer.CreationTime is '2026-01-01'; expected a timestamp"]),
        ({"CreationTime": 1.8e12}, ["answer.CreationTime is 1800000000000.0; expected seconds of the era"]),
        ({"ProductionVariants": [{}]}, ["answer.ProductionVariants[0] lacks VariantName"]),
        ({"ProductionVariants": {}}, ["answer.ProductionVariants is {}; expected a list"]),
    ],
)
def test_what_does_not_fit_a_model_is_found(changes, told):
    found = list(misfits(SUMMARY, {**ENDPOINT, **changes}))
    assert len(found) == len(told)
    assert all(one.startswith(start) for one, start in zip(found, told, strict=True)), found


class Caller:
    """Calls operations by the names that the model has, and remembers which were answered."""

    def __init__(self, *clients):
        self.clients, self.answered = clients, set()

    def __call__(self, operation, **request):
        client = next(client for client in self.clients if operation in client.meta.service_model.operation_names)
        answer = getattr(client, xform_name(operation))(**request)
        self.answered.add(operation)
        return answer

    def until(self, operation, status, *wanted, **request):
        return wait_until(lambda: (found := self(operation, **request))[status] in wanted and found)


def serve(call, s3):
    """Models, configurations, and an endpoint that is asked at once and then later."""
    s3.put_object(Bucket="shapes", Key="model.tar.gz", Body=packed(weights__txt="weights", code___inference__py=SERVE))
    env = {"SAGEMAKER_PROGRAM": "inference.py", "SAGEMAKER_MODEL_SERVER_WORKERS": "1"}
    container = {"Image": SERVING_IMAGE, "ModelDataUrl": "s3://shapes/model.tar.gz", "Environment": env}
    arns = [call("CreateModel", ModelName="m", PrimaryContainer=container, ExecutionRoleArn=ROLE)["ModelArn"]]
    call("DescribeModel", ModelName="m")
    variant = {"VariantName": "v", "ModelName": "m", "InstanceType": "ml.m5.xlarge", "InitialInstanceCount": 1}
    outputs = {"S3OutputPath": "s3://shapes/out", "S3FailurePath": "s3://shapes/failed"}
    for name, mode in (("at-once", {}), ("later", {"AsyncInferenceConfig": {"OutputConfig": outputs}})):
        arns.append(
            call("CreateEndpointConfig", EndpointConfigName=name, ProductionVariants=[variant], **mode)[
                "EndpointConfigArn"
            ]
        )
        call("DescribeEndpointConfig", EndpointConfigName=name)
    arns.append(call("CreateEndpoint", EndpointName="e", EndpointConfigName="at-once")["EndpointArn"])
    call.until("DescribeEndpoint", "EndpointStatus", "InService", EndpointName="e")
    assert call("InvokeEndpoint", EndpointName="e", Body=b"x")["Body"].read() == b"weights:x"
    with pytest.raises(ClientError, match="is not asynchronous; use InvokeEndpoint"):
        call("InvokeEndpointAsync", EndpointName="e", InputLocation="s3://shapes/in")
    wanted = [{"VariantName": "v", "DesiredWeight": 2.0}]
    call("UpdateEndpointWeightsAndCapacities", EndpointName="e", DesiredWeightsAndCapacities=wanted)
    call("UpdateEndpoint", EndpointName="e", EndpointConfigName="later")
    call.until("DescribeEndpoint", "EndpointStatus", "InService", EndpointName="e")
    s3.put_object(Bucket="shapes", Key="in", Body=b"later")
    answer = call("InvokeEndpointAsync", EndpointName="e", InputLocation="s3://shapes/in", InferenceId="i")
    assert answer["OutputLocation"] == "s3://shapes/out/i.out"
    s3.get_waiter("object_exists").wait(Bucket="shapes", Key="out/i.out", WaiterConfig={"Delay": 1})
    assert s3.get_object(Bucket="shapes", Key="out/i.out")["Body"].read() == b"weights:later"
    return arns


def work(call, s3):
    """Training and transform jobs that end, and some that are stopped."""
    s3.put_object(Bucket="shapes", Key="data/a.txt", Body=b"text")
    s3.put_object(Bucket="shapes", Key="source.tar.gz", Body=packed(train__py=TRAIN))
    source = {"DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://shapes/data/"}}}
    transform = {
        "ModelName": "m",
        "TransformInput": source,
        "TransformOutput": {"S3OutputPath": "s3://shapes/transformed"},
        "TransformResources": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1},
    }
    arns = []
    for name in ("stopped", "done"):
        arns.append(call("CreateTrainingJob", **training_request("shapes", name))["TrainingJobArn"])
        arns.append(call("CreateTransformJob", TransformJobName=name, **transform)["TransformJobArn"])
    for kind in ("Training", "Transform"):
        call(f"Describe{kind}Job", **{f"{kind}JobName": "stopped"})
        call(f"Stop{kind}Job", **{f"{kind}JobName": "stopped"})
        for name, ends in (("stopped", ("Stopped", "Completed")), ("done", ("Completed",))):
            call.until(f"Describe{kind}Job", f"{kind}JobStatus", *ends, **{f"{kind}JobName": name})
    return arns


@pytest.mark.slow
def test_every_operation_answers_as_its_model_says(tmp_path):
    with aws.running(tmp_path, hold=0) as environment:
        s3 = client_of(environment, "s3")
        s3.create_bucket(Bucket="shapes", CreateBucketConfiguration=HERE)
        call = Caller(client_of(environment, "sagemaker"), client_of(environment, "sagemaker-runtime"))
        for arn in serve(call, s3) + work(call, s3):
            assert call("AddTags", ResourceArn=arn, Tags=[{"Key": "k", "Value": "v"}])["Tags"]
            assert call("ListTags", ResourceArn=arn)["Tags"][-1] == {"Key": "k", "Value": "v"}
            call("DeleteTags", ResourceArn=arn, TagKeys=["k"])
            assert {"Key": "k", "Value": "v"} not in call("ListTags", ResourceArn=arn)["Tags"]
        for kind in ("TrainingJob", "TransformJob", "Model", "EndpointConfig", "Endpoint"):
            assert json.dumps(call(f"List{kind}s"), default=str).count(f"{kind}Name") >= 1
        call("DeleteEndpoint", EndpointName="e")
        for name in ("at-once", "later"):
            call("DeleteEndpointConfig", EndpointConfigName=name)
        call("DeleteModel", ModelName="m")
        call("DeleteTrainingJob", TrainingJobName="done")
    assert call.answered == arguments.SAGEMAKER.keys() | arguments.RUNTIME.keys()
    assert "has no member" not in (tmp_path / "aws" / "server.log").read_text()
