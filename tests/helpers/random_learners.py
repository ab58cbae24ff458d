"""Learners of fastai made by chance, as people put them together: pipeline x images x network x head x task x loss.

`make` returns the same Learner for the same seed. None is trained; its weights are random and its batch norms hold
statistics of no use, so that each layer shows in the answers.
"""

import functools
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.vision.all import (
    CategoryBlock,
    CropPad,
    DataBlock,
    Dihedral,
    DihedralItem,
    Flip,
    FlipItem,
    ImageBlock,
    IndexSplitter,
    IntToFloatTensor,
    Learner,
    MaskBlock,
    MultiCategoryBlock,
    Normalize,
    PILImage,
    PILImageBW,
    PILMask,
    PointBlock,
    RandomCrop,
    RandomErasing,
    RandomResizedCrop,
    RandomResizedCropGPU,
    RatioResize,
    RegressionBlock,
    Resize,
    Rotate,
    TensorImage,
    TensorPoint,
    Transform,
    TransformBlock,
    aug_transforms,
    imagenet_stats,
    load_image,
    set_seed,
    unet_learner,
    vision_learner,
)
from fastai.vision.augment import Brightness, Contrast, Hue, Saturation, Warp, Zoom
from fastai.vision.core import cifar_stats
from PIL import Image

from helpers import random_networks

UNIFORM = (96, 72)  # width and height of the photos that are alike
SIZES = (48, 64, (48, 64), (72, 40), 57)
LABELS = ("cat", "dog", "red setter")
PAD_MODES = ("reflection", "border", "zeros")


@dataclass
class Made:
    """A Learner, and how it came about."""

    learn: Learner
    task: str
    words: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)  # the photos to ask it about


@dataclass
class Photos:
    """Folders of real images, and a folder of the tests' own."""

    pets: list[Path]
    ugly: list[Path]
    scenes: list[Path]
    scratch: Path

    @functools.cached_property
    def uniform(self) -> list[Path]:
        """The photos, all of one size."""
        files = []
        for file in self.pets:
            files.append(self.scratch / f"{file.stem}.png")
            with Image.open(file) as image:
                image.convert("RGB").resize(UNIFORM).save(files[-1])
        return files


# Item transforms: a function of the chance that returns them, and whether all images have one size after them.


def _size(chance):
    return chance.choice(SIZES)


def _resize(chance, **options):
    method = chance.choice(["crop", "pad", "squish"])
    resamples = (chance.choice([Image.Resampling(n) for n in (0, 1, 2, 2, 2, 3, 4, 5)]), Image.Resampling.NEAREST)
    return Resize(_size(chance), method=method, pad_mode=chance.choice(PAD_MODES), resamples=resamples, **options)


