"""Options of the loss and of how often each class is seen, by fastai's names."""

import argparse
from typing import Any

from fastmaker.training.arguments import kinds

TASKS = {
    "label_smoothing": ("classification",),
    "focal": ("classification",),
    "class_weights": ("classification", "multilabel"),
    "weighted_sampling": ("classification",),
}


def add_groups(parser: argparse.ArgumentParser) -> None:
    """Add these options to `parser`."""
    add = parser.add_argument_group("loss and balance of classes").add_argument
    add("--label-smoothing", type=kinds.fraction, metavar="EPS", help="LabelSmoothingCrossEntropyFlat(eps=EPS)")
    add("--focal", type=kinds.positive(float), metavar="GAMMA", help="FocalLossFlat(gamma=GAMMA)")
    add(
        "--class-weights",
        choices=("balanced", "none"),
        help="balanced: in the loss, a class counts more the fewer images it has; of several labels, as pos_weight"
        " (default: none)",
    )
    add(
        "--weighted-sampling",
        type=kinds.flag,
        metavar=kinds.BOOL,
        help="draw the images of an epoch with replacement, each class as often as any other (default: false)",
    )


def defaults(args: argparse.Namespace) -> dict[str, Any]:
    """Return the defaults that depend on other options."""
    return {"class_weights": "none", "weighted_sampling": False}


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with one line if these options are wrong or do not go together. Called before `defaults`."""
    chosen = given(args)
    for name in chosen:
        if args.task not in TASKS[name]:
            parser.error(f"--{name.replace('_', '-')} is not for {args.task}")
    if "label_smoothing" in chosen and "focal" in chosen:
        parser.error("--label-smoothing and --focal are two losses; give one of them")
    if "class_weights" in chosen and "weighted_sampling" in chosen:
        parser.error("--class-weights and --weighted-sampling both balance the classes; give one of them")


def given(args: argparse.Namespace) -> dict[str, Any]:
    """Return those of these options that change the run, to print them."""
    return {name: getattr(args, name) for name in TASKS if getattr(args, name) not in (None, False, "none")}
