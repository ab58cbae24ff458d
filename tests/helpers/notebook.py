"""A notebook's code, run as a program so that its names are those of `__main__`: it exports Learners.

python notebook.py PHOTOS FOLDER NAME ...
"""

import collections
import importlib
import pickle
import sys
import types
from pathlib import Path

import cloudpickle
import numpy as np
import torch
from fastai.vision.all import (
    Callback,
    CategoryBlock,
    CrossEntropyLossFlat,
    DataBlock,
    ImageBlock,
    ImageDataLoaders,
    Learner,
    PILImage,
    RandomSplitter,
    Resize,
    Transform,
    aug_transforms,
    error_rate,
    params,
    set_seed,
    squeezenet1_1,
    vision_learner,
)
from torch import nn

SIZE = 64


def is_striped(file):
    return Path(file).name[0] in "012"


def get_y(file):
    return file.parent.name


def get_items(folder):
    return sorted(folder.rglob("*.jpg"))


def darker(file):
    return PILImage.create(np.asarray(PILImage.create(file)) // 2)


def my_metric(given, expected):
    return (given.argmax(1) == expected).float().mean()


def my_splitter(network):
    return [params(network[0]), params(network[1])]


def my_loss(given, expected):
    return nn.functional.cross_entropy(given, expected)


class Halved(Transform):
    def encodes(self, image: PILImage):
        return PILImage.create(np.asarray(image) // 2)


class OnlyTrains(Transform):
    split_idx = 0

    def encodes(self, image: PILImage):
        return PILImage.create(255 - np.asarray(image))


class Doubled(Callback):
    def after_pred(self):
        self.learn.pred = 2 * self.pred


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.last = nn.Linear(8, 3)

    def forward(self, images):
        return self.last(self.layers(images))


def block(photos, item_tfms=(), **options):
    options = {"get_items": get_items, "get_y": get_y, **options}
    data = DataBlock(
        (ImageBlock, CategoryBlock),
        splitter=RandomSplitter(seed=1),
        item_tfms=[Resize(SIZE), *item_tfms],
        **options,
    )
    return data.dataloaders(photos, bs=8, num_workers=0)


def by_name(photos):
    return ImageDataLoaders.from_name_func(
        photos, get_items(photos), label_func=is_striped, item_tfms=Resize(SIZE), bs=8, num_workers=0
    )


def small(dls, **options):
    return vision_learner(dls, squeezenet1_1, pretrained=False, **options)


LEARNERS = {
    "functions": lambda photos: small(
        block(photos, get_y=is_striped), metrics=[error_rate, my_metric], splitter=my_splitter
    ),
    "get_y": lambda photos: small(block(photos)),
    "steps": lambda photos: small(block(photos, batch_tfms=aug_transforms(size=48))),
    "get_x": lambda photos: small(block(photos, get_x=darker)),
    "transform": lambda photos: small(block(photos, [Halved()])),
    "only_trains": lambda photos: small(block(photos, [OnlyTrains()])),
    "loss": lambda photos: small(block(photos), loss_func=my_loss),
    "callback": lambda photos: small(block(photos), cbs=Doubled()),
    "network": lambda photos: Learner(block(photos), Net(), loss_func=CrossEntropyLossFlat()),
    "module": lambda photos: Learner(block(photos), in_module(Net)(), loss_func=CrossEntropyLossFlat()),
    "fp16": lambda photos: small(block(photos)).to_fp16(),
    "parallel": lambda photos: Learner(block(photos), nn.DataParallel(layers()), loss_func=CrossEntropyLossFlat()),
    "distributed": lambda photos: Learner(block(photos), distributed(layers()), loss_func=CrossEntropyLossFlat()),
    "dill": lambda photos: Learner(block(photos), Net(), loss_func=CrossEntropyLossFlat(), metrics=my_metric),
    "by_value": lambda photos: small(by_name(photos), metrics=my_metric),
    "of_another_python": lambda photos: small(block(photos)),
    "network_of_another_python": lambda photos: Learner(block(photos), Net(), loss_func=CrossEntropyLossFlat()),
}


def layers():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


def distributed(network):
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    return nn.parallel.DistributedDataParallel(network)


def in_module(kind):
    """The class as one of a module that the reader of the pickle lacks."""
    module = sys.modules["my_models"] = types.ModuleType("my_models")
    found = type("Net", (kind,), {"__module__": "my_models"})
    module.Net = found
    return found


def fewer(code):
    """How Python 3.10 keeps a code object: with 16 values."""
    kind, values = cloudpickle.cloudpickle._code_reduce(code)
    named = {"co_qualname", "co_exceptiontable"} if hasattr(code, "co_qualname") else {"co_linetable"}
    others = [getattr(code, name) for name in named]
    return kind, tuple(value for value in values if not any(value is other for other in others))


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    folder.mkdir(exist_ok=True)
    for name in sys.argv[3:]:
        set_seed(4)
        learn = LEARNERS[name](Path(sys.argv[1]))
        [image] = get_items(Path(sys.argv[1]))[:1]
        with learn.no_bar(), learn.no_logging():
            np.save(folder / f"{name}.npy", np.asarray(learn.predict(image)[2]))
        by_value = name.endswith(("by_value", "python"))
        if name.endswith("another_python"):
            pickler = cloudpickle.Pickler
            pickler.dispatch_table = collections.ChainMap({types.CodeType: fewer}, pickler.dispatch_table)
        module = importlib.import_module("dill") if name == "dill" else cloudpickle if by_value else pickle
        learn.export(folder.resolve() / f"{name}.pkl", pickle_module=module)
