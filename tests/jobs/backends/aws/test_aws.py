"""The job scripts on ml.* types: every request passes botocore's validation and is accepted by moto's server."""

import importlib
import json
import os
import re
import shutil
import zipfile

import boto3
import pytest
from helpers.aws_server import AwsServer

from fastmaker import preprocess
from fastmaker.jobs import backends, storage
from fastmaker.jobs.backends.aws import session
from fastmaker.jobs.backends.aws.endpoints import DIMENSION, TRACKING
from fastmaker.jobs.cli import errors, redaction
from fastmaker.serving import models

ACCOUNT = "123456789012"  # moto's
ROLE = f"arn:aws:iam::{ACCOUNT}:role/jobs"
OWN_BUCKET = f"sagemaker-us-east-1-{ACCOUNT}"
TRAIN = "train --data {few} --arch convnet --epochs 1 --job-name j"
TRAIN_ON_S3 = "train --data s3://given/train/ --arch convnet --epochs 1 --job-name j"  # which nobody checks here
DEPLOY = "deploy --model {bundle} --endpoint-name e"
TRANSFORM = "transform --model {bundle} --data {few}/7 --job-name t"
QUOTAS = {
    "ml.g4dn.xlarge for training job usage": 2,
    "ml.p3.2xlarge for spot training job usage": 1,
    "ml.c5.large for endpoint usage": 4,
    "ml.c5.xlarge for transform job usage": 2,
}


@pytest.fixture(scope="module")
def server():
    server = AwsServer()
    yield server
    server.stop()


@pytest.fixture
def aws(server, monkeypatch, tmp_path):
    """An account with a role and a bucket, which boto3 finds, in an empty folder."""
    server.reset()
    server.quotas = dict(QUOTAS)
    for name in list(os.environ):
        if name.startswith(("AWS_", "SAGEMAKER_ROLE")):
            monkeypatch.delenv(name)
    environment = {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "2",
        "SAGEMAKER_ROLE": "jobs",
        "FASTMAKER_HOME": str(tmp_path / "home"),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    boto3.client("iam").create_role(RoleName="jobs", AssumeRolePolicyDocument="{}")
    boto3.client("s3").create_bucket(Bucket="given")
    boto3.client("s3").put_object(Bucket="given", Key="train/7/1.png", Body=b"an image")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(session, "POLL_SECONDS", 0.05)
    server.requests.clear()
    return server


@pytest.fixture
def run(few, digits_bundle, tmp_path, capsys):
    """run(command) -> (exit status, stdout, stderr), as each script's last lines do it. No account number shows."""
    shutil.copytree(digits_bundle, tmp_path / "bundle")

    def run(command: str) -> tuple[int, str, str]:
        name, *words = command.format(few=few, bundle=tmp_path / "bundle").split()
        script = importlib.import_module(f"fastmaker.jobs.{name}")
        status = 0
        try:
            with errors.errors_as_one_line():
                status = script.main(script.parse_args(words))
        except SystemExit as ended:
            status = ended.code
        out, error = capsys.readouterr()
        assert ACCOUNT not in out + error
        assert "Traceback" not in error
        return status, out, error

    return run


def succeeded(done) -> str:
    status, out, error = done
    assert status == 0, error
    return out


def failed(done) -> str:
    """The line on stderr of a script that ended with status 1."""
    status, _, error = done
    (line,) = [line for line in error.splitlines() if not line.startswith("INFO")]
    assert line.startswith("error: ")
    assert status == 1
    return line


def tags(request: dict) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in request["Tags"]}


def test_a_training_job_is_asked_for_with_its_data_and_code_in_s3(aws, run, few):
    out = succeeded(run(f"{TRAIN} --instance-type ml.g4dn.xlarge --batch-size 8 --volume-size 50 --max-run 3600"))
    (request,) = aws.sent("CreateTrainingJob")
    assert request["RoleArn"] == ROLE
    assert request["AlgorithmSpecification"]["TrainingImage"].endswith("/pytorch-training:2.8.0-gpu-py312")
    assert request["ResourceConfig"] == {"InstanceCount": 1, "InstanceType": "ml.g4dn.xlarge", "VolumeSizeInGB": 50}
    assert request["StoppingCondition"] == {"MaxRuntimeInSeconds": 3600}
    assert request["OutputDataConfig"] == {"S3OutputPath": f"s3://{OWN_BUCKET}/fastmaker/training-job"}
    assert request["HyperParameters"]["arch"] == '"convnet"'
    assert {metric["Name"] for metric in request["AlgorithmSpecification"]["MetricDefinitions"]} >= {"valid:accuracy"}
    assert tags(request) == {"fastmaker": "j"}

    uri = request["InputDataConfig"][0]["DataSource"]["S3DataSource"]["S3Uri"]
    assert uri == f"s3://{OWN_BUCKET}/fastmaker/training-job/j/data/train/"
    pages = (
        boto3.client("s3")
        .get_paginator("list_objects_v2")
        .paginate(Bucket=OWN_BUCKET, Prefix="fastmaker/training-job/j/")
    )
    below = len("fastmaker/training-job/j/")
    keys = {item["Key"][below:] for page in pages for item in page["Contents"]}
    images = {f"data/train/{file.relative_to(few)}" for file in few.rglob("*.png")}
    assert keys == {"made-by-fastmaker", "source/sourcedir.tar.gz", *images}
    assert "next:   fastmaker deploy --model j --instance-type" in out
    assert "to end it: fastmaker cleanup --backend aws --only training-job/j" in out


