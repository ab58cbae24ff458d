"""Networks of every kind that people give to fastai: by name, functions that build them.

All take images of SIZE.
"""

import functools

import torch
from fastai.layers import MaxPool, PixelShuffle_ICNR, PoolFlatten, PoolType, SelfAttention, SimpleSelfAttention
from fastai.vision.all import (
    Mish,
    MishJit,
    NormType,
    PooledSelfAttention2d,
    SimpleCNN,
    SwishJit,
    create_head,
    create_unet_model,
    create_vision_model,
)
from fastai.vision.models import xresnet
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm
from torchvision import models
from torchvision.ops import FrozenBatchNorm2d, StochasticDepth

from fastmaker import bundle
from fastmaker.training import capture

SIZE = 64
CLASSES = 3


def randomized(network: nn.Module) -> nn.Module:
    """The network in eval mode; no batch norm, and no gate that starts with zeros, does nothing."""
    torch.manual_seed(3)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.6, 1.5)
    for name, parameter in network.named_parameters():
        if name.endswith("gamma") or not parameter.any():
            parameter.data.uniform_(-0.3, 0.3)
    return network.eval()


def on(name: str, **options) -> nn.Module:
    """fastai's classifier on a network of torchvision."""
    return create_vision_model(getattr(models, name), CLASSES, pretrained=False, **options)


def channels_of(network: nn.Module) -> int:
    """How many channels the network's input has."""
    return next(module.in_channels for module in network.modules() if isinstance(module, nn.Conv2d))


def unet(arch, size: int = SIZE, n_out: int = CLASSES, **options) -> nn.Module:
    """fastai's U-Net on a network of torchvision, or on what the function `arch` builds."""
    arch = getattr(models, arch) if isinstance(arch, str) else arch
    return create_unet_model(arch, n_out, (size, size), pretrained=False, **options)


class Residual(nn.Module):
    """A layer of one's own in the middle of a Sequential."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.layers(x)


class GeneralRelu(nn.Module):
    """That of fastai's course: leaks, is shifted and cut."""

    def __init__(self, leak=None, sub=None, maxv=None):
        super().__init__()
        self.leak, self.sub, self.maxv = leak, sub, maxv

    def forward(self, x):
        x = nn.functional.leaky_relu(x, self.leak) if self.leak is not None else nn.functional.relu(x)
        if self.sub is not None:
            x -= self.sub
        return x.clamp_max(self.maxv) if self.maxv is not None else x


class GeM(nn.Module):
    """Generalized mean pooling."""

    def __init__(self, p=3.0, eps=1e-6):
        super().__init__()
        self.p, self.eps = nn.Parameter(torch.tensor(p)), eps

    def forward(self, x):
        return nn.functional.avg_pool2d(x.clamp(min=self.eps).pow(self.p), x.shape[-2:]).pow(1.0 / self.p)


class Own(nn.Sequential):
    """A subclass of Sequential that adds to its result."""

    def forward(self, x):
        return super().forward(x) * 2 + 1


class Symmetric(nn.Module):
    """A parametrization of one's own."""

    def forward(self, x):
        return x.triu() + x.triu(1).transpose(-1, -2)


def small(*middle: nn.Module) -> nn.Sequential:
    """A convolution, the layers of `middle`, a mean, and a linear layer."""
    end = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), *middle, end)


def conv() -> nn.Conv2d:
    return nn.Conv2d(8, 8, 3, padding=1)


def after_training(network: nn.Module) -> nn.Module:
    """The network as a batch of training leaves it."""
    network.train()(torch.rand(2, 3, SIZE, SIZE)).sum().backward()
    return network


def pruned() -> nn.Module:
    network = small(conv())
    prune.l1_unstructured(network[1], "weight", 0.5)
    return network


def symmetric() -> nn.Linear:
    layer = nn.Linear(8, 8)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer


