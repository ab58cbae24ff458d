"""The phases of a run: which epochs train which part of the network, at which learning rate, on images of which size.

    phases = schedule.plan(args)
    schedule.fit(learn, phases)

Epochs count from the start of the run, over all phases.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.vision.all import Callback, DataLoaders, GradientClip, Learner, ParamScheduler, combined_cos

Size = tuple[int, int]
FLAT, DIVIDED = 0.75, 1e5  # pct_start and div_final of fastai's fit_flat_cos


class ScheduleError(ValueError):
    """A schedule that the network or the data does not allow. The message is one line."""


def clipping(args: argparse.Namespace) -> list[Callback]:
    """Return the callbacks that bound the gradients of a batch."""
    return [GradientClip(args.clip_gradients)] if args.clip_gradients else []


@dataclass(frozen=True)
class Phase:
    """A schedule of `epochs` after the first `start` of the run; `size` is (height, width) in pixels."""

    start: int
    epochs: int
    size: Size
    frozen: bool  # only the new head is trained
    options: dict[str, Any]  # of Learner.fit_one_cycle, or `lr_max` alone
    flat: bool = False  # as Learner.fit_flat_cos

    @property
    def end(self) -> int:
        return self.start + self.epochs


def plan(args: argparse.Namespace, lr: float) -> list[Phase]:
    """Return the phases of a run; `lr` is its highest learning rate.

    From scratch there is one for each size. To fine-tune, those of ``Learner.fine_tune``: the head alone at the first
    size, then the whole network, with the same learning rates.
    """
    sizes = [*args.progressive_sizes, args.image_size]
    phases = []
    head: dict[str, Any] = {"lr_max": slice(lr), "pct_start": 0.99}
    whole: dict[str, Any] = {"lr_max": lr}
    if args.pretrained:
        whole = {"lr_max": slice(lr / 2 / 100, lr / 2), "pct_start": 0.3, "div": 5.0}
        if args.freeze_epochs:
            phases.append(Phase(0, args.freeze_epochs, sizes[0], True, head))
    for number, size in enumerate(sizes):
        epochs = args.epochs * (number + 1) // len(sizes) - args.epochs * number // len(sizes)
        flat = args.schedule == "flat-cos"
        phases.append(Phase(phases[-1].end if phases else 0, epochs, size, False, whole, flat))
    return phases


def total_epochs(args: argparse.Namespace) -> int:
    """Return how many epochs a run trains in all."""
    return args.epochs + (args.freeze_epochs if args.pretrained else 0)


def fit(
    learn: Learner,
    phases: list[Phase],
    done: int = 0,
    batch: int = 0,
    dls_of: Callable[[Size], DataLoaders] | None = None,
) -> None:
    """Train the `phases` after the first `done` of all their epochs and `batch` batches of the next.

    To resume, which needs a `callbacks.Position` in `learn`, `learn` has the restored weights and optimiser. `dls_of`
    gives the DataLoaders of a size, where phases have other sizes than `learn`.
    """
    frozen = learn.opt is not None and learn.opt.frozen_idx > 0  # as one of pretrained weights is made
    for phase in phases:
        if done >= phase.end and phase is not phases[-1]:
            frozen = phase.frozen
            continue
        if dls_of:
            learn.dls = dls_of(phase.size)
        # Freezing and unfreezing a Learner empties its optimiser's state, which would undo what was restored.
        within = done > phase.start or (done == phase.start and batch > 0)
        if phase.frozen:
            (learn.opt if within else learn).freeze()
        elif frozen and not within:
            learn.unfreeze()
        frozen = phase.frozen
        start = max(done - phase.start, 0)
        if phase.flat:
            _fit_flat_cos(learn, phase, start)
        else:
            learn.fit_one_cycle(phase.epochs, **phase.options, start_epoch=start)


def _fit_flat_cos(learn: Learner, phase: Phase, start_epoch: int) -> None:
    """Do what ``Learner.fit_flat_cos`` does, which begins with the first epoch whatever its `start_epoch`."""
    if learn.opt is None:
        learn.create_opt()
    learn.opt.set_hyper("lr", phase.options["lr_max"])
    rates = np.array([hyper["lr"] for hyper in learn.opt.hypers])
    scheduler = ParamScheduler({"lr": combined_cos(FLAT, rates, rates, rates / DIVIDED)})
    learn.fit(phase.epochs, cbs=scheduler, start_epoch=start_epoch)


def check_sizes(model: torch.nn.Module, channels: int, sizes: list[Size]) -> None:
    """Raise ScheduleError unless the network takes images of these sizes."""
    device, training = next(model.parameters()).device, model.training
    try:
        for height, width in sizes:
            with torch.no_grad():
                model.eval()(torch.zeros(1, channels, height, width, device=device))
    except Exception as error:  # whatever a network raises
        reason = " ".join(str(error).split())[:200]
        raise ScheduleError(
            f"--progressive-sizes: the network does not take images of {height}x{width} pixels: {reason}"
        ) from None
    finally:
        model.train(training)


def find_lr(learn: Learner, cbs: Sequence[Callback] = ()) -> dict[str, Any]:
    """Return `lr`, the learning rate that fastai's ``lr_find`` suggests, with the `lrs` and `losses` that it tried.

    `cbs` mix the images of a batch, as in training. `learn` is used up: it is not the one to train.
    Raises ScheduleError if the losses suggest none.
    """
    with tempfile.TemporaryDirectory() as folder, learn.no_bar(), learn.no_logging(), learn.added_cbs(cbs):
        learn.path, learn.model_dir = Path(folder), "."
        try:
            lr = float(learn.lr_find(show_plot=False).valley)
        except (IndexError, RuntimeError, ValueError):  # too few losses before they diverge
            lr = float("nan")
    recorder = learn.recorder
    if not 0 < lr < float("inf"):
        raise ScheduleError(f"--lr find: the losses of {len(recorder.losses)} batches suggest none; give --lr a number")
    pairs = [(rate, float(loss)) for rate, loss in zip(recorder.lrs, recorder.losses, strict=False)]
    kept = [(rate, loss) for rate, loss in pairs if np.isfinite(loss)]
    return {"lr": lr, "lrs": [rate for rate, _ in kept], "losses": [loss for _, loss in kept]}
