"""Learners that resize no image: the size of their images is not known once they are exported."""

from pathlib import Path

import numpy as np
from fastai.vision.all import (
    CategoryBlock,
    CrossEntropyLossFlat,
    DataBlock,
    ImageBlock,
    Learner,
    RandomSplitter,
    load_learner,
    parent_label,
    set_seed,
)
from PIL import Image
from torch import nn

LABELS = ("a", "b", "c")
SIZE = (20, 28)  # (height, width)


def files_of(folder, sizes=(SIZE,)):
    numbers = np.random.default_rng(3)
    for n in range(12):
        file = folder / LABELS[n % 3] / f"{n}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(numbers.integers(0, 256, (*sizes[n % len(sizes)], 3), np.uint8)).save(file)
    return sorted(folder.rglob("*.png"))


def learner(folder: Path, network=None, sizes=(SIZE,), **transforms):
    """A Learner of images of `sizes`, with a network that takes images of SIZE alone."""
    set_seed(2)
    fixed = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * SIZE[0] * SIZE[1], 3))
    block = DataBlock(
        (ImageBlock, CategoryBlock),
        get_items=lambda folder: files_of(folder, sizes),
        get_y=parent_label,
        splitter=RandomSplitter(0.5, seed=1),
        **transforms,
    )
    dls = block.dataloaders(folder, bs=1, num_workers=0)
    return Learner(dls, network or fixed, loss_func=CrossEntropyLossFlat(), path=folder)


def exported(learn):
    for name in ("get_items", "get_y"):
        setattr(learn.dls, name, None)
    learn.export("export.pkl")
    return load_learner(learn.path / "export.pkl")
