"""Deploy a model to an endpoint: ``fastmaker deploy --model JOB_OR_MODEL [--endpoint-name NAME]``."""

import argparse
import dataclasses
import sys

from fastmaker.jobs import backends, storage
from fastmaker.jobs.cli import arguments, errors
from fastmaker.jobs.packaging.models import locate, model_archive, serving_environment

# https://docs.aws.amazon.com/sagemaker/latest/dg/serverless-endpoints.html
SERVERLESS_MB = range(1024, 6145, 1024)


def get_parser() -> argparse.ArgumentParser:
    """Return this command's parser."""
    parser = argparse.ArgumentParser(
        prog="fastmaker deploy",
        description="Deploy a trained model to an endpoint.",
        epilog="example: fastmaker deploy --model fastmaker-2026-01-31-12-00-00-000 --endpoint-name pets",
    )
    arguments.add_backend(parser)
    parser.add_argument("--model", required=True, help="a training job, a model directory, a model.tar.gz or its URI")
    parser.add_argument("--endpoint-name", help="(default: made from the time)")
    arguments.add_container(parser)
    parser.add_argument(
        "--async-output",
        metavar="URI",
        help="asynchronous: answers go below this s3:// URI, or on this machine file://",
    )
    parser.add_argument(
        "--data-capture",
        type=int,
        metavar="PERCENT",
        help="of requests and answers, kept in S3, or on this machine in captured/",
    )
    _add_aws_arguments(parser.add_argument_group("on AWS"))
    return parser


def parse_args(argv=None) -> argparse.Namespace:
    """Parse the arguments and check those that exclude or need each other."""
    parser = get_parser()
    args = parser.parse_args(argv)
    _check_aws_arguments(parser, args)
    return args


def _add_aws_arguments(group) -> None:
    group.add_argument("--volume-size", type=int, help="GB of an instance's disk (default: AWS's)")
    group.add_argument("--serverless-memory", type=int, metavar="MB", help="without instances: 1024, 2048, ... 6144")
    group.add_argument("--serverless-concurrency", type=int, default=5, help="requests at once (default: %(default)s)")
    group.add_argument("--min", type=int, default=1, help="fewest instances (default: %(default)s)")
    group.add_argument("--max", type=int, help="most instances, as many as the requests need (default: no scaling)")
    group.add_argument(
        "--target-invocations",
        type=float,
        default=200,
        help="a minute and instance; of an asynchronous endpoint, requests that wait for one (default: %(default)s)",
    )


def _check_aws_arguments(parser, args) -> None:
    if args.serverless_memory and args.serverless_memory not in SERVERLESS_MB:
        parser.error(
            f"--serverless-memory {args.serverless_memory}: expected one of {', '.join(map(str, SERVERLESS_MB))}"
        )
    if args.serverless_memory and (args.async_output or args.max or args.data_capture):
        parser.error("--serverless-memory goes without --async-output, --max and --data-capture")
    if args.async_output and not args.async_output.startswith(("s3://", "file://")):
        parser.error(f"--async-output {args.async_output}: expected a URI that begins with s3:// or file://")
    if args.data_capture is not None and not 1 <= args.data_capture <= 100:
        parser.error(f"--data-capture {args.data_capture}: expected 1 to 100")
    fewest = 0 if args.async_output else 1
    if args.max is not None and not fewest <= args.min <= args.instance_count <= args.max:
        parser.error(f"expected {fewest} <= --min <= --instance-count <= --max")


def main(args) -> int:
    """Check the request and, unless it is a dry run, make the endpoint and print the commands that go on with it."""
    from sagemaker.utils import name_from_base

    backend = backends.connect(**arguments.backend_options(args, needs_instances=not args.serverless_memory))
    model = locate(args.model, lambda: backend.session)
    request = backends.EndpointRequest(
        name=args.endpoint_name or name_from_base("fastmaker"),
        model_data=storage.uri_of(str(model)),
        instance_count=args.instance_count,
        env=serving_environment(model, args.model, dict(args.env)),
        volume_size=args.volume_size,
        serverless_memory=args.serverless_memory,
        serverless_concurrency=args.serverless_concurrency,
        async_output=args.async_output,
        min_instances=args.min,
        max_instances=args.max,
        target_invocations=args.target_invocations,
        data_capture=args.data_capture,
    )
    if not backend.check(request):
        return 0
    request = dataclasses.replace(request, model_data=model_archive(model))
    size = f"{args.serverless_memory} MB, serverless" if args.serverless_memory else None
    print(f"deploying {args.model} to {size or f'{args.instance_count} x {args.instance_type}'}", flush=True)
    if backend.deploy(request):
        print(f"\nendpoint: {request.name}")
        print(f"next:     fastmaker predict{backend.cli_flags} --endpoint {request.name} IMAGE ...")
        print(f"to end:   fastmaker cleanup{backend.cli_flags} --endpoint {request.name}")
    return 0


if __name__ == "__main__":
    errors.run(sys.modules[__name__])
