"""List what the jobs made on this machine, and delete it: ``python -m jobs.cleanup --all --yes``."""

import argparse
import time

from jobs import console, session

JOBS = ("training", "transform")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m jobs.cleanup",
        description="List endpoints, models, training and transform jobs, and delete them.",
        epilog="example: python -m jobs.cleanup --endpoint pets; python -m jobs.cleanup --all --yes",
    )
    session.add_arguments(parser, instances=False)
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--endpoint", help="delete this endpoint with its configuration and models")
    chosen.add_argument("--all", action="store_true", help="delete everything; running jobs are stopped")
    parser.add_argument("--yes", action="store_true", help="with --all: delete, where otherwise it is only listed")
    return parser.parse_args(argv)


def main(args) -> None:
    client = session.session(backend=args.backend).sagemaker_client
    if args.endpoint:
        delete_endpoint(client, args.endpoint)
        print(f"deleted endpoint {args.endpoint}, its configuration and its models")
        return
    rows = _everything(client)
    if not rows:
        print("nothing is left")
        return
    print(console.table(["kind", "name", "status", "created"], rows))
    if args.all and args.yes:
        _delete_everything(client)
        print("\ndeleted")
    else:
        print("\nto delete all of it: python -m jobs.cleanup --all --yes")


def delete_endpoint(client, name: str) -> None:
    """The endpoint first, then its configuration, then the configuration's models."""
    config_name = client.describe_endpoint(EndpointName=name)["EndpointConfigName"]
    client.delete_endpoint(EndpointName=name)
    if config_name in {c["EndpointConfigName"] for c in _all(client, "endpoint_configs", "EndpointConfigs")}:
        config = client.describe_endpoint_config(EndpointConfigName=config_name)
        client.delete_endpoint_config(EndpointConfigName=config_name)
        models = {m["ModelName"] for m in _all(client, "models", "Models")}
        for model in {variant["ModelName"] for variant in config["ProductionVariants"]} & models:
            client.delete_model(ModelName=model)


def delete_transform_job(client, name: str) -> None:
    """A job that has ended, and its model if no other job has it; the answers stay."""
    model = client.describe_transform_job(TransformJobName=name)["ModelName"]
    client.delete_transform_job(TransformJobName=name)
    others = (client.describe_transform_job(TransformJobName=j["TransformJobName"]) for j in _jobs(client, "transform"))
    if model not in {job["ModelName"] for job in others}:
        client.delete_model(ModelName=model)


def _everything(client) -> list[list[str]]:
    def rows(kind: str, found: list[dict], name: str, status: str | None):
        return [[kind, f[name], f.get(status, "-"), f["CreationTime"].strftime("%Y-%m-%d %H:%M")] for f in found]

    return [
        *rows("endpoint", _all(client, "endpoints", "Endpoints"), "EndpointName", "EndpointStatus"),
        *rows("configuration", _all(client, "endpoint_configs", "EndpointConfigs"), "EndpointConfigName", None),
        *rows("model", _all(client, "models", "Models"), "ModelName", None),
        *(row for kind in JOBS for row in rows(f"{kind} job", _jobs(client, kind), *_keys(kind))),
    ]


def _delete_everything(client) -> None:
    for found in _all(client, "endpoints", "Endpoints"):
        client.delete_endpoint(EndpointName=found["EndpointName"])
    for found in _all(client, "endpoint_configs", "EndpointConfigs"):
        client.delete_endpoint_config(EndpointConfigName=found["EndpointConfigName"])
    for found in _all(client, "models", "Models"):
        client.delete_model(ModelName=found["ModelName"])
    for kind in JOBS:
        _delete_jobs(client, kind)


def _delete_jobs(client, kind: str) -> None:
    name, status = _keys(kind)
    for found in _jobs(client, kind):
        getattr(client, f"stop_{kind}_job")(**{name: found[name]})
    while any(job[status] in ("InProgress", "Stopping") for job in _jobs(client, kind)):
        time.sleep(0.5)
    for found in _jobs(client, kind):
        getattr(client, f"delete_{kind}_job")(**{name: found[name]})


def _jobs(client, kind: str) -> list[dict]:
    return _all(client, f"{kind}_jobs", f"{kind.capitalize()}JobSummaries")


def _keys(kind: str) -> tuple[str, str]:
    return f"{kind.capitalize()}JobName", f"{kind.capitalize()}JobStatus"


def _all(client, kind: str, key: str) -> list[dict]:
    """Every page of a List operation."""
    found, token = [], {}
    while True:
        page = getattr(client, f"list_{kind}")(**token)
        found += page[key]
        if "NextToken" not in page:
            return found
        token = {"NextToken": page["NextToken"]}


if __name__ == "__main__":
    arguments = parse_args()
    with console.errors_as_one_line():
        main(arguments)
