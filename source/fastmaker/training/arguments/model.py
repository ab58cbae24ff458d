"""Options of the task, its network and the size of its images."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
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
    "mask_scale": ["segmentation"],
}


def add_groups(parser: argparse.ArgumentParser) -> None:
    """Add these options to `parser`."""
    _add_model(parser.add_argument_group("model and task").add_argument)
    _add_segmentation(parser.add_argument_group("segmentation (only with --task segmentation)").add_argument)


def defaults(args: argparse.Namespace) -> dict[str, Any]:
    """Return the defaults that depend on other options."""
    small = args.arch == "convnet"
    return {
        "resize_method": resize_method(args),
        "image_size": image_size(args),
        "image_mode": "L" if small else "RGB",
        "pretrained": not small and args.resume_from is None,
        "self_attention": False,
        "mask_size": "model",
        "threshold": 0.5 if args.task == "multilabel" else None,
    }


def resize_method(args: argparse.Namespace) -> str:
    """Return the default of --resize-method."""
    return "squish" if args.task == "segmentation" else "crop"


def image_size(args: argparse.Namespace) -> tuple[int, int]:
    """Return the default of --image-size."""
    return (28, 28) if args.arch == "convnet" else (224, 224)


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with one line if these options are wrong or do not go together. Called before `defaults`."""
    _find_weights(parser, args)
    if args.task == "segmentation" or args.arch != "convnet":
        from fastmaker.training import architectures  # imported only here: it imports torch, which takes a second

        downloaded = args.pretrained is True or (args.pretrained is None and args.resume_from is None)
        try:
            architectures.check(args.arch, args.task, args.image_size or image_size(args), downloaded)
        except architectures.ArchitectureError as error:
            parser.error(str(error))
    for name, those in OF_TASKS.items():
        if getattr(args, name) is not None and args.task not in those:
            parser.error(f"--{name.replace('_', '-')} is not for {args.task}")
    if args.arch == "convnet" and args.pretrained is True:
        parser.error("--pretrained true: there are no pretrained weights for convnet")


def _find_weights(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Make paths of the channels that hold weights; end with one line if there are none where some are said to be."""
    channel = {name: os.environ.get(f"SM_CHANNEL_{name.upper()}") for name in ("pretrained", "weights", "resume_from")}
    if args.resume_from is None:
        args.resume_from = channel["resume_from"]
    elif not Path(args.resume_from).exists():
        parser.error(f"--resume-from {args.resume_from}: there is no such file or folder")
    if args.resume_from is not None and args.pretrained:
        parser.error("--resume-from starts from the weights of a model; leave --pretrained out")
    if args.pretrained is None and args.resume_from is None:
        args.pretrained = channel["pretrained"] or channel["weights"]
    if isinstance(args.pretrained, str):
        from fastmaker.training import weights  # imported only here: it imports torch, which takes a second

        variable = f"SM_CHANNEL_{args.pretrained.upper()}"
        try:
            args.pretrained = str(weights.find(Path(os.environ.get(variable, args.pretrained))))
        except weights.WeightsError as error:
            parser.error(str(error))


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
        type=kinds.flag_or_path,
        metavar="{true,false,FILE}",
        help="start from weights that are downloaded (true), or from those of a file, or of a folder or channel that"
        " holds one (default: the channel pretrained or weights, or true, convnet false)",
    )
    add(
        "--resume-from",
        metavar="BUNDLE",
        help="start from the weights of an earlier model with the same labels: a bundle, or its model.tar.gz (default:"
        " the channel resume_from, or none)",
    )
    add("--image-size", type=kinds.size, help="pixels, one number or HEIGHTxWIDTH (default: 224, convnet 28)")
    add("--image-mode", choices=("RGB", "L"), help="colour or grey (default: RGB, convnet L)")
    add(
        "--resize-method",
        choices=("crop", "pad", "squish", "random-crop"),
        help="how images get that size: cropped around the centre, padded, squished, or by RandomResizedCrop"
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
