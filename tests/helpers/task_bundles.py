"""Bundles of the tasks without a Learner: a convnet with random weights, whose answers differ from image to image."""

import dataclasses
from pathlib import Path

import torch

from fastmaker import bundle, networks, unet

LABELS = ("checks", "Zürich; 東京", "rings")
INFO = bundle.ModelInfo(
    task="multilabel",
    architecture="convnet",
    labels=LABELS,
    image_mode="RGB",
    image_size=(40, 56),
    resize_method="crop",
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    activation="sigmoid",
    threshold=0.5,
    format=2,
)
WITHOUT_LABELS = {"labels": (), "activation": "none", "threshold": None}
INFOS = {
    "classification": dataclasses.replace(INFO, task="classification", activation="softmax", threshold=None),
    "multilabel": INFO,
    "regression": dataclasses.replace(INFO, task="regression", output_shape=(3,), **WITHOUT_LABELS),
    "points": dataclasses.replace(INFO, task="points", output_shape=(4,), **WITHOUT_LABELS),
}


def save(folder: Path, task: str, **changes) -> Path:
    """Write the bundle of a task and return its folder."""
    info = dataclasses.replace(INFOS[task], **changes)
    torch.manual_seed(3)
    network = networks.classifier("convnet", *info.shape)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.copy_(torch.rand(tensor.shape) + 0.5)
    network[-1].bias.data.normal_()
    bundle.save(folder, network, info)
    return folder


def save_unet(folder: Path) -> Path:
    """Write the bundle of an untrained U-Net and return its folder."""
    changes = {"labels": ("a", "b", "c"), "image_size": (45, 61), "resize_method": "squish", "options": unet.OPTIONS}
    info = dataclasses.replace(
        INFO, task="segmentation", architecture="resnet18", activation="softmax", threshold=None, **changes
    )
    torch.manual_seed(3)
    bundle.save(folder, unet.unet("resnet18", 3, (45, 61)), info)
    return folder
