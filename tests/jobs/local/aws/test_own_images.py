"""Images that are nobody's stand-in run in Docker, for programs of AWS as for a DockerSession."""

import pytest
from botocore.exceptions import ClientError
from helpers.front_jobs import HERE, ROLE, SERVE, TRAIN, packed, training_request
from helpers.waiting import wait_until

pytestmark = pytest.mark.server
FINAL = ("Completed", "Failed", "Stopped")


@pytest.mark.docker
def test_a_job_and_an_endpoint_run_in_an_image_of_ones_own(clients, training_image, torchserve_image):
    s3, sagemaker, logs = clients("s3"), clients("sagemaker"), clients("logs")
    s3.create_bucket(Bucket="own", CreateBucketConfiguration=HERE)
    s3.put_object(Bucket="own", Key="data/a.txt", Body=b"text")
    s3.put_object(Bucket="own", Key="source.tar.gz", Body=packed(train__py=TRAIN))
    request = training_request("own", "own")
    request["AlgorithmSpecification"]["TrainingImage"] = training_image
    sagemaker.create_training_job(**request)
    job = wait_until(lambda: ended(sagemaker.describe_training_job(TrainingJobName="own")))
    assert job["TrainingJobStatus"] == "Completed", job.get("FailureReason")
    group = {"logGroupName": "/aws/sagemaker/TrainingJobs", "logStreamNamePrefix": "own/"}
    said = "\n".join(event["message"] for event in logs.filter_log_events(**group)["events"])
    assert "Reporting training SUCCESS" in said
    assert "stand in for" not in said
    s3.head_object(Bucket="own", Key="out/own/output/model.tar.gz")

    s3.put_object(Bucket="own", Key="model.tar.gz", Body=packed(weights__txt="weights", code___inference__py=SERVE))
    container = {
        "Image": torchserve_image,
        "ModelDataUrl": "s3://own/model.tar.gz",
        "Environment": {"SAGEMAKER_PROGRAM": "inference.py"},
    }
    sagemaker.create_model(ModelName="own", PrimaryContainer=container, ExecutionRoleArn=ROLE)
    variant = {"VariantName": "v", "ModelName": "own", "InstanceType": "ml.m5.xlarge", "InitialInstanceCount": 1}
    sagemaker.create_endpoint_config(EndpointConfigName="own", ProductionVariants=[variant])
    sagemaker.create_endpoint(EndpointName="own", EndpointConfigName="own")
    try:
        sagemaker.get_waiter("endpoint_in_service").wait(EndpointName="own")
        asked = {"EndpointName": "own", "Body": b"body", "ContentType": "text/x", "Accept": "text/y"}
        assert clients("sagemaker-runtime").invoke_endpoint(**asked)["Body"].read() == b"weights:body"
    finally:
        sagemaker.delete_endpoint(EndpointName="own")


def ended(job):
    return job if job["TrainingJobStatus"] in FINAL else None


def test_an_image_that_no_engine_has_is_refused_with_both_reasons(clients):
    request = training_request("bucket", "job")
    request["AlgorithmSpecification"]["TrainingImage"] = "nobody-made-this:1"
    with pytest.raises(ClientError, match=r"stands in for the image nobody-made-this:1: .*; Docker runs others, but "):
        clients("sagemaker").create_training_job(**request)
