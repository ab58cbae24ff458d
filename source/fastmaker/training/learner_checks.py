"""Refuses what is no Learner, or has no weights to predict with, before anything is read from it."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from fastai.vision.all import Callback, Datasets, Learner, TfmdDL
from torch import nn
from torch.nn.parameter import is_lazy

from fastmaker import bundle

# What Learner.predict calls, and the events during which a callback could change an answer.
PREDICTS = (
    *("predict", "get_preds", "validation_context", "_do_epoch_validate", "all_batches", "one_batch", "_split"),
    *("_do_one_batch", "_with_events", "__call__"),
)
EVENTS = ("before_validate", "before_batch", "after_pred", "after_batch")
TRUSTED = ("fastai.", "fastmaker.")  # packages of callbacks whose effect shows on any image


def check(learn: Any) -> None:
    """Raise BundleError unless `learn` is a Learner with fastai's data loaders and a network of finite weights."""
    if not isinstance(learn, Learner):
        hint = "; a network alone does not say what becomes of an image" if isinstance(learn, nn.Module) else ""
        raise bundle.BundleError(f"expected a fastai Learner, found {type(learn).__name__}{hint}")
    try:
        loader = learn.dls.valid
    except Exception:  # there are no DataLoaders, or those of training alone
        raise bundle.BundleError("the Learner has no validation DataLoader; a DataBlock makes one") from None
    if not isinstance(loader, TfmdDL):
        raise bundle.BundleError(
            f"the Learner's validation data is in a {type(loader).__module__}.{type(loader).__name__}; expected a"
            " DataLoader of fastai, as a DataBlock makes"
        )
    if not isinstance(loader.dataset, Datasets):
        raise bundle.BundleError(
            f"the Learner's validation data is a {type(loader.dataset).__name__}, which does not say how it opens an"
            " image file; make the DataLoaders by a DataBlock or ImageDataLoaders"
        )
    if next(learn.model.parameters(), None) is None:
        raise bundle.BundleError("the Learner's network cannot predict: it has no weights, which learn.predict needs")
    _check_code(learn)
    for name, tensor in _weights(learn.model):
        if problem := _problem(tensor):
            raise bundle.BundleError(f"the Learner's network cannot predict: its {name} {problem}")


def _check_code(learn: Learner) -> None:
    """Raise BundleError if code of the user's own runs whenever the Learner predicts.

    It may do to some images what it does not to those that are compared.
    """
    for name in PREDICTS:
        if name in vars(learn) or getattr(type(learn), name, None) is not getattr(Learner, name, None):
            raise bundle.BundleError(f"the Learner's {name} is not fastai's; a bundle answers as Learner.predict does")
    for callback in learn.cbs:
        kind = type(callback)
        events = [event for event in EVENTS if _is_own(callback, event)]
        if events and (callback.run_valid or "before_validate" in events):
            raise bundle.BundleError(
                f"the Learner's callback {kind.__name__} also runs when the Learner predicts ({', '.join(events)});"
                f" learn.remove_cb({kind.__name__}), or --ignore, takes it out if no answer depends on it"
            )


def _is_own(callback: Callback, event: str) -> bool:
    """Return whether code of neither fastai nor this package runs at an event."""
    if event in vars(callback):
        return True
    owner = next((kind for kind in type(callback).__mro__ if event in vars(kind)), None)
    return owner is not None and not owner.__module__.startswith(TRUSTED)


def _weights(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    return itertools.chain(model.named_parameters(), model.named_buffers())


def _problem(tensor: torch.Tensor) -> str | None:
    """Return what is wrong with a parameter or a buffer, None if nothing is."""
    if is_lazy(tensor):
        return "is not initialized; ask the network for an answer once"
    if tensor.is_meta:
        return "has no values: it is on the meta device"
    if tensor.dtype in (torch.float16, torch.bfloat16):
        kind = str(tensor.dtype).removeprefix("torch.")
        return f"is {kind}, and a Learner's images are float32; learn.model.float() makes it float32"
    if not tensor.is_floating_point() or tensor.layout is not torch.strided:
        return None
    if tensor.isnan().any():
        return "holds NaN"
    if isinstance(tensor, nn.Parameter) and tensor.isinf().any():  # a buffer may be a mask
        return "holds infinite numbers"
    return None
