"""fastai callbacks of a training run: log lines, reproducible batches, checkpoints."""

import random
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.vision.all import Callback, set_seed

from fastmaker.training import checkpoint, image_checks
from fastmaker.training.distributed import SINGLE, ProcessGroup

PROGRESS_SECONDS = 10.0
STOPPED = 128 + 15  # the exit status of a process that SIGTERM ended


class MetricLog(Callback):
    """Print a line of name=value after each epoch, for SageMaker's ``metric_definitions``, and progress in between.

    Rank 0 prints for the whole process group; each other rank prints one line with its own rate an epoch.
    """

    order = 60  # after the Recorder

    def __init__(self, lines: Iterable[str] = (), group: ProcessGroup = SINGLE, total: int | None = None):
        """`lines` are those of the epochs before a checkpoint; they are printed again. `total` counts all epochs."""
        self.lines, self.group, self.total = list(lines), group, total
        for line in self.lines if group.is_first else ():
            _log(line)

    @property
    def _number(self) -> int:
        """The epoch's, from 1, over all phases of the run."""
        return (self.position.done if self.total else self.epoch) + 1

    def before_fit(self) -> None:
        self.last_print = time.perf_counter()

    def before_epoch(self) -> None:
        self.epoch_started, self.images = time.perf_counter(), 0

    def after_batch(self) -> None:
        if not self.training:
            return
        self.images += len(self.yb[0])
        now = time.perf_counter()
        if self.group.is_first and now - self.last_print > PROGRESS_SECONDS:
            self.last_print = now
            _log(f"epoch {self._number}/{self.total or self.n_epoch}: batch {self.position.batch + 1}/{self.n_iter}")

    def after_train(self) -> None:
        self.rate = self.images / (time.perf_counter() - self.epoch_started)
        if not self.group.is_first:
            _log(f"epoch {self._number}/{self.total or self.n_epoch}: {self.images} images, {self.rate:.1f} a second")

    def after_epoch(self) -> None:
        recorder = self.learn.recorder
        if not recorder.values[-1]:
            return  # an epoch before start_epoch, which fastai skips
        values = dict(zip(recorder.metric_names[1:-1], recorder.values[-1], strict=False))
        line = " ".join(f"{name}={value:.6f}" for name, value in values.items())
        rate = self.rate * self.group.world_size
        self.lines.append(f"epoch={self._number} {line} images_per_second={rate:.1f}")
        if self.group.is_first:
            _log(self.lines[-1])


class UnreadableImages(Callback):
    """Name each training image that does not decode, once. Another one is trained on in its place.

    Raises layouts.DataError if they are more than a tenth of all: all ranks at the end of an epoch, a single process as
    soon as it has found them.
    """

    order = 61  # after the MetricLog

    def __init__(self, folder: str, group: ProcessGroup = SINGLE):
        self.folder, self.group = folder, group
        self.lines: dict[int, str] = {}  # by the number of the image

    def after_batch(self) -> None:
        if self.training and self._look() and self.group.world_size == 1:
            self._check()

    def after_train(self) -> None:
        self._look()
        self._check()

    def found(self) -> list[str]:
        """Return the lines of all images that the ranks have found, the same on each of them."""
        return list(
            {number: line for lines in self.group.gather(self.lines) for number, line in lines.items()}.values()
        )

    def _look(self) -> bool:
        """Print a line for each image that was found since the last call; return whether there was one."""
        images = image_checks.replacing(self.dls.train)
        if images is None:
            return False
        new = [i for i in images.unreadable.nonzero().flatten().tolist() if i not in self.lines]
        for i in new:
            self.lines[i] = image_checks.problem(images.file(i)) or f"{images.file(i)}: it was not readable"
            _log(f"skipped {self.lines[i]}; the next image trains in its place")
        return bool(new)

    def _check(self) -> None:
        image_checks.check_skipped(self.found(), len(self.dls.train_ds), self.folder)


