"""Tells what fastai does from what a user's own code does in a Learner's transforms and image classes.

A class of one's own that overrides nothing of fastai's does what fastai's does, and counts as it.
"""

import sys
import types
import typing
from collections.abc import Iterator
from typing import Any

import torch
from fastai.vision.all import TensorImageBase
from PIL import Image

TRUSTED = ("fastai.", "fastcore.", "fasttransform.", "fastmaker.", "PIL.", "builtins")
DISPATCHED = ("encodes", "decodes", "setups")  # merged by fastcore for each class: who wrote them shows in their parts
# What a class may define, whatever its base does: it is read from the object, or only shows it.
HARMLESS = {
    *("__module__", "__qualname__", "__doc__", "__signature__", "__annotations__", "__init__", "__repr__"),
    *("__firstlineno__", "__static_attributes__", "__annotate_func__", "__annotations_cache__"),  # of later Pythons
    *("__dict__", "__weakref__", "__slots__", "split_idx", "order", "show"),
}


def kind(value: Any) -> type | None:
    """Return the class of fastai that an object does the same as: its own, or a base of which nothing is overridden.

    None if there is code of one's own for images in it.
    """
    base = base_of(type(value))
    if base is None or _is_altered(value) or any(_is_of_images(m) for m in own_methods(value, DISPATCHED)):
        return None
    return base


def base_of(cls: type, harmless: set[str] = HARMLESS) -> type | None:
    """Return the first base of `cls` that is not of the user's, None if the user's classes override something of it."""
    base = next(base for base in cls.__mro__ if _is_known(base))
    if base is object:
        return None
    known = {name for other in cls.__mro__ if _is_known(other) for name in vars(other)}
    own = {name for other in cls.__mro__ if not _is_known(other) for name in vars(other)}
    # Names with an underscore are asked for by Python, NumPy and fastai wherever they are.
    overridden = {name for name in own if name in known or name.startswith("_")} - harmless - set(DISPATCHED)
    return None if overridden else base


def decodes_itself(transform: Any) -> bool:
    """Return whether code of one's own makes an answer of what a network's output was decoded to."""
    own = own_methods(transform, ("decodes",)) or "decode" in vars(transform)
    return bool(own) or base_of(type(transform)) is None


def own_methods(transform: Any, names: tuple[str, ...]) -> list[Any]:
    """Return the parts of a transform's `names`, some of DISPATCHED, that neither fastai nor this package wrote."""
    found = [method for name in names for method in getattr(getattr(transform, name, None), "methods", ())]
    return [method for method in found if not _is_trusted(getattr(method, "implementation", method))]


def _is_known(cls: type) -> bool:
    """Return whether a class is what a trusted module has by its name; one that is made by a call may name any."""
    found: Any = sys.modules.get(cls.__module__)
    for part in cls.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is cls and _is_trusted(cls)


def _is_trusted(value: Any) -> bool:
    return f"{getattr(value, '__module__', '')}".startswith(TRUSTED)


def _is_altered(value: Any) -> bool:
    """Return whether an object has a method that its class lacks. fastai before 2.7 gave it a method of its class."""
    for name, own in vars(value).items():
        of_class = getattr(type(value), name, None)
        is_method = name in (*DISPATCHED, "before_call") or callable(of_class)
        if is_method and (not of_class or own != types.MethodType(of_class, value)):
            return True
    return False


def _is_of_images(method: Any) -> bool:
    """Return whether a part of a transform may be called for an image: its last type is no other than those of one."""
    signature = getattr(getattr(method, "signature", None), "types", ())
    wanted = list(_flat(signature[-1])) if signature else [Any]
    kinds = (Image.Image, torch.Tensor, TensorImageBase)
    return any(
        not isinstance(one, type)
        or any(issubclass(k, one) for k in kinds)
        or issubclass(one, (Image.Image, TensorImageBase))
        for one in wanted
    )


def _flat(annotation: Any) -> Iterator[Any]:
    """Yield the types of a union."""
    parts = typing.get_args(annotation)
    if not parts:
        yield annotation
    for part in parts:
        yield from _flat(part)
