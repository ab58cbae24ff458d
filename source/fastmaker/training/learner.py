"""DataLoaders -> a fastai Learner."""

import argparse
from pathlib import Path
from typing import Any

import torch
from fastai.vision.all import DataLoaders, DynamicUnet, Learner, add_head

from fastmaker import networks
from fastmaker.training import architectures, task_parts, weights
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
    file = Path(args.pretrained) if pretrained and isinstance(args.pretrained, str) else None
    if args.arch == "convnet":
        learn = Learner(dls, networks.convnet(n_out, n_in), **common)
        learn.arch = networks.convnet
        if file:
            print(weights.load(file, [learn.model], learn.model[:-1]), flush=True)
        return learn
    downloaded, segments = pretrained and file is None, args.task == "segmentation"
    body = architectures.body(args.arch, downloaded, n_in, args.image_size, sequential=segments)
    if segments:
        model = DynamicUnet(body.module, n_out, args.image_size, self_attention=args.self_attention)
    else:
        model = add_head(body.module, body.n_features, n_out, pool=body.pool, y_range=args.y_range)
    learn = Learner(dls, model, splitter=body.split, **common)
    learn.arch, learn.self_attention = body.arch, args.self_attention
    if file:
        print(weights.load(file, [body.whole, body.module, model], body.module), flush=True)
    if pretrained:
        learn.freeze()
    return learn


def is_finite(model: torch.nn.Module) -> bool:
    """Return whether all weights are finite numbers: after a training that diverged they are not."""
    return all(torch.isfinite(parameter).all() for parameter in model.parameters())
