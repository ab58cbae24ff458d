"""The networks, heads and losses of `random_learners`."""

import functools
import importlib.util

import torch
import torchvision.models
from fastai.vision.all import (
    BCEWithLogitsLossFlat,
    CrossEntropyLossFlat,
    DiceLoss,
    FocalLossFlat,
    LabelSmoothingCrossEntropy,
    LabelSmoothingCrossEntropyFlat,
    MSELossFlat,
    xresnet18,
)
from torch import nn
from torch.nn import functional

CHANNELS = {"L": 1, "1": 1, "I": 1, "F": 1, "LA": 2, "RGBA": 4, "CMYK": 4}  # of image modes; 3 of the others


class Tiny(nn.Module):
    """A few layers that take images of any size."""

    def __init__(self, n_in, n_out, activation=nn.ReLU):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(n_in, 8, 3, 2, 1), nn.BatchNorm2d(8), activation(), nn.Conv2d(8, 16, 3, 2), activation()
        )
        self.head = nn.Linear(16, n_out)

    def forward(self, x):
        return self.head(self.layers(x).mean((2, 3)))


class Residual(Tiny):
    def forward(self, x):
        features = self.layers(x)
        return self.head((features + features.sigmoid()).flatten(2).amax(2))


class Signs(Tiny):
    """Its answer shows whether it got floats, and in which scale."""

    def forward(self, x):
        return super().forward(x.float() - x.float().mean())


class Random(Tiny):
    def forward(self, x):
        return super().forward(x) + torch.rand(1, device=x.device)


class Branching(Tiny):
    def forward(self, x):
        return super().forward(x if x.mean() > 0.4 else 1 - x)


def sequential(n_in, n_out):
    return nn.Sequential(
        nn.Conv2d(n_in, 8, 5, 3), nn.Hardswish(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(72, n_out)
    )


def _xresnet(n_in, n_out):
    return xresnet18(pretrained=False, n_out=n_out, c_in=n_in)


# None: a name for vision_learner
NETWORKS = {
    "resnet18": None,
    "squeezenet1_1": None,
    "alexnet": None,
    "mobilenet_v3_small": None,
    "shufflenet_v2_x0_5": None,
    "Tiny": Tiny,
    "Tiny of Mish": functools.partial(Tiny, activation=nn.Mish),
    "Residual": Residual,
    "Signs": Signs,
    "Random": Random,
    "Branching": Branching,
    "a Sequential": sequential,
    "xresnet18": _xresnet,
    **({"timm resnet10t": None, "timm test_efficientnet": None} if importlib.util.find_spec("timm") else {}),
}
WEIGHTS = {"resnet18": 5, "Tiny": 6, "Residual": 3, "Signs": 3, "a Sequential": 4}


def choose(chance):
    """Return a network's name, and a function of its channels and outputs, or None."""
    name = chance.choices(list(NETWORKS), [WEIGHTS.get(name, 1) for name in NETWORKS])[0]
    return name, NETWORKS[name]


def torchvision_network(name):
    return getattr(torchvision.models, name)


class OwnHead(nn.Sequential):
    def __init__(self, n_out):
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(n_out))


HEADS = {
    "the usual head": {},
    "lin_ftrs": {"lin_ftrs": [32], "ps": 0.3},
    "no concat_pool": {"concat_pool": False},
    "bn_final": {"bn_final": True},
    "first_bn": {"first_bn": False},
}


def head(chance, n_out):
    name = chance.choices(list(HEADS), [6, *[1] * (len(HEADS) - 1)])[0]
    return name, HEADS[name]


class Own(nn.Module):
    """A loss of one's own, with what fastai asks it for."""

    def forward(self, given, target):
        return functional.cross_entropy(given, target)

    def activation(self, given):
        return given.softmax(dim=1)

    def decodes(self, given):
        return given.argmax(dim=1)


class Twisted(Own):
    def activation(self, given):
        return (given * 0.9).softmax(dim=1)


LOSSES = {
    "classification": {
        "fastai's loss": None,
        "CrossEntropyLossFlat": CrossEntropyLossFlat,
        "weighted": lambda: CrossEntropyLossFlat(label_smoothing=0.1),
        "LabelSmoothingCrossEntropyFlat": LabelSmoothingCrossEntropyFlat,
        "LabelSmoothingCrossEntropy": LabelSmoothingCrossEntropy,
        "FocalLossFlat": FocalLossFlat,
        "nn.CrossEntropyLoss": nn.CrossEntropyLoss,
        "cross_entropy": lambda: functional.cross_entropy,
        "Own": Own,
        "Twisted": Twisted,
    },
    "multilabel": {
        "fastai's loss": None,
        "thresh": lambda: BCEWithLogitsLossFlat(thresh=0.3),
        "nn.BCEWithLogitsLoss": nn.BCEWithLogitsLoss,
    },
    "regression": {"fastai's loss": None, "nn.L1Loss": nn.L1Loss},
    "points": {"fastai's loss": None, "MSELossFlat": MSELossFlat},
    "segmentation": {
        "fastai's loss": None,
        "axis": lambda: CrossEntropyLossFlat(axis=1),
        "ignore_index": lambda: CrossEntropyLossFlat(axis=1, ignore_index=11),
        "FocalLossFlat": lambda: FocalLossFlat(axis=1),
        "DiceLoss": DiceLoss,
    },
}


def loss(chance, task):
    """Return a loss's name, and the loss, or None for fastai's default."""
    losses = LOSSES[task]
    name = chance.choices(list(losses), [2 * len(losses), *[1] * (len(losses) - 1)])[0]
    return name, losses[name] and losses[name]()


def disturb(model: nn.Module, seed: int) -> None:
    """Give batch norms statistics, and the last layer larger weights: answers then are far from equal ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                module.running_mean += 0.1 * torch.randn(module.running_mean.shape, generator=generator)
                module.running_var *= 0.5 + torch.rand(module.running_var.shape, generator=generator)
        linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
        if linear:
            linear[-1].weight *= 4


def sized(n_in, n_out, size):
    """Return a network that takes images of one size."""
    return nn.Sequential(nn.Conv2d(n_in, 4, 3, 2, 1), nn.Flatten(), nn.Linear(size[0] * size[1], n_out))
