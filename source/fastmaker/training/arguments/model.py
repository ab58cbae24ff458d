"""Options of the task, its network and the size of its images."""

import argparse
from collections.abc import Callable
from typing import Any

from fastmaker import masks, tasks
from fastmaker.training.arguments import kinds

# The options of some tasks.
OF_TASKS = {
    **{
        name: [task for task in tasks.TASKS if task != "segmentation"]
        for name in ("label_regex", "labels_csv", "label_columns", "label_delimiter")
    },
    "threshold": ["multilabel"],
    "y_range": ["regression", "points"],
    "void_code": ["segmentation"],
    "self_attention": ["segmentation"],
    "mask_size": ["segmentation"],
}


def add_groups(parser: argparse.ArgumentParser) -> None:
    """Add these options to `parser`."""
    _add_model(parser.add_argument_group("model and task").add_argument)
    _add_segmentation(parser.add_argument_group("segmentation (only with --task segmentation)").add_argument)


def defaults(args: argparse.Namespace) -> dict[str, Any]:
    """Return the defaults that depend on other options."""
    small, segments = args.arch == "convnet", args.task == "segmentation"
    return {
        "resize_method": "squish" if segments else "crop",
        "image_size": (28, 28) if small else (224, 224),
        "image_mode": "L" if small else "RGB",
        "pretrained": not small,
        "self_attention": False,
        "mask_size": "model",
        "threshold": 0.5 if args.task == "multilabel" else None,
    }


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with one line if these options are wrong or do not go together. Called before `defaults`."""
    if args.task == "segmentation" or args.arch != "convnet":
        from fastmaker.training import architectures  # imported only here: it imports torch, which takes a second

        try:
            architectures.check(args.arch, args.task, args.image_size or (224, 224), args.pretrained in (None, True))
        except architectures.ArchitectureError as error:
            parser.error(str(error))
    for name, those in OF_TASKS.items():
        if getattr(args, name) is not None and args.task not in those:
            parser.error(f"--{name.replace('_', '-')} is not for {args.task}")
    if args.arch == "convnet" and args.pretrained:
        parser.error("--pretrained true: there are no pretrained weights for convnet")


def _add_model(add: Callable[..., Any]) -> None:
    add(
        "--task",
        choices=tasks.TASKS,
        default="classification",
        help="what is learnt of an image: one label, several, numbers, points or a mask (default: %(default)s)",
    )
    add("--arch", default="resnet34", help="convnet, or a network of torchvision or timm (default: %(default)s)")
    add(
        "--pretrained",
        type=kinds.flag,
        metavar=kinds.BOOL,
        help="start from ImageNet weights (default: true, convnet false)",
    )
    add("--image-size", type=kinds.size, help="pixels, one number or HEIGHTxWIDTH (default: 224, convnet 28)")
    add("--image-mode", choices=("RGB", "L"), help="colour or grey (default: RGB, convnet L)")
    add(
        "--resize-method",
        choices=("crop", "pad", "squish"),
        help="how images get that size: cropped around the centre, padded by reflection, or squished"
        " (default: crop, segmentation squish)",
    )
    add(
        "--threshold",
        type=kinds.fraction,
        help="multilabel: an image has the labels whose probability is above it (default: 0.5)",
    )
    add(
        "--y-range",
        type=kinds.interval,
        metavar="LOW,HIGH",
        help="regression and points: the network answers with numbers between these (default: with any)",
    )


def _add_segmentation(add: Callable[..., Any]) -> None:
    add(
        "--void-code",
        help="class that is ignored in loss and metrics: a name or index of codes.txt, an index that codes.txt does not"
        " name, such as 255, or none (default: the class named Void, Ignore, Unlabeled or Unlabelled)",
    )
    add(
        "--self-attention",
        type=kinds.flag,
        metavar=kinds.BOOL,
        help="add a self-attention layer to the U-Net (default: false)",
    )
    add("--mask-size", choices=masks.SIZES, help="size of the masks that are served (default: model)")
