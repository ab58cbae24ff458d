"""The command line of the entry point; every default stands here."""

import argparse
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastmaker import masks
from fastmaker.training import layouts

BOOL = "{true,false}"


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of a training run. Hyperparameters of a job arrive as ``--name value``."""
    parser = argparse.ArgumentParser(
        prog="entry_point.py",
        description="Train a classifier or a U-Net for segmentation, and write a bundle that serves without fastai.",
        epilog="example: python source/entry_point.py --train digits --model-dir model --arch convnet --epochs 5",
    )
    _add_model(parser.add_argument_group("model and task").add_argument)
    _add_training(parser.add_argument_group("training").add_argument)
    _add_data(parser.add_argument_group("data").add_argument)
    _add_segmentation(parser.add_argument_group("segmentation (only with --task segmentation)").add_argument)
    _add_directories(parser.add_argument_group("directories (set by SageMaker in a container)").add_argument)
    _add_checkpoints(parser.add_argument_group("checkpoints").add_argument)
    _add_distributed(parser.add_argument_group("distributed training").add_argument)
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the checked arguments of a run, with the defaults for its task, architecture and container.

    Exits with status 2 and one line for arguments that are wrong or do not go together.
    """
    parser = get_parser()
    args = parser.parse_args(argv)
    _set_directories(args)
    _check(parser, args)
    _set_defaults(args)
    if args.arch == "convnet" and args.pretrained:
        parser.error("--pretrained true: there are no pretrained weights for convnet")
    return args


def _add_model(add: Callable[..., Any]) -> None:
    add("--task", choices=("classification", "segmentation"), default="classification", help="(default: %(default)s)")
    add("--arch", default="resnet34", help="convnet or a torchvision architecture (default: %(default)s)")
    add("--pretrained", type=_flag, metavar=BOOL, help="start from ImageNet weights (default: true, convnet false)")
    add("--image-size", type=_size, help="pixels, one number or HEIGHTxWIDTH (default: 224, convnet 28)")
    add("--image-mode", choices=("RGB", "L"), help="colour or grey (default: RGB, convnet L)")
    add(
        "--resize-method",
        choices=("crop", "pad", "squish"),
        help="how images get that size: cropped around the centre, padded by reflection, or squished"
        " (default: crop, segmentation squish)",
    )


def _add_training(add: Callable[..., Any]) -> None:
    add("--epochs", type=_positive(int), default=5, help="epochs to train (default: %(default)s)")
    add("--batch-size", type=_positive(int), help="images a batch, in each process (default: 64, segmentation 8)")
    add(
        "--lr",
        type=_positive(float),
        help="maximum learning rate (default: 0.002 to fine-tune, 0.001 from scratch, convnet 0.005)",
    )
    add(
        "--augment",
        type=_flag,
        metavar=BOOL,
        help="augment with fastai's aug_transforms (default: true, convnet false)",
    )
    add("--seed", type=_whole, default=42, help="of the split, of shuffling and of each batch (default: %(default)s)")
    add("--workers", type=_whole, help="DataLoader workers (default: one a core, or none for few small images)")


def _add_data(add: Callable[..., Any]) -> None:
    add("--label-regex", help=r"the first group is the label in each file name, as in '^(.+)_\d+.jpg$'")
    add(
        "--valid-pct",
        type=_fraction,
        default=0.2,
        help="fraction of each class (of all images with masks) to validate on, if the data has no validation images"
        " (default: %(default)s)",
    )
    add(
        "--check-only",
        type=_flag,
        metavar=BOOL,
        default=False,
        help="check the arguments and the data, then stop (default: false)",
    )


def _add_segmentation(add: Callable[..., Any]) -> None:
    add(
        "--void-code",
        help="class that is ignored in loss and metrics: a name or index of codes.txt, an index that codes.txt does not"
        " name, such as 255, or none (default: the class named Void, Ignore, Unlabeled or Unlabelled)",
    )
    add("--self-attention", type=_flag, metavar=BOOL, help="add a self-attention layer to the U-Net (default: false)")
    add("--mask-size", choices=masks.SIZES, help="size of the masks that are served (default: model)")


