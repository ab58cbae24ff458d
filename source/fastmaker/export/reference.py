"""A bundle -> a fastai Learner, whose ``predict`` is the reference for every other way to serve the bundle.

fastai's own code builds the network and prepares the images; from the bundle come the weights and the values of
model.json. Two networks are not fastai's: the convnet, which it lacks, and one that the bundle keeps as a graph.
"""

import io
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.models
from fastai.vision.all import (
    AffineCoordTfm,
    CategoryBlock,
    CropPad,
    CrossEntropyLossFlat,
    DataBlock,
    DataLoaders,
    ImageBlock,
    IndexSplitter,
    IntToFloatTensor,
    ItemGetter,
    L,
    Learner,
    MaskBlock,
    MultiCategoryBlock,
    Normalize,
    PILImage,
    PILImageBW,
    PointBlock,
    RandomResizedCropGPU,
    RatioResize,
    RegressionBlock,
    Resize,
    unet_learner,
    vision_learner,
)
from PIL import Image
from torch import nn

from fastmaker import bundle, networks, pipeline, preprocess, tasks
from fastmaker.training import from_learner, learner_steps


def learner(model_dir: str | os.PathLike) -> Learner:
    """Return a Learner with the weights of the bundle in `model_dir`, loaded strictly. Raises bundle.BundleError."""
    network, info = bundle.load(model_dir)
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
    n_out = len(info.labels) if info.labels else math.prod(info.shape)
    options = {"pretrained": False, "n_in": info.channels, "n_out": n_out, "normalize": False}
    if info.architecture == "convnet":
        return Learner(dls, networks.convnet(n_out, info.channels), loss_func=_loss(info))
    architecture = getattr(torchvision.models, info.architecture)
    if info.task == "segmentation":
        return unet_learner(dls, architecture, loss_func=_loss(info), **options, **info.options)
    return vision_learner(dls, architecture, loss_func=_loss(info), **options)


def _loss(info: bundle.ModelInfo) -> Any:
    if info.activation == "softmax" and info.task in ("classification", "segmentation"):
        return CrossEntropyLossFlat(axis=1 if info.task == "segmentation" else -1)
    return _Decoding(info)


class _Decoding:
    """The activation and the decoding of the loss that the bundle was trained with. It does not train."""

    def __init__(self, info: bundle.ModelInfo):
        self.info = info

    def activation(self, logits: torch.Tensor) -> torch.Tensor:
        return tasks.ACTIVATIONS[self.info.activation](logits)

    def decodes(self, numbers: torch.Tensor) -> torch.Tensor:
        if self.info.task in ("classification", "segmentation"):
            return numbers.argmax(dim=1)
        threshold = self.info.threshold
        return numbers if threshold is None else numbers > torch.tensor(threshold)


def _dataloaders(info: bundle.ModelInfo) -> DataLoaders:
    """Return DataLoaders of two black images, whose transforms are those of the bundle."""
    size = pipeline.input_size(info) or info.image_size
    black = io.BytesIO()
    Image.new("RGB", (size[1], size[0])).save(black, "PNG")
    block, label = _target(info)
    items, batches = _transforms(info)
    images = DataBlock(
        blocks=(ImageBlock(_image_class(info.image_mode)), block),
        get_x=ItemGetter(0),
        get_y=ItemGetter(1),
        splitter=IndexSplitter([1]),
    )
    # Set here, since a DataBlock takes one transform of each class alone.
    images.item_tfms, images.batch_tfms = images.default_item_tfms + items, L(batches)
    return images.dataloaders([(black.getvalue(), label)] * 2, bs=1, num_workers=0)


def _target(info: bundle.ModelInfo) -> tuple[Any, Any]:
    """Return the block of the bundle's targets, and one of them."""
    labels, n_out = list(info.labels), math.prod(info.shape)
    if info.task == "segmentation":
        return MaskBlock(codes=labels), np.zeros(info.image_size, np.uint8)
    if info.task == "multilabel":
        return MultiCategoryBlock(vocab=labels), labels[:1]
    if info.task == "regression":
        return RegressionBlock(n_out=n_out), [0.0] * n_out
    if info.task == "points":
        return PointBlock, np.zeros((n_out // 2, 2), np.float32)
    return CategoryBlock(vocab=labels, sort=False), labels[0]


def _image_class(mode: str) -> type:
    known = {"RGB": PILImage, "L": PILImageBW}
    return known.get(mode) or type(f"PILImage{mode}", (PILImage,), {"_open_args": {"mode": mode}})


def _transforms(info: bundle.ModelInfo) -> tuple[list[Any], list[Any]]:
    """Return fastai's transforms of the bundle: of images, beside those of each block, and of batches."""
    steps = info.steps or (
        ()
        if info.resize_method == preprocess.NO_RESIZE
        else (from_learner.PLAIN_RESIZE | {"size": list(info.image_size), "method": info.resize_method},)
    )
    items = [_of_images(step) for step in steps if step["step"] in pipeline.OF_IMAGES]
    items = [item for item in items if item]
    batches = [_of_batches(step) for step in steps if step["step"] in pipeline.OF_BATCHES]
    if not any(isinstance(transform, IntToFloatTensor) for transform in batches):
        batches.insert(0, IntToFloatTensor())
    if info.resampled:
        batches.append(_of_batches(learner_steps.IDENTITY))
    batches.append(Normalize.from_stats(info.mean, info.std, cuda=False))
    for number, transform in enumerate(batches):
        transform.order = number
    for number, transform in enumerate(items):
        transform.order = 2 + number / 100  # before ToTensor, whose order is 5
    return items, batches


def _of_images(step: pipeline.Step) -> Any:
    """Return fastai's item transform of a step; None for one that only refuses images."""
    if step["step"] in ("check_size", "any_size"):
        return None
    if step["step"] == "crop_pad":
        return CropPad(tuple(step["size"]), pad_mode=step["pad_mode"])
    resamples = (Image.Resampling(pipeline.RESAMPLES[step["resample"]]), Image.Resampling.NEAREST)
    if step["step"] == "ratio_resize":
        return RatioResize(step["longest"], resamples=resamples)
    return Resize(tuple(step["size"]), method=step["method"], pad_mode=step["pad_mode"], resamples=resamples)


def _of_batches(step: pipeline.Step) -> Any:
    if step["step"] == "divide":
        return IntToFloatTensor(div=step["by"])
    if step["step"] == "normalize":
        return Normalize.from_stats(step["mean"], step["std"], cuda=False)
    if step["step"] == "grid_sample":
        size = step["size"] and tuple(step["size"])
        return AffineCoordTfm(
            size=size, mode=step["mode"], pad_mode=step["pad_mode"], align_corners=step["align_corners"]
        )
    return RandomResizedCropGPU(
        tuple(step["size"]), ratio=tuple(step["ratio"]), mode=step["mode"], valid_scale=step["scale"]
    )
