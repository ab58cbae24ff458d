"""Run a batch transform job: ``fastmaker transform --model JOB_OR_MODEL --data FOLDER_OR_URI|--manifest FILE``.

Each object becomes ``<its name>.out`` at --output. ``--collect`` joins all answers to their keys in one file, and
``--retry-failed JOB`` runs a job again for the objects that have no answer.
"""

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

from fastmaker.jobs import backends, storage
from fastmaker.jobs.cli import arguments, errors, tables
from fastmaker.jobs.clients.answers import check_collectable, collect, save_picture
from fastmaker.jobs.packaging import models
from fastmaker.jobs.storage import manifests
from fastmaker.jobs.storage.listings import Inputs, listed
from fastmaker.local.store import default_home


def get_parser() -> argparse.ArgumentParser:
    """Return this command's parser."""
    parser = argparse.ArgumentParser(
        prog="fastmaker transform",
        description="Run a batch transform job over a folder, an S3 prefix or a manifest.",
        epilog="example: fastmaker transform --model digits --data s3://bucket/digits/ --collect answers.csv",
    )
    arguments.add_backend(parser, backends=(*arguments.BACKENDS, "ray"))
    parser.add_argument("--address", help="of the Ray cluster of --backend ray (default: local, one for the job)")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", help="a folder, or a file:// or s3:// prefix: every object in it is used")
    source.add_argument("--manifest", help="a manifest's file or URI; see fastmaker manifest")
    source.add_argument("--retry-failed", metavar="JOB", help="run this job again for what has no answer")
    parser.add_argument("--model", help="a training job, a model directory, a model.tar.gz or its URI")
    parser.add_argument("--output", help="folder or URI for the answers (default: answers/JOB, or S3 for S3 inputs)")
    parser.add_argument("--job-name", help="(default: made from the time)")
    arguments.add_container(parser)
    _add_transform_arguments(parser)
    parser.add_argument("--collect", type=Path, metavar="FILE", help="all answers with their keys: .jsonl or .csv")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="a contact sheet of images with their answers")
    return parser


def _add_transform_arguments(parser) -> None:
    """Add the settings of CreateTransformJob."""
    parser.add_argument("--max-concurrent-transforms", type=int, default=4, help="requests at once (%(default)s)")
    parser.add_argument("--max-payload", type=int, default=6, help="MB of one request (default: %(default)s)")
    parser.add_argument("--content-type", default="application/x-image", help="of the objects (default: %(default)s)")
    parser.add_argument("--accept", default="application/json", help="of the answers (default: %(default)s)")
    parser.add_argument("--compression-type", choices=("None", "Gzip"), help="of the objects")
    parser.add_argument("--split-type", choices=("None", "Line", "RecordIO"), help="how objects hold records")
    parser.add_argument("--strategy", choices=("MultiRecord", "SingleRecord"), help="records of one request")
    parser.add_argument("--assemble-with", choices=("None", "Line"), help="what ends each answer of an object")
    parser.add_argument("--input-filter", help="JSONPath: what of a record the model gets")
    parser.add_argument("--output-filter", help="JSONPath: what of an answer is stored")
    parser.add_argument("--join-source", choices=("None", "Input"), help="join the answers to their records")
    parser.add_argument("--max-retries", type=int, help="of a request that fails (default: 3)")
    parser.add_argument("--timeout", type=int, help="seconds for an answer (default: 600)")


# The arguments that go to the job as they are: they have the names of the request's fields.
SETTINGS = (
    *("instance_count", "max_concurrent_transforms", "max_payload", "content_type", "accept", "compression_type"),
    *("split_type", "strategy", "assemble_with", "input_filter", "output_filter", "join_source", "max_retries"),
    "timeout",
)


def parse_args(argv=None) -> argparse.Namespace:
    """Parse the arguments and check those that exclude or need each other."""
    parser = get_parser()
    args = parser.parse_args(argv)
    if not args.retry_failed and not args.model:
        parser.error("--model is needed: a training job, a model directory or a model.tar.gz")
    if args.collect and args.collect.suffix not in (".jsonl", ".csv"):
        parser.error(f"--collect {args.collect}: expected a name that ends with .jsonl or .csv")
    if args.collect and not args.retry_failed:
        try:
            check_collectable(args.accept)
        except ValueError as error:
            parser.error(str(error))
    return args


def main(args) -> int:
    """Run the job, or run one again, and print its report. Raises UnexpectedStatusException if it fails."""
    backend = backends.connect(**arguments.backend_options(args, needs_instances=not args.retry_failed))
    if args.retry_failed:
        _retry(args, backend)
        return 0
    data_type, source = ("S3Prefix", args.data) if args.data else ("ManifestFile", args.manifest)
    source = storage.uri_of(source)
    with listed(data_type, source) as inputs:
        _run(args, backend, data_type, source, inputs)
    return 0


