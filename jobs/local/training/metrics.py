"""The metrics that a training job has printed: what its MetricDefinitions find in the logs of its hosts.

CloudWatch's client answers from here, so that ``estimator.training_job_analytics`` shows the values of a job.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from botocore.model import OperationModel
from botocore.utils import parse_to_aware_datetime

from fastmaker.local import arguments, boto
from fastmaker.local.errors import must_exist
from fastmaker.local.store import Store, now
from fastmaker.local.training import logs, training_jobs

NAMESPACE = "/aws/sagemaker/TrainingJobs"


def cloudwatch_client(region: str, store: Store) -> Any:
    """Return boto3's client for CloudWatch, which has the metrics of a store's training jobs and nothing else."""
    return boto.client("cloudwatch", region, arguments.CLOUDWATCH, partial(_answer, store))


def _answer(store: Store, model: OperationModel, request: dict[str, Any]) -> dict[str, Any]:
    """Return a datapoint for each value, whatever the Period: jobs on this machine may take less than one."""
    first, last = parse_to_aware_datetime(request["StartTime"]), parse_to_aware_datetime(request["EndTime"])
    dimensions = {dimension["Name"]: dimension["Value"] for dimension in request.get("Dimensions", ())}
    job = dimensions.pop("TrainingJobName", None)
    if request["Namespace"] != NAMESPACE or job is None or dimensions:
        return {"Label": request["MetricName"], "Datapoints": []}
    with must_exist(model.name, "training job", job):
        points = [
            {"Timestamp": moment, "Unit": "None", **_statistics(value, request.get("Statistics", ()))}
            for name, moment, value in values(store, job)
            if name == request["MetricName"] and first <= moment <= last
        ]
    return {"Label": request["MetricName"], "Datapoints": points}


def _statistics(value: float, wanted: list[str]) -> dict[str, float]:
    return {name: 1.0 if name == "SampleCount" else value for name in wanted}


def values(store: Store, job: str) -> Iterator[tuple[str, datetime, float]]:
    """Yield the names of metrics and their values with times, as far as their places in the log tell them.

    Raises KeyError and DamagedRecord.
    """
    description = training_jobs.describe(store, job)
    definitions = description["AlgorithmSpecification"].get("MetricDefinitions", ())
    started = description.get("TrainingStartTime", description["CreationTime"])
    duration: timedelta = description.get("TrainingEndTime", now()) - started
    for container in training_jobs.containers(store, job):
        for name, place, value in logs.values(definitions, container.log):
            yield name, started + place * duration, value
