"""Options of the images, their labels and which of them are for validation."""

import argparse
import os
from collections.abc import Callable
from typing import Any

from fastmaker.training import layouts
from fastmaker.training.arguments import kinds


def add_groups(parser: argparse.ArgumentParser) -> None:
    """Add these options to `parser`."""
    _add_data(parser.add_argument_group("data").add_argument)


def defaults(args: argparse.Namespace) -> dict[str, Any]:
    """Return the defaults that depend on the container."""
    env = os.environ.get
    return {
        "train": env("SM_CHANNEL_TRAIN", env("SM_CHANNEL_TRAINING")),
        "valid": env("SM_CHANNEL_VALID", env("SM_CHANNEL_VALIDATION")),
    }


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with one line if these options are wrong or do not go together. Called before `defaults`."""
    if args.train is None and defaults(args)["train"] is None:
        parser.error("--train DIRECTORY is missing, and so is SM_CHANNEL_TRAIN")
    try:
        layouts.compile_regex(args.label_regex)
    except layouts.DataError as error:
        parser.error(str(error))


def _add_data(add: Callable[..., Any]) -> None:
    add("--train", metavar="DIRECTORY", help="training data (default: SM_CHANNEL_TRAIN or SM_CHANNEL_TRAINING)")
    add(
        "--valid",
        metavar="DIRECTORY",
        help="validation data (default: SM_CHANNEL_VALID or SM_CHANNEL_VALIDATION, or none)",
    )
    add("--label-regex", help=r"the first group is the label in each file name, as in '^(.+)_\d+.jpg$'")
    add(
        "--valid-pct",
        type=kinds.fraction,
        default=0.2,
        help="fraction of each class (of all images with masks) to validate on, if the data has no validation images"
        " (default: %(default)s)",
    )
    add(
        "--check-only",
        type=kinds.flag,
        metavar=kinds.BOOL,
        default=False,
        help="check the arguments and the data, then stop (default: false)",
    )
