"""The training run of the entry point: arguments -> samples -> Learner -> bundle and report."""

import argparse
import contextlib
import functools
import json
import math
import re
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmaker import files, masks
from fastmaker.training import arguments, data, mask_data

if TYPE_CHECKING:  # fastai takes seconds to import, and a run that only checks its data does not need it
    from fastai.vision.all import DataLoaders, Learner

    from fastmaker.training.distributed import ProcessGroup

BAD_USAGE = 2


def main(args: argparse.Namespace) -> int:
    """Train, write the bundle and the report, and return the exit status."""
    try:
        if args.check_only:
            samples = _read(args, "layout" if args.check_only == "layout" else "complete")
            _print_summary(args, samples)
            return _check_first_weights(args, samples)
        return _launch(args) or _train(args, _read(args, "headers"))
    except data.DataError as error:
        return _fail(error)


def _launch(args: argparse.Namespace) -> int:
    """Replace this process by several that train, unless it is one of them; return the exit status: 0 to go on."""
    import torch

    if (args.processes or torch.cuda.device_count()) <= 1:
        return 0
    from fastmaker.training import distributed

    try:
        processes = distributed.processes_per_host(args.processes)
    except distributed.ProcessGroupError as error:
        return _fail(error)
    if processes > 1:
        _read(args, "layout")  # faults of the layout are told once; each process looks at the images
        distributed.launch(processes)
    return 0


def _read(args: argparse.Namespace, depth: str) -> data.Samples:
    if args.task == "segmentation":
        masked = mask_data.read(
            args.train, args.valid, args.void_code, args.valid_pct, args.seed, args.mask_scale, depth
        )
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


def _check_first_weights(args: argparse.Namespace, samples: data.Samples) -> int:
    """Return the exit status of a run that only checks: whether the network takes the weights of a file or bundle."""
    if not args.resume_from and not isinstance(args.pretrained, str):
        return 0
    from fastmaker.training import architectures, distributed, weights

    try:
        _learner(args, samples, distributed.SINGLE, None)
    except (weights.WeightsError, architectures.ArchitectureError) as error:
        return _fail(error)
    return 0


def _print_summary(args: argparse.Namespace, samples: data.Samples) -> None:
    for problem in samples.skipped:
        print(f"skipped {problem}", flush=True)
    print(samples.summary(), flush=True)
    for note in (*samples.notes, *arguments.data.channel_notes(args)):
        print(f"note: {note}", flush=True)
    if line := arguments.summary(args):
        print(line, flush=True)


def _fail(error: ValueError | str) -> int:
    # Before what a callback or a process that loads images raises, fastai and torch put lines of their own.
    line = re.sub(r"^\w[\w.]*Error: ", "", str(error).strip().splitlines()[-1].strip())
    # The training toolkit builds the FailureReason from lines that name a built-in exception.
    print(f"ValueError: {line}", file=sys.stderr, flush=True)
    return BAD_USAGE


def _train(args: argparse.Namespace, samples: data.Samples) -> int:
    from fastai.vision.all import default_device

    from fastmaker.training import (
        architectures,
        callbacks,
        checkpoint,
        distributed,
        learner,
        precision,
        schedule,
        weights,
    )

    started = time.monotonic()
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
        schedule.ScheduleError,
        precision.PrecisionError,
    ) as error:
        return _fail(error)
    with learn.no_bar(), learn.no_logging():
        stopped = _fit(learn, args, samples, run_config, group, resumed)
    diverged = not stopped and not learner.is_finite(learn.model)
    if not stopped:
        _write(learn, args, samples, group, diverged, started)
    group.leave()
    if diverged:
        return _fail("the training diverged: weights are not finite, and no bundle was written; lower --lr")
    return callbacks.STOPPED if stopped else 0


def _join(args: argparse.Namespace, samples: data.Samples) -> "ProcessGroup":
    """Return the process group."""
    from fastmaker.training import distributed

    group = distributed.join(args.dist_backend, args.timeout)
    if group.is_first:
        _print_summary(args, samples)
    _check_group(args, samples, group)
    return group


