"""Train a model: ``fastmaker train --data DIRECTORY_OR_URI [--instance-type local] [hyperparameters]``.

Whatever is not an argument of this script goes to source/entry_point.py as a hyperparameter:

    fastmaker train --data pets/images --label-regex '^(.+)_[0-9]+.jpg$' --arch resnet34 --epochs 5
"""

import argparse
import logging
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from fastmaker.jobs import backends, files, storage
from fastmaker.jobs.cli import errors, tables

METRIC_DEFINITIONS = [
    {"Name": "train:loss", "Regex": r"train_loss=([0-9.]+)"},
    {"Name": "valid:loss", "Regex": r"valid_loss=([0-9.]+)"},
    {"Name": "valid:accuracy", "Regex": r"accuracy=([0-9.]+)"},
    {"Name": "valid:mean_iou", "Regex": r"mean_iou=([0-9.]+)"},
    {"Name": "train:images_per_second", "Regex": r"images_per_second=([0-9.]+)"},
]


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        prog="fastmaker train",
        description="Train a model with source/entry_point.py as a SageMaker training job.",
        epilog="Every other --name value is a hyperparameter; `python source/entry_point.py --help` lists them. "
        "example: fastmaker train --data digits --arch convnet --epochs 5",
    )
    backends.add_arguments(parser)
    parser.add_argument("--data", required=True, help="a directory, file:// or s3:// URI: the channel `train`")
    parser.add_argument("--valid", help="likewise: the channel `valid`")
    parser.add_argument("--job-name", help="(default: made from the time)")
    parser.add_argument("--output", help="folder or URI for artefacts (default: in FASTMAKER_HOME)")
    parser.add_argument("--instance-count", type=int, default=1, help="hosts (default: %(default)s)")
    parser.add_argument(
        "--distribution",
        choices=("torch_distributed",),
        help="let torchrun start the entry point (default: the training toolkit does, once on each host)",
    )
    parser.add_argument("--checkpoints", help="folder or URI: a job that finds its like there goes on after it")
    parser.add_argument("--volume-size", type=int, default=30, help="GB of an instance's disk, on AWS (%(default)s)")
    parser.add_argument("--max-run", type=int, default=86400, help="seconds (default: %(default)s)")
    parser.add_argument("--spot", action="store_true", help="spot instances, which may be interrupted")
    parser.add_argument("--max-wait", type=int, help="seconds, waiting included (default: --max-run)")
    parser.add_argument("--report", default="reports", help="where the pictures go, by job (default: %(default)s)")
    args, rest = parser.parse_known_args(argv)
    args.hyperparameters = _pairs(parser, rest)
    if args.instance_count < 1:
        parser.error(f"--instance-count {args.instance_count}: expected at least 1")
    if args.max_wait and not args.spot:
        parser.error("--max-wait is for spot instances; give --spot as well")
    if args.spot:
        args.max_wait = args.max_wait or args.max_run
        if args.max_wait < args.max_run:
            parser.error(f"--max-wait {args.max_wait} includes the run: expected at least --max-run {args.max_run}")
    return args


def main(args) -> str | None:
    """Run the job; returns its name, None if it was only checked."""
    from sagemaker.utils import name_from_base

    channels = {"train": _channel(args.data), **({"valid": _channel(args.valid)} if args.valid else {})}
    if args.spot and not args.checkpoints:
        print("without --checkpoints an interrupted job starts from the beginning")
    with backends.backend(args) as backend:
        _check(channels, args.hyperparameters)
        job = args.job_name or name_from_base("fastmaker")
        kind = "spot training" if args.spot else "training"
        if not backend.check(kind, job, args.instance_count, channels.values(), [args.output, args.checkpoints]):
            return None
        inputs = {name: backend.upload(uri, "training-job", job, f"data/{name}") for name, uri in channels.items()}
        estimator = estimator_for(args, backend, job)
        backend.print_cost_notice("training-job", job)
        estimator.fit(inputs, job_name=job, wait=not backend.dry_run)
        if not backend.dry_run:
            _report(args, estimator, backend, job)
    return job


