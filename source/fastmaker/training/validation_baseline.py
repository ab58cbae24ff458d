"""The baseline of a bundle that training writes: of the pass over the validation images that the report makes."""

import os
from pathlib import Path

from fastai.vision.all import Learner, Normalize
from PIL import Image

from fastmaker import baseline, bundle


def watch(learn: Learner) -> baseline.Seen:
    """Return what takes in what the network is given and answers."""
    normalize = next((step for step in learn.dls.valid.after_batch.fs if isinstance(step, Normalize)), None)
    channels = ((0.0,), (1.0,)) if normalize is None else (normalize.mean.flatten(), normalize.std.flatten())
    return baseline.Seen(*([float(value) for value in values] for values in channels))


def save(learn: Learner, seen: baseline.Seen, model_dir: str | os.PathLike, info: bundle.ModelInfo) -> None:
    """Write the baseline into the bundle of `info`. Raises OSError."""
    baseline.save(model_dir, baseline.of(seen, info, _sizes(learn)))


def _sizes(learn: Learner) -> list[tuple[int, int]] | None:
    """Return (width, height) of the validation images' files, whose headers say it; None if they are no files."""
    sizes = []
    for item in learn.dls.valid_ds.items:
        file = item[0] if isinstance(item, (tuple, list)) else item
        if not isinstance(file, (str, Path)):
            return None
        with Image.open(file) as image:
            sizes.append(image.size)
    return sizes
