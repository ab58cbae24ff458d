"""Options of training itself: epochs, learning rate, loss."""

import argparse
from collections.abc import Callable
from typing import Any

from fastmaker.training.arguments import kinds


def add_groups(parser: argparse.ArgumentParser) -> None:
    """Add these options to `parser`."""
    _add_training(parser.add_argument_group("training").add_argument)


def defaults(args: argparse.Namespace) -> dict[str, Any]:
    """Return the defaults that depend on other options."""
    return {
        "batch_size": 8 if args.task == "segmentation" else 64,
        "lr": 0.005 if args.arch == "convnet" else 0.002 if args.pretrained else 0.001,
    }


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with one line if these options are wrong or do not go together. Called before `defaults`."""
    if args.task != "segmentation" and args.batch_size == 1:
        parser.error("--batch-size 1: batch norms need two images")


def _add_training(add: Callable[..., Any]) -> None:
    add("--epochs", type=kinds.positive(int), default=5, help="epochs to train (default: %(default)s)")
    add("--batch-size", type=kinds.positive(int), help="images a batch, in each process (default: 64, segmentation 8)")
    add(
        "--lr",
        type=kinds.positive(float),
        help="maximum learning rate (default: 0.002 to fine-tune, 0.001 from scratch, convnet 0.005)",
    )
    add(
        "--seed",
        type=kinds.whole,
        default=42,
        help="of the split, of shuffling and of each batch (default: %(default)s)",
    )
    add(
        "--precision",
        choices=("auto", "float32", "bf16", "fp16"),
        default="auto",
        help="what the network computes in while it trains; weights, loss and validation are float32 (default:"
        " %(default)s, what the device does well)",
    )
