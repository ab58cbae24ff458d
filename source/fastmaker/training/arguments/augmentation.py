"""Options of what is done to training images before the network sees them."""

import argparse
from typing import Any

from fastmaker.training.arguments import kinds


def add_groups(parser: argparse.ArgumentParser) -> None:
    """Add these options to `parser`."""
    add = parser.add_argument_group("augmentation").add_argument
    add(
        "--augment",
        type=kinds.flag,
        metavar=kinds.BOOL,
        help="augment with fastai's aug_transforms (default: true, convnet false)",
    )


def defaults(args: argparse.Namespace) -> dict[str, Any]:
    """Return the defaults that depend on other options."""
    return {"augment": args.arch != "convnet"}


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with one line if these options are wrong or do not go together. Called before `defaults`."""
