"""DataLoaders -> a fitted fastai Learner -> a bundle.

`save_bundle` also takes a Learner that a notebook made with ``vision_learner`` or ``unet_learner``: it reads from the
Learner all that an answer depends on, and refuses what the bundle cannot reproduce exactly.
"""

import contextlib
import dataclasses
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torchvision.models
from fastai.vision.all import (
    AddMaskCodes,
    AffineCoordTfm,
    Callback,
    CrossEntropyLossFlat,
    DynamicUnet,
    IntToFloatTensor,
    LabelSmoothingCrossEntropyFlat,
    Learner,
    Normalize,
    Resize,
    ToTensor,
    accuracy,
    error_rate,
    set_seed,
    vision_learner,
)
from PIL import Image

from fastmaker import bundle, masks, networks, preprocess, unet
from fastmaker.training import checkpoint
from fastmaker.training.distributed import SINGLE, Group

PROGRESS_SECONDS = 10.0
STOPPED = 128 + 15  # the exit status of a process that SIGTERM ended


class WeightsError(ValueError):
    """Pretrained weights that cannot be had."""


class MetricLog(Callback):
    """Prints what ``metric_definitions`` read: a line of name=value after each epoch, and progress in between.

    Of the processes of a `group`, the first one speaks for all, and the others have a line of their own an epoch.
    """

    order = 60  # after the Recorder

    def __init__(self, lines=(), group: Group = SINGLE):
        """`lines` are those of the epochs that were trained before, and are printed again."""
        self.lines, self.group = list(lines), group
        for line in self.lines if group.first else ():
            _log(line)

    def before_fit(self):
        self.last_print = time.perf_counter()

    def before_epoch(self):
        self.epoch_started, self.images = time.perf_counter(), 0

    def after_batch(self):
        if not self.training:
            return
        self.images += len(self.yb[0])
        now = time.perf_counter()
        if self.group.first and now - self.last_print > PROGRESS_SECONDS:
            self.last_print = now
            _log(f"epoch {self.epoch + 1}/{self.n_epoch}: batch {self.learn.position.batch + 1}/{self.n_iter}")

    def after_train(self):
        self.rate = self.images / (time.perf_counter() - self.epoch_started)
        if not self.group.first:
            _log(f"epoch {self.epoch + 1}/{self.n_epoch}: {self.images} images, {self.rate:.1f} a second")

    def after_epoch(self):
        recorder = self.learn.recorder
        if not recorder.values[-1]:
            return  # an epoch before start_epoch, which fastai only skips
        values = dict(zip(recorder.metric_names[1:-1], recorder.values[-1], strict=False))
        line = " ".join(f"{name}={value:.6f}" for name, value in values.items())
        rate = self.rate * self.group.size
        self.lines.append(f"epoch={self.epoch + 1} {line} images_per_second={rate:.1f}")
        if self.group.first:
            _log(self.lines[-1])


class Position(Callback):
    """Where a run is: `done` epochs, and `batch` batches of the next one. It begins and goes on there.

    Each batch is seeded with the run's seed, the epoch's number and its own, and the order of an epoch's images with
    the first two of these. What is random then depends on nothing that came before, and a run that goes on from a
    checkpoint draws what it would have drawn without the interruption. (Not so the crops of processes that load images
    when it goes on within an epoch: they are seeded once, at its start.)
    """

    order = 75  # after SkipToEpoch, so that only epochs that are trained come here

    def __init__(self, run_seed: int, done: int = 0, batch: int = 0, rank: int = 0):
        self.run_seed, self.done, self.batch, self.rank = run_seed, done, batch, rank
        self.trained = False

    def before_epoch(self):
        self.trained = True
        train, order = self.dls.train, np.random.SeedSequence((self.run_seed, self.done))
        shuffling, loading = map(int, order.generate_state(2))
        train.rng = random.Random(shuffling)  # the DataLoader shuffles with a generator of its own
        # Processes that load images draw their seeds from this, and would take them from where batches draw.
        train.fake_l.generator = torch.Generator().manual_seed(loading + self.rank)

    def before_train(self):
        train, begun = self.dls.train, self.batch
        self.get_idxs = get_idxs = train.get_idxs
        train.get_idxs = lambda: get_idxs()[begun * train.bs :]
        for _ in range(begun):  # added one by one, as fastai does: another sum would be another learning rate
            self.learn.pct_train += 1.0 / (len(train) * self.n_epoch)
        self.learn.train_iter += begun
        self._seed()

    def after_batch(self):
        if self.training:
            self.batch += 1
            self._seed()

    def after_train(self):
        self.dls.train.get_idxs = self.get_idxs

    def after_epoch(self):
        if self.trained:
            self.done, self.batch, self.trained = self.done + 1, 0, False

    def _seed(self):
        sequence = np.random.SeedSequence((self.run_seed, self.done, self.batch, self.rank))
        set_seed(int(sequence.generate_state(1)[0]))


