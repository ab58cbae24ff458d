"""Classifiers in pure torch, with the state_dict keys and the arithmetic of fastai's.

``vision_learner`` puts a head on a torchvision network that is cut before its pooling
(``fastai.vision.learner.create_vision_model``). The same modules in the same places give the same keys, so a trained
state_dict loads strictly in either network.
"""

import itertools
from typing import Any

import torch
import torchvision.models
from torch import nn

# The number of trailing children of the torchvision network that fastai cuts off (fastai.vision.learner.model_meta).
TORCHVISION_CUTS = {
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"), 2),
    **dict.fromkeys(("vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn", "alexnet"), 2),
    **dict.fromkeys(("densenet121", "densenet161", "densenet169", "densenet201"), 1),
    **dict.fromkeys(("squeezenet1_0", "squeezenet1_1"), 1),
}
ARCHITECTURES = ("convnet", *TORCHVISION_CUTS)


class AdaptiveConcatPool2d(nn.Module):
    """(N, C, H, W) -> (N, 2C, 1, 1): the maximum, then the mean (fastai.layers.AdaptiveConcatPool2d)."""

    def __init__(self) -> None:
        super().__init__()
        self.ap = nn.AdaptiveAvgPool2d(1)
        self.mp: nn.Module = nn.AdaptiveMaxPool2d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.mp(x), self.ap(x)], 1)


def classifier(architecture: str, n_out: int, n_in: int = 3) -> nn.Sequential:
    """Return an untrained network: float32 (N, n_in, H, W) -> logits (N, n_out).

    Raises ValueError for a name that is not in ARCHITECTURES.
    """
    if architecture == "convnet":
        return convnet(n_out, n_in)
    if architecture not in TORCHVISION_CUTS:
        raise ValueError(f"unknown architecture {architecture!r}; expected one of {', '.join(ARCHITECTURES)}")
    encoder = body(architecture, n_in)
    return nn.Sequential(encoder, _head(_count_features(encoder, n_in), n_out))


def empty_classifier(architecture: str, n_out: int, n_in: int = 3) -> nn.Sequential:
    """Return `classifier` on the meta device, for ``load_state_dict(..., assign=True)``."""
    with torch.device("meta"):
        return classifier(architecture, n_out, n_in)


def convnet(n_out: int, n_in: int = 1) -> nn.Sequential:
    """Return a network for small images such as 28x28 digits: five strided convolutions and a linear layer."""
    channels = (n_in, 16, 32, 64, 128, 128)
    blocks = [_conv_block(*pair) for pair in itertools.pairwise(channels)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], n_out))


def _conv_block(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(n_out),
        nn.ReLU(inplace=True),
    )


def body(architecture: str, n_in: int) -> nn.Sequential:
    """Return a torchvision network without pooling and head: (N, n_in, H, W) -> (N, n_features, h, w)."""
    network = getattr(torchvision.models, architecture)(weights=None)
    if n_in != 3:
        _replace_first_convolution(network, n_in)
    return nn.Sequential(*list(network.children())[: -TORCHVISION_CUTS[architecture]])


def _replace_first_convolution(network: nn.Module, n_in: int) -> None:
    name, old = next((name, m) for name, m in network.named_modules() if isinstance(m, nn.Conv2d))
    settings: dict[str, Any] = {name: getattr(old, name) for name in ("kernel_size", "stride", "padding")}
    new = nn.Conv2d(n_in, old.out_channels, **settings, bias=old.bias is not None)
    network.set_submodule(name, new)


def _count_features(body: nn.Module, n_in: int) -> int:
    """Return the number of output channels of `body`, from a forward pass."""
    device = next(body.parameters()).device
    training = body.training
    with torch.no_grad():
        n_features = body.eval()(torch.zeros(1, n_in, 64, 64, device=device)).shape[1]
    body.train(training)
    return n_features


def _head(n_features: int, n_out: int) -> nn.Sequential:
    """Return the layers of ``fastai.vision.learner.create_head`` with its defaults."""
    return nn.Sequential(
        AdaptiveConcatPool2d(),
        nn.Flatten(),
        nn.BatchNorm1d(2 * n_features),
        nn.Dropout(0.25),
        nn.Linear(2 * n_features, 512, bias=False),
        nn.ReLU(inplace=True),
        nn.BatchNorm1d(512),
        nn.Dropout(0.5),
        nn.Linear(512, n_out, bias=False),
    )