def test_two_spot_instances_with_v100s_train_on_the_image_that_has_code_for_them(aws, run):
    aws.quotas["ml.p3.2xlarge for spot training job usage"] = 2
    words = "--instance-type ml.p3.2xlarge --instance-count 2 --spot --max-wait 90000 --checkpoints s3://given/c"
    succeeded(run(f"{TRAIN_ON_S3} {words}"))
    (request,) = aws.sent("CreateTrainingJob")
    assert request["AlgorithmSpecification"]["TrainingImage"].endswith("/pytorch-training:2.6.0-gpu-py312")
    assert request["ResourceConfig"]["InstanceCount"] == 2
    assert request["EnableManagedSpotTraining"] is True
    assert request["StoppingCondition"] == {"MaxRuntimeInSeconds": 86400, "MaxWaitTimeInSeconds": 90000}
    assert request["CheckpointConfig"] == {"S3Uri": "s3://given/c"}


@pytest.mark.parametrize(
    ("instance_type", "words", "image", "says"),
    [
        ("ml.c5.large", "", "ray:serve-ml-sagemaker-cpu", "Ray Serve. AWS has not patched its PyTorch inference"),
        ("ml.g4dn.xlarge", "", "ray:serve-ml-sagemaker-cuda", "since 2026-06-30; --server torchserve takes them"),
        ("ml.p3.2xlarge", "", "pytorch-inference:2.6.0-gpu-py312", "has no code for ml.p3.2xlarge"),
        (
            "ml.c5.large",
            "--server torchserve",
            "pytorch-inference:2.6.0-cpu-py312",
            "TorchServe. AWS has not patched its PyTorch inference images since 2026-06-30\n",
        ),
    ],
    ids=["CPU", "GPU", "a V100", "TorchServe on request"],
)
def test_a_model_is_deployed_to_instances_of_a_type_without_being_packed_again(
    aws, run, instance_type, words, image, says
):
    out = succeeded(run(f"{DEPLOY} --instance-type {instance_type} {words} --env FASTMAKER_PRECISION=bf16"))
    assert says in out
    (model,) = aws.sent("CreateModel")
    container = model.get("PrimaryContainer") or model["Containers"][0]
    assert container["Image"] == f"763104351884.dkr.ecr.us-east-1.amazonaws.com/{image}"
    assert container["ModelDataUrl"] == f"s3://{OWN_BUCKET}/fastmaker/endpoint/e/model/bundle.tar.gz"
    assert (
        container["Environment"].items()
        >= {"SAGEMAKER_PROGRAM": "entry_point.py", "FASTMAKER_PRECISION": "bf16"}.items()
    )
    (config,) = aws.sent("CreateEndpointConfig")
    (variant,) = config["ProductionVariants"]
    assert (variant["InstanceType"], variant["InitialInstanceCount"]) == (instance_type, 1)
    ami = "al2-ami-sagemaker-inference-gpu-3-1" if image.endswith("-cuda") else None  # has the driver for its CUDA
    assert variant.get("InferenceAmiVersion") == ami
    (endpoint,) = aws.sent("CreateEndpoint")
    assert [tags(request)["fastmaker"] for request in (model, config, endpoint)] == ["e", "e", "e"]


@pytest.mark.parametrize(("instance_type", "image"), [("ml.m7i.large", "cpu"), ("ml.g7e.2xlarge", "cuda")])
def test_a_model_can_be_deployed_to_types_that_are_newer_than_moto(aws, run, instance_type, image):
    out = succeeded(run(f"{DEPLOY} --instance-type {instance_type} --dry-run"))
    assert f'"InstanceType": "{instance_type}"' in out
    assert f"/ray:serve-ml-sagemaker-{image}" in out


def test_a_bundle_of_an_earlier_version_is_not_sent_to_ray_serve(aws, run, digits_bundle, tmp_path):
    folder = tmp_path / "earlier"
    shutil.copytree(digits_bundle, folder)
    (folder / "config.yaml").unlink()
    command = f"deploy --model {folder} --endpoint-name e --instance-type ml.c5.large --dry-run"
    status, _, error = run(command)
    assert status == 2
    assert "earlier has no config.yaml" in error
    succeeded(run(f"{command} --server torchserve"))


def test_what_is_for_aws_alone_is_said_and_left_out_on_this_machine(capsys):
    request = backends.EndpointRequest("e", "m", max_instances=4, volume_size=9)
    assert backends.Local().check(request) is True
    assert capsys.readouterr().out == "on AWS alone, without effect here: --max, --volume-size\n"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--serverless-memory 1000", "expected one of 1024, 2048"),
        ("--serverless-memory 1024 --max 2", "goes without"),
        ("--async-output out", "begins with s3://"),
        ("--data-capture 0", "expected 1 to 100"),
        ("--max 2 --min 0", "expected 1 <= --min"),
        ("--max 2 --instance-count 3", "--instance-count <= --max"),
    ],
)
def test_bad_arguments_of_an_endpoint_on_aws_are_refused(run, words, reason):
    status, _, error = run(f"deploy --model m {words}")
    assert status == 2
    assert reason in error


