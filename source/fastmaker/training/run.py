"""The training run of the entry point: arguments -> samples -> Learner -> bundle and report."""

import argparse
import json
import math
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmaker import masks
from fastmaker.training import arguments, data, mask_data

if TYPE_CHECKING:  # fastai takes seconds to import, and a run that only checks its data does not need it
    from fastai.vision.all import DataLoaders, Learner

    from fastmaker.training.distributed import ProcessGroup

BAD_USAGE = 2


def main(args: argparse.Namespace) -> int:
    """Train, write the bundle and the report, and return the exit status."""
    try:
        samples = _read(args)
        if args.check_only:
            _print_summary(args, samples)
            return 0
        return _train(args, samples)
    except data.DataError as error:
        return _fail(error)


def _read(args: argparse.Namespace) -> data.Samples:
    depth = "layout" if args.check_only == "layout" else "complete" if args.check_only else "headers"
    if args.task == "segmentation":
        masked = mask_data.read(args.train, args.valid, args.void_code, args.valid_pct, args.seed, depth)
        if args.mask_size == "original" and not masks.can_resize_to_original(args.resize_method, masked.void_code):
            raise data.DataError(
                "--mask-size original: --resize-method crop cuts parts of the image off, which would be void, and no"
                " class is void; give a --void-code or another --resize-method"
            )
        return masked
    return data.read(
        args.train,
        args.valid,
        args.label_regex,
        args.valid_pct,
        args.seed,
        args.task,
        args.labels_csv,
        args.label_columns or (),
        args.label_delimiter,
        depth,
    )


def _print_summary(args: argparse.Namespace, samples: data.Samples) -> None:
    for problem in samples.skipped:
        print(f"skipped {problem}", flush=True)
    print(samples.summary(), flush=True)
    for note in (*samples.notes, *arguments.data.channel_notes(args)):
        print(f"note: {note}", flush=True)


def _fail(error: ValueError | str) -> int:
    # The training toolkit builds the FailureReason from lines that name a built-in exception.
    print(f"ValueError: {error}", file=sys.stderr, flush=True)
    return BAD_USAGE


def _train(args: argparse.Namespace, samples: data.Samples) -> int:
    from fastai.vision.all import default_device

    from fastmaker.training import architectures, callbacks, checkpoint, distributed, learner, precision, weights

    try:
        group = _join(args, samples)
        device = default_device()
        args.precision = group.broadcast(lambda: precision.resolve(args.precision, args.image_size, device))
        run_config = _run_config(args, samples, group)
        resumed = group.broadcast(lambda: _resume(args, run_config))
        learn = _learner(args, samples, group, resumed)
    except (
        checkpoint.CheckpointError,
        distributed.ProcessGroupError,
        weights.WeightsError,
        architectures.ArchitectureError,
        precision.PrecisionError,
    ) as error:
        return _fail(error)
    with learn.no_bar(), learn.no_logging(), distributed.sharded(learn.dls, group):
        stopped = _fit(learn, args, run_config, group, resumed)
    diverged = not stopped and not learner.is_finite(learn.model)
    if not stopped:
        _write(learn, args, group, diverged)
    group.leave()
    if diverged:
        return _fail("the training diverged: weights are not finite, and no bundle was written; lower --lr")
    return callbacks.STOPPED if stopped else 0


def _join(args: argparse.Namespace, samples: data.Samples) -> "ProcessGroup":
    """Return the process group. Does not return if this process is replaced by several."""
    from fastmaker.training import distributed

    if (processes := distributed.processes_per_host(args.processes)) > 1:
        distributed.launch(processes)
    group = distributed.join(args.dist_backend, args.timeout)
    if group.is_first:
        _print_summary(args, samples)
    _check_group(samples, group)
    return group


def _learner(
    args: argparse.Namespace, samples: data.Samples, group: "ProcessGroup", resumed: dict[str, Any] | None
) -> "Learner":
    from fastai.vision.all import set_seed

    from fastmaker.training import callbacks, checkpoint, learner

    set_seed(args.seed, reproducible=True)
    dls = dataloaders(args, samples, group.world_size)
    # The checkpoint's weights replace ImageNet's, which need not be downloaded again.
    learn = learner.create(dls, samples, args, bool(args.pretrained and not resumed))
    if resumed:
        checkpoint.restore(learn, resumed)
    learn.add_cb(callbacks.MetricLog(resumed["log"] if resumed else (), group))
    learn.add_cb(callbacks.UnreadableImages(args.train, group))
    return learn


def _write(learn: "Learner", args: argparse.Namespace, group: "ProcessGroup", diverged: bool) -> None:
    """Write the report and, unless the training diverged, the bundle, on rank 0.

    Raises RuntimeError if the ranks have different parameters.
    """
    from fastmaker.training import from_learner, report, segmentation

    digest = group.check_parameters(learn.model) if group.world_size > 1 else None
    if not group.is_first:
        return
    if digest:
        print(f"the parameters of all {group.world_size} processes are equal, SHA-256 {digest}", flush=True)
    metrics = dict(zip(learn.recorder.metric_names[1:-1], learn.recorder.values[-1], strict=False))
    metrics = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}  # JSON has no NaN
    if args.task == "segmentation":
        metrics |= segmentation.iou_by_class(learn)
    if not diverged:
        from_learner.save_bundle(learn, args.model_dir, metrics, args.mask_size)
    report.write(learn, args.output_data_dir, metrics)
    print("finished " + json.dumps(metrics), flush=True)


