"""Options of where and how a run trains: directories, checkpoints, processes. They do not change what it computes."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastmaker.training.arguments import kinds


def add_groups(parser: argparse.ArgumentParser) -> None:
    """Add these options to `parser`."""
    _add_directories(parser.add_argument_group("directories (set by SageMaker in a container)").add_argument)
    _add_checkpoints(parser.add_argument_group("checkpoints").add_argument)
    _add_processes(parser.add_argument_group("processes").add_argument)


def defaults(args: argparse.Namespace) -> dict[str, Any]:
    """Return the defaults that depend on the container."""
    return {
        "model_dir": os.environ.get("SM_MODEL_DIR", "model"),
        "output_data_dir": os.environ.get("SM_OUTPUT_DATA_DIR", "output"),
        "checkpoint_dir": _checkpoint_dir(),
    }


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with one line if these options are wrong or do not go together. Called before `defaults`."""


def _add_directories(add: Callable[..., Any]) -> None:
    add("--model-dir", metavar="DIRECTORY", help="where the bundle is written (default: SM_MODEL_DIR, or model)")
    add(
        "--output-data-dir",
        metavar="DIRECTORY",
        help="where the report is written (default: SM_OUTPUT_DATA_DIR, or output)",
    )


def _add_checkpoints(add: Callable[..., Any]) -> None:
    add(
        "--checkpoint-dir",
        metavar="DIRECTORY",
        help="where a checkpoint is written after each epoch and at SIGTERM; the newest two are kept, and a new start"
        " resumes from a matching checkpoint (default: /opt/ml/checkpoints, or checkpoints in SAGEMAKER_BASE_DIR, if"
        " that exists, or none)",
    )
    add(
        "--checkpoint-minutes",
        type=kinds.positive(float),
        default=5,
        help="minutes between checkpoints within an epoch (default: %(default)s)",
    )


def _add_processes(add: Callable[..., Any]) -> None:
    add("--workers", type=kinds.whole, help="DataLoader workers (default: one a core, or none for few small images)")
    add("--processes", type=kinds.positive(int), help="processes on each host (default: one for each GPU, or one)")
    add("--dist-backend", choices=("auto", "gloo", "nccl"), default="auto", help="auto: nccl on GPUs, or gloo")
    add(
        "--timeout",
        type=kinds.positive(float),
        default=600,
        help="seconds; a host that does not join within them fails the job (default: %(default)s)",
    )


def _checkpoint_dir() -> str | None:
    """Return the directory that SageMaker keeps in S3; it exists if the job asked for checkpoints."""
    folder = Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml")) / "checkpoints"
    return str(folder) if folder.is_dir() else None
