"""The networks of torchvision and timm that ``--arch`` names: whether there is one, its statistics, its body.

    body = architectures.body("convnext_tiny", pretrained=True, n_in=3, size=(224, 224))

A body gets a head of fastai's, as in ``vision_learner``. Only `body` and what it calls import fastai.
"""

import contextlib
import difflib
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torchvision.models
from torch import nn

from fastmaker import networks, unet
from fastmaker.training import data, weights

TIMM = "timm/"  # before the name of a network that torchvision has, too
AFFINE_INPUT = ("googlenet", "inception_v3")  # of torchvision: their weights are for images that they normalise again


class ArchitectureError(ValueError):
    """A name of no network, or of one that cannot be trained so."""


@dataclass(frozen=True)
class Body:
    """A network without its head: float32 (N, C, H, W) -> features (N, n, h, w) if `pool`, else (N, n)."""

    module: nn.Module
    whole: nn.Module  # the network that it is a part of
    n_features: int
    pool: bool
    split: Callable[[nn.Module], Any]  # what fastai trains with learning rates of its own
    arch: Callable[..., nn.Module] | str


def check(name: str, task: str, size: tuple[int, int], pretrained: bool = False) -> None:
    """Raise ArchitectureError unless there is a network of that name for images of `size`, (height, width).

    `pretrained`: with the weights that torchvision or timm downloads.
    """
    if task == "segmentation" and name == "convnet":
        raise ArchitectureError(f"--arch {name!r} has no U-Net; expected one of {', '.join(unet.ARCHITECTURES)}, ...")
    if name in networks.ARCHITECTURES:
        return
    if _of_torchvision(name) and name.startswith("vit_"):
        _check_positions(name, size, pretrained)
    if task == "segmentation":
        body(name, False, 3, size, sequential=True)
        return
    whole = _meta(name, size)
    if whole is None:
        return
    try:
        with torch.no_grad():
            whole.eval()(torch.zeros(1, 3, *size, device="meta"))
    except NotImplementedError:  # it computes numbers that the device meta has not
        return
    except Exception as error:
        raise _unfit(name, size, error) from None


