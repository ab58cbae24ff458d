"""Compares one answer of a bundle with that of ``learn.predict`` for the same image."""

from typing import Any

import numpy as np
import torch
from fastai.vision.all import Learner

from fastmaker import answers, bundle
from fastmaker.training import own_code

TOLERANCE = 1e-6  # of a number; equal bits are usual


def compare(given: answers.Answer, decoded: Any, numbers: np.ndarray, size: tuple[int, int], name: str) -> None:
    """Raise BundleError unless a bundle's answer is the Learner's: `decoded` and `numbers`, of ``learn.predict``.

    `size` is (width, height) of the network's input, and `name` that of the image.
    """
    if isinstance(given, answers.Mask):
        _compare_masks(given, decoded, name)
        return
    if given.array.shape != numbers.shape:
        raise bundle.BundleError(
            f"the Learner answers with {numbers.size} numbers; expected one for each label"
            if isinstance(given, (answers.Prediction, answers.LabelSet))
            else f"the Learner answers with an array {list(numbers.shape)}, the bundle with {list(given.array.shape)}"
        )
    if not np.allclose(given.array, numbers, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
        off_by = float(np.abs(given.array - numbers).max())
        what = "probabilities" if isinstance(given, (answers.Prediction, answers.LabelSet)) else "numbers"
        raise bundle.BundleError(f"the bundle's {what} would differ from the Learner's by {off_by:.1e} ({name})")
    if isinstance(given, answers.Prediction):
        _compare_words("label", given.label, str(decoded), name)
    elif isinstance(given, answers.LabelSet):
        _compare_words("labels", given.labels, list(map(str, decoded)), name)
    else:
        of_input = given.array if isinstance(given, answers.Values) else _pixels(given, size)
        _compare_decoded(of_input, decoded, name)


def check_decoding(learn: Learner, info: bundle.ModelInfo, image: torch.Tensor) -> None:
    """Raise BundleError if code of the user's own decodes answers, but for that of labels which gives their names.

    It may do to some answers what it does not to those that are compared. `image` is a batch of one.
    """
    transforms = learn.dls.valid_ds.tls[-1].tfms.fs if len(learn.dls.valid_ds.tls) > 1 else ()
    own = next((type(transform).__name__ for transform in transforms if own_code.decodes_itself(transform)), None)
    if own is None:
        return
    if info.task != "classification":
        raise bundle.BundleError(
            f"the Learner's {own} decodes answers by code of its own, which a bundle lacks; leave out its decodes"
        )
    for index, label in enumerate(info.labels):
        decoded = str(learn.dls.decode_batch((image, torch.tensor([index])))[0][1])
        if decoded != label:
            raise bundle.BundleError(
                f"the Learner's {own} decodes class {index} as {decoded!r}; a bundle answers with dls.vocab, {label!r}"
            )


def _compare_masks(given: answers.Mask, decoded: Any, name: str) -> None:
    found = np.asarray(decoded)
    if found.shape != given.array.shape:
        raise bundle.BundleError(
            f"the Learner's mask has the shape {list(found.shape)}; expected {list(given.array.shape)}, a class a pixel"
        )
    if off := int((given.array != found).sum()):
        raise bundle.BundleError(f"the bundle's mask would differ from the Learner's in {off} pixels ({name})")


def _compare_words(what: str, given: Any, expected: Any, name: str) -> None:
    if given != expected:
        raise bundle.BundleError(
            f"the bundle's {what} would be {given!r} where the Learner's {'is' if what == 'label' else 'are'}"
            f" {expected!r} ({name})"
        )


def _pixels(given: answers.Points, size: tuple[int, int]) -> np.ndarray:
    """Return points as ``learn.predict`` does: in pixels of the network's input."""
    return (given.array.reshape(-1, 2) + 1) * np.asarray(size, np.float32) / 2


def _compare_decoded(given: np.ndarray, decoded: Any, name: str) -> None:
    try:
        expected = np.asarray(decoded, dtype=np.float64)
    except (TypeError, ValueError):
        raise bundle.BundleError(
            f"the Learner answers with {type(decoded).__name__} {str(decoded)[:80]!r}; expected numbers"
        ) from None
    if expected.size != given.size or not np.allclose(
        given.ravel(), expected.ravel(), rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True
    ):
        raise bundle.BundleError(
            f"the bundle's answer would be {_short(given)} where the Learner's is {_short(expected)} ({name})"
        )


def _short(numbers: np.ndarray) -> str:
    return str(numbers.ravel()[:6].tolist())