def test_a_serverless_endpoint_needs_no_instance_type(aws, run):
    succeeded(run(f"{DEPLOY} --backend aws --serverless-memory 3072 --serverless-concurrency 9"))
    (variant,) = aws.sent("CreateEndpointConfig")[0]["ProductionVariants"]
    assert variant["ServerlessConfig"] == {"MemorySizeInMB": 3072, "MaxConcurrency": 9}
    assert "InstanceType" not in variant


def test_an_asynchronous_endpoint_scales_to_nothing_by_its_backlog(aws, run):
    words = "--async-output s3://given/out/ --min 0 --max 3 --target-invocations 5"
    succeeded(run(f"{DEPLOY} --instance-type ml.c5.large {words}"))
    (config,) = aws.sent("CreateEndpointConfig")
    output = {"S3OutputPath": "s3://given/out", "S3FailurePath": "s3://given/out/failures"}
    assert config["AsyncInferenceConfig"]["OutputConfig"] == output
    (target,) = aws.sent("RegisterScalableTarget")
    assert (target["MinCapacity"], target["MaxCapacity"]) == (0, 3)
    assert target["ResourceId"] == "endpoint/e/variant/AllTraffic"
    policy, waking = aws.sent("PutScalingPolicy")
    tracking = policy["TargetTrackingScalingPolicyConfiguration"]
    assert tracking["TargetValue"] == 5
    assert tracking["CustomizedMetricSpecification"]["Dimensions"] == [{"Name": "EndpointName", "Value": "e"}]
    assert waking["StepScalingPolicyConfiguration"]["StepAdjustments"][0]["ScalingAdjustment"] == 1
    (alarm,) = boto3.client("cloudwatch").describe_alarms()["MetricAlarms"]
    assert (alarm["MetricName"], alarm["Threshold"]) == ("HasBacklogWithoutCapacity", 1)
    assert [action.rpartition("/")[2] for action in alarm["AlarmActions"]] == ["fastmaker-waking"]
    succeeded(run("cleanup --backend aws --endpoint e"))
    assert boto3.client("cloudwatch").describe_alarms()["MetricAlarms"] == []
    assert not [name for name in what_is_there() if name.startswith(("policy", "target"))]