def statistics(name: str, image_mode: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std of each channel that the weights of a network are for, of pixels in 0..1."""
    if image_mode == "RGB" and name not in networks.ARCHITECTURES:
        if _of_torchvision(name):
            prepare = torchvision.models.get_model_weights(name).DEFAULT.transforms()  # type: ignore[attr-defined]
            return tuple(prepare.mean), tuple(prepare.std)
        config = _timm(name).get_pretrained_cfg(name.removeprefix(TIMM))
        if config is not None and len(config.mean) == 3:
            return tuple(config.mean), tuple(config.std)
    return data.STATISTICS[image_mode]


def body(name: str, pretrained: bool, n_in: int, size: tuple[int, int], sequential: bool = False) -> Body:
    """Return the body of a network, of `n_in` channels, for images of `size`; `sequential`: the encoder of a U-Net.

    Raises ArchitectureError, and weights.WeightsError if the pretrained weights cannot be had.
    """
    from fastai.vision.learner import create_body, default_split, model_meta, num_features_model

    arch: Any = getattr(torchvision.models, name) if _of_torchvision(name) else name
    if meta := model_meta.get(arch):
        with weights.downloading(name, _source(name)):
            whole = arch(weights=meta["weights"] if pretrained else None)
        module = create_body(whole, n_in, pretrained, meta["cut"])
        features = num_features_model(nn.Sequential(*module.children()))
        return Body(module, whole, features, True, meta["split"], arch)
    whole = _whole(name, pretrained, n_in, size)
    example = torch.zeros(2, n_in, *size)
    try:
        module, pool = _cut(whole, example, name if isinstance(arch, str) else None)
        features = _try(module, example)
    except ArchitectureError:
        raise
    except Exception as error:
        raise _unfit(name, size, error) from None
    if sequential:
        module = _encoder(name, module, example)
    if features.ndim != (4 if pool else 2):
        raise ArchitectureError(f"--arch {name!r}: its features have the shape {list(features.shape)}; expected (N, n)")
    return Body(module, whole, features.shape[1], pool, default_split, arch)


def _check_positions(name: str, size: tuple[int, int], pretrained: bool) -> None:
    """Raise ArchitectureError unless a vision transformer of torchvision has positions for images of `size`."""
    trained = torchvision.models.get_model_weights(name).DEFAULT.meta["min_size"]  # type: ignore[attr-defined]
    if size[0] != size[1]:
        raise ArchitectureError(f"--arch {name} takes square images; --image-size is {size[0]} x {size[1]}")
    if pretrained and tuple(trained) != tuple(size):
        raise ArchitectureError(
            f"--arch {name}: its pretrained weights are for images of {trained[0]} x {trained[1]}: give --image-size"
            f" {trained[0]} or --pretrained false"
        )


def _unfit(name: str, size: tuple[int, int], error: Exception) -> ArchitectureError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return ArchitectureError(f"--arch {name} takes no images of {size[0]} x {size[1]} (--image-size): {reason}")


def _of_torchvision(name: str) -> bool:
    return name in torchvision.models.list_models(module=torchvision.models)


def _timm(name: str) -> Any:
    """Return the package timm. Raises ArchitectureError for a name that it does not know, or if it is missing."""
    if importlib.util.find_spec("timm") is None:
        raise ArchitectureError(
            f"--arch {name!r}: torchvision has no such network, and timm, which has more, is not installed:"
            f" pip install timm{_nearest(name, [])}"
        )
    import timm

    plain = name.removeprefix(TIMM)
    known = timm.list_models(pretrained=True) if "." in plain else timm.list_models()
    if plain not in known:
        raise ArchitectureError(
            f"--arch {name!r}: neither torchvision nor timm has such a network{_nearest(plain, known)}"
        )
    return timm


def _nearest(name: str, more: Iterable[str]) -> str:
    known = [*networks.ARCHITECTURES, *torchvision.models.list_models(module=torchvision.models), *more]
    near = dict.fromkeys(difflib.get_close_matches(name, known))
    return f"; near it: {', '.join(near)}" if near else ""


def _meta(name: str, size: tuple[int, int]) -> nn.Module | None:
    """Return a network without weights, None if it cannot be made so. Raises ArchitectureError."""
    try:
        with torch.device("meta"):
            return _whole(name, False, 3, size)
    except (NotImplementedError, RuntimeError):
        return None


def _whole(name: str, pretrained: bool, n_in: int, size: tuple[int, int]) -> nn.Module:
    """Return a network with its head, of timm's without. Raises ArchitectureError and weights.WeightsError."""
    if not _of_torchvision(name):
        return _whole_of_timm(name, pretrained, n_in, size)
    options: dict[str, Any] = {}
    if name in AFFINE_INPUT:
        options = {"transform_input": n_in == 3}
        options |= {} if pretrained else {"aux_logits": False, "init_weights": True}
    if name.startswith("vit_"):
        options = {"image_size": size[0]}
    with weights.downloading(name, _source(name)):
        try:
            network = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None, **options)
        except (AssertionError, ValueError) as error:
            raise _unfit(name, size, error) from None
    if name == "inception_v3":  # in training it would return a second result
        network.aux_logits, network.AuxLogits = False, None
    if n_in != 3:
        _take_channels(network, n_in, pretrained)
    return network


def _whole_of_timm(name: str, pretrained: bool, n_in: int, size: tuple[int, int]) -> nn.Module:
    timm, plain = _timm(name), name.removeprefix(TIMM)
    if pretrained and not timm.is_model_pretrained(plain):
        raise ArchitectureError(f"--arch {name}: timm has no pretrained weights of it; use --pretrained false")
    config = timm.get_pretrained_cfg(plain)
    options: dict[str, Any] = {"num_classes": 0, "in_chans": n_in}
    fixed = config is not None and config.fixed_input_size and tuple(config.input_size[1:]) != tuple(size)
    try:
        try:
            network = timm.create_model(plain, **options, **({"img_size": size} if fixed else {}))
        except TypeError:
            raise ArchitectureError(
                f"--arch {name} takes images of {config.input_size[1]} x {config.input_size[2]} alone (--image-size)"
            ) from None
        except (AssertionError, ValueError) as error:
            raise _unfit(name, size, error) from None
        if pretrained:
            _check_hub(name, config)
            network = timm.create_model(plain, True, **options, **({"img_size": size} if fixed else {}))
    except (ArchitectureError, weights.WeightsError):
        raise
    except Exception as error:  # the hub's client has errors of several kinds
        if not pretrained:
            raise
        raise weights.not_downloaded(name, _source(name), error) from None
    return network


def _check_hub(name: str, config: Any) -> None:
    """Raise WeightsError if weights of timm are not on this machine and the hub does not answer.

    Its client would ask again for minutes.
    """
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    if not config.hf_hub_id or constants.is_offline_mode():
        return
    with contextlib.suppress(CacheNotFound):
        if any(repo.repo_id == config.hf_hub_id for repo in scan_cache_dir().repos):
            return
    weights.check_server(name, _source(name))


