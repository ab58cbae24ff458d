"""DataLoaders -> a fitted fastai Learner -> a bundle.

`save_bundle` also takes a Learner that a notebook made with ``vision_learner``: it reads from the Learner all that an
answer depends on, and refuses what the bundle cannot reproduce exactly.
"""

import os
import sys
import time

import torch
import torchvision.models
from fastai.vision.all import (
    AffineCoordTfm,
    Callback,
    CrossEntropyLossFlat,
    IntToFloatTensor,
    LabelSmoothingCrossEntropyFlat,
    Learner,
    Normalize,
    Resize,
    ToTensor,
    accuracy,
    error_rate,
    vision_learner,
)

from fastmaker import bundle, networks

PROGRESS_SECONDS = 10.0


class WeightsError(ValueError):
    """Pretrained weights that cannot be had."""


class MetricLog(Callback):
    """Prints what ``metric_definitions`` read: a line of name=value after each epoch, and progress in between."""

    order = 60  # after the Recorder

    def before_fit(self):
        self.last_print = time.perf_counter()

    def before_epoch(self):
        self.epoch_started, self.images = time.perf_counter(), 0

    def after_batch(self):
        if not self.training:
            return
        self.images += len(self.yb[0])
        now = time.perf_counter()
        if now - self.last_print > PROGRESS_SECONDS:
            self.last_print = now
            _log(f"epoch {self.epoch + 1}/{self.n_epoch}: batch {self.iter + 1}/{self.n_iter}")

    def after_train(self):
        self.rate = self.images / (time.perf_counter() - self.epoch_started)

    def after_epoch(self):
        recorder = self.learn.recorder
        values = dict(zip(recorder.metric_names[1:-1], recorder.values[-1], strict=False))
        line = " ".join(f"{name}={value:.6f}" for name, value in values.items())
        _log(f"epoch={self.epoch + 1} {line} images_per_second={self.rate:.1f}")


def _log(line: str) -> None:
    sys.stdout.write(line + "\n")  # one write: the training toolkit shows each write as a line
    sys.stdout.flush()


def create(dls, architecture: str, image_mode: str, pretrained: bool) -> Learner:
    """A Learner for `dls`: ``vision_learner`` for torchvision's architectures, a plain Learner around our convnet.

    Raises WeightsError if the pretrained weights cannot be had.
    """
    n_in = 3 if image_mode == "RGB" else 1
    metrics = [accuracy, error_rate]
    if architecture == "convnet":
        learn = Learner(dls, networks.convnet(dls.c, n_in), loss_func=CrossEntropyLossFlat(), metrics=metrics)
        learn.arch = networks.convnet
        return learn
    arch = getattr(torchvision.models, architecture)
    try:
        return vision_learner(dls, arch, pretrained=pretrained, n_in=n_in, normalize=False, metrics=metrics)
    except OSError as error:  # urllib's errors are OSErrors
        raise WeightsError(
            f"the pretrained weights of {architecture} cannot be downloaded ({error}); use --pretrained false, or put"
            f" the file into {torch.hub.get_dir()}/checkpoints"
        ) from None


def fit(learn: Learner, epochs: int, lr: float, fine_tune: bool) -> None:
    """`epochs` of one-cycle training; `fine_tune` first trains the new head for one epoch."""
    if fine_tune:
        learn.fine_tune(epochs, base_lr=lr)
    else:
        learn.fit_one_cycle(epochs, lr_max=lr)


def save_bundle(learn: Learner, model_dir: str | os.PathLike, metrics: dict[str, float] | None = None):
    """Write the bundle of a fitted `learn` into `model_dir` and return its `ModelInfo`.

    Raises bundle.BundleError if the Learner has an architecture, a transform or a loss that the bundle cannot
    reproduce.
    """
    info = describe(learn, metrics)
    _check_layers(learn.model, info)
    return bundle.save(model_dir, learn.model, info)


