"""The training run of the entry point: arguments -> samples -> learner -> bundle and report."""

import argparse
import json
import math
import os
import re
import sys

from fastmaker import data

BAD_USAGE = 2


def parse_args(argv=None):
    """The arguments of a run; every default stands here. Hyperparameters arrive as ``--name value``."""
    parser = argparse.ArgumentParser(
        prog="entry_point.py",
        description="Train an image classifier and write a bundle that serves without fastai.",
        epilog="example: python source/entry_point.py --train digits --model-dir model --arch convnet --epochs 5",
    )
    env = os.environ.get
    add = parser.add_argument
    add("--task", choices=("classification",), default="classification")
    add("--arch", default="resnet34", help="convnet or a torchvision architecture (default: %(default)s)")
    add("--epochs", type=_positive(int), default=5, help="(default: %(default)s)")
    add("--batch-size", type=_positive(int), default=64, help="(default: %(default)s)")
    add(
        "--lr",
        type=_positive(float),
        help="highest (default: 0.002 to fine-tune, 0.001 from scratch, convnet 0.005)",
    )
    add("--image-size", type=_size, help="pixels, one number or HEIGHTxWIDTH (default: 224, convnet 28)")
    add("--image-mode", choices=("RGB", "L"), help="(default: RGB, convnet L)")
    add("--resize-method", choices=("crop", "pad", "squish"), default="crop", help="(default: %(default)s)")
    add("--pretrained", type=_flag, help="start from ImageNet's weights (default: true, convnet false)")
    add("--augment", type=_flag, help="fastai's aug_transforms (default: true, convnet false)")
    add("--label-regex", help=r"the label in each file name is its first group, as in '^(.+)_\d+.jpg$'")
    add("--valid-pct", type=_share, default=0.2, help="share of each class that validates (default: %(default)s)")
    add("--seed", type=_whole, default=42, help="(default: %(default)s)")
    add("--workers", type=_whole, help="processes that load images (default: one a core, none for few small images)")
    add("--train", default=env("SM_CHANNEL_TRAIN", env("SM_CHANNEL_TRAINING")), help="directory (SM_CHANNEL_TRAIN)")
    add("--valid", default=env("SM_CHANNEL_VALID", env("SM_CHANNEL_VALIDATION")), help="directory (SM_CHANNEL_VALID)")
    add("--model-dir", default=env("SM_MODEL_DIR", "model"), help="where the bundle goes (SM_MODEL_DIR)")
    add("--output-data-dir", default=env("SM_OUTPUT_DATA_DIR", "output"), help="where the report goes")
    add("--check-only", type=_flag, default=False, help="check the arguments and the data, then stop")
    args = parser.parse_args(argv)
    _check(parser, args)
    small = args.arch == "convnet"
    defaults = {
        "image_size": (28, 28) if small else (224, 224),
        "image_mode": "L" if small else "RGB",
        "pretrained": not small,
        "augment": not small,
    }
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if small and args.pretrained:
        parser.error("--pretrained true: there are no pretrained weights for convnet")
    args.lr = args.lr or (0.005 if small else 0.002 if args.pretrained else 0.001)
    return args


def main(args) -> int:
    """Train, and write the bundle and the report. Returns the exit status."""
    try:
        samples = data.read(args.train, args.valid, args.label_regex, args.valid_pct, args.seed)
        for problem in samples.skipped:
            print(f"skipped {problem}", flush=True)
        print(samples.summary(), flush=True)
        if args.check_only:
            return 0
        return _train(args, samples)
    except data.DataError as error:
        return _refuse(error)


def _refuse(error: ValueError) -> int:
    # The training toolkit makes the FailureReason of lines that name one of Python's own exceptions.
    print(f"ValueError: {error}", file=sys.stderr)
    return BAD_USAGE


def _train(args, samples) -> int:
    from fastai.vision.all import set_seed

    from fastmaker import learner, report

    set_seed(args.seed, reproducible=True)
    dls = dataloaders(args, samples)
    try:
        learn = learner.create(dls, args.arch, args.image_mode, args.pretrained)
    except learner.WeightsError as error:
        return _refuse(error)
    learn.add_cb(learner.MetricLog())
    print(f"training {args.arch}, {args.epochs} epoch(s) on {dls.device}", flush=True)
    with learn.no_bar(), learn.no_logging():
        learner.fit(learn, args.epochs, args.lr, fine_tune=args.pretrained)
    metrics = dict(zip(learn.recorder.metric_names[1:-1], learn.recorder.values[-1], strict=False))
    metrics = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}  # JSON has no NaN
    learner.save_bundle(learn, args.model_dir, metrics)
    report.write(learn, args.output_data_dir, metrics)
    print("finished " + json.dumps(metrics), flush=True)
    return 0


def dataloaders(args, samples):
    """fastai DataLoaders for these arguments; few small images are loaded faster without worker processes."""
    workers = args.workers
    if workers is None:
        workers = os.cpu_count() if len(samples.labels) >= 5000 or min(args.image_size) >= 64 else 0
    return data.dataloaders(
        samples, args.image_mode, args.image_size, args.resize_method, args.batch_size, args.augment, workers
    )


def _check(parser, args) -> None:
    # The names are checked here, and networks.py imported only when it is needed: it takes torch with it.
    if args.train is None:
        parser.error("--train DIRECTORY is missing, and so is SM_CHANNEL_TRAIN")
    if args.arch != "convnet":
        from fastmaker import networks

        if args.arch not in networks.ARCHITECTURES:
            parser.error(f"--arch {args.arch!r}: expected one of {', '.join(networks.ARCHITECTURES)}")
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
