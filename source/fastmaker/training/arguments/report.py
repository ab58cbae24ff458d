"""Options of the report. They do not change the weights that a run computes, nor its bundle."""

import argparse
from typing import Any

from fastmaker.training.arguments import augmentation, kinds

AVERAGED = ("classification", "multilabel", "regression")  # tasks whose answers do not move with the image


def add_groups(parser: argparse.ArgumentParser) -> None:
    """Add these options to `parser`."""
    parser.add_argument_group("report").add_argument(
        "--tta",
        type=kinds.whole,
        default=0,
        metavar="N",
        help="also report what it gives to average the answers over N augmented passes over the validation images; the"
        " model that is served does not (default: %(default)s)",
    )


def defaults(args: argparse.Namespace) -> dict[str, Any]:
    """Return the defaults that depend on other options."""
    return {}


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with one line if these options are wrong or do not go together. Called before `defaults`."""
    if args.tta and args.task not in AVERAGED:
        parser.error(f"--tta is not for {args.task}: its answers move with the image when that is augmented")
    if args.tta and not augmentation.augments(args):
        parser.error("--tta averages over augmented images, and --augment is false; give --augment true, or no --tta")
