"""Compares the layers of two networks that have the same weights, of which one is rebuilt by this package."""

import collections

from torch import nn

TRUSTED = ("torch.", "torchvision.", "fastai.", "fastmaker.")  # packages whose layers do the same to every number
# Layers that change no number when a network answers, and those that one of the two has as a function or by another
# name: what they do shows in the logits of any image.
IGNORED = {
    *("Dropout", "Dropout2d", "Identity", "Sequential", "Flatten", "AlphaDropout"),
    *("ResizeToOrig", "MergeLayer", "ToTensorBase", "ResizeToImage", "ConcatImage"),
}


def same(model: nn.Module, rebuilt: nn.Module, unet: bool) -> bool:
    """Return whether `model`, a Learner's, has the layers without weights that `rebuilt` has, and no code of its own.

    Of a U-Net the kinds are compared and not their numbers: fastai's keeps activations that it does not use.
    """
    if not all(_is_trusted(module) for module in model.modules()):
        return False
    given, expected = _without_weights(model), _without_weights(rebuilt)
    return given.keys() == expected.keys() if unet else given == expected


def _is_trusted(module: nn.Module) -> bool:
    """Return whether a layer is of a package that is known, and was left as it is."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return (
        type(module).__module__.startswith(TRUSTED)
        and "forward" not in vars(module)
        and all(str(getattr(hook, "__module__", "")).startswith(TRUSTED) for hook in hooks)
    )


def _without_weights(network: nn.Module) -> collections.Counter[tuple[str, str]]:
    """Return how often a network has each layer that has neither parts nor weights, by its name and settings."""
    leaves = [m for m in network.modules() if not list(m.children()) and not list(m.parameters())]
    return collections.Counter(
        (type(leaf).__name__, leaf.extra_repr().replace("inplace=True", ""))
        for leaf in leaves
        if type(leaf).__name__ not in IGNORED
    )
