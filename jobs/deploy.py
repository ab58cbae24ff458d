"""Deploy a model to an endpoint: ``fastmaker deploy --model JOB_OR_MODEL [--endpoint-name NAME]``."""

import argparse
import sys

from fastmaker.jobs import backends, storage
from fastmaker.jobs.cli import errors
from fastmaker.jobs.packaging.models import locate, model_archive

# https://docs.aws.amazon.com/sagemaker/latest/dg/serverless-endpoints.html
SERVERLESS_MB = range(1024, 6145, 1024)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        prog="fastmaker deploy",
        description="Deploy a trained model to an endpoint.",
        epilog="example: fastmaker deploy --model fastmaker-2026-01-31-12-00-00-000 --endpoint-name pets",
    )
    backends.add_arguments(parser)
    parser.add_argument("--model", required=True, help="a training job, a model directory, a model.tar.gz or its URI")
    parser.add_argument("--endpoint-name", help="(default: made from the time)")
    parser.add_argument("--instance-count", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="for the container")
    _add_aws_arguments(parser.add_argument_group("on AWS"))
    args = parser.parse_args(argv)
    check_container_arguments(parser, args)
    _check_aws_arguments(parser, args)
    return args


def _add_aws_arguments(group) -> None:
    group.add_argument("--volume-size", type=int, help="GB of an instance's disk (default: AWS's)")
    group.add_argument("--serverless-memory", type=int, metavar="MB", help="without instances: 1024, 2048, ... 6144")
    group.add_argument("--serverless-concurrency", type=int, default=5, help="requests at once (default: %(default)s)")
    group.add_argument("--async-output", metavar="URI", help="asynchronous: answers go below this s3:// URI")
    group.add_argument("--min", type=int, default=1, help="fewest instances (default: %(default)s)")
    group.add_argument("--max", type=int, help="most instances, as many as the requests need (default: no scaling)")
    group.add_argument(
        "--target-invocations",
        type=float,
        default=200,
        help="a minute and instance; of an asynchronous endpoint, requests that wait for one (default: %(default)s)",
    )
    group.add_argument("--data-capture", type=int, metavar="PERCENT", help="of requests and answers, kept in S3")


def _check_aws_arguments(parser, args) -> None:
    if args.serverless_memory and args.serverless_memory not in SERVERLESS_MB:
        parser.error(
            f"--serverless-memory {args.serverless_memory}: expected one of {', '.join(map(str, SERVERLESS_MB))}"
        )
    if args.serverless_memory and (args.async_output or args.max or args.data_capture):
        parser.error("--serverless-memory goes without --async-output, --max and --data-capture")
    if args.async_output and not args.async_output.startswith("s3://"):
        parser.error(f"--async-output {args.async_output}: expected a URI that begins with s3://")
    if args.data_capture is not None and not 1 <= args.data_capture <= 100:
        parser.error(f"--data-capture {args.data_capture}: expected 1 to 100")
    fewest = 0 if args.async_output else 1
    if args.max is not None and not fewest <= args.min <= args.instance_count <= args.max:
        parser.error(f"expected {fewest} <= --min <= --instance-count <= --max")


def check_container_arguments(parser, args) -> None:
    if bad := [pair for pair in args.env if "=" not in pair]:
        parser.error(f"--env {bad[0]!r}: expected NAME=VALUE")
    if args.instance_count < 1:
        parser.error("--instance-count: expected 1 or more")


def main(args) -> str | None:
    """Deploy; returns the endpoint's name, None if the model was only checked."""
    from sagemaker.utils import name_from_base

    with backends.backend(args) as backend:
        found = locate(args.model, lambda: backend.session)
        name = args.endpoint_name or name_from_base("fastmaker")
        most = max(args.instance_count, args.max or 0)
        if not backend.check("endpoint", name, most, [storage.uri_of(str(found))], [args.async_output]):
            return None
        model = model_for(backend.upload(model_archive(found), "endpoint", name, "model"), args, backend)
        size = f"{args.serverless_memory} MB, serverless" if args.serverless_memory else None
        print(f"deploying {args.model} to {size or f'{args.instance_count} x {args.instance_type}'}", flush=True)
        backend.print_cost_notice("endpoint", name)
        instances = {"initial_instance_count": args.instance_count, "instance_type": args.instance_type}
        model.deploy(endpoint_name=name, wait=not backend.dry_run, **instances | backend.endpoint(args, name))
        backend.scale(args, name)
        if backend.dry_run:
            return name
        print(f"\nendpoint: {name}")
        print(f"next:     fastmaker predict{backend.cli_flags} --endpoint {name} IMAGE ...")
        print(f"to end:   fastmaker cleanup{backend.cli_flags} --endpoint {name}")
    return name


def model_for(model_data: str, args, backend):
    """The SDK's PyTorchModel of a bundle, which brings its own code and so needs no repacking."""
    from sagemaker.pytorch import PyTorchModel

    return PyTorchModel(
        model_data=model_data,
        entry_point=None,
        env={"SAGEMAKER_PROGRAM": "entry_point.py", **dict(pair.split("=", 1) for pair in args.env)},
        **backend.model(),
    )


if __name__ == "__main__":
    errors.run(sys.modules[__name__])
