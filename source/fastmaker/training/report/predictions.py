"""What a Learner answers to its validation images: in one pass, a batch at a time, and again for a few to show."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fastmaker import baseline

if TYPE_CHECKING:
    import torch
    from fastai.vision.all import DataLoader, Learner

TTA_IMAGES = 2048  # whose answers are held at a time, to average them
PLAIN_SHARE = 0.25  # of the answer to the image as it is, in the average: fastai's beta


class Gatherer(Protocol):
    """Takes the answers to a batch of images after the other."""

    def add(self, indexes: np.ndarray, numbers: "torch.Tensor", decoded: "torch.Tensor", true: "torch.Tensor") -> None:
        """Add N images by their indexes in the validation set: numbers (N, ...), what they say, and the truth."""
        ...


def gather(learn: "Learner", into: Gatherer, passes: int = 0, seed: int = 0, seen: baseline.Seen | None = None) -> int:
    """Add the answers to all validation images to `into`, and return how many were no finite numbers and left out.

    In a plain pass `seen` takes what the network was given and answered.

    With `passes`, the numbers are those of ``learn.tta``: the mean over as many passes of images that are augmented as
    in training, with draws of `seed`, and a quarter of it the answer to the image as it is. The random state, the
    Learner's history and its parameters stay as they were.
    """
    from fastai.vision.all import no_random

    n, lost = len(learn.dls.valid_ds), 0
    with no_random(seed):
        batches = _averaged(learn, n, passes, seed) if passes else _batches(learn, range(n), seen)
        for indexes, numbers, true in batches:
            finite = numbers.isfinite().flatten(1).all(1).cpu()
            lost += int((~finite).sum())
            numbers, true = numbers[finite.to(numbers.device)], true[finite.to(true.device)]
            if len(numbers):
                into.add(indexes[finite.numpy()], numbers, _function(learn, "decodes")(numbers), true)
    return lost


def shown(learn: "Learner", indexes: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return validation images as the network sees them, uint8 (N, H, W, 3), their numbers, decoded ones and truth."""
    dl = _loader(learn, indexes, bs=len(indexes), num_workers=0)
    inputs, true = dl.one_batch()
    numbers = _numbers(learn, inputs)
    images = dl.decode((inputs,))[0].expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    pictures = np.asarray(images, dtype=float).clip(0, 255).astype(np.uint8)
    return pictures, _array(numbers), _array(_function(learn, "decodes")(numbers)), _array(true)


def input_size(learn: "Learner") -> tuple[int, int]:
    """Return the size of the network's input, (height, width) in pixels."""
    images, *_ = shown(learn, [0])
    height, width = images.shape[1:3]
    return height, width


def spread(n: int, count: int) -> list[int]:
    """Return at most `count` of the indexes of `n` images, evenly spaced."""
    return np.linspace(0, n - 1, min(count, n)).astype(int).tolist()


def _averaged(
    learn: "Learner", n: int, passes: int, seed: int
) -> Iterator[tuple[np.ndarray, "torch.Tensor", "torch.Tensor"]]:
    from fastai.vision.all import no_random

    for start in range(0, n, TTA_IMAGES):
        chunk = range(start, min(start + TTA_IMAGES, n))
        plain = list(_batches(learn, chunk))
        sums = [numbers * 0 for _, numbers, _ in plain]
        with learn.dls.valid.dataset.set_split_idx(0):
            for number in range(passes):
                with no_random(int(np.random.SeedSequence((seed, start, number)).generate_state(1)[0])):
                    sums = [sum_ + numbers for sum_, (_, numbers, _) in zip(sums, _batches(learn, chunk), strict=True)]
        for sum_, (indexes, numbers, true) in zip(sums, plain, strict=True):
            yield indexes, (sum_ / passes).lerp(numbers, PLAIN_SHARE), true


def _batches(
    learn: "Learner", indexes: Sequence[int], seen: baseline.Seen | None = None
) -> Iterator[tuple[np.ndarray, "torch.Tensor", "torch.Tensor"]]:
    """Yield a batch of these validation images after the other: their indexes, the network's numbers, the truth."""
    learn.model.eval()
    done = 0
    for inputs, true in _loader(learn, indexes):
        answer = functools.partial(_numbers, learn, inputs)
        numbers = seen.answered(_plain(inputs), answer) if seen else answer()
        yield np.asarray(indexes[done : done + len(true)]), numbers, _plain(true)
        done += len(true)


def _loader(learn: "Learner", indexes: Sequence[int], **options: Any) -> "DataLoader":
    dl = learn.dls.valid.new(shuffle=False, drop_last=False, **options)
    dl.n, dl.get_idxs = len(indexes), lambda: list(indexes)
    return dl


def _numbers(learn: "Learner", inputs: "torch.Tensor") -> "torch.Tensor":
    import torch

    with torch.no_grad():
        return _plain(_function(learn, "activation")(learn.model.eval()(inputs)))


def _function(learn: "Learner", name: str) -> Callable[[Any], Any]:
    from fastai.vision.all import getcallable

    return getcallable(learn.loss_func, name)


def _plain(tensor: Any) -> "torch.Tensor":
    """Return a tensor without fastai's class, whose methods keep metadata and cost time."""
    import torch

    return torch.Tensor.as_subclass(tensor, torch.Tensor)


def _array(tensor: Any) -> np.ndarray:
    return _plain(tensor).detach().cpu().numpy()