class Paler(Transform):
    """A transform of one's own that changes all images."""

    def encodes(self, image: PILImage):
        return PILImage.create((np.asarray(image) // 2 + 100).astype(np.uint8))


class PalerInTraining(Paler):
    split_idx = 0


class OwnResize(Resize):
    """A subclass that does what its class does."""


class PalerResize(Resize):
    def encodes(self, image: PILImage):
        return PILImage.create(np.asarray(super().encodes(image)) // 2)


def smaller(image: PILImage):
    return image.resize((image.width // 2 + 20, image.height // 2 + 20))


ITEM_TFMS = {
    "Resize": _resize,
    "a plain Resize": lambda chance: Resize(_size(chance)),
    "RandomResizedCrop": lambda chance: RandomResizedCrop(
        _size(chance), min_scale=0.4, val_xtra=chance.choice([0.14, 0, 0.3])
    ),
    "RandomCrop": lambda chance: RandomCrop(_size(chance)),
    "CropPad": lambda chance: CropPad(_size(chance), pad_mode=chance.choice(PAD_MODES)),
    "Resize, CropPad": lambda chance: [_resize(chance), CropPad(_size(chance), pad_mode=chance.choice(PAD_MODES))],
    "RatioResize": lambda chance: RatioResize(chance.choice([64, 90])),
    "RatioResize, CropPad later": lambda chance: [RatioResize(chance.choice([64, 90])), _later(CropPad(_size(chance)))],
    "Resize, RandomCrop": lambda chance: [_resize(chance), _later(RandomCrop(_size(chance)))],
    "FlipItem, DihedralItem": lambda chance: [_resize(chance), FlipItem(0.5), DihedralItem()],
    "one's own, in training": lambda chance: [_resize(chance), PalerInTraining()],
    "one's own": lambda chance: [_resize(chance), Paler()],
    "one's own function": lambda chance: [_resize(chance), smaller],
    "a subclass": lambda chance: OwnResize(_size(chance)),
    "a subclass that differs": lambda chance: PalerResize(_size(chance)),
    "Resize in training": lambda chance: _resize(chance, split_idx=0),
    "Resize with before_call": lambda chance: Resize(48, before_call=lambda b, split_idx: None, method="squish"),
    "nothing": lambda chance: None,
}


def _later(transform):
    transform.order = 2
    return transform


def _aug(chance):
    options = {"size": _size(chance), "min_scale": chance.choice([1.0, 1.0, 0.7])} if chance.random() < 0.5 else {}
    for name, values in {
        "mode": ["bilinear", "bilinear", "nearest", "bicubic"],
        "pad_mode": PAD_MODES,
        "align_corners": [True, True, False],
        "flip_vert": [False, True],
        "max_warp": [0, 0.2],
    }.items():
        options[name] = chance.choice(values)
    return aug_transforms(**options)


def _normalize(chance):
    own = [0.3, 0.5, 0.7], [0.1, 0.2, 0.4]
    return Normalize.from_stats(*chance.choice([imagenet_stats, cifar_stats, own]), cuda=False)


class Halved(Transform):
    order = 50

    def encodes(self, images: TensorImage):
        return images * 0.5


class HalvedInTraining(Halved):
    split_idx = 0


def _ordered(transform, order):
    transform.order = order
    return transform


BATCH_TFMS = {
    "nothing": lambda chance: [],
    "aug_transforms": _aug,
    "aug_transforms, Normalize": lambda chance: [*_aug(chance), _normalize(chance)],
    "Normalize": lambda chance: [_normalize(chance)],
    "Normalize of a batch": lambda chance: [Normalize()],
    "Normalize of numbers": lambda chance: [Normalize(torch.tensor(0.4), torch.tensor(0.3))],
    "Normalize of each pixel": lambda chance: [Normalize(axes=(0,))],
    "Normalize first": lambda chance: [*_aug(chance), _ordered(_normalize(chance), 11)],
    "Normalize before all": lambda chance: [_ordered(_normalize(chance), 1)],
    "Normalize in training": lambda chance: [_in_training(_normalize(chance))],
    "RandomResizedCropGPU": lambda chance: [
        RandomResizedCropGPU(_size(chance), ratio=chance.choice([(3 / 4, 4 / 3), (1, 1)]), valid_scale=0.8),
        *([_normalize(chance)] if chance.random() < 0.5 else []),
    ],
    "lighting, erasing": lambda chance: [
        Brightness(), Contrast(), Saturation(), Hue(), RandomErasing(), _normalize(chance),
    ],
    "several affine": lambda chance: chance.sample([Flip(), Rotate(), Zoom(), Warp(), Dihedral()], 3),
    "one's own": lambda chance: [*_aug(chance), Halved()],
    "one's own, in training": lambda chance: [HalvedInTraining(), _normalize(chance)],
    "IntToFloatTensor(div)": lambda chance: [IntToFloatTensor(div=chance.choice([1.0, 127.5, 256]))],
}  # fmt: skip


def _in_training(transform):
    transform.split_idx = 0
    return transform


# Image blocks


def _mode(name, mode, **more):
    return type(name, (PILImage,), {"_open_args": {"mode": mode}, **more})


class Inverted(PILImage):
    @classmethod
    def create(cls, fn, **kwargs):
        return cls(Image.fromarray(255 - np.asarray(load_image(fn, "RGB"))))


IMAGES = {
    "PILImage": PILImage,
    "PILImageBW": PILImageBW,
    **{f"mode {mode}": _mode(f"Own{n}", mode) for n, mode in enumerate(("L", "RGB", "RGBA", "CMYK", "HSV"))},
    **{f"mode {mode}": _mode(f"Rare{n}", mode) for n, mode in enumerate(("YCbCr", "LAB", "1", "LA", "I", "F"))},
    "mode None": _mode("Any", None),
    "PILMask": PILMask,
    "Inverted": Inverted,
}


def tensor_image(file):
    return TensorImage(np.asarray(load_image(file, "RGB")).transpose(2, 0, 1).copy())


def array_image(file):
    return PILImage.create(np.asarray(load_image(file, "RGB")))


def _image_block(chance, words):
    if chance.random() < 0.06:
        made_by = chance.choice([tensor_image, array_image])
        words.append(made_by.__name__)
        return TransformBlock(type_tfms=made_by, batch_tfms=IntToFloatTensor), "RGB"
    name = chance.choices(list(IMAGES), [12, 4] + [1] * (len(IMAGES) - 2))[0]
    words.append(name)
    return ImageBlock(IMAGES[name]), IMAGES[name]._open_args["mode"]


# Tasks: blocks, what labels a file, and the number of outputs


def _label(file):
    return LABELS[sum(file.stem.encode()) % 3]


def _labels(file):
    return [label for n, label in enumerate(LABELS) if sum(file.stem.encode()) >> n & 1]


def _number(file):
    return sum(file.stem.encode()) % 10 / 10


def _numbers(file):
    return [_number(file), 1.0]


def _point(file):
    return TensorPoint.create([[10, 20]])


def _mask(file):
    return file.parent.parent / "labels" / f"{file.stem}_P{file.suffix}"


TASKS: dict[str, tuple[Any, Any, int]] = {
    "classification": (lambda: CategoryBlock(vocab=LABELS, sort=False), _label, 3),
    "classification with na": (lambda: CategoryBlock(add_na=True), _label, 4),
    "classification of a vocab": (lambda: CategoryBlock(vocab=[*LABELS, "bird"]), _label, 4),
    "classification of numbers": (lambda: CategoryBlock, lambda file: sum(file.stem.encode()) % 3, 3),
    "multilabel": (lambda: MultiCategoryBlock(vocab=LABELS), _labels, 3),
    "regression": (lambda: RegressionBlock, _number, 1),
    "regression of two": (lambda: RegressionBlock(n_out=2), _numbers, 2),
    "points": (lambda: PointBlock, _point, 2),
    "segmentation": (lambda: MaskBlock(codes=[f"class {n}" for n in range(12)]), _mask, 12),
}
WEIGHTS = (16, 1, 1, 1, 2, 1, 1, 1, 1)


def make(seed: int, photos: Photos) -> Made:
    """Return the Learner of this seed. Raises what fastai raises for a combination that it does not take."""
    chance = random.Random(seed)
    set_seed(seed)
    task = chance.choices(list(TASKS), WEIGHTS)[0]
    words = [task]
    block, label, n_out = TASKS[task]
    images, mode = _image_block(chance, words)
    items = chance.choices(list(ITEM_TFMS), [8, 8, 5, *[2] * (len(ITEM_TFMS) - 4), 4])[0]
    batches = chance.choices(list(BATCH_TFMS), [4, 8, 8, *[2] * (len(BATCH_TFMS) - 3)])[0]
    words += [items, batches]
    files = photos.scenes if task == "segmentation" else photos.uniform if items == "nothing" else photos.pets
    dls = DataBlock(
        (images, block()),
        get_y=label,
        splitter=IndexSplitter(range(4, 12)),
        item_tfms=ITEM_TFMS[items](chance),
        batch_tfms=BATCH_TFMS[batches](chance),
    ).dataloaders(files[:12], bs=4, num_workers=0)
    made = Made(_learner(chance, dls, task, n_out, random_networks.CHANNELS.get(mode, 3), words), task, words)
    random_networks.disturb(made.learn.model, seed)
    made.files = files[-20:] + (photos.ugly if files is photos.pets else [])
    return made


def _learner(chance, dls, task, n_out, n_in, words) -> Learner:
    loss_name, loss = random_networks.loss(chance, task.split()[0])
    words.append(loss_name)
    options = {"loss_func": loss} if loss else {}
    if task == "segmentation":
        name = chance.choice(["resnet18", "resnet18", "resnet34"])
        words.append(f"unet_learner of {name}")
        return unet_learner(
            dls, random_networks.torchvision_network(name), n_out=n_out, n_in=n_in, pretrained=False, normalize=False,
            **options,
        )  # fmt: skip
    name, network = random_networks.choose(chance)
    words.append(name)
    if network is None:
        head, head_options = random_networks.head(chance, n_out)
        words.append(head)
        arch = name if name.startswith("timm ") else random_networks.torchvision_network(name)
        arch = arch.removeprefix("timm ") if isinstance(arch, str) else arch
        return vision_learner(
            dls, arch, n_out=n_out, n_in=n_in, pretrained=False, normalize=False, **head_options, **options
        )
    return Learner(dls, network(n_in, n_out), **options)