def test_an_endpoint_scales_by_its_requests_and_captures_some(aws, run):
    succeeded(run(f"{DEPLOY} --instance-type ml.c5.large --max 4 --target-invocations 90 --data-capture 25"))
    (config,) = aws.sent("CreateEndpointConfig")
    capture = config["DataCaptureConfig"]
    assert (capture["EnableCapture"], capture["InitialSamplingPercentage"]) == (True, 25)
    assert capture["DestinationS3Uri"] == f"s3://{OWN_BUCKET}/fastmaker/endpoint/e/captured"
    (policy,) = aws.sent("PutScalingPolicy")
    tracking = policy["TargetTrackingScalingPolicyConfiguration"]
    metric = {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"}
    assert tracking == {"TargetValue": 90.0, "PredefinedMetricSpecification": metric}


def test_a_batch_job_over_a_folder_on_two_instances(aws, run, few):
    words = "--instance-type ml.c5.xlarge --instance-count 2 --max-retries 1 --join-source Input --split-type Line"
    succeeded(run(f"{TRANSFORM} {words}"))
    (request,) = aws.sent("CreateTransformJob")
    source = {
        "S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"s3://{OWN_BUCKET}/fastmaker/transform-job/t/inputs/"}
    }
    assert request["TransformInput"]["DataSource"] == source
    assert request["TransformOutput"]["S3OutputPath"] == f"s3://{OWN_BUCKET}/fastmaker/transform-job/t/answers"
    assert request["TransformResources"] == {"InstanceCount": 2, "InstanceType": "ml.c5.xlarge"}
    assert request["ModelClientConfig"] == {"InvocationsMaxRetries": 1}
    assert request["DataProcessing"] == {"JoinSource": "Input"}
    assert tags(request) == {"fastmaker": "t"}
    keys = boto3.client("s3").list_objects_v2(Bucket=OWN_BUCKET, Prefix="fastmaker/transform-job/t/inputs/")["Contents"]
    assert len(keys) == len(list((few / "7").iterdir()))


def test_a_batch_job_over_a_manifest_and_another_for_what_it_left(aws, run, few):
    s3 = boto3.client("s3")
    for name in ("a.png", "b.png"):
        s3.put_object(Bucket="given", Key=f"in/{name}", Body=b"an image")
    succeeded(run("manifest build s3://given/in/ --output m.json"))
    words = "--manifest m.json --instance-type ml.c5.xlarge --output s3://given/out --collect answers.jsonl"
    out = succeeded(run(f"transform --model {{bundle}} --job-name t {words}"))
    (request,) = aws.sent("CreateTransformJob")
    source = request["TransformInput"]["DataSource"]["S3DataSource"]
    uri = f"s3://{OWN_BUCKET}/fastmaker/transform-job/t/inputs/m.json"
    assert source == {"S3DataType": "ManifestFile", "S3Uri": uri}
    assert json.load(storage.open_object(uri)) == [{"prefix": "s3://given/in/"}, "a.png", "b.png"]
    assert "fastmaker transform --backend aws --retry-failed t" in out

    s3.put_object(Bucket="given", Key="out/a.png.out", Body=b'{"label": "7"}')
    retry = "transform --backend aws --retry-failed t --job-name again"
    assert "would transform 1 of 2 objects" in succeeded(run(f"{retry} --dry-run"))
    assert len(aws.sent("CreateTransformJob")) == 1
    succeeded(run(retry))
    again = aws.sent("CreateTransformJob")[1]
    uri = again["TransformInput"]["DataSource"]["S3DataSource"]["S3Uri"]
    assert json.load(storage.open_object(uri)) == [{"prefix": "s3://given/in/"}, "b.png"]
    assert tags(again) == {"fastmaker": "again"}


def test_answers_that_are_no_text_are_not_collected_after_a_retry_either(aws, run):
    succeeded(run(f"{TRANSFORM} --instance-type ml.c5.xlarge --accept image/png"))
    status, _, error = run("transform --backend aws --retry-failed t --collect answers.csv")
    assert status == 2
    assert "or text/csv, not image/png" in error
    assert len(aws.sent("CreateTransformJob")) == 1


def test_an_endpoint_is_asked_through_its_api(digits_predictor, aws, run, few, digits_bundle):
    """What answers is a container of local mode, with the stock toolkit in it."""
    succeeded(run(f"{DEPLOY} --instance-type ml.c5.large"))
    found = digits_predictor.sagemaker_session.sagemaker_client.endpoints.read(digits_predictor.endpoint_name)
    aws.containers["e"] = f"http://127.0.0.1:{found['servers'][0]['port']}"
    images = sorted((few / "7").glob("*.png"))[:3]
    out = succeeded(run(f"predict --backend aws --endpoint e --json {' '.join(map(str, images))}"))
    model = models.load(digits_bundle)
    for line, file in zip(out.splitlines(), images, strict=True):
        [expected] = model.predict([preprocess.decode(file.read_bytes())])
        assert json.loads(line) == {"image": str(file), **expected.as_object()}


def test_an_asynchronous_endpoint_is_asked_through_s3(aws, run, few):
    succeeded(run(f"{DEPLOY} --instance-type ml.c5.large --async-output s3://given/out"))
    answers = [
        {"is_failure": False, "data": '{"label": "7", "probability": 0.75}'},
        {"is_failure": True, "data": "400"},
    ]
    aws.expect_async(answers)
    images = sorted((few / "7").glob("*.png"))[:2]
    _, out, _ = run(f"predict --backend aws --endpoint e --json {' '.join(map(str, images))}")
    rows = [json.loads(line) for line in out.splitlines()]
    assert sorted(row.get("label", row.get("error")) for row in rows) == ["400", "7"]


def test_answers_of_an_endpoint_on_aws_go_to_s3(aws, run):
    status, _, error = run(f"{DEPLOY} --instance-type ml.c5.large --async-output file://out")
    assert (status, "expected a URI that begins with s3://" in error) == (2, True)


@pytest.mark.parametrize(
    ("command", "operations"),
    [
        (f"{TRAIN} --instance-type ml.g4dn.xlarge", ["CreateTrainingJob"]),
        (
            f"{DEPLOY} --instance-type ml.c5.large --max 4",
            ["CreateModel", "CreateEndpointConfig", "CreateEndpoint", "RegisterScalableTarget", "PutScalingPolicy"],
        ),
        (f"{TRANSFORM} --instance-type ml.c5.xlarge", ["CreateModel", "CreateTransformJob"]),
    ],
)
def test_a_dry_run_prints_what_is_sent_without_it_and_sends_nothing(aws, run, command, operations):
    out = succeeded(run(f"{command} --dry-run"))
    assert aws.changes() == []
    assert "nothing was sent" in out
    requests = printed(out)
    succeeded(run(command))
    for operation in operations:
        (sent,) = aws.sent(operation)
        assert without_times(requests[operation]) == without_times(sent), operation


def printed(out: str) -> dict[str, dict]:
    """The requests that a dry run has printed, by their operations."""
    found = re.findall(r"^[\w -]+ (\w+)\n(\{.*?^\})", out, re.MULTILINE | re.DOTALL)
    return {operation: json.loads(request) for operation, request in found}


def without_times(request: dict) -> str:
    text = re.sub(r"\d{4}(-\d\d){5}-\d{3}", "TIME", json.dumps(request, sort_keys=True))
    return text.replace(ACCOUNT, "*" * 12)


@pytest.mark.parametrize("command", [TRAIN, DEPLOY, TRANSFORM])
def test_a_dry_run_on_this_machine_checks_and_starts_nothing(aws, run, tmp_path, command):
    assert "leave out --dry-run" in succeeded(run(f"{command} --dry-run"))
    assert not list((tmp_path / "home").glob("*/*"))
    assert aws.requests == []


def test_a_package_is_made_of_a_training_job_on_aws(aws, run, digits_archive, tmp_path):
    succeeded(run(f"{TRAIN_ON_S3} --instance-type ml.g4dn.xlarge"))
    boto3.client("s3").upload_file(str(digits_archive), OWN_BUCKET, "fastmaker/training-job/j/output/model.tar.gz")
    succeeded(run("package torchserve j --aws"))
    assert zipfile.is_zipfile("j.mar")


def everything_is_made(run) -> None:
    succeeded(run(f"{TRAIN_ON_S3} --instance-type ml.g4dn.xlarge"))
    succeeded(run(f"{DEPLOY} --instance-type ml.c5.large --max 4"))
    succeeded(run(f"{TRANSFORM} --instance-type ml.c5.xlarge"))
    tag = {"Key": "fastmaker", "Value": "fastmaker"}
    boto3.client("ecr").create_repository(repositoryName="fastmaker", tags=[tag])


def something_of_others_is_made() -> None:
    client = boto3.client("sagemaker")
    image = {"Image": f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com/others:1", "ModelDataUrl": "s3://given/model.tar.gz"}
    client.create_model(ModelName="others", ExecutionRoleArn=ROLE, PrimaryContainer=image)
    variant = {
        "VariantName": "AllTraffic",
        "ModelName": "others",
        "InstanceType": "ml.c5.large",
        "InitialInstanceCount": 1,
    }
    client.create_endpoint_config(EndpointConfigName="others", ProductionVariants=[variant])
    client.create_endpoint(EndpointName="others", EndpointConfigName="others")
    scaling = boto3.client("application-autoscaling")
    target = {
        "ServiceNamespace": "sagemaker",
        "ResourceId": "endpoint/others/variant/AllTraffic",
        "ScalableDimension": DIMENSION,
    }
    scaling.register_scalable_target(**target, MinCapacity=1, MaxCapacity=2)
    metric = {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"}
    tracking = {"TargetValue": 1.0, "PredefinedMetricSpecification": metric}
    for name in ("others", TRACKING):
        scaling.put_scaling_policy(
            **target,
            PolicyName=name,
            PolicyType="TargetTrackingScaling",
            TargetTrackingScalingPolicyConfiguration=tracking,
        )
    boto3.client("ecr").create_repository(repositoryName="others")
    s3 = boto3.client("s3")
    s3.put_object(Bucket=OWN_BUCKET, Key="fastmaker/endpoint/others/data", Body=b"")
    s3.put_object(Bucket=OWN_BUCKET, Key="fastmaker/endpoint/theirs/made-by-fastmaker", Body=b"")
    s3.put_object(Bucket=OWN_BUCKET, Key="else", Body=b"")


def what_is_there() -> set[str]:
    client, s3 = boto3.client("sagemaker"), boto3.client("s3")
    scaling = boto3.client("application-autoscaling")
    policies = scaling.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"]
    targets = scaling.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]
    return {
        *(f"endpoint {item['EndpointName']}" for item in client.list_endpoints()["Endpoints"]),
        *(f"config {item['EndpointConfigName']}" for item in client.list_endpoint_configs()["EndpointConfigs"]),
        *(f"model {item['ModelName']}" for item in client.list_models()["Models"]),
        *(f"policy {item['PolicyName']} of {item['ResourceId']}" for item in policies),
        *(f"target {item['ResourceId']}" for item in targets),
        *(f"image {item['repositoryName']}" for item in boto3.client("ecr").describe_repositories()["repositories"]),
        *(f"object {item['Key']}" for item in s3.list_objects_v2(Bucket=OWN_BUCKET).get("Contents", ())),
    }


def test_cleanup_deletes_what_the_jobs_made_and_nothing_else_and_may_run_again(aws, run):
    everything_is_made(run)
    ours = what_is_there()
    something_of_others_is_made()
    theirs = what_is_there() - ours
    listed = succeeded(run("cleanup --backend aws"))
    assert {line.split()[0] for line in listed.splitlines()[2:-2] if line} == {
        "scaling",
        "endpoint",
        "endpoint-config",
        "model",
        "image",
        "s3",
    }
    assert "others" not in listed
    assert "theirs" not in listed
    assert what_is_there() == ours | theirs
    assert succeeded(run("cleanup --backend aws --all --yes")).endswith("\n\ndeleted\n")
    assert what_is_there() == theirs
    assert succeeded(run("cleanup --backend aws --all --yes")).strip() == "nothing is left in us-east-1"


def test_cleanup_of_an_endpoint_takes_its_scaling_configuration_and_models(aws, run):
    succeeded(run(f"{DEPLOY} --instance-type ml.c5.large --max 4"))
    succeeded(run(f"{TRANSFORM} --instance-type ml.c5.xlarge"))
    before = what_is_there()
    succeeded(run("cleanup --backend aws --endpoint e"))
    gone = before - what_is_there()
    assert sorted(name.split()[0] for name in gone) == ["config", "endpoint", "model", "policy", "target"]


def test_cleanup_says_where_a_bucket_keeps_versions_of_what_was_deleted(aws, run):
    versions = {"Status": "Enabled"}
    boto3.client("s3").create_bucket(Bucket=OWN_BUCKET)
    boto3.client("s3").put_bucket_versioning(Bucket=OWN_BUCKET, VersioningConfiguration=versions)
    succeeded(run(f"{DEPLOY} --instance-type ml.c5.large"))
    out = succeeded(run("cleanup --backend aws --all --yes"))
    assert "fastmaker/endpoint/e/ had versions, which the bucket keeps" in out
    assert what_is_there() == set()


def test_cleanup_refuses_an_endpoint_of_others(aws, run):
    boto3.client("s3").create_bucket(Bucket=OWN_BUCKET)
    something_of_others_is_made()
    before = what_is_there()
    assert "endpoint others was not made by fastmaker" in failed(run("cleanup --backend aws --endpoint others"))
    assert what_is_there() == before


EXPIRED = (403, "ExpiredToken", "The security token included in the request is expired")
THROTTLED = (400, "ThrottlingException", "Rate exceeded")
DENIED = (400, "AccessDeniedException", f"User: arn:aws:iam::{ACCOUNT}:user/me is not authorized to perform this")
NO_LIMIT = (
    400,
    "ResourceLimitExceeded",
    "The account-level service limit 'ml.c5.large for endpoint usage' is 0 Instances",
)


@pytest.mark.parametrize(
    ("command", "failures", "reason"),
    [
        (
            f"{TRAIN_ON_S3} --instance-type ml.g4dn.xlarge",
            {"GetCallerIdentity": EXPIRED},
            "token included in the request is expired",
        ),
        (f"{TRAIN_ON_S3} --instance-type ml.g4dn.xlarge --role nobody", {}, "Role nobody not found"),
        (
            f"{TRAIN_ON_S3} --instance-type ml.g4dn.xlarge --role arn:aws:iam::{ACCOUNT}:role/nobody",
            {},
            "there is no role nobody",
        ),
        (f"{TRAIN_ON_S3} --instance-type ml.g4dn.xlarge --output s3://missing/o", {}, "there is no bucket missing"),
        (
            "deploy --model {bundle} --endpoint-name my_pets --instance-type ml.c5.large",
            {},
            "letters, digits and hyphens",
        ),
        (f"{DEPLOY} --instance-type ml.g7e.2xlarge --server torchserve", {}, "has no code for ml.g7e.2xlarge"),
        (
            "deploy --model j --instance-type ml.c5.large",
            {"DescribeTrainingJob": THROTTLED},
            "Rate exceeded",
        ),
        (f"{TRAIN_ON_S3} --instance-type ml.g4dn.xlarge --instance-count 3", {}, "is 2, 3 wanted"),
        (f"{TRAIN_ON_S3} --instance-type ml.g4dn.xlarge --image-uri fastmaker:7", {}, "there is no image"),
        (f"{TRAIN_ON_S3} --instance-type ml.g4dn.xlarge --image-uri docker.io/me/it", {}, "expected one in Amazon ECR"),
        (
            "train --data s3://given/nothing --instance-type ml.g4dn.xlarge",
            {},
            "no object in S3 has this prefix",
        ),
        (f"{TRAIN_ON_S3} --instance-type ml.g4dn.xlarg", {}, "expected one such as ml.g4dn.xlarge"),
        (f"{TRANSFORM} --instance-type ml.eia1.large", {}, "boto3 knows no such transform type"),
        (f"{DEPLOY} --instance-type ml.c5.large --async-output s3://missing/o", {}, "there is no bucket missing"),
        (
            "deploy --model s3://given/nothing --instance-type ml.c5.large",
            {},
            "no object in S3 has this prefix",
        ),
        ("cleanup --backend aws", {"ListEndpoints": THROTTLED}, "Rate exceeded"),
        ("predict --backend aws --endpoint nobody {few}/7", {}, "Could not find endpoint"),
    ],
)
def test_what_is_missing_is_told_in_one_line_before_anything_is_made(aws, run, command, failures, reason):
    aws.failures = failures
    assert reason in failed(run(command))
    assert aws.changes() == []


@pytest.mark.parametrize(
    "command", [f"{DEPLOY} --instance-type ml.c5.large", f"{TRANSFORM} --instance-type ml.c5.xlarge"]
)
def test_a_name_that_is_taken_is_refused_before_its_data_are_overwritten(aws, run, command):
    succeeded(run(command))
    before = what_is_there()
    aws.requests.clear()
    assert "choose another" in failed(run(command))
    assert aws.changes() == []
    assert what_is_there() == before


def test_a_folder_of_others_is_not_written_to(aws, run):
    boto3.client("s3").create_bucket(Bucket=OWN_BUCKET)
    boto3.client("s3").put_object(Bucket=OWN_BUCKET, Key="fastmaker/endpoint/e/theirs", Body=b"")
    aws.requests.clear()
    assert "holds what fastmaker did not make" in failed(run(f"{DEPLOY} --instance-type ml.c5.large"))
    assert aws.changes() == []


def test_a_failing_job_does_not_name_the_data_of_an_earlier_one(aws, run):
    succeeded(run(f"{DEPLOY} --instance-type ml.c5.large"))
    succeeded(run("cleanup --backend aws --endpoint e"))
    aws.failures = {"CreateEndpoint": NO_LIMIT}
    _, out, _ = run(f"{DEPLOY} --instance-type ml.c5.large")
    (made,) = re.findall("made before this ended: (.*)", out)
    assert [name.partition("/")[0] for name in made.split(", ")] == ["model", "endpoint-config"]


def test_no_quota_for_a_type_is_told_before_anything_is_made(aws, run):
    aws.quotas["ml.c5.large for endpoint usage"] = 0
    assert "'ml.c5.large for endpoint usage' is 0, 1 wanted" in failed(run(f"{DEPLOY} --instance-type ml.c5.large"))
    assert aws.changes() == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("AWS_ACCESS_KEY_ID", "no AWS credentials: set AWS_PROFILE"),
        ("AWS_DEFAULT_REGION", "no AWS region"),
        ("SAGEMAKER_ROLE", "no IAM role: give --role"),
    ],
)
def test_what_the_environment_lacks_is_told_in_one_line(aws, run, monkeypatch, name, reason):
    monkeypatch.delenv(name)
    if name == "AWS_ACCESS_KEY_ID":
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert reason in failed(run(f"{DEPLOY} --instance-type ml.c5.large"))
    assert aws.changes() == []


