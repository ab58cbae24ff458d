"""List what the jobs made, and delete it: ``fastmaker cleanup --all --yes``.

On AWS (``--backend aws``) it knows what the jobs made by the tag that they gave it, and touches nothing else.
"""

import argparse
import contextlib
import sys
import time
from functools import partial

from botocore.exceptions import ClientError

from fastmaker.jobs import backends
from fastmaker.jobs.backends.inventory import Resource, paginate
from fastmaker.jobs.cli import errors, tables

# Kinds of things: what lists them, where the answer has them, and what their fields begin with. In the order in which
# they are deleted: what is in use comes after what uses it.
KINDS = {
    "endpoint": ("endpoints", "Endpoints", "Endpoint"),
    "endpoint-config": ("endpoint_configs", "EndpointConfigs", "EndpointConfig"),
    "model": ("models", "Models", "Model"),
    "training-job": ("training_jobs", "TrainingJobSummaries", "TrainingJob"),
    "transform-job": ("transform_jobs", "TransformJobSummaries", "TransformJob"),
}
RUNNING = ("InProgress", "Stopping")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        prog="fastmaker cleanup",
        description="List endpoints, models, archives, jobs and, on AWS, images, scaling and data, and delete them.",
        epilog="example: fastmaker cleanup --endpoint pets; fastmaker cleanup --backend aws --all --yes",
    )
    backends.add_arguments(parser, instances=False)
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--endpoint", help="delete this endpoint with its configuration and models")
    chosen.add_argument("--only", nargs="+", metavar="KIND/NAME", help="these alone, as the list and errors name them")
    chosen.add_argument("--all", action="store_true", help="everything; running jobs are stopped")
    parser.add_argument("--yes", action="store_true", help="with --all or --only: delete, where otherwise it is listed")
    return parser.parse_args(argv)


def main(args) -> None:
    with backends.backend(args) as backend:
        if args.endpoint:
            delete_endpoint(backend, args.endpoint)
            print(f"deleted endpoint {args.endpoint}, its configuration and its models")
            return
        found = things(backend, args.only)
        if unknown := set(args.only or ()) - {thing.label for thing in found}:
            print(f"not there any more, or not made by these scripts: {', '.join(sorted(unknown))}")
        if not found:
            print(f"nothing is left{backend.where}")
            return
        columns = 5 if any(thing.costs for thing in found) else 4  # on this machine nothing costs
        header = ["kind", "name", "status", "created", "costs"]
        print(tables.table(header[:columns], [_row(thing)[:columns] for thing in found]))
        if args.yes and (args.all or args.only):
            _delete_all(found)
            print("\ndeleted")
        else:
            which = f"--only {' '.join(args.only)}" if args.only else "--all"
            print(f"\nto delete all of it{backend.where}: fastmaker cleanup{backend.cli_flags} {which} --yes")


def _delete_all(found: list[Resource]) -> None:
    """Raises Failure, after all else was deleted, for what cannot be."""
    failures = []
    for thing in found:
        try:
            thing.delete()
        except (errors.Failure, ClientError) as error:
            failures.append(f"{thing.label}: {error}")
    if failures:
        raise errors.Failure(f"not deleted, try again later: {'; '.join(failures)}")


def things(backend, only: list[str] | None = None) -> list[Resource]:
    """What the jobs of this backend made and is there, or what of it `only` names, in the order to delete it in."""
    client = backend.session.sagemaker_client
    found = []
    for kind, (operation, key, prefix) in KINDS.items():
        for summary in paginate(client, f"list_{operation}", key, **backend.listing(kind)):
            name, status = summary[f"{prefix}Name"], summary.get(f"{prefix}Status", "-")
            if status == "Deleting" or (only and f"{kind}/{name}" not in only):
                continue
            if backend.is_ours(summary[f"{prefix}Arn"]):
                delete = partial(_delete, client, backend, kind, name)
                found.append(Resource(kind, name, status, summary["CreationTime"], backend.costs(kind), delete))
    every_one = [*backend.scalings(), *found, *backend.others()]
    return [thing for thing in every_one if only is None or thing.label in only]