class SaveCheckpoints(Callback):
    """Writes a checkpoint after each epoch and every `minutes` of one; at `stop` another, and ends with STOPPED.

    `resumed` is the state that the run goes on from; `identity` is what `checkpoint.check` compares. Without a `folder`
    nothing is written: of several processes, one does.
    """

    order = 80  # after SkipToEpoch, the Recorder, the MetricLog and the Position

    def __init__(self, folder, identity: dict, stop, resumed: dict | None = None, minutes: float = 5):
        self.folder, self.identity, self.stop, self.resumed = folder, identity, stop, resumed
        self.seconds, self.last = 60 * minutes, time.monotonic()
        self.saved = (resumed["epoch"], resumed["batch"]) if resumed else (0, 0)

    def before_epoch(self):
        self._restore_recorder()

    def after_batch(self):
        if self.stop.is_set() or (self.training and time.monotonic() > self.last + self.seconds):
            self._save()
        if self.stop.is_set():
            sys.exit(STOPPED)

    def after_epoch(self):
        self._save()

    def after_fit(self):
        self._restore_recorder()  # if there was no epoch left to train

    def _save(self):
        here = self.learn.position
        if self.folder and (here.done, here.batch) != self.saved:
            checkpoint.write(self.folder, checkpoint.state_of(self.learn, here.done, here.batch, self.identity))
        self.saved, self.last = (here.done, here.batch), time.monotonic()

    def _restore_recorder(self):
        # Each fit has a record of its own, which has an empty entry for each epoch that was skipped. A checkpoint that
        # ends the new head's epoch has the record of a fit that is over.
        if self.resumed and len(self.recorder.values) == len(self.resumed["recorder"]["values"]):
            checkpoint.restore_recorder(self.recorder, self.resumed)
        self.resumed = None


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
    with downloading_weights(architecture):
        return vision_learner(dls, arch, pretrained=pretrained, n_in=n_in, normalize=False, metrics=metrics)


@contextlib.contextmanager
def downloading_weights(architecture: str):
    """Makes a WeightsError of the OSError of a failed download."""
    try:
        yield
    except OSError as error:  # urllib's errors are OSErrors
        raise WeightsError(
            f"the pretrained weights of {architecture} cannot be downloaded ({error}); use --pretrained false, or put"
            f" the file into {torch.hub.get_dir()}/checkpoints"
        ) from None


def total_epochs(epochs: int, fine_tune: bool) -> int:
    """How many epochs `fit` trains."""
    return epochs + 1 if fine_tune else epochs