def _learner(
    args: argparse.Namespace, samples: data.Samples, group: "ProcessGroup", resumed: dict[str, Any] | None
) -> "Learner":
    from fastmaker.training import architectures, augmentation, callbacks, checkpoint, schedule

    if args.pretrained is True and not resumed and group.world_size > 1:
        group.on_each_host(lambda: architectures.download(args.arch, args.image_size))
    kept = resumed.get("kept", {}) if resumed else {}
    if args.lr == "find" and not resumed:
        kept["lr_finder"] = group.broadcast(
            lambda: schedule.find_lr(_new_learner(args, samples, group), augmentation.mixing(args))
        )
        if group.is_first:
            print(f"found the learning rate {kept['lr_finder']['lr']:.3g}", flush=True)
    learn = _new_learner(args, samples, group, resumed)
    learn.kept = kept
    if resumed:
        checkpoint.restore(learn, resumed)
    schedule.check_sizes(learn.model, 3 if args.image_mode == "RGB" else 1, args.progressive_sizes)
    learn.add_cb(callbacks.MetricLog(resumed["log"] if resumed else (), group, _total(args)))
    learn.add_cb(callbacks.UnreadableImages(args.train, group))
    return learn


def _new_learner(
    args: argparse.Namespace, samples: data.Samples, group: "ProcessGroup", resumed: dict[str, Any] | None = None
) -> "Learner":
    """Return the Learner with the weights that a run starts from, but for those of a checkpoint."""
    from fastai.vision.all import set_seed

    from fastmaker.training import augmentation, earlier, learner, loaders

    set_seed(args.seed, reproducible=True)
    dls = loaders.create(args, samples, group.world_size)
    # The checkpoint's weights replace ImageNet's, which need not be downloaded again.
    loss = augmentation.loss(args, samples, dls.device)
    learn = learner.create(dls, samples, args, bool(args.pretrained and not resumed), loss)
    learn.wd = args.weight_decay
    if args.resume_from and not resumed:
        labels = samples.classes or list(samples.names_of_numbers)
        earlier.load(learn, Path(args.resume_from), args.task, labels, args.image_mode)
    return learn


def _write(
    learn: "Learner",
    args: argparse.Namespace,
    samples: data.Samples,
    group: "ProcessGroup",
    diverged: bool,
    started: float,
) -> None:
    """Write the report and, unless the training diverged, the bundle, on rank 0.

    Raises RuntimeError if the ranks have different parameters.
    """
    from fastmaker.training import best_epoch, from_learner, report, validation_baseline

    digest = group.check_parameters(learn.model) if group.world_size > 1 else None
    unreadable = len(learn.unreadable_images.found())
    if not group.is_first:
        return
    if unreadable:
        print(f"{unreadable} training images could not be read; others trained in their place", flush=True)
    if digest:
        print(f"the parameters of all {group.world_size} processes are equal, SHA-256 {digest}", flush=True)
    metrics = dict(zip(learn.recorder.metric_names[1:-1], learn.recorder.values[best_epoch.index(learn)], strict=False))
    metrics = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}  # JSON has no NaN
    seen = validation_baseline.watch(learn)
    findings = report.measure(learn, samples.names, seen=seen)
    metrics |= findings.metrics
    if not diverged:
        names = samples.names_of_numbers
        info = from_learner.save_bundle(learn, args.model_dir, metrics, args.mask_size, names=names)
        validation_baseline.save(learn, seen, args.model_dir, info)
    kept = learn.kept["best"]["epoch"] if args.keep_best else None
    about = report.Run(vars(args), samples.summary(), time.monotonic() - started, samples.names, kept)
    report.write(learn, args.output_data_dir, metrics, findings, about)
    print("finished " + json.dumps(metrics), flush=True)


