"""Options of training itself: epochs, learning rate, loss."""

import argparse
import math
from collections.abc import Callable
from typing import Any

from fastmaker.training.arguments import kinds

# The metrics of each task's Learner, and whether more is better.
LOSSES = {"train_loss": False, "valid_loss": False}
METRICS = {
    "classification": {"accuracy": True, "error_rate": False},
    "multilabel": {"accuracy_multi": True, "f1": True},
    "regression": {"mae": False, "rmse": False},
    "points": {"point_error": False},
    "segmentation": {"pixel_accuracy": True, "mean_iou": True},
}


def is_better(metric: str, value: float, other: float) -> bool:
    """Return whether `value` of a metric is better than `other`; a number is better than NaN."""
    if math.isnan(value) or math.isnan(other):
        return not math.isnan(value)
    more = {name: more for known in (LOSSES, *METRICS.values()) for name, more in known.items()}[metric]
    return value > other if more else value < other


def add_groups(parser: argparse.ArgumentParser) -> None:
    """Add these options to `parser`."""
    _add_training(parser.add_argument_group("training").add_argument)


def defaults(args: argparse.Namespace) -> dict[str, Any]:
    """Return the defaults that depend on other options."""
    return {
        "batch_size": 8 if args.task == "segmentation" else 64,
        "lr": 0.005 if args.arch == "convnet" else 0.002 if args.pretrained else 0.001,
        "freeze_epochs": 1 if args.pretrained else 0,
        "monitor": "valid_loss",
        "keep_best": args.early_stopping is not None,
        "progressive_sizes": (),
    }


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with one line if these options are wrong or do not go together. Called before `defaults`."""
    if args.task != "segmentation" and args.batch_size == 1:
        parser.error("--batch-size 1: batch norms need two images")
    metrics = [*LOSSES, *METRICS[args.task]]
    if args.monitor is not None and args.monitor not in metrics:
        parser.error(f"--monitor {args.monitor!r}: expected one of {', '.join(metrics)}")
    if args.monitor is not None and args.early_stopping is None and not args.keep_best:
        parser.error("--monitor is for --early-stopping and --keep-best true")
    if args.early_stopping is not None and args.keep_best is False:
        parser.error("--keep-best false: --early-stopping keeps the best epoch")
    if args.freeze_epochs and args.pretrained in (False, None) and (args.arch == "convnet" or args.pretrained is False):
        parser.error("--freeze-epochs is for pretrained weights: without them no part of a network is frozen")
    if len(args.progressive_sizes or ()) >= args.epochs:
        parser.error(f"--progressive-sizes: each size and --image-size need an epoch, and --epochs is {args.epochs}")


def _add_training(add: Callable[..., Any]) -> None:
    add("--epochs", type=kinds.positive(int), default=5, help="epochs to train (default: %(default)s)")
    add("--batch-size", type=kinds.positive(int), help="images a batch, in each process (default: 64, segmentation 8)")
    add(
        "--lr",
        type=kinds.number_or_find,
        metavar="{NUMBER,find}",
        help="maximum learning rate, or find: what fastai's lr_find suggests (default: 0.002 to fine-tune, 0.001 from"
        " scratch, convnet 0.005)",
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
    _add_schedule(add)


def _add_schedule(add: Callable[..., Any]) -> None:
    add(
        "--freeze-epochs",
        type=kinds.whole,
        help="epochs that train the new head alone, before --epochs (default: 1 to fine-tune)",
    )
    add(
        "--schedule",
        choices=("one-cycle", "flat-cos"),
        default="one-cycle",
        help="how the learning rate goes: fastai's fit_one_cycle, or fit_flat_cos, but for a new head (default:"
        " %(default)s)",
    )
    add("--clip-gradients", type=kinds.positive(float), metavar="NORM", help="largest norm of gradients (default: any)")
    add("--weight-decay", type=kinds.from_zero, help="weight decay (default: fastai's, 0.01)")
    add(
        "--early-stopping",
        type=kinds.positive(int),
        metavar="PATIENCE",
        help="end when --monitor has not improved for so many epochs of the last size (default: train all)",
    )
    add("--monitor", metavar="METRIC", help="what is best for --early-stopping and --keep-best (default: valid_loss)")
    add(
        "--keep-best",
        type=kinds.flag,
        metavar=kinds.BOOL,
        help="keep the best epoch of the last size in place of the last epoch (default: true with --early-stopping)",
    )
    add(
        "--progressive-sizes",
        type=kinds.sizes,
        metavar="SIZES",
        help="sizes that images have before --image-size, such as 128,160; the epochs are shared among all"
        " (default: none)",
    )