def _add_directories(add: Callable[..., Any]) -> None:
    add("--train", metavar="DIRECTORY", help="training data (default: SM_CHANNEL_TRAIN or SM_CHANNEL_TRAINING)")
    add(
        "--valid",
        metavar="DIRECTORY",
        help="validation data (default: SM_CHANNEL_VALID or SM_CHANNEL_VALIDATION, or none)",
    )
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
        type=_positive(float),
        default=5,
        help="minutes between checkpoints within an epoch (default: %(default)s)",
    )


def _add_distributed(add: Callable[..., Any]) -> None:
    add("--processes", type=_positive(int), help="processes on each host (default: one for each GPU, or one)")
    add("--dist-backend", choices=("auto", "gloo", "nccl"), default="auto", help="auto: nccl on GPUs, or gloo")
    add(
        "--timeout",
        type=_positive(float),
        default=600,
        help="seconds; a host that does not join within them fails the job (default: %(default)s)",
    )


def _set_directories(args: argparse.Namespace) -> None:
    """Fill in the directories that were not given from the variables of SageMaker's containers."""
    env = os.environ.get
    defaults = {
        "train": env("SM_CHANNEL_TRAIN", env("SM_CHANNEL_TRAINING")),
        "valid": env("SM_CHANNEL_VALID", env("SM_CHANNEL_VALIDATION")),
        "model_dir": env("SM_MODEL_DIR", "model"),
        "output_data_dir": env("SM_OUTPUT_DATA_DIR", "output"),
        "checkpoint_dir": _checkpoint_dir(),
    }
    _fill(args, defaults)


def _set_defaults(args: argparse.Namespace) -> None:
    """Fill in the defaults that depend on the task and the architecture."""
    small, segments = args.arch == "convnet", args.task == "segmentation"
    defaults = {
        "batch_size": 8 if segments else 64,
        "resize_method": "squish" if segments else "crop",
        "image_size": (28, 28) if small else (224, 224),
        "image_mode": "L" if small else "RGB",
        "pretrained": not small,
        "augment": not small,
        "self_attention": False,
        "mask_size": "model",
    }
    _fill(args, defaults)
    args.lr = args.lr or (0.005 if small else 0.002 if args.pretrained else 0.001)


def _fill(args: argparse.Namespace, defaults: dict[str, Any]) -> None:
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)


def _checkpoint_dir() -> str | None:
    """Return the directory that SageMaker keeps in S3; it exists if the job asked for checkpoints."""
    folder = Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml")) / "checkpoints"
    return str(folder) if folder.is_dir() else None


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.train is None:
        parser.error("--train DIRECTORY is missing, and so is SM_CHANNEL_TRAIN")
    if args.task == "segmentation" or args.arch != "convnet":
        from fastmaker import bundle  # imported only here: it imports torch, which takes a second

        if args.arch not in bundle.ARCHITECTURES[args.task]:
            parser.error(f"--arch {args.arch!r}: expected one of {', '.join(bundle.ARCHITECTURES[args.task])}")
    other_task = {"segmentation": ("label_regex",), "classification": ("void_code", "self_attention", "mask_size")}
    for name in other_task[args.task]:
        if getattr(args, name) is not None:
            parser.error(f"--{name.replace('_', '-')} is not for {args.task}")
    if args.task == "classification" and args.batch_size == 1:
        parser.error("--batch-size 1: batch norms need two images")
    try:
        layouts.compile_regex(args.label_regex)
    except layouts.DataError as error:
        parser.error(str(error))


def _positive(kind: type) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    parse.__name__ = kind.__name__  # argparse names it in "invalid int value"
    return parse


def _whole(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


_whole.__name__ = "int"


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not match or 0 in (int(match[1]), int(match[2] or 1)):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of pixels nor HEIGHTxWIDTH")
    return int(match[1]), int(match[2] or match[1])


def _flag(text: str) -> bool:
    if text.lower() in ("true", "1", "yes"):
        return True
    if text.lower() in ("false", "0", "no"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
