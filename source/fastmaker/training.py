"""The training run of the entry point: arguments -> samples -> learner -> bundle and report."""

import argparse
import json
import math
import os
import re
import sys
import threading
from pathlib import Path

from fastmaker import data, mask_data, masks

BAD_USAGE = 2


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


def main(args) -> int:
    """Train, and write the bundle and the report. Returns the exit status."""
    try:
        samples = _read(args)
        if args.check_only:
            _say_what_was_found(samples)
            return 0
        return _train(args, samples)
    except data.DataError as error:
        return _refuse(error)


def _read(args) -> data.Samples:
    if args.task == "segmentation":
        samples = mask_data.read(args.train, args.valid, args.void_code, args.valid_pct, args.seed)
        if args.mask_size == "original" and not masks.restorable(args.resize_method, samples.void):
            raise data.DataError(
                "--mask-size original: what --resize-method crop cuts off would be void, and no class is; give a"
                " --void-code or another --resize-method"
            )
        return samples
    return data.read(args.train, args.valid, args.label_regex, args.valid_pct, args.seed)


def _say_what_was_found(samples) -> None:
    for problem in samples.skipped:
        print(f"skipped {problem}", flush=True)
    print(samples.summary(), flush=True)


def _refuse(error: ValueError | str) -> int:
    # The training toolkit makes the FailureReason of lines that name one of Python's own exceptions.
    print(f"ValueError: {error}", file=sys.stderr, flush=True)
    return BAD_USAGE


def _train(args, samples) -> int:
    from fastmaker import checkpoint, distributed, learner

    try:
        group = _join(args, samples)
        identity = _identity(args, samples, group)
        resumed = group.from_first(lambda: _resume(args, identity))
        learn = _learner(args, samples, group, resumed)
    except (checkpoint.CheckpointError, distributed.GroupError, learner.WeightsError) as error:
        return _refuse(error)
    with learn.no_bar(), learn.no_logging(), distributed.shares(learn.dls, group):
        stopped = _fit(learn, args, identity, group, resumed)
    diverged = not stopped and not learner.is_finite(learn.model)
    if not stopped:
        _write(learn, args, group, diverged)
    group.leave()
    if diverged:
        return _refuse("the training diverged: weights are no finite numbers, and no bundle was written; lower --lr")
    return learner.STOPPED if stopped else 0


def _join(args, samples):
    """The `distributed.Group` of this process, which does not return if its host is to run several."""
    from fastmaker import distributed

    if (processes := distributed.processes_of_host(args.processes)) > 1:
        distributed.launch(processes)
    group = distributed.join(args.dist_backend, args.timeout)
    if group.first:
        _say_what_was_found(samples)
    _check_group(samples, group)
    return group


def _learner(args, samples, group, resumed: dict | None):
    from fastai.vision.all import set_seed

    from fastmaker import checkpoint, learner

    set_seed(args.seed, reproducible=True)
    dls = dataloaders(args, samples, group.size)
    # Weights of a checkpoint replace ImageNet's, which need not be there any more.
    learn = _create(args, samples, dls, args.pretrained and not resumed)
    if resumed:
        checkpoint.restore(learn, resumed)
    learn.add_cb(learner.MetricLog(resumed["log"] if resumed else (), group))
    return learn


def _write(learn, args, group, diverged: bool) -> None:
    """The report and, of what can serve, the bundle, by the first process.

    Raises RuntimeError if another one has other parameters.
    """
    from fastmaker import learner, report, segmentation

    digest = group.check_parameters(learn.model) if group.size > 1 else None
    if not group.first:
        return
    if digest:
        print(f"the parameters of all {group.size} processes are equal, SHA-256 {digest}", flush=True)
    metrics = dict(zip(learn.recorder.metric_names[1:-1], learn.recorder.values[-1], strict=False))
    metrics = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}  # JSON has no NaN
    if args.task == "segmentation":
        metrics |= segmentation.iou_by_class(learn)
    if not diverged:
        learner.save_bundle(learn, args.model_dir, metrics, args.mask_size)
    report.write(learn, args.output_data_dir, metrics)
    print("finished " + json.dumps(metrics), flush=True)


def _create(args, samples, dls, pretrained: bool):
    """A Learner for the task. Raises learner.WeightsError."""
    from fastmaker import learner, segmentation

    if args.task == "segmentation":
        return segmentation.create(dls, samples, args.arch, args.image_mode, pretrained, args.self_attention)
    return learner.create(dls, args.arch, args.image_mode, pretrained)