def describe(learn: Learner, metrics: dict[str, float] | None = None) -> bundle.ModelInfo:
    """What `learn.predict` does to an image, as a `ModelInfo`. Raises bundle.BundleError."""
    architecture = getattr(getattr(learn, "arch", None), "__name__", type(learn.model).__name__)
    if architecture not in networks.ARCHITECTURES:
        raise bundle.BundleError(
            f"the Learner's architecture is {architecture}; expected one of {', '.join(networks.ARCHITECTURES)}"
        )
    if not isinstance(learn.loss_func, (CrossEntropyLossFlat, LabelSmoothingCrossEntropyFlat)):
        raise bundle.BundleError(
            f"the Learner's loss is {type(learn.loss_func).__name__}; expected a cross entropy over one label an image"
        )
    resize = _only(learn.dls.valid.after_item.fs, Resize)
    if resize is None:
        raise bundle.BundleError("the Learner's item transforms hold no Resize; expected Resize(size, method=...)")
    if resize.pad_mode != "reflection" or resize.mode != 2:
        raise bundle.BundleError("the Learner's Resize has another pad_mode or resample than fastai's default")
    _check_item_transforms(learn.dls.valid.after_item.fs)
    size = tuple(int(n) for n in reversed(resize.size))  # fastai keeps (width, height)
    _check_batch_transforms(learn.dls.valid.after_batch.fs)
    mode = learn.dls.valid_ds[0][0].mode
    channels = 3 if mode == "RGB" else 1
    normalize = _only(learn.dls.valid.after_batch.fs, Normalize)
    mean, std = (normalize.mean, normalize.std) if normalize else (torch.zeros(channels), torch.ones(channels))
    return bundle.ModelInfo(
        task="classification",
        architecture=architecture,
        labels=tuple(map(str, learn.dls.vocab)),
        image_mode=mode,
        image_size=size,
        resize_method=str(resize.method),
        mean=tuple(mean.flatten().tolist()),
        std=tuple(std.flatten().tolist()),
        resampled=any(isinstance(t, AffineCoordTfm) for t in learn.dls.valid.after_batch.fs),
        metrics=metrics or {},
        versions={"fastai": sys.modules["fastai"].__version__},
    )


def _check_layers(model, info: bundle.ModelInfo) -> None:
    """Layers without weights, such as an activation that was exchanged, do not show in the state_dict's keys."""
    device, training = next(model.parameters()).device, model.training
    batch = torch.rand(2, info.channels, *info.image_size)
    with torch.no_grad():
        expected = model.cpu().eval()(batch)
        given = bundle.rebuilt(model, info)(batch)
    model.to(device).train(training)
    if not torch.equal(given.nan_to_num(), torch.Tensor(expected).nan_to_num()):
        raise bundle.BundleError(f"the Learner's network has other layers than {info.architecture}")


def _only_trains(transform) -> bool:
    return getattr(transform, "split_idx", None) == 0


def _name(transform) -> str:
    return getattr(transform, "name", type(transform).__name__).split(" -- ")[0]


def _check_item_transforms(transforms) -> None:
    for transform in transforms:
        if not _only_trains(transform) and type(transform) not in (Resize, ToTensor):
            raise bundle.BundleError(
                f"the Learner's {_name(transform)} changes validation images; a bundle reproduces Resize alone"
            )


def _check_batch_transforms(transforms) -> None:
    for transform in transforms:
        if isinstance(transform, IntToFloatTensor) and transform.div != 255.0:
            raise bundle.BundleError(f"the Learner divides pixels by {transform.div}; expected 255")
        if getattr(transform, "size", None) is not None:
            raise bundle.BundleError(f"the Learner's {_name(transform)} resizes validation batches")
        if not _only_trains(transform) and not isinstance(transform, (IntToFloatTensor, Normalize, AffineCoordTfm)):
            raise bundle.BundleError(f"the Learner's {_name(transform)} changes validation batches; a bundle cannot")


def _only(transforms, kind: type):
    return next((transform for transform in transforms if type(transform) is kind), None)
