"""The arguments of a training run; every default stands here."""

import argparse
import math
import os
import re
from pathlib import Path

from fastmaker import masks
from fastmaker.training import data


def parse_args(argv=None):
    """The arguments of a run; every default stands here. Hyperparameters arrive as ``--name value``."""
    parser = argparse.ArgumentParser(
        prog="entry_point.py",
        description="Train a classifier or a U-Net for segmentation, and write a bundle that serves without fastai.",
        epilog="example: python source/entry_point.py --train digits --model-dir model --arch convnet --epochs 5",
    )
    env = os.environ.get
    add = parser.add_argument
    add("--task", choices=("classification", "segmentation"), default="classification")
    add("--arch", default="resnet34", help="convnet or a torchvision architecture (default: %(default)s)")
    add("--epochs", type=_positive(int), default=5, help="(default: %(default)s)")
    add("--batch-size", type=_positive(int), help="(default: 64, segmentation 8)")
    add(
        "--lr",
        type=_positive(float),
        help="highest (default: 0.002 to fine-tune, 0.001 from scratch, convnet 0.005)",
    )
    add("--image-size", type=_size, help="pixels, one number or HEIGHTxWIDTH (default: 224, convnet 28)")
    add("--image-mode", choices=("RGB", "L"), help="(default: RGB, convnet L)")
    add("--resize-method", choices=("crop", "pad", "squish"), help="(default: crop, segmentation squish)")
    add("--pretrained", type=_flag, help="start from ImageNet's weights (default: true, convnet false)")
    add("--augment", type=_flag, help="fastai's aug_transforms (default: true, convnet false)")
    add("--label-regex", help=r"the label in each file name is its first group, as in '^(.+)_\d+.jpg$'")
    add(
        "--void-code",
        help="segmentation: name or index of the class that counts for nothing, or none; an index that codes.txt does"
        " not name, such as 255, will do (default: the class named Void, Ignore, Unlabeled or Unlabelled)",
    )
    add("--self-attention", type=_flag, help="segmentation: let pixels look at all others (default: false)")
    add("--mask-size", choices=masks.SIZES, help="segmentation: what masks are served in (default: model)")
    add(
        "--valid-pct",
        type=_share,
        default=0.2,
        help="share of each class (of all masks) that validates (default: %(default)s)",
    )
    add("--seed", type=_whole, default=42, help="(default: %(default)s)")
    add("--workers", type=_whole, help="processes that load images (default: one a core, none for few small images)")
    add("--train", default=env("SM_CHANNEL_TRAIN", env("SM_CHANNEL_TRAINING")), help="directory (SM_CHANNEL_TRAIN)")
    add("--valid", default=env("SM_CHANNEL_VALID", env("SM_CHANNEL_VALIDATION")), help="directory (SM_CHANNEL_VALID)")
    add("--model-dir", default=env("SM_MODEL_DIR", "model"), help="where the bundle goes (SM_MODEL_DIR)")
    add("--output-data-dir", default=env("SM_OUTPUT_DATA_DIR", "output"), help="where the report goes")
    add(
        "--checkpoint-dir",
        default=_checkpoint_folder(),
        help="where a checkpoint goes after each epoch and at SIGTERM; a start that finds one of the same run goes on"
        " after it. The newest two are kept (default: /opt/ml/checkpoints, or checkpoints in SAGEMAKER_BASE_DIR, if"
        " that exists, or none)",
    )
    add(
        "--checkpoint-minutes",
        type=_positive(float),
        default=5,
        help="between checkpoints within an epoch (default: 5)",
    )
    add(
        "--processes",
        type=_positive(int),
        help="how many train on each host, each with batches of --batch-size (default: one for each GPU, or one)",
    )
    add("--dist-backend", choices=("auto", "gloo", "nccl"), default="auto", help="(default: nccl on GPUs, or gloo)")
    add("--timeout", type=_positive(float), default=600, help="seconds to wait for other processes (default: 600)")
    add("--check-only", type=_flag, default=False, help="check the arguments and the data, then stop")
    args = parser.parse_args(argv)
    _check(parser, args)
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
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if small and args.pretrained:
        parser.error("--pretrained true: there are no pretrained weights for convnet")
    args.lr = args.lr or (0.005 if small else 0.002 if args.pretrained else 0.001)
    return args


def _checkpoint_folder() -> str | None:
    """Where the platform keeps what is to outlive an interruption; it makes the folder if the job asks for that."""
    folder = Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml")) / "checkpoints"
    return str(folder) if folder.is_dir() else None


def _check(parser, args) -> None:
    # The names are checked here, and bundle.py imported only when it is needed: it takes torch with it.
    if args.train is None:
        parser.error("--train DIRECTORY is missing, and so is SM_CHANNEL_TRAIN")
    if args.task == "segmentation" or args.arch != "convnet":
        from fastmaker import bundle

        if args.arch not in bundle.ARCHITECTURES[args.task]:
            parser.error(f"--arch {args.arch!r}: expected one of {', '.join(bundle.ARCHITECTURES[args.task])}")
    given = {"segmentation": ("label_regex",), "classification": ("void_code", "self_attention", "mask_size")}
    for name in given[args.task]:
        if getattr(args, name) is not None:
            parser.error(f"--{name.replace('_', '-')} is not for {args.task}")
    if args.task == "classification" and args.batch_size == 1:
        parser.error("--batch-size 1: batch norms need two images")
    try:
        data.compile_regex(args.label_regex)
    except data.DataError as error:
        parser.error(str(error))


def _positive(kind):
    def parse(text):
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    parse.__name__ = kind.__name__
    return parse


def _whole(text):
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


_whole.__name__ = "int"


def _share(text):
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _size(text):
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not match or 0 in (int(match[1]), int(match[2] or 1)):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of pixels nor HEIGHTxWIDTH")
    return int(match[1]), int(match[2] or match[1])


def _flag(text):
    if text.lower() in ("true", "1", "yes"):
        return True
    if text.lower() in ("false", "0", "no"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