@pytest.mark.parametrize(
    ("command", "operation", "failure"),
    [
        (f"{TRAIN_ON_S3} --instance-type ml.g4dn.xlarge", "CreateTrainingJob", THROTTLED),
        (f"{DEPLOY} --instance-type ml.c5.large", "CreateEndpoint", NO_LIMIT),
        (f"{DEPLOY} --instance-type ml.c5.large --max 3", "PutScalingPolicy", THROTTLED),
        (f"{TRANSFORM} --instance-type ml.c5.xlarge", "CreateTransformJob", DENIED),
    ],
)
def test_what_a_failing_job_has_made_is_listed_with_the_command_that_removes_it(aws, run, command, operation, failure):
    aws.failures = {operation: failure}
    status, out, error = run(command)
    assert failure[1] in failed((status, out, error))
    assert "made before this ended: " in out
    (remove,) = re.findall(r"to remove it: fastmaker (.*)", out)
    before = what_is_there()
    aws.failures = {}
    succeeded(run(remove))
    assert before
    assert what_is_there() == set()


def test_credentials_that_may_not_look_are_told_what_was_not_checked(aws, run):
    aws.failures = dict.fromkeys(("GetRole", "ListServiceQuotas"), DENIED)
    out = succeeded(run(f"{DEPLOY} --instance-type ml.c5.large --role {ROLE}"))
    assert re.search(r"role +not checked", out)
    assert re.search(r"quota +not checked: Service Quotas says AccessDeniedException", out)