def _check_group(samples, group) -> None:
    """Raises distributed.GroupError unless the processes can train together on these samples."""
    from fastmaker.distributed import GroupError

    n_train = samples.n_train
    if n_train < group.size:
        raise GroupError(f"{group.size} processes share {n_train} training images; each needs one in every batch")
    if group.size > 1 and not group.have_same(data.fingerprint(samples)):
        raise GroupError("the hosts have different images; each needs all (FullyReplicated, not ShardedByS3Key)")


def _resume(args, identity) -> dict | None:
    """The state of the newest whole checkpoint, if there is one. Raises checkpoint.CheckpointError."""
    from fastmaker import checkpoint

    if not args.checkpoint_dir:
        return None
    path, state, damaged = checkpoint.newest(checkpoint.prepare(args.checkpoint_dir))
    for line in damaged:
        print(line, flush=True)
    if state is None:
        return None
    checkpoint.check(path, state, identity)
    what = "resuming" if state["epoch"] < _total(args) else "nothing is left to train"
    print(f"{what} after {_reached(args, state['epoch'], state['batch'])} from {path}", flush=True)
    return state


def _total(args) -> int:
    from fastmaker import learner

    return learner.total_epochs(args.epochs, args.pretrained)


def _reached(args, done: int, batch: int) -> str:
    return f"epoch {done} of {_total(args)}" + (f" and {batch} batches" if batch else "")


def _fit(learn, args, identity: dict, group, resumed: dict | None) -> bool:
    """Train what is left to train. Whether SIGTERM ended it, which it does if there is a checkpoint directory."""
    from fastmaker import checkpoint, distributed, learner

    done, batch = (resumed["epoch"], resumed["batch"]) if resumed else (0, 0)
    if done < _total(args) and group.first:
        where = f"{learn.dls.device}" + (f" in {group.size} processes" if group.size > 1 else "")
        print(f"training {args.arch}, {args.epochs} epoch(s) on {where}", flush=True)
    position = learner.Position(args.seed, done, batch, group.rank)
    with checkpoint.noting_sigterm(bool(args.checkpoint_dir)) as asked:
        stop = asked if group.size == 1 else threading.Event()  # several set it together, after the same batch
        folder = Path(args.checkpoint_dir) if args.checkpoint_dir and group.first else None
        saving = learner.SaveCheckpoints(folder, identity, stop, resumed, args.checkpoint_minutes)
        averaging = [distributed.DataParallel(group, asked, stop)] if group.size > 1 else []
        for loader in learn.dls.loaders if args.checkpoint_dir else ():
            loader.wif = checkpoint.outlive_sigterm
        try:
            with learn.added_cbs([position, saving, *averaging]):
                learner.fit(learn, args.epochs, args.lr, args.pretrained, done, batch)
        except (Exception, SystemExit):  # an Exception: a process that was to load images ended before it could begin
            if not stop.is_set():
                raise
        if not group.any(asked.is_set()):
            return False
    if group.first:
        reached = _reached(args, *saving.saved)
        print(f"stopped by SIGTERM; the next start goes on after {reached}", flush=True)
    return True


def _identity(args, samples, group) -> dict:
    """What must be the same for a run to go on from a checkpoint: each of these changes the epochs that follow."""
    names = ("arch", "epochs", "lr", "image_mode", "resize_method", "pretrained", "augment", "seed")
    of_masks = {"void": samples.void, "self_attention": args.self_attention} if args.task == "segmentation" else {}
    return {
        **of_masks,
        **{name: getattr(args, name) for name in names},
        "batch_size": args.batch_size * group.size,  # of all: two may go on for one with batches of twice the size
        "image_size": list(args.image_size),
        "labels": samples.classes,
        "training_images": samples.n_train,
        "validation_images": sum(samples.is_valid),
        "fingerprint of the images": data.fingerprint(samples),
    }


def dataloaders(args, samples, processes: int = 1):
    """fastai DataLoaders for one of so many processes; few small images are loaded faster without worker processes."""
    workers = args.workers
    if workers is None:
        workers = _cores() if len(samples.labels) >= 5000 or min(args.image_size) >= 64 else 0
    # fastai drops a last batch that is not full: with fewer images than that, it would train on none.
    batch_size = min(args.batch_size, samples.n_train // processes)
    return data.dataloaders(
        samples, args.image_mode, args.image_size, args.resize_method, batch_size, args.augment, workers
    )


def _cores() -> int:
    """Those that this process may take for itself."""
    cores = os.cpu_count() or 1
    if "LOCAL_WORLD_SIZE" in os.environ:  # torchrun's processes share the host, and it sets OMP_NUM_THREADS to 1
        return max(1, cores // int(os.environ["LOCAL_WORLD_SIZE"]))
    return min(cores, int(os.environ.get("OMP_NUM_THREADS", cores)))


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
