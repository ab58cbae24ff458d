"""CloudWatch's metrics of training jobs: what their MetricDefinitions find in their logs, beside what moto holds.

https://docs.aws.amazon.com/sagemaker/latest/dg/define-train-metrics.html
"""

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fastmaker.local.store import DamagedRecord, default_home
from fastmaker.local.supervisor import FINAL
from fastmaker.local.training import metrics, training_jobs

# moto is typed in part
models: Any = importlib.import_module("moto.cloudwatch.models")
Value = tuple[str, datetime, float]  # a metric's name, a time and what the log says
KEPT = 1000  # jobs that have ended, whose logs are not read again


class JobMetrics(models.CloudWatchMetricProvider):  # type: ignore[misc]
    """What moto's CloudWatch asks for metrics that it does not hold: it finds the class by its base."""

    @staticmethod
    def get_cloudwatch_metrics(account_id: str, region: str) -> list[Any]:
        """Return the metrics of the jobs of this server's FASTMAKER_HOME, in any region."""
        return list(_metrics(default_home()))


def _metrics(home: Path) -> Iterator[Any]:
    store = training_jobs.store_below(home)
    for name in store.names():
        with contextlib.suppress(KeyError, DamagedRecord):
            job = training_jobs.describe(store, name)
            if not job["AlgorithmSpecification"].get("MetricDefinitions"):
                continue
            ended = job["TrainingJobStatus"] in FINAL
            read: Callable[[Path, str, datetime], list[Value]] = _values_of_ended if ended else _values
            for metric, moment, value in read(home, name, job["CreationTime"]):
                dimensions = [{"Name": "TrainingJobName", "Value": name}]
                at = moment.astimezone(timezone.utc).replace(tzinfo=None)  # as moto has times
                yield models.MetricDatum(metrics.NAMESPACE, metric, value, dimensions, at, "None")


def _values(home: Path, name: str, created: datetime) -> list[Value]:
    """Return the values of a job, which its name and the time of its creation tell from a later one of the name."""
    return list(metrics.values(training_jobs.store_below(home), name))


_values_of_ended = functools.lru_cache(KEPT)(_values)
