"""Endpoints as AWS alone has them: serverless, asynchronous, with data capture, with as many instances as it takes."""

from collections.abc import Callable

from sagemaker.serverless import ServerlessInferenceConfig

from fastmaker.jobs.backends import asynchronous, captures
from fastmaker.jobs.backends.requests import EndpointRequest

VARIANT = "AllTraffic"  # as the SDK calls the only one
TRACKING, WAKING = POLICIES = ("fastmaker-tracking", "fastmaker-waking")  # scaling policies
DIMENSION = "sagemaker:variant:DesiredInstanceCount"


def configurations(request: EndpointRequest, session, folder: Callable[[], str]) -> dict:
    """Return the SDK's configurations of an endpoint; `folder` gives the URI that captured data go below."""
    configs = {}
    if request.serverless_memory:
        configs["serverless_inference_config"] = ServerlessInferenceConfig(
            request.serverless_memory, request.serverless_concurrency
        )
    if request.async_output:
        configs |= asynchronous.configuration(request.async_output)
    if request.data_capture:
        configs |= captures.configuration(request.data_capture, f"{folder()}/{captures.FOLDER}", session)
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