def test_the_sdks_configuration_file_gives_role_bucket_network_keys_and_tags(aws, run, tmp_path, monkeypatch):
    network = {"SecurityGroupIds": ["sg-12345678"], "Subnets": ["subnet-12345678"]}
    file = tmp_path / "sagemaker.json"
    settings = {
        "TrainingJob": {
            "RoleArn": ROLE,
            "VpcConfig": network,
            "OutputDataConfig": {"KmsKeyId": "key"},
            "Tags": [{"Key": "team", "Value": "vision"}],
        },
        "PythonSDK": {"Modules": {"Session": {"DefaultS3Bucket": "given", "DefaultS3ObjectKeyPrefix": "ours"}}},
    }
    file.write_text(json.dumps({"SchemaVersion": "1.0", "SageMaker": settings}))
    monkeypatch.setenv("SAGEMAKER_USER_CONFIG_OVERRIDE", str(file))
    monkeypatch.delenv("SAGEMAKER_ROLE")
    request = printed(succeeded(run(f"{TRAIN_ON_S3} --instance-type ml.g4dn.xlarge --dry-run")))["CreateTrainingJob"]
    assert request["RoleArn"] == ROLE.replace(ACCOUNT, "*" * 12)
    assert request["VpcConfig"] == network
    assert request["OutputDataConfig"] == {"S3OutputPath": "s3://given/ours/fastmaker/training-job", "KmsKeyId": "key"}
    assert tags(request) == {"fastmaker": "j", "team": "vision"}


