"""A program of AWS that names AWS's Ray image gets Ray Serve; `make test-ray` installs it."""

import json

import pytest
from helpers.front_jobs import HERE, ROLE

pytestmark = [pytest.mark.ray, pytest.mark.server]
IMAGE = "763104351884.dkr.ecr.us-west-2.amazonaws.com/ray:serve-ml-sagemaker-cpu"


def test_a_model_with_awss_ray_image_is_served_by_ray_serve(clients, digits, digits_archive):
    s3, sagemaker = clients("s3"), clients("sagemaker")
    s3.create_bucket(Bucket="ray-models", CreateBucketConfiguration=HERE)
    s3.upload_file(str(digits_archive), "ray-models", "model.tar.gz")
    container = {"Image": IMAGE, "ModelDataUrl": "s3://ray-models/model.tar.gz"}
    sagemaker.create_model(ModelName="ray", PrimaryContainer=container, ExecutionRoleArn=ROLE)
    variant = {"VariantName": "v", "ModelName": "ray", "InstanceType": "ml.m5.xlarge", "InitialInstanceCount": 1}
    sagemaker.create_endpoint_config(EndpointConfigName="ray", ProductionVariants=[variant])
    sagemaker.create_endpoint(EndpointName="ray", EndpointConfigName="ray")
    try:
        sagemaker.get_waiter("endpoint_in_service").wait(EndpointName="ray")
        image = min((digits / "7").iterdir()).read_bytes()
        asked = {"EndpointName": "ray", "Body": image, "ContentType": "image/png", "Accept": "application/json"}
        answer = json.load(clients("sagemaker-runtime").invoke_endpoint(**asked)["Body"])
        assert answer["label"] in map(str, range(10))
        lines = clients("logs").filter_log_events(logGroupName="/aws/sagemaker/Endpoints/ray")["events"]
        assert lines[0]["message"].endswith(f"stand in for {IMAGE}")
    finally:
        sagemaker.delete_endpoint(EndpointName="ray")