def _run(args, backend: backends.Backend, data_type: str, source: str, inputs: Inputs) -> None:
    from sagemaker.utils import name_from_base

    model = models.locate(args.model, lambda: backend.session)
    request = backends.TransformRequest(
        name=args.job_name or name_from_base("fastmaker"),
        model_data=storage.uri_of(str(model)),
        source=source,
        data_type=data_type,
        output=storage.uri_of(args.output) if args.output else None,
        env=models.serving_environment(model, args.model, dict(args.env)),
        **{name: getattr(args, name) for name in SETTINGS},
    )
    if not backend.check(request):
        return
    request = dataclasses.replace(request, model_data=models.model_archive(model))
    if inputs.hidden:
        print(f"left out {inputs.hidden} hidden objects of {source}, which a job on AWS sends to the model as well")
    print(f"transforming {inputs.count} objects of {source} on {args.instance_count} x {backend.instance_type}")
    with _reported(args, backend, request.name, inputs, inputs.count):
        backend.transform(request)


def _retry(args, backend: backends.Backend) -> None:
    from sagemaker.utils import name_from_base

    description = backend.describe_transform(args.retry_failed)
    if (status := description["TransformJobStatus"]) in ("InProgress", "Stopping"):
        raise ValueError(f"transform job {args.retry_failed} is {status}; only one that has ended can be retried")
    if args.collect:
        check_collectable(description["TransformOutput"].get("Accept", ""))
    source = description["TransformInput"]["DataSource"]["S3DataSource"]
    output = description["TransformOutput"]["S3OutputPath"].rstrip("/")
    with listed(source["S3DataType"], source["S3Uri"]) as inputs:
        if args.dry_run:
            missing = sum(1 for _ in inputs.unanswered(output))
            print(f"would transform {missing} of {inputs.count} objects, those without an answer")
            return
        manifest = f"{output}-retry.json"
        if inputs.prefix.startswith("file://") and output.startswith("s3://"):  # a manifest in S3 names no files
            manifest = f"file://{default_home()}/{args.retry_failed}-retry.json"
        count = manifests.write(manifest, inputs.prefix, inputs.unanswered(output))
        if not count:
            print(f"all {inputs.count} objects of {args.retry_failed} have answers")
            return
        print(f"transforming {count} of {inputs.count} objects, those without an answer: {manifest}")
        job = args.job_name or name_from_base(args.retry_failed)
        with _reported(args, backend, job, inputs, count):
            backend.retry_transform(description, job, manifest)


@contextlib.contextmanager
def _reported(args, backend: backends.Backend, job: str, inputs: Inputs, requested: int) -> Iterator[None]:
    """Print, once the job has ended, well or not, what came of the `requested` objects among its inputs.

    A job that was never made, as in a dry run, has no report.
    """
    from botocore.exceptions import ClientError

    try:
        yield
    finally:
        description = {}
        with contextlib.suppress(ClientError, errors.Failure):
            description = backend.describe_transform(job)
        if {"TransformStartTime", "TransformEndTime"} <= description.keys():
            _print_report(args, backend, description, inputs, requested)


def _print_report(args, backend: backends.Backend, description: dict, inputs: Inputs, requested: int) -> None:
    job, output = description["TransformJobName"], description["TransformOutput"]["S3OutputPath"]
    seconds = (description["TransformEndTime"] - description["TransformStartTime"]).total_seconds()
    missing = sum(1 for _ in inputs.unanswered(output))
    requested -= description.get("AnsweredBefore", 0)  # of a job that was resumed
    answers = inputs.count - missing
    rows = [
        ["objects", inputs.count],
        ["answers", answers],
        ["failures", missing],
        ["seconds, start included", round(seconds, 1)],
        ["objects/s", round((requested - missing) / seconds, 1) if seconds else "-"],
    ]
    print("\n" + tables.table(["job", job], [[name, str(value)] for name, value in rows]))
    print(f"\nanswers: {output}")
    if args.collect:
        collect(inputs, output, args.collect)
        print(f"collected: {args.collect}")
    if args.picture and answers:
        save_picture(inputs, output, args.picture)
        print(f"picture: {args.picture}")
    if missing:
        print(f"next:    fastmaker transform{backend.cli_flags} --retry-failed {args.retry_failed or job}")


if __name__ == "__main__":
    errors.run(sys.modules[__name__])