def _check_group(args: argparse.Namespace, samples: data.Samples, group: "ProcessGroup") -> None:
    """Raise distributed.ProcessGroupError unless the ranks can train together on these samples."""
    from fastmaker.training.distributed import ProcessGroupError

    n_train = samples.n_train
    if n_train < group.world_size:
        raise ProcessGroupError(
            f"{group.world_size} processes share {n_train} training images; each needs one in every batch"
        )
    if n_train < 2 * group.world_size and args.task != "segmentation":
        raise ProcessGroupError(
            f"{n_train} training images for {group.world_size} process(es) make batches of one image, and batch norms"
            " need two"
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
    what = "nothing is left to train" if _is_over(args, state) else "resuming"
    print(f"{what} after {_progress(args, state['epoch'], state['batch'])} from {path}", flush=True)
    return state


def _is_over(args: argparse.Namespace, state: dict[str, Any]) -> bool:
    from fastmaker.training import best_epoch

    return state["epoch"] >= _total(args) or best_epoch.is_over(state, args.early_stopping)


def _total(args: argparse.Namespace) -> int:
    from fastmaker.training import schedule

    return schedule.total_epochs(args)


def _progress(args: argparse.Namespace, done: int, batch: int) -> str:
    return f"epoch {done} of {_total(args)}" + (f" and {batch} batches" if batch else "")


def _fit(
    learn: "Learner",
    args: argparse.Namespace,
    samples: data.Samples,
    run_config: dict[str, Any],
    group: "ProcessGroup",
    resumed: dict[str, Any] | None,
) -> bool:
    """Train the remaining epochs, and return whether SIGTERM stopped it, which needs a checkpoint directory."""
    from fastmaker.training import augmentation, best_epoch, callbacks, checkpoint, distributed, precision, schedule

    done, batch = (resumed["epoch"], resumed["batch"]) if resumed else (0, 0)
    if group.is_first and not (resumed and _is_over(args, resumed)):
        where = f"{learn.dls.device}" + (f" in {group.world_size} processes" if group.world_size > 1 else "")
        print(f"training {args.arch} in {args.precision}, {args.epochs} epoch(s) on {where}", flush=True)
    phases = schedule.plan(args, learn.kept["lr_finder"]["lr"] if args.lr == "find" else args.lr)
    position = callbacks.Position(args.seed, done, batch, group.rank)
    best = best_epoch.callbacks(learn, args, phases[-1].start)
    with checkpoint.sigterm_event(bool(args.checkpoint_dir)) as requested, contextlib.ExitStack() as stack:
        stop = requested if group.world_size == 1 else threading.Event()  # ranks set it together, after the same batch
        folder = Path(args.checkpoint_dir) if args.checkpoint_dir and group.is_first else None
        saving = callbacks.SaveCheckpoints(folder, run_config, stop, resumed, args.checkpoint_minutes)
        mixed = precision.callbacks(args.precision, learn.dls.device, resumed and resumed.get("scaler"))
        averaging = [distributed.DataParallel(group, requested, stop)] if group.world_size > 1 else []
        # Each of a size is made, and cut into the ranks' shares, once.
        dls_of = functools.cache(functools.partial(_dls_of, args, samples, group, stack, learn.dls))
        try:
            mixing = augmentation.mixing(args)
            with learn.added_cbs([position, saving, *mixed, *averaging, *schedule.clipping(args), *mixing, *best]):
                schedule.fit(learn, phases, done, batch, dls_of)
        except (Exception, SystemExit):  # an Exception: SIGTERM ended a DataLoader worker before it ignored SIGTERM
            if not stop.is_set():
                raise
        if not group.any(requested.is_set()):
            best_epoch.restore(learn, group.is_first)
            return False
    if group.is_first:
        print(f"stopped by SIGTERM; the next start resumes after {_progress(args, *saving.saved)}", flush=True)
    return True


def _dls_of(
    args: argparse.Namespace,
    samples: data.Samples,
    group: "ProcessGroup",
    stack: contextlib.ExitStack,
    own: "DataLoaders",
    size: tuple[int, int],
) -> "DataLoaders":
    """Return the DataLoaders of a phase, of this rank's images until `stack` ends: `own`, or those of another size."""
    from fastmaker.training import checkpoint, distributed, loaders

    if size != args.image_size:
        own = loaders.create(argparse.Namespace(**{**vars(args), "image_size": size}), samples, group.world_size)
    for loader in own.loaders if args.checkpoint_dir else ():
        loader.wif = checkpoint.ignore_platform_sigterm
    stack.enter_context(distributed.sharded(own, group))
    return own


def _run_config(args: argparse.Namespace, samples: data.Samples, group: "ProcessGroup") -> dict[str, Any]:
    """Return what a checkpoint must share with a run that resumes from it: each of these changes later epochs."""
    return {
        **arguments.of_the_run(args),
        **_first_weights(args),
        # Of all ranks: two resume from one with a batch twice as large.
        "batch_size": args.batch_size * group.world_size,
        **({"void": samples.void_code} if isinstance(samples, mask_data.MaskedSamples) else {}),
        "labels": samples.classes,
        "training_images": samples.n_train,
        "validation_images": sum(samples.is_valid),
        "fingerprint of the images": data.fingerprint(samples),
    }


def _first_weights(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options about the weights that a run starts from; files by their SHA-256. Raises WeightsError."""
    from fastmaker.training import earlier

    file = args.pretrained if isinstance(args.pretrained, str) else None
    return {
        "pretrained": files.sha256(file) if file else args.pretrained,
        "resume_from": earlier.state_sha256(Path(args.resume_from)) if args.resume_from else None,
    }