class Attention(nn.Module):
    """Attention over the patches of an image, by torch's own layers."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.patches, self.layer, self.end = nn.Conv2d(3, 8, 16, 16), layer, nn.Linear(8, CLASSES)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = self.layer(x, x, x)[0] if isinstance(self.layer, nn.MultiheadAttention) else self.layer(x)
        return self.end((x[0] if isinstance(x, tuple) else x).mean(1))


class Transformer(nn.Module):
    """Warps the image by what it shows: a spatial transformer."""

    def __init__(self):
        super().__init__()
        self.where, self.network = nn.Linear(3, 6), small()

    def forward(self, x):
        grid = nn.functional.affine_grid(self.where(x.mean((2, 3))).view(-1, 2, 3), x.shape, align_corners=False)
        return self.network(nn.functional.grid_sample(x, grid, align_corners=False))


class Mirrored(nn.Module):
    """The mean of several networks, over the image and its mirror image."""

    def __init__(self, *networks: nn.Module):
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x):
        return torch.stack([network(image) for network in self.networks for image in (x, x.flip(-1))]).mean(0)


class Positions(nn.Module):
    """Adds an embedding of each row."""

    def __init__(self):
        super().__init__()
        self.rows = nn.Embedding(SIZE, 3)

    def forward(self, x):
        return x + self.rows(torch.arange(x.shape[2], device=x.device)).T[None, :, :, None]


def save(build, folder, segments: bool = False) -> None:
    """Save what `build` builds in `folder` as a bundle with a graph."""
    torch.manual_seed(0)
    info = bundle.ModelInfo(
        task="segmentation" if segments else "classification",
        architecture=bundle.GRAPH,
        labels=("a", "b", "c"),
        image_mode="RGB",
        image_size=(SIZE, SIZE),
        resize_method="squish",
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )
    bundle.save(folder, capture.capture(randomized(build()), torch.rand(2, 3, SIZE, SIZE)), info)


SMALL = {
    "weight norm": lambda: small(weight_norm(conv())),
    "weight norm of a whole tensor": lambda: small(weight_norm(conv(), dim=None)),
    "weight norm after training": lambda: after_training(small(weight_norm(conv()))),
    "spectral norm": lambda: small(spectral_norm(conv())),
    "spectral norm after training": lambda: after_training(small(spectral_norm(conv()))),
    "parametrized weight norm": lambda: after_training(small(parametrizations.weight_norm(conv()))),
    "parametrized spectral norm": lambda: after_training(small(parametrizations.spectral_norm(conv()))),
    "orthogonal": lambda: Own(small(), parametrizations.orthogonal(nn.Linear(CLASSES, CLASSES))),
    "a parametrization": lambda: nn.Sequential(small(), nn.Linear(CLASSES, 8), symmetric(), nn.Linear(8, CLASSES)),
    "pruned": pruned,
    "pruned after training": lambda: after_training(pruned()),
    "GeM": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), GeM(), nn.Flatten(), nn.Linear(8, CLASSES)),
    "GeneralRelu": lambda: small(GeneralRelu(leak=0.1, sub=0.4, maxv=6.0)),
    "Mish": lambda: small(Mish()),
    "MishJit": lambda: small(MishJit()),
    "SwishJit": lambda: small(SwishJit()),
    "ICNR": lambda: small(PixelShuffle_ICNR(8, 8)),
    "ICNR, spectral and blurred": lambda: small(PixelShuffle_ICNR(8, 8, blur=True, norm_type=NormType.Spectral)),
    "Sequential of one's own": lambda: Own(small()),
    "residual": lambda: small(Residual(conv(), nn.ReLU(inplace=True))),
    "SimpleCNN": lambda: nn.Sequential(SimpleCNN([3, 8, 16]), nn.Linear(16, CLASSES)),
    "self attention": lambda: small(SelfAttention(8)),
    "pooled self attention": lambda: small(nn.AdaptiveAvgPool2d(16), PooledSelfAttention2d(8)),
    "simple self attention": lambda: small(SimpleSelfAttention(8, ks=1)),
    "symmetric self attention": lambda: small(SimpleSelfAttention(8, ks=1, sym=True)),
    "PoolFlatten": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), PoolFlatten(PoolType.Cat), nn.Linear(16, CLASSES)),
    "attention": lambda: Attention(nn.MultiheadAttention(8, 2, batch_first=True)),
    "encoder": lambda: Attention(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)),
    "LSTM": lambda: Attention(nn.LSTM(8, 8, batch_first=True)),
    "spatial transformer": Transformer,
    "ensemble": lambda: Mirrored(small(), small(conv())),
    "positions": lambda: nn.Sequential(Positions(), small()),
    "upsampled": lambda: small(nn.Upsample(scale_factor=1.5, mode="bicubic")),
    "transposed": lambda: small(nn.ConvTranspose2d(8, 8, 3, 2)),
    "group norm": lambda: small(nn.GroupNorm(2, 8)),
    "instance norm": lambda: small(nn.InstanceNorm2d(8, affine=True, track_running_stats=True)),
    "frozen batch norm": lambda: small(FrozenBatchNorm2d(8)),
    "circular padding": lambda: small(nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")),
    "stochastic depth": lambda: small(Residual(StochasticDepth(0.5, "row"))),
    "activations": lambda: small(nn.PReLU(8), nn.Hardswish(), nn.CELU(), nn.GELU("tanh"), nn.Softplus()),
}
HEADS = {
    str(options): functools.partial(on, "resnet18", **options)
    for options in (
        {"lin_ftrs": []},
        {"lin_ftrs": [64, 32], "ps": [0.1, 0.2, 0.3]},
        {"concat_pool": False},
        {"first_bn": False, "bn_final": True},
        {"lin_first": True},
        {"y_range": (0, 5)},
        {"init": None, "n_in": 1},
        {"n_in": 4},
        {"cut": -3},
    )
}
HEADS["custom_head"] = lambda: on("resnet18", custom_head=nn.Sequential(GeM(), nn.Flatten(), nn.Linear(512, CLASSES)))
HEADS["create_head"] = lambda: on("resnet18", custom_head=create_head(512, CLASSES, lin_ftrs=[16], bn_final=True))
UNETS = {
    str(options): functools.partial(unet, "resnet18", **options)
    for options in (
        *({"norm_type": norm_type} for norm_type in NormType),
        {"blur": True},
        {"blur": True, "blur_final": False, "last_cross": False},
        {"self_attention": True, "norm_type": NormType.Weight, "blur": True, "act_cls": nn.SiLU},
        {"act_cls": Mish},
        {"act_cls": MishJit},
        {"act_cls": GeneralRelu},
        {"n_in": 1, "n_out": 2},
        {"n_in": 4, "n_out": 12},
        {"y_range": (-1, 1)},
        {"bn_1st": False},
    )
}
UNETS["vgg11_bn"] = functools.partial(unet, "vgg11_bn")
XRESNETS = {
    str(options): functools.partial(xresnet.xresnet18, n_out=CLASSES, **options)
    for options in (
        {},
        {"sa": True},
        {"sa": True, "sym": True, "act_cls": MishJit},
        {"pool": MaxPool, "act_cls": Mish},
        {"norm_type": NormType.Spectral},
        {"norm_type": NormType.Weight},
        {"norm_type": NormType.Instance},
        {"reduction": 4, "groups": 2},
        {"c_in": 1, "widen": 1.5, "p": 0.3},
    )
} | {
    name: functools.partial(getattr(xresnet, name), n_out=CLASSES)
    for name in ("xresnet18_deep", "xse_resnet18", "xresnext18", "xse_resnext18", "xresnet50")
}