def estimator_for(args, backend, job: str):
    """The SDK's PyTorch estimator for these arguments."""
    from sagemaker.pytorch import PyTorch

    arguments = {
        "entry_point": "entry_point.py",
        "source_dir": str(files.SOURCE),
        "instance_count": args.instance_count,
        "instance_type": args.instance_type,
        "volume_size": args.volume_size,
        "hyperparameters": args.hyperparameters,
        "metric_definitions": METRIC_DEFINITIONS,
        "container_log_level": logging.WARNING,  # the toolkit's own lines would bury the script's
        "distribution": {args.distribution: {"enabled": True}} if args.distribution else None,
        "max_run": args.max_run,
        "use_spot_instances": args.spot,
        "max_wait": args.max_wait,
        "checkpoint_s3_uri": storage.uri_of(args.checkpoints) if args.checkpoints else None,
        "disable_profiler": True,
        "debugger_hook_config": False,
        **backend.training(job),
    }
    if args.output:
        arguments["output_path"] = storage.uri_of(args.output)
    return PyTorch(**arguments)


def _report(args, estimator, backend, job: str) -> None:
    description = backend.session.describe_training_job(job)
    if (status := description["TrainingJobStatus"]) != "Completed":  # such as stopped by --max-run, or by somebody
        raise errors.Failure(f"training job {job} is {status}: {description.get('SecondaryStatus')}")
    backend.keep_created()
    metrics = description.get("FinalMetricDataList", [])
    print()
    print(tables.table(["metric", "value"], [[m["MetricName"], round(m["Value"], 4)] for m in metrics]))
    print(f"\nmodel:  {estimator.model_data}")
    if report := fetch_report(estimator.model_data, Path(args.report) / job, backend.session):
        print(f"report: {report}")
    print(f"next:   fastmaker deploy --model {job}{backend.serving_cli_flags}")


def fetch_report(model_data: str, folder: Path, sagemaker_session) -> Path | None:
    """Unpack the job's output.tar.gz into `folder`; None if the job left none."""
    from sagemaker.s3 import S3Downloader

    uri = model_data.rpartition("/")[0] + "/output.tar.gz"
    with tempfile.TemporaryDirectory() as scratch:
        if uri.startswith("s3://"):
            S3Downloader.download(uri, scratch, sagemaker_session=sagemaker_session)
            archive = Path(scratch, "output.tar.gz")
        else:
            archive = storage.local_path(uri)
        if not archive.is_file():
            return None
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    return folder


def _channel(data: str) -> str:
    uri = storage.uri_of(data)
    if uri.startswith("file://") and not storage.local_path(uri).is_dir():
        raise ValueError(f"{data}: expected a directory, or a URI that begins with s3:// or file://")
    return uri


def _check(channels: dict[str, str], hyperparameters: dict[str, str]) -> None:
    """Let the entry point check its arguments, and data that lies on this machine, before a job starts."""
    if any(uri.startswith("s3://") for uri in channels.values()):
        return
    arguments = [word for name, value in hyperparameters.items() for word in (f"--{name}", value)]
    folders = [word for name, uri in channels.items() for word in (f"--{name}", str(storage.local_path(uri)))]
    command = [sys.executable, str(files.SOURCE / "entry_point.py"), *arguments, *folders, "--check-only", "true"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise ValueError(lines[-1] if lines else f"the entry point's check ended with status {done.returncode}")


def _pairs(parser, words: list[str]) -> dict[str, str]:
    """``--name value ...`` as a dict."""
    pairs = {}
    words = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    for name, value in zip(words[::2], [*words[1::2], None], strict=False):
        if not name.startswith("--") or value is None or value.startswith("--"):
            parser.error(f"expected hyperparameters as --name value, got {' '.join(words)!r}")
        pairs[name[2:]] = value
    return pairs


if __name__ == "__main__":
    errors.run(sys.modules[__name__])
