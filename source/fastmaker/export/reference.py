"""A bundle -> a fastai Learner, whose ``predict`` is the reference for every other way to serve the bundle.

fastai's own code builds the network and prepares the images; from the bundle come the weights and the values of
model.json. Two networks are not fastai's: the convnet, which it lacks, and one that the bundle keeps as a graph.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.models
from fastai.vision.all import (
    CategoryBlock,
    CrossEntropyLossFlat,
    DataBlock,
    DataLoaders,
    ImageBlock,
    IndexSplitter,
    ItemGetter,
    Learner,
    MaskBlock,
    Normalize,
    PILImage,
    PILImageBW,
    Resize,
    aug_transforms,
    unet_learner,
    vision_learner,
)
from torch import nn

from fastmaker import bundle, networks, preprocess


def learner(model_dir: str | os.PathLike) -> Learner:
    """Return a Learner with the weights of the bundle in `model_dir`, loaded strictly. Raises bundle.BundleError."""
    network, info = bundle.load(model_dir)
    if info.steps:
        raise bundle.BundleError(f"{model_dir}: its images go through steps, of which no Learner can be made here")
    if info.architecture == bundle.GRAPH:
        return Learner(_dataloaders(info), _Kept(network), loss_func=_loss(info))
    state = torch.load(Path(model_dir, bundle.STATE_FILE), map_location="cpu", weights_only=True)
    learn = _untrained(info)
    learn.model.load_state_dict(state, strict=True)
    learn.model.eval()
    return learn


class _Kept(nn.Module):
    """A network that is kept as a graph, with a parameter: a Learner asks for the first one."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network, self.parameter = network, nn.Parameter(torch.zeros(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images.as_subclass(torch.Tensor))


def _untrained(info: bundle.ModelInfo) -> Learner:
    dls = _dataloaders(info)
    options = {"pretrained": False, "n_in": info.channels, "n_out": len(info.labels), "normalize": False}
    if info.architecture == "convnet":
        return Learner(dls, networks.convnet(len(info.labels), info.channels), loss_func=_loss(info))
    architecture = getattr(torchvision.models, info.architecture)
    if info.task == "segmentation":
        return unet_learner(dls, architecture, loss_func=_loss(info), **options, **info.options)
    return vision_learner(dls, architecture, loss_func=_loss(info), **options)


def _loss(info: bundle.ModelInfo) -> CrossEntropyLossFlat:
    return CrossEntropyLossFlat(axis=1 if info.task == "segmentation" else -1)


def _dataloaders(info: bundle.ModelInfo) -> DataLoaders:
    """Return DataLoaders of two black images, whose transforms are those of the bundle."""
    black = np.zeros((*info.image_size, info.channels), np.uint8).squeeze(-1 if info.channels == 1 else ())
    labels = list(info.labels)
    label: Any
    if info.task == "segmentation":
        block, label = MaskBlock(codes=labels), np.zeros(info.image_size, np.uint8)
    else:
        block, label = CategoryBlock(vocab=labels, sort=False), labels[0]
    resize = [] if info.resize_method == preprocess.NO_RESIZE else [Resize(info.image_size, method=info.resize_method)]
    images = DataBlock(
        blocks=(ImageBlock(PILImage if info.image_mode == "RGB" else PILImageBW), block),
        get_x=ItemGetter(0),
        get_y=ItemGetter(1),
        splitter=IndexSplitter([1]),
        item_tfms=resize,
        batch_tfms=[*(aug_transforms() if info.resampled else []), _normalize(info)],
    )
    return images.dataloaders([(black, label)] * 2, bs=1, num_workers=0)


def _normalize(info: bundle.ModelInfo) -> Normalize:
    return Normalize.from_stats(info.mean, info.std, cuda=False)
