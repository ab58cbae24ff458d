"""The resources that jobs make and leave behind: listed and deleted."""

import contextlib
import datetime
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from fastmaker.jobs.cli.errors import Failure

# kind: (the List operation's name, the key of its answer, the prefix of the fields in there). In the order in which
# they are deleted: a resource comes after those that use it.
KINDS = {
    "endpoint": ("endpoints", "Endpoints", "Endpoint"),
    "endpoint-config": ("endpoint_configs", "EndpointConfigs", "EndpointConfig"),
    "model": ("models", "Models", "Model"),
    "training-job": ("training_jobs", "TrainingJobSummaries", "TrainingJob"),
    "transform-job": ("transform_jobs", "TransformJobSummaries", "TransformJob"),
}
RUNNING = ("InProgress", "Stopping")


@dataclass(frozen=True)
class Resource:
    """What can be deleted. `kind` and `name` together are unique; `costs` says when one pays for it, if ever."""

    kind: str
    name: str
    status: str
    created: datetime.datetime | None
    costs: str
    delete: Callable[[], None]

    @property
    def label(self) -> str:
        return f"{self.kind}/{self.name}"


@dataclass(frozen=True)
class SageMakerResources:
    """The endpoints, models and jobs that a SageMaker client knows and the jobs made. Defaults are this machine's."""

    client: object
    is_ours: Callable[[str], bool] | None = None  # whether the jobs made what has an ARN; None: they made all
    filters: Mapping[str, dict] = field(default_factory=dict)  # kind -> arguments of its List operation
    costs: Mapping[str, str] = field(default_factory=dict)  # kind -> for what one pays
    changing: tuple[str, ...] = ()  # states in which an endpoint cannot be deleted; then deleting it takes a while
    keeps_jobs: bool = False  # whether jobs that have ended stay for ever
    poll_seconds: float = 0.5

    def listed(self, only: list[str] | None = None) -> list[Resource]:
        """Return what is there, or what of it `only` names, in the order to delete it in."""
        found = []
        for kind, (_, _, prefix) in KINDS.items():
            for summary in self._summaries(kind):
                name, status = summary[f"{prefix}Name"], summary.get(f"{prefix}Status", "-")
                if status == "Deleting" or (only and f"{kind}/{name}" not in only):
                    continue
                if self._is_ours(summary[f"{prefix}Arn"]):
                    costs, delete = self.costs.get(kind, ""), partial(self._delete, kind, name)
                    found.append(Resource(kind, name, status, summary["CreationTime"], costs, delete))
        return found

    def delete_endpoint(self, name: str) -> None:
        """Delete the endpoint first, then its configuration, then the configuration's models.

        Raises Failure for an endpoint that the jobs have not made; a configuration and models of others are left alone.
        """
        client = self.client
        endpoint = client.describe_endpoint(EndpointName=name)
        if not self._is_ours(endpoint["EndpointArn"]):
            raise Failure(f"endpoint {name} was not made by fastmaker: it lacks its tag")
        self._end_endpoint(name)
        config_name = endpoint.get("EndpointConfigName")  # none is known where the record is damaged
        if config_name in self._ours_among("endpoint-config", {config_name}):
            config = client.describe_endpoint_config(EndpointConfigName=config_name)
            client.delete_endpoint_config(EndpointConfigName=config_name)
            for model in self._ours_among("model", {variant["ModelName"] for variant in config["ProductionVariants"]}):
                client.delete_model(ModelName=model)

    def _summaries(self, kind: str) -> Iterator[dict]:
        operation, key, _ = KINDS[kind]
        return paginate(self.client, f"list_{operation}", key, **self.filters.get(kind, {}))

    def _is_ours(self, arn: str) -> bool:
        return self.is_ours is None or self.is_ours(arn)

    def _ours_among(self, kind: str, names: set[str]) -> list[str]:
        """Return those of the names that are there and were made by the jobs."""
        prefix = KINDS[kind][2]
        named = [summary for summary in self._summaries(kind) if summary[f"{prefix}Name"] in names]
        return [summary[f"{prefix}Name"] for summary in named if self._is_ours(summary[f"{prefix}Arn"])]

    def _delete(self, kind: str, name: str) -> None:
        if kind == "endpoint":
            self._end_endpoint(name)
        elif kind.endswith("job"):
            self._end_job(kind, name)
        else:
            getattr(self.client, f"delete_{kind.replace('-', '_')}")(**{f"{KINDS[kind][2]}Name": name})

    def _end_job(self, kind: str, name: str) -> None:
        """Stop a job that runs and wait for it: what it writes at its end has to be there to be deleted."""
        prefix, operation = KINDS[kind][2], kind.replace("-", "_")
        job = {f"{prefix}Name": name}
        describe = getattr(self.client, f"describe_{operation}")
        if describe(**job)[f"{prefix}Status"] == "InProgress":
            getattr(self.client, f"stop_{operation}")(**job)
        while describe(**job)[f"{prefix}Status"] in RUNNING:
            time.sleep(self.poll_seconds)
        if not self.keeps_jobs:
            getattr(self.client, f"delete_{operation}")(**job)

    def _end_endpoint(self, name: str) -> None:
        """Delete an endpoint. AWS refuses to while it is being changed.

        AWS takes a while for it, in which the endpoint may write what it captured.
        """
        describe = partial(self.client.describe_endpoint, EndpointName=name)
        while (status := describe()["EndpointStatus"]) in self.changing:
            print(f"endpoint {name} is {status}; it can be deleted after that", flush=True)
            time.sleep(self.poll_seconds)
        self.client.delete_endpoint(EndpointName=name)
        with contextlib.suppress(self.client.exceptions.ClientError):
            while self.changing and describe()["EndpointStatus"] == "Deleting":
                time.sleep(self.poll_seconds)


def delete_transform_job(client, name: str) -> None:
    """Delete a job that has ended, and its model if no other job has it; the answers stay."""
    model = client.describe_transform_job(TransformJobName=name)["ModelName"]
    client.delete_transform_job(TransformJobName=name)
    jobs = (job["TransformJobName"] for job in paginate(client, "list_transform_jobs", "TransformJobSummaries"))
    if model not in {client.describe_transform_job(TransformJobName=job)["ModelName"] for job in jobs}:
        client.delete_model(ModelName=model)


def paginate(client, operation: str, key: str, token: str = "NextToken", **arguments) -> Iterator[dict]:
    """Yield what all pages of a List or Describe operation hold under `key`; `token` leads to the next page."""
    following = {}
    while True:
        page = getattr(client, operation)(**arguments, **following)
        yield from page[key]
        if not page.get(token):
            return
        following = {token: page[token]}


def is_missing(error) -> bool:
    """Return whether SageMaker's ClientError to a Describe or List operation says that nothing has the name."""
    return error.response["Error"]["Code"] in ("ResourceNotFound", "ResourceNotFoundException", "ValidationException")