def fit(learn: Learner, epochs: int, lr: float, fine_tune: bool, done: int = 0, batch: int = 0) -> None:
    """`epochs` of one-cycle training; `fine_tune` first trains the new head for one epoch.

    The first `done` of all these epochs, and `batch` batches of the next, were trained before: the schedule goes on
    behind them, if `learn` has a `Position`.
    """
    if not fine_tune:
        learn.fit_one_cycle(epochs, lr_max=lr, start_epoch=done)
        return
    # What Learner.fine_tune does, which cannot start anywhere else. Freezing and unfreezing a Learner empties the
    # optimiser's state: not where the optimiser is to go on.
    if done == 0:
        (learn.opt if batch else learn).freeze()
        learn.fit_one_cycle(1, slice(lr), pct_start=0.99)
    if done == 0 or (done == 1 and not batch):
        learn.unfreeze()
    lr /= 2
    learn.fit_one_cycle(epochs, slice(lr / 100, lr), pct_start=0.3, div=5.0, start_epoch=max(done - 1, 0))


def is_finite(model) -> bool:
    """Whether all weights are numbers: of a training that diverged they are not."""
    return all(torch.isfinite(parameter).all() for parameter in model.parameters())


def save_bundle(
    learn: Learner, model_dir: str | os.PathLike, metrics: dict[str, float] | None = None, mask_size: str = "model"
) -> bundle.ModelInfo:
    """Write the bundle of a fitted `learn` into `model_dir` and return its `ModelInfo`.

    `mask_size` is one of masks.SIZES: what a U-Net's masks are served in unless a request says otherwise. Raises
    bundle.BundleError if the Learner has an architecture, a transform or a loss that the bundle cannot reproduce.
    """
    info = dataclasses.replace(describe(learn, metrics), mask_size=mask_size)
    if mask_size == "original" and not masks.can_resize_to_original(info.resize_method, info.void_code):
        raise bundle.BundleError("masks of images that the Learner's Resize crops have no original size without void")
    _check_layers(learn.model, info)
    _check_pixels(learn, info)
    return bundle.save(model_dir, learn.model, info)


def describe(learn: Learner, metrics: dict[str, float] | None = None) -> bundle.ModelInfo:
    """What `learn.predict` does to an image, as a `ModelInfo`. Raises bundle.BundleError."""
    task = "segmentation" if isinstance(learn.model, DynamicUnet) else "classification"
    architecture, known = _architecture(learn), bundle.ARCHITECTURES[task]
    if architecture not in known:
        raise bundle.BundleError(f"the Learner's architecture is {architecture}; expected one of {', '.join(known)}")
    _check_loss(learn.loss_func, task)
    size, method = _resize(learn, task)
    _check_item_transforms(learn.dls.valid.after_item.fs)
    _check_batch_transforms(learn.dls.valid.after_batch.fs)
    mode = learn.dls.valid_ds[0][0].mode
    channels = 3 if mode == "RGB" else 1
    normalize = _only(learn.dls.valid.after_batch.fs, Normalize)
    mean, std = (normalize.mean, normalize.std) if normalize else (torch.zeros(channels), torch.ones(channels))
    return bundle.ModelInfo(
        task=task,
        architecture=architecture,
        labels=_labels(learn),
        image_mode=mode,
        image_size=size,
        resize_method=method,
        mean=tuple(mean.flatten().tolist()),
        std=tuple(std.flatten().tolist()),
        resampled=any(isinstance(t, AffineCoordTfm) for t in learn.dls.valid.after_batch.fs),
        metrics=metrics or {},
        versions={"fastai": sys.modules["fastai"].__version__},
        **(_of_masks(learn) if task == "segmentation" else {}),
    )


def _architecture(learn: Learner) -> str:
    return getattr(getattr(learn, "arch", None), "__name__", type(learn.model).__name__)


def _check_loss(loss, task: str) -> None:
    if not isinstance(loss, (CrossEntropyLossFlat, LabelSmoothingCrossEntropyFlat)):
        expected = "a cross entropy over one label " + ("a pixel" if task == "segmentation" else "an image")
        raise bundle.BundleError(f"the Learner's loss is {type(loss).__name__}; expected {expected}")
    if task == "segmentation" and loss.axis != 1:
        raise bundle.BundleError(f"the Learner's loss has the class axis {loss.axis}; expected axis=1")