def _source(name: str) -> str:
    """Return the URL that the weights of a network are downloaded from."""
    if _of_torchvision(name):
        return torchvision.models.get_model_weights(name).DEFAULT.url  # type: ignore[attr-defined]
    from huggingface_hub import constants

    config = _timm(name).get_pretrained_cfg(name.removeprefix(TIMM))
    return f"{constants.ENDPOINT}/{config.hf_hub_id}" if config.hf_hub_id else config.url


def download(name: str, size: tuple[int, int]) -> None:
    """Bring the pretrained weights of a network to this machine. Raises WeightsError and ArchitectureError."""
    if not _of_torchvision(name):
        _whole_of_timm(name, True, 3, size)
        return
    with weights.downloading(name, _source(name)):
        torchvision.models.get_model_weights(name).DEFAULT.get_state_dict(check_hash=True)  # type: ignore[attr-defined]


def _take_channels(network: nn.Module, n_in: int, pretrained: bool) -> None:
    """Let the first convolution take `n_in` channels; with pretrained weights the sum of those of the colours."""
    name, old = next((name, module) for name, module in network.named_modules() if isinstance(module, nn.Conv2d))
    settings = {key: getattr(old, key) for key in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}
    new = nn.Conv2d(n_in, old.out_channels, **settings, bias=old.bias is not None)
    if pretrained:
        new.weight.data = old.weight.data.sum(1, keepdim=True).repeat(1, n_in, 1, 1) / n_in
        if old.bias is not None and new.bias is not None:
            new.bias.data = old.bias.data
    network.set_submodule(name, new)


def _cut(whole: nn.Module, example: torch.Tensor, of_timm: str | None) -> tuple[nn.Module, bool]:
    """Return a network without its head, and whether its features are still to be pooled."""
    if of_timm:
        from fastai.vision.learner import TimmBody

        timm_body: Any = TimmBody(whole)
        shape = _try(timm_body, example).shape
        # timm's own pooling knows where tokens and channels are.
        if timm_body.needs_pool and (len(shape) != 4 or shape[1] != whole.num_features or shape[1] == shape[-1]):
            timm_body.needs_pool = False
        return timm_body, timm_body.needs_pool
    if (module := _before_pooling(whole, example)) is not None:
        return module, True
    last = [name for name, module in whole.named_modules() if isinstance(module, nn.Linear)][-1]
    whole.set_submodule(last, nn.Identity())
    return whole, False


def _before_pooling(whole: nn.Module, example: torch.Tensor) -> nn.Sequential | None:
    """Return the children before the last that pools, as fastai cuts a network; None if the network is no sequence."""
    from fastai.vision.learner import has_pool_type

    children = list(whole.children())
    pooling = [number for number, child in enumerate(children) if has_pool_type(child)]
    if not pooling or any(isinstance(module, nn.Conv2d) for c in children[pooling[-1] :] for module in c.modules()):
        return None
    module, given = nn.Sequential(*children[: pooling[-1]]), []
    hook = children[pooling[-1]].register_forward_pre_hook(lambda _, args: given.append(args[0]))
    try:
        _try(whole, example)
        features = _try(module, example)
    except Exception:  # its children are no sequence
        return None
    finally:
        hook.remove()
    return module if given and torch.equal(given[0], features) and features.ndim == 4 else None


def _encoder(name: str, module: nn.Module, example: torch.Tensor) -> nn.Module:
    """Return the encoder of a U-Net: a sequence of layers, some of which halve the image. Raises ArchitectureError."""
    if isinstance(whole := getattr(module, "model", None), nn.Module):  # fastai's TimmBody
        module = _before_pooling(whole, example) or module
    while isinstance(module, nn.Sequential) and len(module) == 1:
        module = module[0]
    sizes = [example.shape[-1]]
    if isinstance(module, nn.Sequential):
        features = example
        for part in module:
            features = _try(part, features)
            sizes += [features.shape[-1]] if features.ndim == 4 else []
    if len(set(sizes)) < 3:
        raise ArchitectureError(
            f"--arch {name!r} has no U-Net: it is no sequence of layers that halve the image; expected one such as"
            f" {', '.join(unet.ARCHITECTURES)}"
        )
    return module


def _try(module: nn.Module, example: torch.Tensor) -> torch.Tensor:
    """Return what `module`, in eval mode, makes of `example`."""
    training = module.training
    with torch.no_grad():
        result = module.eval()(example)
    module.train(training)
    return result
