"""The training run of the entry point: arguments -> samples -> learner -> bundle and report."""

import json
import math
import os
import sys
import threading
from pathlib import Path

from fastmaker import masks
from fastmaker.training import data, mask_data

BAD_USAGE = 2


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
        if args.mask_size == "original" and not masks.can_resize_to_original(args.resize_method, samples.void):
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
    from fastmaker.training import checkpoint, distributed, learner

    try:
        group = _join(args, samples)
        identity = _identity(args, samples, group)
        resumed = group.broadcast(lambda: _resume(args, identity))
        learn = _learner(args, samples, group, resumed)
    except (checkpoint.CheckpointError, distributed.GroupError, learner.WeightsError) as error:
        return _refuse(error)
    with learn.no_bar(), learn.no_logging(), distributed.sharded(learn.dls, group):
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
    from fastmaker.training import distributed

    if (processes := distributed.processes_of_host(args.processes)) > 1:
        distributed.launch(processes)
    group = distributed.join(args.dist_backend, args.timeout)
    if group.first:
        _say_what_was_found(samples)
    _check_group(samples, group)
    return group


def _learner(args, samples, group, resumed: dict | None):
    from fastai.vision.all import set_seed

    from fastmaker.training import checkpoint, learner

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
    from fastmaker.training import learner, report, segmentation

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
    from fastmaker.training import learner, segmentation

    if args.task == "segmentation":
        return segmentation.create(dls, samples, args.arch, args.image_mode, pretrained, args.self_attention)
    return learner.create(dls, args.arch, args.image_mode, pretrained)


def _check_group(samples, group) -> None:
    """Raises distributed.GroupError unless the processes can train together on these samples."""
    from fastmaker.training.distributed import GroupError

    n_train = samples.n_train
    if n_train < group.size:
        raise GroupError(f"{group.size} processes share {n_train} training images; each needs one in every batch")
    if group.size > 1 and not group.have_same(data.fingerprint(samples)):
        raise GroupError("the hosts have different images; each needs all (FullyReplicated, not ShardedByS3Key)")


def _resume(args, identity) -> dict | None:
    """The state of the newest whole checkpoint, if there is one. Raises checkpoint.CheckpointError."""
    from fastmaker.training import checkpoint

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
    from fastmaker.training import learner

    return learner.total_epochs(args.epochs, args.pretrained)


def _reached(args, done: int, batch: int) -> str:
    return f"epoch {done} of {_total(args)}" + (f" and {batch} batches" if batch else "")


def _fit(learn, args, identity: dict, group, resumed: dict | None) -> bool:
    """Train what is left to train. Whether SIGTERM ended it, which it does if there is a checkpoint directory."""
    from fastmaker.training import checkpoint, distributed, learner

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
