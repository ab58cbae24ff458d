"""DataLoaders -> a fastai Learner, and its fit."""

import contextlib
from collections.abc import Iterator

import torch
import torchvision.models
from fastai.vision.all import CrossEntropyLossFlat, DataLoaders, Learner, accuracy, error_rate, vision_learner

from fastmaker import networks


class WeightsError(ValueError):
    """Pretrained weights that cannot be downloaded."""


def create(dls: DataLoaders, architecture: str, image_mode: str, pretrained: bool) -> Learner:
    """Return a Learner for `dls`: ``vision_learner`` for torchvision's architectures, a plain Learner for convnet.

    Raises WeightsError if the pretrained weights cannot be downloaded.
    """
    n_in = 3 if image_mode == "RGB" else 1
    metrics = [accuracy, error_rate]
    if architecture == "convnet":
        learn = Learner(dls, networks.convnet(dls.c, n_in), loss_func=CrossEntropyLossFlat(), metrics=metrics)
        learn.arch = networks.convnet
        return learn
    arch = getattr(torchvision.models, architecture)
    with downloading_weights(architecture):
        return vision_learner(dls, arch, pretrained=pretrained, n_in=n_in, normalize=False, metrics=metrics)


@contextlib.contextmanager
def downloading_weights(architecture: str) -> Iterator[None]:
    """Turn the OSError of a failed download within the block into a WeightsError."""
    try:
        yield
    except OSError as error:  # urllib's errors are OSErrors
        raise WeightsError(
            f"the pretrained weights of {architecture} cannot be downloaded ({error}); use --pretrained false, or put"
            f" the file into {torch.hub.get_dir()}/checkpoints"
        ) from None


def total_epochs(epochs: int, fine_tune: bool) -> int:
    """Return how many epochs `fit` trains in all."""
    return epochs + 1 if fine_tune else epochs


def fit(learn: Learner, epochs: int, lr: float, fine_tune: bool, done: int = 0, batch: int = 0) -> None:
    """Train for `epochs` with the one-cycle policy; `fine_tune` first trains only the new head for one epoch.

    The schedule resumes after the first `done` of all these epochs and `batch` batches of the next, which were trained
    before; that needs a `callbacks.Position` in `learn`.
    """
    if not fine_tune:
        learn.fit_one_cycle(epochs, lr_max=lr, start_epoch=done)
        return
    # Learner.fine_tune cannot resume, so its steps are repeated here. Freezing and unfreezing a Learner empties the
    # optimiser's state, which must not happen where that state was restored.
    if done == 0:
        (learn.opt if batch else learn).freeze()
        learn.fit_one_cycle(1, slice(lr), pct_start=0.99)
    if done == 0 or (done == 1 and not batch):
        learn.unfreeze()
    lr /= 2
    learn.fit_one_cycle(epochs, slice(lr / 100, lr), pct_start=0.3, div=5.0, start_epoch=max(done - 1, 0))


def is_finite(model: torch.nn.Module) -> bool:
    """Return whether all weights are finite numbers: after a training that diverged they are not."""
    return all(torch.isfinite(parameter).all() for parameter in model.parameters())