def test_a_bucket_of_the_sdks_name_that_somebody_else_owns_is_not_used(aws, run):
    aws.failures = {"HeadBucket": (403, "Forbidden", "Forbidden")}
    assert "it is somebody else's" in failed(run(f"{DEPLOY} --instance-type ml.c5.large"))
    assert aws.changes() == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"arn:aws:iam::{ACCOUNT}:role/x", "arn:aws:iam::************:role/x"),
        (f"arn%3Aaws%3Aiam%3A%3A{ACCOUNT}%3Arole", "arn%3Aaws%3Aiam%3A%3A************%3Arole"),
        (f"s3://sagemaker-eu-west-3-{ACCOUNT}/k", "s3://sagemaker-eu-west-3-************/k"),
        (f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com/x", "************.dkr.ecr.us-east-1.amazonaws.com/x"),
        ("763104351884.dkr.ecr.us-east-1.amazonaws.com/x", "763104351884.dkr.ecr.us-east-1.amazonaws.com/x"),
        (
            "https://b/k?X-Amz-Credential=AKIA%2F1&x-amz-signature=0f3c&x=1",
            "https://b/k?X-Amz-Credential=***&x-amz-signature=***&x=1",
        ),
        ('{"image": "val2017/000000000139.jpg"}', '{"image": "val2017/000000000139.jpg"}'),
    ],
)
def test_account_numbers_and_signatures_are_masked_where_aws_puts_them(monkeypatch, text, shown):
    monkeypatch.setattr(redaction, "own_accounts", set())
    assert redaction.redact(text) == shown


