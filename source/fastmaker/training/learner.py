"""DataLoaders -> a fastai Learner, and its fit."""

import argparse
from typing import Any

import torch
from fastai.vision.all import DataLoaders, DynamicUnet, Learner, add_head

from fastmaker import networks
from fastmaker.training import architectures, task_parts
from fastmaker.training.data import Samples


def create(
    dls: DataLoaders, samples: Samples, args: argparse.Namespace, pretrained: bool, loss_func: Any = None
) -> Learner:
    """Return a Learner of the network and the task of `args`, which are those of `arguments.parse_args`.

    It is what ``unet_learner`` makes for masks, ``vision_learner`` for other tasks, and a plain one for convnet.
    `loss_func` replaces the task's own loss. Raises weights.WeightsError if the pretrained weights cannot be had, and
    architectures.ArchitectureError.
    """
    parts, n_in = task_parts.TASKS[args.task], 3 if args.image_mode == "RGB" else 1
    n_out = parts.n_out(samples)
    if loss_func is None:
        loss_func = parts.loss(samples, args)
    common: dict[str, Any] = {"loss_func": loss_func, "metrics": parts.metrics(samples, args)}
    if args.arch == "convnet":
        learn = Learner(dls, networks.convnet(n_out, n_in), **common)
        learn.arch = networks.convnet
        return learn
    body = architectures.body(args.arch, pretrained, n_in, args.image_size, sequential=args.task == "segmentation")
    if args.task == "segmentation":
        model = DynamicUnet(body.module, n_out, args.image_size, self_attention=args.self_attention)
    else:
        model = add_head(body.module, body.n_features, n_out, pool=body.pool, y_range=args.y_range)
    learn = Learner(dls, model, splitter=body.split, **common)
    learn.arch, learn.self_attention = body.arch, args.self_attention
    if pretrained:
        learn.freeze()
    return learn


def total_epochs(epochs: int, fine_tune: bool) -> int:
    """Return how many epochs `fit` trains in all."""
    return epochs + 1 if fine_tune else epochs


def fit(learn: Learner, epochs: int, lr: float, fine_tune: bool, done: int = 0, batch: int = 0) -> None:
    """Train for `epochs` with the one-cycle policy; `fine_tune` first trains only the new head for one epoch.

    The schedule resumes after the first `done` of all these epochs and `batch` batches of the next, which were trained
    before; that needs a `callbacks.Position` in `learn`.
    """
    if not fine_tune:
        learn.fit_one_cycle(epochs, lr_max=lr, start_epoch=done)
        return
    # Learner.fine_tune cannot resume, so its steps are repeated here. Freezing and unfreezing a Learner empties the
    # optimiser's state, which must not happen where that state was restored.
    if done == 0:
        (learn.opt if batch else learn).freeze()
        learn.fit_one_cycle(1, slice(lr), pct_start=0.99)
    if done == 0 or (done == 1 and not batch):
        learn.unfreeze()
    lr /= 2
    learn.fit_one_cycle(epochs, slice(lr / 100, lr), pct_start=0.3, div=5.0, start_epoch=max(done - 1, 0))


def is_finite(model: torch.nn.Module) -> bool:
    """Return whether all weights are finite numbers: after a training that diverged they are not."""
    return all(torch.isfinite(parameter).all() for parameter in model.parameters())
