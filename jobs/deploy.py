"""Deploy a model to an endpoint: ``fastmaker deploy --model JOB_OR_MODEL [--endpoint-name NAME]``."""

import argparse
import contextlib
import hashlib
import os
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

from fastmaker.jobs import backends, storage
from fastmaker.jobs.backends.inventory import is_missing
from fastmaker.jobs.cli import errors
from fastmaker.local.containers import pack
from fastmaker.local.store import now

# What a bundle holds; the model directory itself is the business of source/fastmaker/bundle.py.
BUNDLE_FILES = ("model.json", "model.pth", "code/entry_point.py")
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


def model_archive(found: Path | str) -> str:
    """The URI of the model.tar.gz that `locate` has found; a directory is packed into FASTMAKER_HOME."""
    if isinstance(found, str):
        return found
    return f"file://{_packed(found) if found.is_dir() else found}"


def locate(model: str, sagemaker_session: Callable) -> Path | str:
    """The model directory or model.tar.gz that `model` means, checked for a bundle's files, or its S3 URI unchecked.

    Only a training job's name makes a session, which takes seconds.
    Raises ValueError if it is no bundle.
    """
    if model.startswith("s3://"):
        return model
    path = storage.local_path(model) if model.startswith("file://") else Path(model).expanduser()
    if path.is_dir():
        names = {name for name in BUNDLE_FILES if (path / name).is_file()}
        # A folder of images may be called as the job that was trained on them.
        if names or not _is_training_job(model, sagemaker_session):
            _check_files(path.resolve(), names)
            return path.resolve()
    if not path.is_file():
        uri = _archive_of_job(model, sagemaker_session())
        if uri.startswith("s3://"):
            return uri
        path = storage.local_path(uri)
    try:
        with tarfile.open(path) as tar:
            _check_files(path, {name.removeprefix("./") for name in tar.getnames()})
    except tarfile.TarError as error:
        raise ValueError(f"{path} is no model.tar.gz: {error}") from None
    return path.resolve()


def _is_training_job(name: str, sagemaker_session: Callable) -> bool:
    from botocore.exceptions import ClientError

    if not name.replace("-", "").isalnum():  # no job can have this name
        return False
    try:
        return bool(sagemaker_session().describe_training_job(name))
    except ClientError as error:
        if is_missing(error):
            return False
        raise


def _archive_of_job(name: str, sagemaker_session) -> str:
    from botocore.exceptions import ClientError

    try:
        description = sagemaker_session.describe_training_job(name)
    except ClientError as error:
        if is_missing(error):
            raise ValueError(f"{name}: no such training job, model directory or model.tar.gz") from None
        raise
    if description["TrainingJobStatus"] != "Completed":
        raise ValueError(f"training job {name} is {description['TrainingJobStatus']}; it has no model to deploy")
    return description["ModelArtifacts"]["S3ModelArtifacts"]


def _packed(folder: Path) -> Path:
    """The folder's archive, in the place of the one of before: what lies beside the folder may be somebody's own."""
    name = f"{folder.name}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]}"
    packed = backends.packed_models()
    with contextlib.suppress(FileExistsError):
        packed.create(name, {"Folder": str(folder), "CreationTime": now()})
    archive = packed.directory(name) / f"{folder.name}.tar.gz"
    print(f"packing {folder} into {archive}", flush=True)
    pack(folder, archive)
    return archive


def _check_files(where: Path, names: set[str]) -> None:
    if missing := [name for name in BUNDLE_FILES if name not in names]:
        raise ValueError(f"{where} is no bundle: it lacks {', '.join(missing)}")


if __name__ == "__main__":
    errors.run(sys.modules[__name__])
