"""Train a model: ``fastmaker train --data DIRECTORY_OR_URI [--instance-type local] [hyperparameters]``.

Whatever is not an argument of this command goes to source/entry_point.py as a hyperparameter:

    fastmaker train --data pets/images --label-regex '^(.+)_[0-9]+.jpg$' --arch resnet34 --epochs 5
"""

import argparse
import subprocess
import sys
from pathlib import Path

from fastmaker.jobs import backends, files, storage
from fastmaker.jobs.backends.pytorch import fetch_report
from fastmaker.jobs.cli import arguments, errors, tables
from fastmaker.jobs.packaging.models import locate


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of this command's own arguments."""
    parser = argparse.ArgumentParser(
        prog="fastmaker train",
        description="Train a model with source/entry_point.py as a SageMaker training job.",
        epilog="Every other --name value is a hyperparameter; `python source/entry_point.py --help` lists them. "
        "example: fastmaker train --data digits --arch convnet --epochs 5",
    )
    arguments.add_backend(parser)
    parser.add_argument("--data", required=True, help="a directory, file:// or s3:// URI: the channel `train`")
    parser.add_argument("--valid", help="likewise: the channel `valid`")
    _add_first_weights(parser)
    parser.add_argument("--job-name", help="(default: made from the time)")
    parser.add_argument("--output", help="folder or URI for artifacts (default: in FASTMAKER_HOME)")
    parser.add_argument(
        "--instance-count", type=arguments.at_least(1), default=1, metavar="N", help="hosts (default: %(default)s)"
    )
    parser.add_argument(
        "--distribution",
        choices=("torch_distributed",),
        help="let torchrun start the entry point (default: the training toolkit does, once on each host)",
    )
    parser.add_argument(
        "--checkpoints", help="folder or URI for checkpoints; the job resumes from a matching one that is there"
    )
    parser.add_argument("--volume-size", type=int, default=30, help="GB of an instance's disk, on AWS (%(default)s)")
    parser.add_argument("--max-run", type=int, default=86400, help="seconds (default: %(default)s)")
    parser.add_argument("--spot", action="store_true", help="spot instances, which may be interrupted")
    parser.add_argument("--max-wait", type=int, help="seconds, waiting included (default: --max-run)")
    parser.add_argument("--report", default="reports", help="where the reports go, by job (default: %(default)s)")
    return parser


def _add_first_weights(parser) -> None:
    parser.add_argument(
        "--pretrained",
        metavar="{true,false,FILE}",
        help="start from weights that are downloaded, or from those of a file, or of a folder or URI that holds one:"
        " the channel `pretrained`",
    )
    parser.add_argument(
        "--resume-from",
        metavar="MODEL",
        help="start from an earlier model with the same labels, a training job, a model directory, a model.tar.gz or"
        " its URI: the channel `resume_from`",
    )


def parse_args(argv=None) -> argparse.Namespace:
    """Parse the arguments; those of the entry point become `hyperparameters`, a dict."""
    parser = get_parser()
    args, rest = parser.parse_known_args(argv)
    args.hyperparameters = _pairs(parser, rest)
    if args.pretrained and args.pretrained.lower() in ("true", "false", "1", "0", "yes", "no"):
        args.hyperparameters["pretrained"], args.pretrained = args.pretrained, None
    if args.max_wait and not args.spot:
        parser.error("--max-wait is for spot instances; give --spot as well")
    if args.spot:
        args.max_wait = args.max_wait or args.max_run
        if args.max_wait < args.max_run:
            parser.error(f"--max-wait {args.max_wait} includes the run: expected at least --max-run {args.max_run}")
    return args


def main(args) -> int:
    """Check the request and, unless it is a dry run, run the job and print its metrics."""
    from sagemaker.utils import name_from_base

    channels = {"train": _channel(args.data), **({"valid": _channel(args.valid)} if args.valid else {})}
    if args.pretrained:
        channels["pretrained"] = storage.uri_of(args.pretrained)
        storage.check(channels["pretrained"])
    if args.spot and not args.checkpoints:
        print("without --checkpoints an interrupted job starts from the beginning")
    backend = backends.connect(**arguments.backend_options(args))
    if args.resume_from:
        channels["resume_from"] = storage.uri_of(str(locate(args.resume_from, lambda: backend.session)))
    check_entry_point(channels, args.hyperparameters)
    request = backends.TrainingRequest(
        name=args.job_name or name_from_base("fastmaker"),
        channels=channels,
        hyperparameters=args.hyperparameters,
        instance_count=args.instance_count,
        distribution=args.distribution,
        output=storage.uri_of(args.output) if args.output else None,
        checkpoints=storage.uri_of(args.checkpoints) if args.checkpoints else None,
        volume_size=args.volume_size,
        max_run=args.max_run,
        spot=args.spot,
        max_wait=args.max_wait,
    )
    if backend.check(request) and (description := backend.train(request)):
        _print_report(backend, description, Path(args.report))
    return 0


def _print_report(backend: backends.Backend, description: dict, reports: Path) -> None:
    """Print the metrics of a job and what can be done next; unpack its pictures below `reports`."""
    job, model_data = description["TrainingJobName"], description["ModelArtifacts"]["S3ModelArtifacts"]
    metrics = description.get("FinalMetricDataList", [])
    print()
    print(tables.table(["metric", "value"], [[m["MetricName"], round(m["Value"], 4)] for m in metrics]))
    print(f"\nmodel:  {model_data}")
    if report := fetch_report(model_data, reports / job, backend.session):
        page = report / "report.html"  # which the job of another entry point may lack
        print(f"report: {page if page.is_file() else report}")
    print(f"next:   fastmaker deploy --model {job}{backend.serving_cli_flags}")


def _channel(data: str) -> str:
    uri = storage.uri_of(data)
    if uri.startswith("file://") and not storage.local_path(uri).is_dir():
        raise ValueError(f"{data}: expected a directory, or a URI that begins with s3:// or file://")
    return uri


def check_entry_point(channels: dict[str, str], hyperparameters: dict[str, str]) -> None:
    """Let the entry point check its arguments, and the layout of data that lies on this machine, before a job starts.

    Each host looks at the images themselves.
    Raises ValueError with the entry point's own message.
    """
    if any(uri.startswith("s3://") for uri in channels.values()):
        return
    given = [word for name, value in hyperparameters.items() for word in (f"--{name}", value)]
    folders = [word for name, uri in channels.items() for word in (f"--{name}", str(storage.local_path(uri)))]
    command = [sys.executable, str(files.SOURCE / "entry_point.py"), *given, *folders, "--check-only", "layout"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise ValueError(lines[-1] if lines else f"the entry point's check ended with status {done.returncode}")


def _pairs(parser, words: list[str]) -> dict[str, str]:
    """Return ``--name value ...`` as a dict."""
    pairs = {}
    words = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    for name, value in zip(words[::2], [*words[1::2], None], strict=False):
        if not name.startswith("--") or value is None or value.startswith("--"):
            parser.error(f"expected hyperparameters as --name value, got {' '.join(words)!r}")
        pairs[name[2:]] = value
    return pairs


if __name__ == "__main__":
    errors.run(sys.modules[__name__])