def _check_group(samples: data.Samples, group: "ProcessGroup") -> None:
    """Raise distributed.ProcessGroupError unless the ranks can train together on these samples."""
    from fastmaker.training.distributed import ProcessGroupError

    n_train = samples.n_train
    if n_train < group.world_size:
        raise ProcessGroupError(
            f"{group.world_size} processes share {n_train} training images; each needs one in every batch"
        )
    if group.world_size > 1 and not group.all_equal(data.fingerprint(samples)):
        raise ProcessGroupError("the hosts have different images; each needs all (FullyReplicated, not ShardedByS3Key)")


def _resume(args: argparse.Namespace, run_config: dict[str, Any]) -> dict[str, Any] | None:
    """Return the state of the newest intact checkpoint, or None. Raises checkpoint.CheckpointError."""
    from fastmaker.training import checkpoint

    if not args.checkpoint_dir:
        return None
    path, state, damaged = checkpoint.newest(checkpoint.prepare(args.checkpoint_dir))
    for line in damaged:
        print(line, flush=True)
    if path is None or state is None:
        return None
    checkpoint.check(path, state, run_config)
    what = "resuming" if state["epoch"] < _total(args) else "nothing is left to train"
    print(f"{what} after {_progress(args, state['epoch'], state['batch'])} from {path}", flush=True)
    return state


def _total(args: argparse.Namespace) -> int:
    from fastmaker.training import learner

    return learner.total_epochs(args.epochs, args.pretrained)


def _progress(args: argparse.Namespace, done: int, batch: int) -> str:
    return f"epoch {done} of {_total(args)}" + (f" and {batch} batches" if batch else "")


def _fit(
    learn: "Learner",
    args: argparse.Namespace,
    run_config: dict[str, Any],
    group: "ProcessGroup",
    resumed: dict[str, Any] | None,
) -> bool:
    """Train the remaining epochs, and return whether SIGTERM stopped it, which needs a checkpoint directory."""
    from fastmaker.training import callbacks, checkpoint, distributed, learner, precision

    done, batch = (resumed["epoch"], resumed["batch"]) if resumed else (0, 0)
    if done < _total(args) and group.is_first:
        where = f"{learn.dls.device}" + (f" in {group.world_size} processes" if group.world_size > 1 else "")
        print(f"training {args.arch} in {args.precision}, {args.epochs} epoch(s) on {where}", flush=True)
    position = callbacks.Position(args.seed, done, batch, group.rank)
    with checkpoint.sigterm_event(bool(args.checkpoint_dir)) as requested:
        stop = requested if group.world_size == 1 else threading.Event()  # ranks set it together, after the same batch
        folder = Path(args.checkpoint_dir) if args.checkpoint_dir and group.is_first else None
        saving = callbacks.SaveCheckpoints(folder, run_config, stop, resumed, args.checkpoint_minutes)
        mixed = precision.callbacks(args.precision, learn.dls.device, resumed and resumed.get("scaler"))
        averaging = [distributed.DataParallel(group, requested, stop)] if group.world_size > 1 else []
        for loader in learn.dls.loaders if args.checkpoint_dir else ():
            loader.wif = checkpoint.ignore_platform_sigterm
        try:
            with learn.added_cbs([position, saving, *mixed, *averaging]):
                learner.fit(learn, args.epochs, args.lr, args.pretrained, done, batch)
        except (Exception, SystemExit):  # an Exception: SIGTERM ended a DataLoader worker before it ignored SIGTERM
            if not stop.is_set():
                raise
        if not group.any(requested.is_set()):
            return False
    if group.is_first:
        print(f"stopped by SIGTERM; the next start resumes after {_progress(args, *saving.saved)}", flush=True)
    return True


def _run_config(args: argparse.Namespace, samples: data.Samples, group: "ProcessGroup") -> dict[str, Any]:
    """Return what a checkpoint must share with a run that resumes from it: each of these changes later epochs."""
    return {
        **arguments.of_the_run(args),
        # Of all ranks: two resume from one with a batch twice as large.
        "batch_size": args.batch_size * group.world_size,
        **({"void": samples.void_code} if isinstance(samples, mask_data.MaskedSamples) else {}),
        "labels": samples.classes,
        "training_images": samples.n_train,
        "validation_images": sum(samples.is_valid),
        "fingerprint of the images": data.fingerprint(samples),
    }


def dataloaders(args: argparse.Namespace, samples: data.Samples, world_size: int = 1) -> "DataLoaders":
    """Return fastai DataLoaders for one of `world_size` ranks."""
    from fastmaker.training import architectures

    workers = args.workers
    if workers is None:  # few small images load faster without worker processes
        workers = _cores() if len(samples.labels) >= 5000 or min(args.image_size) >= 64 else 0
    # fastai drops an incomplete last batch: with fewer images than a batch, it would train on none.
    batch_size = min(args.batch_size, samples.n_train // world_size)
    return data.dataloaders(
        samples,
        args.image_mode,
        args.image_size,
        args.resize_method,
        batch_size,
        args.augment,
        workers,
        architectures.statistics(args.arch, args.image_mode),
    )


def _cores() -> int:
    """Return how many cores this process may use."""
    cores = os.cpu_count() or 1
    if "LOCAL_WORLD_SIZE" in os.environ:  # torchrun starts several processes, with OMP_NUM_THREADS=1
        return max(1, cores // int(os.environ["LOCAL_WORLD_SIZE"]))
    return min(cores, int(os.environ.get("OMP_NUM_THREADS", cores)))