def test_an_account_that_was_found_out_is_masked_wherever_it_stands(monkeypatch):
    monkeypatch.setattr(redaction, "own_accounts", {ACCOUNT})
    assert redaction.redact(f"b-{ACCOUNT}/\n{ACCOUNT}") == "b-************/\n************"


def test_a_fault_shows_its_traceback_without_account_numbers(capsys):
    with pytest.raises(SystemExit) as ended, errors.errors_as_one_line():
        raise KeyError(f"arn:aws:iam::{ACCOUNT}:role/x")
    error = capsys.readouterr().err
    assert ended.value.code == 1
    assert "Traceback" in error
    assert "KeyError: 'arn:aws:iam::************:role/x'" in error


def test_a_dry_run_lets_credentials_be_asked_for_and_shows_no_secret(aws, run, tmp_path, monkeypatch):
    role = boto3.client("iam").create_role(RoleName="assumed", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    keys = "aws_access_key_id = key\naws_secret_access_key = secret\n"
    (tmp_path / "config").write_text(f"[profile q]\n{keys}[profile p]\nrole_arn = {role}\nsource_profile = q\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_PROFILE", "p")
    out = succeeded(run(f"{DEPLOY} --instance-type ml.c5.large --env API_TOKEN=hunter2 --dry-run"))
    assert aws.sent("AssumeRole")
    assert "AssumeRole" not in out
    assert "hunter2" not in out
    assert '"API_TOKEN": "***"' in out


def test_a_model_in_s3_is_deployed_without_a_bucket_of_its_own(aws, run):
    boto3.client("s3").put_object(Bucket="given", Key="model.tar.gz", Body=b"a model")
    succeeded(run("deploy --model s3://given/model.tar.gz --endpoint-name e --instance-type ml.c5.large"))
    assert aws.sent("CreateModel")[0]["PrimaryContainer"]["ModelDataUrl"] == "s3://given/model.tar.gz"
    assert [bucket["Name"] for bucket in boto3.client("s3").list_buckets()["Buckets"]] == ["given"]


def test_data_that_a_model_uses_are_kept(aws, run):
    succeeded(run(f"{DEPLOY} --instance-type ml.c5.large"))
    before = what_is_there()
    line = failed(run("cleanup --backend aws --only s3/endpoint/e --yes"))
    assert "is kept: it holds the data of the models" in line
    assert what_is_there() == before


def test_data_that_models_of_others_use_are_kept_and_each_model_is_looked_at_once(aws, run):
    s3, sagemaker = boto3.client("s3"), boto3.client("sagemaker")
    uses = {
        "url": lambda uri: {"ModelDataUrl": f"{uri}model.tar.gz"},
        "source": lambda uri: {"ModelDataSource": {"S3DataSource": s3_data(uri)}},
        "more": lambda uri: {"AdditionalModelDataSources": [{"ChannelName": "more", "S3DataSource": s3_data(uri)}]},
    }
    s3.create_bucket(Bucket=OWN_BUCKET)
    markers = {name: f"fastmaker/endpoint/{name}/made-by-fastmaker" for name in (*uses, "unused")}
    for name, key in markers.items():
        s3.put_object(Bucket=OWN_BUCKET, Key=key, Metadata={"fastmaker": name})
    for name, container in uses.items():
        container = {"Image": "image", **container(f"s3://{OWN_BUCKET}/fastmaker/endpoint/{name}/")}
        sagemaker.create_model(ModelName=f"of-others-{name}", PrimaryContainer=container, ExecutionRoleArn=ROLE)
    line = failed(run("cleanup --backend aws --all --yes"))
    for name in uses:
        assert f"endpoint/{name}/ is kept: it holds the data of the models of-others-{name}" in line
    assert {f"object {key}" for key in markers.values()} - what_is_there() == {f"object {markers['unused']}"}
    assert len(aws.sent("DescribeModel")) == len(uses)


def s3_data(uri: str) -> dict:
    return {"S3Uri": uri, "S3DataType": "S3Prefix", "CompressionType": "None"}


def test_what_cannot_be_deleted_keeps_nothing_else(aws, run):
    succeeded(run(f"{DEPLOY} --instance-type ml.c5.large"))
    aws.failures = {"DeleteEndpointConfig": DENIED}
    assert "not deleted, try again later: endpoint-config/e" in failed(run("cleanup --backend aws --all --yes"))
    assert what_is_there() == {"config e"}


def test_an_answer_that_was_lost_leaves_the_job_among_what_was_made(aws, run):
    aws.failures = {"CreateTransformJob": (500, "InternalFailure", "lost")}
    _, out, _ = run(f"{TRANSFORM} --instance-type ml.c5.xlarge")
    assert "transform-job/t" in re.findall("made before this ended: (.*)", out)[0].split(", ")


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (f"{TRAIN_ON_S3} --instance-type ml.g4dn.xlarge --checkpoints given", "expected a URI that begins with s3://"),
        (f"{TRANSFORM} --instance-type ml.c5.xlarge --output out", "expected a URI that begins with s3://"),
    ],
)
def test_places_on_this_machine_are_refused_for_what_aws_writes(aws, run, command, reason):
    status, _, error = run(command)
    assert status == 2
    assert reason in error
    assert aws.changes() == []
