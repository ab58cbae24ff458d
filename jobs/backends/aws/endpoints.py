"""Endpoints as AWS alone has them: serverless, asynchronous, with data capture, with as many instances as it takes."""

import io
import time
import uuid
from collections.abc import Callable

from botocore.exceptions import ClientError
from sagemaker.async_inference import AsyncInferenceConfig
from sagemaker.model_monitor import DataCaptureConfig
from sagemaker.serverless import ServerlessInferenceConfig

from fastmaker.jobs import storage
from fastmaker.jobs.backends.requests import EndpointRequest

VARIANT = "AllTraffic"  # as the SDK calls the only one
TRACKING, WAKING = POLICIES = ("fastmaker-tracking", "fastmaker-waking")  # scaling policies
DIMENSION = "sagemaker:variant:DesiredInstanceCount"
POLL_SECONDS = 0.5
ANSWER_SECONDS = 3600  # how long an answer is waited for; requests may wait longer in AWS's queue


def configurations(request: EndpointRequest, session, folder: Callable[[], str]) -> dict:
    """Return the SDK's configurations of an endpoint; `folder` gives the URI that captured data go below."""
    configs = {}
    if request.serverless_memory:
        configs["serverless_inference_config"] = ServerlessInferenceConfig(
            request.serverless_memory, request.serverless_concurrency
        )
    if request.async_output:
        output = request.async_output.rstrip("/")
        configs["async_inference_config"] = AsyncInferenceConfig(output, failure_path=f"{output}/failures")
    if request.data_capture:
        configs["data_capture_config"] = DataCaptureConfig(
            True, request.data_capture, f"{folder()}/captured", sagemaker_session=session
        )
    if request.volume_size:
        configs["volume_size"] = request.volume_size
    return configs


def scale(boto, request: EndpointRequest) -> None:
    """Let the number of instances follow the invocations, or the backlog of an asynchronous endpoint.

    https://docs.aws.amazon.com/sagemaker/latest/dg/endpoint-auto-scaling.html
    """
    client = boto.client("application-autoscaling")
    target = {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"endpoint/{request.name}/variant/{VARIANT}",
        "ScalableDimension": DIMENSION,
    }
    client.register_scalable_target(**target, MinCapacity=request.min_instances, MaxCapacity=request.max_instances)
    metric = {"PredefinedMetricSpecification": {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"}}
    if request.async_output:
        metric = {
            "CustomizedMetricSpecification": {
                "MetricName": "ApproximateBacklogSizePerInstance",
                "Namespace": "AWS/SageMaker",
                "Dimensions": [{"Name": "EndpointName", "Value": request.name}],
                "Statistic": "Average",
            }
        }
    client.put_scaling_policy(
        **target,
        PolicyName=TRACKING,
        PolicyType="TargetTrackingScaling",
        TargetTrackingScalingPolicyConfiguration={"TargetValue": request.target_invocations, **metric},
    )
    if request.min_instances == 0:
        _wake(boto, request.name, target)


def _wake(boto, endpoint: str, target: dict) -> None:
    """Let an asynchronous endpoint have an instance again as soon as a request waits and there is none.

    https://docs.aws.amazon.com/sagemaker/latest/dg/async-inference-autoscale.html
    """
    policy = boto.client("application-autoscaling").put_scaling_policy(
        **target,
        PolicyName=WAKING,
        PolicyType="StepScaling",
        StepScalingPolicyConfiguration={
            "AdjustmentType": "ChangeInCapacity",
            "MetricAggregationType": "Average",
            "Cooldown": 300,
            "StepAdjustments": [{"MetricIntervalLowerBound": 0, "ScalingAdjustment": 1}],
        },
    )
    boto.client("cloudwatch").put_metric_alarm(
        AlarmName=alarm_of(endpoint),
        Namespace="AWS/SageMaker",
        MetricName="HasBacklogWithoutCapacity",
        Dimensions=[{"Name": "EndpointName", "Value": endpoint}],
        Statistic="Average",
        Period=60,
        EvaluationPeriods=2,
        DatapointsToAlarm=2,
        Threshold=1,
        ComparisonOperator="GreaterThanOrEqualToThreshold",
        TreatMissingData="missing",
        AlarmActions=[policy["PolicyARN"]],
    )


def alarm_of(endpoint: str) -> str:
    """The name of the alarm that wakes an endpoint."""
    return f"fastmaker-waking-{endpoint}"


class AsyncRuntime:
    """The invoke_endpoint of boto3's sagemaker-runtime for asynchronous endpoints: sends, and waits for the answer.

    `folder` is the URI below which requests go.
    """

    def __init__(self, boto, folder: str):
        self._runtime, self._s3 = boto.client("sagemaker-runtime"), boto.client("s3")
        self._bucket, self._prefix = storage.bucket_and_key(folder)

    def invoke_endpoint(self, *, Body: bytes, **arguments) -> dict:
        """Raises ClientError with the code ModelError, as boto3 does, if the model refuses the request."""
        request = {"Bucket": self._bucket, "Key": f"{self._prefix}/requests/{uuid.uuid4()}"}
        self._s3.put_object(**request, Body=Body)
        try:
            return self._answer(f"s3://{self._bucket}/{request['Key']}", arguments)
        finally:
            self._s3.delete_object(**request)

    def _answer(self, request: str, arguments: dict) -> dict:
        sent = self._runtime.invoke_endpoint_async(InputLocation=request, **arguments)
        deadline = time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < deadline:
            if (answer := self._object(sent["OutputLocation"])) is not None:
                return {"Body": io.BytesIO(answer), "ContentType": arguments.get("Accept")}
            if sent.get("FailureLocation") and (failure := self._object(sent["FailureLocation"])) is not None:
                message = failure.decode("utf-8", "replace")
                error = {"Code": "ModelError", "Message": message}
                raise ClientError({"Error": error, "OriginalMessage": message}, "InvokeEndpointAsync")
            time.sleep(POLL_SECONDS)
        raise TimeoutError(f"no answer at {sent['OutputLocation']} after {ANSWER_SECONDS} s")

    def _object(self, uri: str) -> bytes | None:
        bucket, key = storage.bucket_and_key(uri)
        try:
            return self._s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        except ClientError as error:
            if error.response["Error"]["Code"] in ("NoSuchKey", "404", "AccessDenied"):  # without ListBucket: denied
                return None
            raise
