"""The U-Net of fastai's ``unet_learner`` in pure torch: same state_dict keys and arithmetic, no hooks.

It has an encoder (a ResNet without pooling and head), a middle, and a decoder whose blocks double the size and
concatenate the encoder's features of that size (``fastai.vision.models.unet.DynamicUnet``). The image size that it is
built for determines its layers; they then work at every size.
"""

import itertools
from typing import Any

import torch
from torch import nn
from torch.nn.functional import interpolate
from torch.nn.utils import spectral_norm

from fastmaker import networks

ARCHITECTURES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
# The options of unet_learner that a bundle can reproduce, with fastai's defaults.
OPTIONS = {"blur": False, "blur_final": True, "self_attention": False, "last_cross": True}


class Unet(nn.Module):
    """float32 (N, n_in, H, W) -> logits (N, n_out, H, W)."""

    def __init__(self, layers: list[nn.Module], skips: list[int]):
        """`layers` starts with the encoder; `skips` are the indexes of its children with a skip connection."""
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.skips = tuple(skips)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        encoder, *layers = self.layers
        x, features = image, []
        for number, layer in enumerate(encoder.children()):
            x = layer(x)
            if number in self.skips:
                features.append(x)
        for layer in layers:
            if isinstance(layer, UnetBlock):
                x = layer(x, features.pop())
            elif isinstance(layer, (ResizeToImage, ConcatImage)):
                x = layer(x, image)
            else:
                x = layer(x)
        return x


class UnetBlock(nn.Module):
    """Features (N, n_in, h, w) and those of a skip connection (N, n_skip, H, W) -> (N, n_out, H, W)."""

    def __init__(self, n_in: int, n_skip: int, is_last: bool, blur: bool, self_attention: bool):
        super().__init__()
        n = n_in // 2 + n_skip
        self.n_out = n // 2 if is_last else n
        self.shuf = _upsample(n_in, n_in // 2, blur)
        self.bn = nn.BatchNorm2d(n_skip)
        self.conv1 = _convolution(n, self.n_out)
        self.conv2 = _convolution(self.n_out, self.n_out)
        if self_attention:
            self.conv2.append(SelfAttention(self.n_out))

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        x = _resize_like(self.shuf(x), skip)
        return self.conv2(self.conv1(torch.cat([x, self.bn(skip)], 1).relu()))


class SelfAttention(nn.Module):
    """Self-attention over all pixels (https://arxiv.org/abs/1805.08318); memory grows with (H * W)²."""

    def __init__(self, n: int):
        super().__init__()
        self.query, self.key, self.value = (
            nn.Sequential(spectral_norm(nn.Conv1d(n, n_out, 1, bias=False))) for n_out in (n // 8, n // 8, n)
        )
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pixels = x.flatten(2)
        query, key, value = self.query(pixels), self.key(pixels), self.value(pixels)
        weights = torch.bmm(query.transpose(1, 2), key).softmax(dim=1)
        return (self.gamma * torch.bmm(value, weights) + pixels).view(x.shape)


class ResizeToImage(nn.Module):
    """Resize the features to the height and width of the image."""

    def forward(self, x: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        return _resize_like(x, image)


class ConcatImage(nn.Module):
    """Concatenate the features and the image's channels."""

    def forward(self, x: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, image], 1)


class ResBlock(nn.Module):
    """Two convolutions with a residual connection."""

    def __init__(self, n: int):
        super().__init__()
        self.convpath = nn.Sequential(_convolution(n, n), nn.Sequential(nn.Conv2d(n, n, 3, padding=1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.convpath(x) + x).relu()


def unet(
    architecture: str,
    n_out: int,
    image_size: tuple[int, int],
    n_in: int = 3,
    blur: bool = False,
    blur_final: bool = True,
    self_attention: bool = False,
    last_cross: bool = True,
) -> Unet:
    """Return an untrained U-Net for images of about `image_size` (height, width) in pixels.

    The options are those of ``unet_learner``. Raises ValueError for a name that is not in ARCHITECTURES.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"no U-Net with the encoder {architecture!r}; expected one of {', '.join(ARCHITECTURES)}")
    encoder = networks.body(architecture, n_in)
    shapes = _shapes(encoder, n_in, image_size)
    skips = [i for i, (here, after) in enumerate(itertools.pairwise(shapes)) if here[-1] != after[-1]]
    n = shapes[-1][1]
    middle = nn.Sequential(_convolution(n, 2 * n), _convolution(2 * n, n))
    layers: list[nn.Module] = [encoder, nn.BatchNorm2d(n), nn.ReLU(), middle]
    for left, skip in zip(reversed(range(len(skips))), reversed(skips), strict=True):
        blurred = blur and (left > 0 or blur_final)
        block = UnetBlock(n, shapes[skip][1], left == 0, blurred, self_attention and left == 2)
        layers.append(block)
        n = block.n_out
    if tuple(image_size) != tuple(shapes[0][-2:]):
        layers.append(_upsample(n, n))
    layers.append(ResizeToImage())
    if last_cross:
        n += n_in
        layers += [ConcatImage(), ResBlock(n)]
    return Unet([*layers, nn.Sequential(nn.Conv2d(n, n_out, 1))], skips)


def empty_unet(*args: Any, **options: Any) -> Unet:
    """Return `unet` on the meta device, for ``load_state_dict(..., assign=True)``."""
    with torch.device("meta"):
        return unet(*args, **options)


def _shapes(encoder: nn.Sequential, n_in: int, image_size: tuple[int, int]) -> list[torch.Size]:
    """Return the output shape of each child of the encoder, from a forward pass."""
    x = torch.zeros(1, n_in, *image_size, device=next(encoder.parameters()).device)
    training, shapes = encoder.training, []
    encoder.eval()
    with torch.no_grad():
        for layer in encoder:
            x = layer(x)
            shapes.append(x.shape)
    encoder.train(training)
    return shapes


def _convolution(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(n_in, n_out, 3, padding=1), nn.ReLU())


def _upsample(n_in: int, n_out: int, blur: bool = False) -> nn.Sequential:
    """Return layers (N, n_in, H, W) -> (N, n_out, 2H, 2W); `blur` averages each pixel with those above and left."""
    layers = [nn.Sequential(nn.Conv2d(n_in, 4 * n_out, 1), nn.ReLU()), nn.PixelShuffle(2)]
    if blur:
        layers += [nn.ReplicationPad2d((1, 0, 1, 0)), nn.AvgPool2d(2, stride=1)]
    return nn.Sequential(*layers)


def _resize_like(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    size = like.shape[-2:]
    return x if x.shape[-2:] == size else interpolate(x, size, mode="nearest")