def delete_endpoint(backend, name: str) -> None:
    """The endpoint first, then its configuration, then the configuration's models.

    Raises Failure for an endpoint that the jobs have not made; a configuration and models of others are left alone.
    """
    client = backend.session.sagemaker_client
    endpoint = client.describe_endpoint(EndpointName=name)
    if not backend.is_ours(endpoint["EndpointArn"]):
        raise errors.Failure(f"endpoint {name} was not made by these scripts: it lacks their tag")
    for scaling in backend.scalings(name):
        scaling.delete()
    _end_endpoint(client, backend, name)
    config_name = endpoint["EndpointConfigName"]
    if config_name in _our_names(backend, "endpoint-config", {config_name}):
        config = client.describe_endpoint_config(EndpointConfigName=config_name)
        client.delete_endpoint_config(EndpointConfigName=config_name)
        for model in _our_names(backend, "model", {variant["ModelName"] for variant in config["ProductionVariants"]}):
            client.delete_model(ModelName=model)


def _our_names(backend, kind: str, names: set[str]) -> list[str]:
    """Those of the names that are there and were made by the jobs."""
    operation, key, prefix = KINDS[kind]
    listed = paginate(backend.session.sagemaker_client, f"list_{operation}", key, **backend.listing(kind))
    named = [summary for summary in listed if summary[f"{prefix}Name"] in names]
    return [summary[f"{prefix}Name"] for summary in named if backend.is_ours(summary[f"{prefix}Arn"])]


def delete_transform_job(client, name: str) -> None:
    """A job that has ended, and its model if no other job has it; the answers stay."""
    model = client.describe_transform_job(TransformJobName=name)["ModelName"]
    client.delete_transform_job(TransformJobName=name)
    jobs = (job["TransformJobName"] for job in paginate(client, "list_transform_jobs", "TransformJobSummaries"))
    if model not in {client.describe_transform_job(TransformJobName=job)["ModelName"] for job in jobs}:
        client.delete_model(ModelName=model)


def _delete(client, backend, kind: str, name: str) -> None:
    """A job that runs is stopped and waited for: what it writes at its end has to be there to be deleted."""
    prefix = KINDS[kind][2]
    if kind == "endpoint":
        _end_endpoint(client, backend, name)
        return
    if not kind.endswith("job"):
        getattr(client, f"delete_{kind.replace('-', '_')}")(**{f"{prefix}Name": name})
        return
    job = {f"{prefix}Name": name}
    operation = kind.replace("-", "_")
    describe = getattr(client, f"describe_{operation}")
    if describe(**job)[f"{prefix}Status"] == "InProgress":
        getattr(client, f"stop_{operation}")(**job)
    while describe(**job)[f"{prefix}Status"] in RUNNING:
        time.sleep(backend.poll_seconds)
    if backend.deletes_jobs:
        getattr(client, f"delete_{operation}")(**job)


def _end_endpoint(client, backend, name: str) -> None:
    """AWS refuses to delete one that is being changed, and takes a while, in which it may write what it captured."""
    while (status := client.describe_endpoint(EndpointName=name)["EndpointStatus"]) in backend.busy:
        print(f"endpoint {name} is {status}; it can be deleted after that", flush=True)
        time.sleep(backend.poll_seconds)
    client.delete_endpoint(EndpointName=name)
    with contextlib.suppress(ClientError):
        while backend.busy and client.describe_endpoint(EndpointName=name)["EndpointStatus"] == "Deleting":
            time.sleep(backend.poll_seconds)


def _row(thing: Resource) -> list[str]:
    created = thing.created.strftime("%Y-%m-%d %H:%M") if thing.created else "-"
    return [thing.kind, thing.name, thing.status, created, thing.costs or "-"]


if __name__ == "__main__":
    errors.run(sys.modules[__name__])