def _resize(learn: Learner, task: str) -> tuple[tuple[int, int], str]:
    """The size (height, width) of validation images, and the method by which they get it."""
    resize = _only(learn.dls.valid.after_item.fs, Resize)
    if resize is None and task == "segmentation":
        return tuple(learn.dls.valid_ds[0][0].shape), preprocess.NO_RESIZE
    if resize is None:
        raise bundle.BundleError("the Learner's item transforms hold no Resize; expected Resize(size, method=...)")
    if resize.pad_mode != "reflection" or resize.mode != 2:
        raise bundle.BundleError("the Learner's Resize has another pad_mode or resample than fastai's default")
    return tuple(int(n) for n in reversed(resize.size)), str(resize.method)  # fastai keeps (width, height)


def _labels(learn: Learner) -> tuple[str, ...]:
    codes = _only(learn.dls.valid.after_item.fs, AddMaskCodes)
    vocab = codes.codes if codes else learn.dls.vocab
    if vocab is None:
        raise bundle.BundleError("the Learner's masks have no class names; expected MaskBlock(codes=...)")
    return tuple(map(str, vocab))


def _of_masks(learn: Learner) -> dict:
    """What only a U-Net's `ModelInfo` has. Classes that the loss ignores are void."""
    ignored = getattr(learn.loss_func.func, "ignore_index", -1)
    return {
        "options": {name: bool(getattr(learn, name, default)) for name, default in unet.OPTIONS.items()},
        "void_code": ignored if 0 <= ignored < len(_labels(learn)) else None,
    }


def _check_layers(model, info: bundle.ModelInfo) -> None:
    """Layers without weights, such as an activation that was exchanged, do not show in the state_dict's keys."""
    device, training = next(model.parameters()).device, model.training
    strided = all(parameter.is_contiguous() for parameter in model.parameters())
    layout = torch.contiguous_format if strided else torch.channels_last
    batch = torch.rand(2, info.channels, *info.image_size).to(memory_format=layout)
    with torch.no_grad():
        given = bundle.rebuilt(model, info).to(memory_format=layout)(batch)
        expected = model.cpu().eval()(batch)
    model.to(device).train(training)
    if not torch.equal(given.nan_to_num(), torch.Tensor(expected).nan_to_num()):
        raise bundle.BundleError(f"the Learner's network has other layers than {info.architecture}")


def _check_pixels(learn: Learner, info: bundle.ModelInfo) -> None:
    """What makes an image of an item may change it, too: the Learner's input for an image is that of a bundle."""
    height, width = info.image_size if info.resize_method == preprocess.NO_RESIZE else (401, 307)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    image = Image.fromarray(pixels).convert(info.image_mode)
    expected = _input_for(learn, image)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (info.mean, info.std))
    batch = preprocess.to_tensor(image, info.image_mode, info.image_size, info.resize_method)[None]
    given = preprocess.normalise(batch, mean, std, info.resampled)
    if expected is None:
        return
    if given.shape != expected.shape or ((given - expected).abs() * std).max() > 0.5 / 255:  # of a grey level
        raise bundle.BundleError(
            "the Learner changes the pixels of an image in another way than by its Resize and normalisation"
        )


def _input_for(learn: Learner, image: Image.Image) -> torch.Tensor | None:
    """What ``learn.predict`` gives the network for an image; None if the Learner takes neither files nor arrays."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "image.png")
        image.save(file)
        for item in (file, np.asarray(image)):
            with contextlib.suppress(AssertionError):  # fastai says so that it does not take such an item
                return torch.Tensor(learn.dls.test_dl([item], num_workers=0).one_batch()[0]).cpu()
    return None


def _only_trains(transform) -> bool:
    return getattr(transform, "split_idx", None) == 0


def _name(transform) -> str:
    return getattr(transform, "name", type(transform).__name__).split(" -- ")[0]


def _check_item_transforms(transforms) -> None:
    for transform in transforms:
        if not _only_trains(transform) and type(transform) not in (Resize, ToTensor, AddMaskCodes):
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