class Position(Callback):
    """Count the `done` epochs and the `batch` batches of the current one, start there, and seed each batch.

    A batch is seeded with the run's seed, the epoch's number and its own number; the order of an epoch's images with
    the first two. Random draws then do not depend on earlier batches, and a run that resumes from a checkpoint gives
    the same result as an uninterrupted run. (One exception: DataLoader workers are seeded once an epoch, so their
    random crops differ when a run resumes within an epoch.)
    """

    order = 75  # after SkipToEpoch, so that only epochs that are trained get here

    def __init__(self, run_seed: int, done: int = 0, batch: int = 0, rank: int = 0):
        self.run_seed, self.done, self.batch, self.rank = run_seed, done, batch, rank
        self.trained = False

    def before_epoch(self) -> None:
        self.trained = True
        train, order = self.dls.train, np.random.SeedSequence((self.run_seed, self.done))
        shuffling, loading = map(int, order.generate_state(2))
        train.rng = random.Random(shuffling)  # the DataLoader shuffles with a generator of its own
        # DataLoader workers draw their seeds from this generator, not from the global one that batches draw from.
        train.fake_l.generator = torch.Generator().manual_seed(loading + self.rank)

    def before_train(self) -> None:
        train, start = self.dls.train, self.batch
        self.get_idxs = get_idxs = train.get_idxs
        train.get_idxs = lambda: get_idxs()[start * train.bs :]
        for _ in range(start):  # added one by one, as fastai does: rounding differs otherwise, and so the learning rate
            self.learn.pct_train += 1.0 / (len(train) * self.n_epoch)
        self.learn.train_iter += start
        self._seed()

    def after_batch(self) -> None:
        if self.training:
            self.batch += 1
            self._seed()

    def after_train(self) -> None:
        self.dls.train.get_idxs = self.get_idxs

    def after_epoch(self) -> None:
        if self.trained:
            self.done, self.batch, self.trained = self.done + 1, 0, False

    def _seed(self) -> None:
        sequence = np.random.SeedSequence((self.run_seed, self.done, self.batch, self.rank))
        seed = int(sequence.generate_state(1)[0])
        if self.dls.device.type != "cpu":
            set_seed(seed)
            return
        # As set_seed does. It also seeds devices that are not there, and for each torch writes down the whole stack.
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % (2**32 - 1))
        random.seed(seed)


class SaveCheckpoints(Callback):
    """Write a checkpoint after each epoch and every `minutes` within one; at `stop` write one and exit with STOPPED.

    `resumed` is the state that the run resumes from; `run_config` is what `checkpoint.check` compares. Without a
    `folder` nothing is written: only rank 0 has one.
    """

    order = 80  # after SkipToEpoch, the Recorder, the MetricLog and the Position

    def __init__(
        self,
        folder: Path | None,
        run_config: dict[str, Any],
        stop: threading.Event,
        resumed: dict[str, Any] | None = None,
        minutes: float = 5,
    ):
        self.folder, self.run_config, self.stop, self.resumed = folder, run_config, stop, resumed
        self.seconds, self.last = 60 * minutes, time.monotonic()
        self.saved = (resumed["epoch"], resumed["batch"]) if resumed else (0, 0)

    def before_epoch(self) -> None:
        self._restore_recorder()

    def after_batch(self) -> None:
        if self.stop.is_set() or (self.training and time.monotonic() > self.last + self.seconds):
            self._save()
        if self.stop.is_set():
            sys.exit(STOPPED)

    def after_epoch(self) -> None:
        self._save()

    def after_fit(self) -> None:
        self._restore_recorder()  # if there was no epoch left to train

    def _save(self) -> None:
        here = self.learn.position
        if self.folder and (here.done, here.batch) != self.saved:
            checkpoint.write(self.folder, checkpoint.capture(self.learn, here.done, here.batch, self.run_config))
        self.saved, self.last = (here.done, here.batch), time.monotonic()

    def _restore_recorder(self) -> None:
        # Each fit starts a new history, with an empty entry for each skipped epoch. A checkpoint at the end of the new
        # head's epoch holds the history of the first fit, which is over.
        if self.resumed and len(self.recorder.values) == len(self.resumed["recorder"]["values"]):
            checkpoint.restore_recorder(self.recorder, self.resumed)
        self.resumed = None


def _log(line: str) -> None:
    sys.stdout.write(line + "\n")  # one write: the training toolkit shows each write as a line
    sys.stdout.flush()
