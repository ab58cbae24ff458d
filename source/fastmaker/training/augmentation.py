"""The options of augmentation and of the balance of classes -> fastai's transforms, callbacks and losses."""

import argparse
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from fastai.vision.all import (
    BCEWithLogitsLossFlat,
    CrossEntropyLossFlat,
    CutMix,
    DataLoaders,
    FocalLossFlat,
    LabelSmoothingCrossEntropyFlat,
    MixUp,
    RandomErasing,
    RandomResizedCrop,
    Resize,
    aug_transforms,
)

from fastmaker.training.arguments.augmentation import KNOBS
from fastmaker.training.data import Samples


def of_items(args: argparse.Namespace) -> list[Any]:
    """Return the transforms of single images."""
    if args.resize_method == "random-crop":
        return [RandomResizedCrop(args.image_size, min_scale=args.min_scale, ratio=args.ratio)]
    return [Resize(args.item_size or args.image_size, method=args.resize_method, pad_mode=args.pad_mode)]


def of_batches(args: argparse.Namespace) -> list[Any]:
    """Return the transforms of batches."""
    if not args.augment:
        return []
    knobs = {"do_flip" if name == "flip" else name: getattr(args, name) for name in KNOBS}
    size = {"size": args.image_size, "min_scale": args.min_scale} if args.item_size else {}
    erasing = [RandomErasing(p=args.erase)] if args.erase else []
    return aug_transforms(**knobs, **size, pad_mode=args.pad_mode, xtra_tfms=erasing)


def mixing(args: argparse.Namespace) -> list[Any]:
    """Return the callbacks that mix the images of a batch."""
    callbacks = [MixUp(args.mixup)] if args.mixup else [CutMix(args.cutmix)] if args.cutmix else []
    for callback in callbacks:
        # They set it before they train, and read it when a fit is cancelled, also where nothing is left to train.
        callback.stack_y = False
    return callbacks


def loss(args: argparse.Namespace, samples: Samples, device: torch.device) -> Any:
    """Return the loss of the options, with weights on `device`; None if they say nothing of it."""
    balanced = args.class_weights == "balanced"
    if args.task == "multilabel" and balanced:
        counts = np.array(list(samples.training_counts.values()))
        rare = torch.tensor((samples.n_train - counts) / counts, dtype=torch.float32, device=device)
        # Without images that lack the label the weight would be 0, and nothing would be learnt of it.
        return BCEWithLogitsLossFlat(thresh=args.threshold, pos_weight=torch.where(rare > 0, rare, 1.0))
    weights: dict[str, Any] = {}
    if balanced:
        counts = np.array(list(samples.training_counts.values()))
        numbers = samples.n_train / (len(counts) * counts)
        weights["weight"] = torch.tensor(numbers, dtype=torch.float32, device=device)
    if args.label_smoothing:
        return LabelSmoothingCrossEntropyFlat(eps=args.label_smoothing, **weights)
    if args.focal:
        return FocalLossFlat(gamma=args.focal, **weights)
    return CrossEntropyLossFlat(**weights) if weights else None


def balance(dls: DataLoaders, samples: Samples) -> None:
    """Let each epoch of `dls` draw as many images as there are, with replacement, by the inverse number of their class.

    What is drawn depends on the generator of the DataLoader alone, which `callbacks.Position` seeds for each epoch.
    """
    counts = samples.training_counts
    weights = [1 / counts[str(label)] for label in samples.training_labels]
    dls.train.shuffle_fn = functools.partial(_draw, dls.train, weights)


def _draw(loader: Any, weights: Sequence[float], indexes: Sequence[int]) -> list[int]:
    return loader.rng.choices(indexes, weights=weights, k=len(indexes))
