"""The baseline of a bundle: what the network said of its validation images, and how those looked.

    seen = baseline.Seen(info.mean, info.std)
    numbers = seen.answered(inputs, lambda: network(inputs))     of each batch
    baseline.save(model_dir, baseline.of(seen, info))

`fastmaker monitor` compares what an endpoint was sent with it; serving never reads it, and a bundle may lack it. Images
are measured as the network gets them, after resizing, so that the same code measures both sides alike.
"""

import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastmaker import bundle, files

FORMAT = 2  # the newest that is read
MOST_IMAGES = 2000  # whose values are kept
DIRECTIONS = 32  # of embeddings, at most
IMAGES_PER_DIRECTION = 8  # fewer would say little of how far images usually are
FOLDS = 10  # a validation image's distance is measured from the others
MAX_BYTES = 2**26  # of a file
SMALL = 1e-6
CONVOLUTIONS = ("convolution", "conv2d")  # the second in inference mode
LINEAR = {"addmm": 1, "mm": 0, "linear": 0}  # operators of linear layers, and which argument is the input
# What is measured of an image's pixels.
OF_PIXELS = ("brightness", "contrast", "sharpness", "edges", "axes", "light", "clarity", "detail", "shade")
UPRIGHT = ("light", "clarity", "detail", "shade")  # those of OF_PIXELS whose sign a turn by 180 degrees changes
OF_FILES = ("size", "shape")  # of the file: the square root of width times height in pixels, and log(width / height)
OF_ANSWERS = ("confidence", "distance")


@dataclass(frozen=True)
class Embedding:
    """How embeddings lie: their mean and covariance in k directions.

    The directions are drawn, not found in the images: those in which few images differ most say little of new ones.
    """

    size: int  # d, the numbers of an embedding
    mean: np.ndarray  # float64 (k,)
    covariance: np.ndarray  # float64 (k, k)

    def project(self, embeddings: np.ndarray) -> np.ndarray:
        """Return embeddings (n, d) in the directions, (n, k). They are the same ones at every time and place."""
        directions = np.random.RandomState(0).standard_normal((self.size, len(self.mean)))
        found: np.ndarray = embeddings @ directions / np.sqrt(self.size)
        return found

    def distances(self, projected: np.ndarray) -> np.ndarray:
        """Return Mahalanobis' distances of projected embeddings (n, k) from the mean, (n,); about 1 for usual ones."""
        centred = projected - self.mean
        solved = np.linalg.solve(self.covariance, centred.T).T
        found: np.ndarray = np.sqrt((centred * solved).sum(1).clip(0) / len(self.mean))
        return found


@dataclass(frozen=True)
class Baseline:
    """What is known of validation images: counts of labels, values an image, and how embeddings lie."""

    labels: dict[str, int]  # how many images got each; {} of a task without labels
    values: dict[str, np.ndarray]  # by names of OF_PIXELS, OF_FILES and OF_ANSWERS, float32 (n,), in one order
    embedding: Embedding | None
    images: int
    state_sha256: str = ""  # of the weights that it is of


class Seen:
    """What is found out about images while a network answers them: pixels, numbers and embeddings by image.

    `mean` and `std`, one for each channel, are those that the network's input was normalised with.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self._mean, self._std = (torch.tensor(list(values)).view(1, -1, 1, 1) for values in (mean, std))
        self._pixels: list[np.ndarray] = []
        self._numbers: list[np.ndarray] = []
        self._embeddings: list[np.ndarray] = []

    def answered(self, inputs: torch.Tensor, answer: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return what `answer` does, the numbers (N, ...) of a batch that is float32 (N, C, H, W), and take both in."""
        with _LastFeatures() as last:
            numbers = answer()
        features = last.features()
        if features is not None and len(features) == len(inputs):
            self._embeddings.append(features.float().cpu().numpy())
        pixels = (inputs.float() * self._std.to(inputs.device) + self._mean.to(inputs.device)).clip(0, 1)
        self._pixels.append(measure(pixels).cpu().numpy())
        self._numbers.append(_flat(numbers).cpu().numpy())
        return numbers

    def pixels(self) -> dict[str, np.ndarray]:
        """Return the values of OF_PIXELS, (n,) each."""
        return dict(zip(OF_PIXELS, np.concatenate(self._pixels).T, strict=True))

    def numbers(self) -> np.ndarray:
        """Return the network's numbers for each image, (n, m); of a mask the mean of each class."""
        return np.concatenate(self._numbers)

    def embeddings(self) -> np.ndarray | None:
        """Return the embeddings (n, d), None if the network shows none."""
        found = np.concatenate(self._embeddings) if self._embeddings else np.empty((0, 0))
        return found if len(found) == len(self.numbers()) and np.isfinite(found).all() else None


class _LastFeatures(TorchDispatchMode):
    """Keep what the last linear layer is given, and what the last convolution is."""

    def __init__(self) -> None:
        super().__init__()
        self._of_linear: torch.Tensor | None = None
        self._of_convolution: torch.Tensor | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in LINEAR:
            self._of_linear = args[LINEAR[name]]
        elif name in CONVOLUTIONS:
            self._of_convolution = args[0]
        return func(*args, **(kwargs or {}))

    def features(self) -> torch.Tensor | None:
        """Return the features (N, d): the linear layer's, or else the means of the convolution's over the pixels."""
        if self._of_linear is None and self._of_convolution is not None:
            return self._of_convolution.flatten(2).mean(2)
        return self._of_linear


def _flat(numbers: torch.Tensor) -> torch.Tensor:
    """Return the numbers of N images as (N, m), of a mask the share of each class."""
    return numbers.mean((2, 3)) if numbers.ndim == 4 else numbers.flatten(1) if numbers.ndim > 1 else numbers[:, None]


def measure(pixels: torch.Tensor) -> torch.Tensor:
    """Return the values of OF_PIXELS for images, float32 (N, C, H, W) from 0 to 1: (N, 9).

    A darker image has another brightness and no other value; a blurred one mostly another sharpness: contrast is
    relative to brightness, and sharpness to contrast. `edges` is how many more lines stand than lie, and `axes` how
    many do either rather than slant. Of the upper half beside the lower one, `light` is how much brighter it is,
    `clarity` how much more contrast it has, and `detail` how much steeper its edges are. `shade` is the skewness of the
    slopes downwards, from -1 to 1: light that comes from above leaves steeper edges below things than above them.
    """
    grey = pixels[:, :3].mean(1)
    brightness = grey.mean((1, 2))
    deviation = grey.std((1, 2), correction=0)
    across, down = grey.diff(dim=2), grey.diff(dim=1)
    laplacian = across.diff(dim=2)[:, 1:-1] + down.diff(dim=1)[:, :, 1:-1]
    dx, dy = across[:, 1:], down[:, :, 1:]
    steepness = (dx**2 + dy**2 + SMALL**2).sqrt()
    values = [
        brightness,
        deviation / (brightness + 0.01),
        (laplacian.std((1, 2), correction=0) / (deviation + 0.01) + SMALL).log(),
        ((across**2).mean((1, 2)) + SMALL).log() - ((down**2).mean((1, 2)) + SMALL).log(),
        # Of each slope the cosine of four times its angle, weighted by how steep it is.
        (steepness - 8 * (dx * dy) ** 2 / steepness**3).mean((1, 2)) / steepness.mean((1, 2)),
        *_upright(grey, deviation, down, steepness),
    ]
    return torch.stack(values, 1).nan_to_num()


def _upright(
    grey: torch.Tensor, deviation: torch.Tensor, down: torch.Tensor, steepness: torch.Tensor
) -> list[torch.Tensor]:
    """Return the values of UPRIGHT, (N,) each."""

    def halves(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        size = max(1, values.shape[1] // 2)
        return values[:, :size], values[:, values.shape[1] - size :]

    (above, below), (steep_above, steep_below) = halves(grey), halves(steepness)
    spread_above, spread_below = (half.std((1, 2), correction=0) + 0.01 for half in (above, below))
    return [
        (above.mean((1, 2)) - below.mean((1, 2))) / (deviation + 0.01),
        (spread_above / spread_below).log(),
        (steep_above.mean((1, 2)) / steep_below.mean((1, 2))).log(),
        (2 * (down**3).mean((1, 2)) / ((down**2).mean((1, 2)) + SMALL) ** 1.5).tanh(),  # a few images have large ones
    ]


def of_file(width: int, height: int) -> dict[str, float]:
    """Return the values of OF_FILES."""
    return {"size": float(np.sqrt(width * height)), "shape": float(np.log(width / height))}


def confidence(numbers: np.ndarray, task: str) -> np.ndarray | None:
    """Return how sure a network is of its answers to images, (n,) from 0 to 1, None for a task without probabilities.

    Of one label it is the highest number (n, m), of several how far the least certain one is from 0.5, twice.
    """
    if task == "classification":
        return numbers.max(1)
    return 2 * np.abs(numbers - 0.5).min(1) if task == "multilabel" else None


def labels(numbers: np.ndarray, info: "bundle.ModelInfo") -> dict[str, int]:
    """Return how many images got each label; {} for a task without labels an image."""
    from fastmaker import tasks

    if info.task == "classification":
        found = np.bincount(numbers.argmax(1), minlength=len(info.labels))
    elif info.task == "multilabel":
        found = tasks.is_over(numbers, info.threshold).sum(0)
    else:
        return {}
    return dict(zip(info.labels, map(int, found), strict=True))


def values_of(
    seen: Seen, info: "bundle.ModelInfo", sizes: Sequence[tuple[int, int]] | None = None
) -> dict[str, np.ndarray]:
    """Return the values of images, (n,) each, but for their distance; `sizes` are (width, height) of their files."""
    numbers, values = seen.numbers(), dict(seen.pixels())
    if sizes and len(sizes) == len(numbers):
        of_files = [of_file(*size) for size in sizes]
        values |= {name: np.array([each[name] for each in of_files]) for name in OF_FILES}
    if (sure := confidence(numbers, info.task)) is not None:
        values["confidence"] = sure
    # In the precision of the file: equal values, such as sizes, must stay equal.
    return {name: np.asarray(value, np.float32) for name, value in values.items()}


def of(seen: Seen, info: "bundle.ModelInfo", sizes: Sequence[tuple[int, int]] | None = None) -> Baseline:
    """Return the baseline of what was seen; `sizes` are (width, height) of the images' files, if they are known."""
    numbers, embeddings, values = seen.numbers(), seen.embeddings(), values_of(seen, info, sizes)
    embedding = None
    if embeddings is not None and len(embeddings) >= 2 * IMAGES_PER_DIRECTION:
        embedding = fit(embeddings)
        values["distance"] = _distances_from_others(embedding, embeddings)
    kept = np.linspace(0, len(numbers) - 1, min(MOST_IMAGES, len(numbers))).astype(int)
    values = {name: np.asarray(value, np.float32)[kept] for name, value in values.items()}
    return Baseline(labels(numbers, info), values, embedding, len(numbers), info.state_sha256)


def fit(embeddings: np.ndarray) -> Embedding:
    """Return how embeddings (n, d) lie, in as many directions as the number of images allows."""
    images, size = embeddings.shape
    count = max(1, min(DIRECTIONS, images // IMAGES_PER_DIRECTION, size))
    projected = Embedding(size, np.zeros(count), np.eye(count)).project(embeddings)
    return _fit(size, projected)


def _fit(size: int, projected: np.ndarray) -> Embedding:
    covariance = np.atleast_2d(np.cov(projected, rowvar=False))
    spread = max(float(np.trace(covariance)) / len(covariance), SMALL)
    return Embedding(size, projected.mean(0), covariance + SMALL * spread * np.eye(len(covariance)))


def _distances_from_others(embedding: Embedding, embeddings: np.ndarray) -> np.ndarray:
    """Return each embedding's distance as if it were new: from what the others, in FOLDS parts, say."""
    projected = embedding.project(embeddings)
    found, folds = np.empty(len(projected)), np.arange(len(projected)) % FOLDS
    for fold in range(FOLDS):
        if (folds == fold).any():
            found[folds == fold] = _fit(embedding.size, projected[folds != fold]).distances(projected[folds == fold])
    return found


def save(model_dir: str | os.PathLike, found: Baseline) -> None:
    """Write a baseline into a bundle. Raises OSError."""
    arrays: dict[str, Any] = {
        "format": FORMAT,
        "images": found.images,
        "state_sha256": found.state_sha256,
        "labels": np.array(list(found.labels), dtype=np.str_),
        "counts": np.array(list(found.labels.values()), np.int64),
        **{f"values.{name}": values for name, values in found.values.items()},
    }
    if found.embedding:
        arrays |= {f"embedding.{name}": value for name, value in found.embedding.__dict__.items()}
    with files.atomic(Path(model_dir) / bundle.BASELINE_FILE) as partial, open(partial, "wb") as file:
        np.savez_compressed(file, **arrays)


def load(model_dir: str | os.PathLike) -> Baseline:
    """Return the baseline of a bundle. Raises bundle.BundleError."""
    path = Path(model_dir) / bundle.BASELINE_FILE
    if not path.is_file():
        raise bundle.BundleError(
            f"{path}: missing: it is `fastmaker train` that writes one; for other bundles give images, by --baseline"
        )
    if path.stat().st_size > MAX_BYTES:
        raise bundle.BundleError(f"{path}: it has more than {MAX_BYTES} bytes")
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_BYTES:
                raise bundle.BundleError(f"{path}: it unpacks to more than {MAX_BYTES} bytes")
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        found = _parse(arrays)
    except bundle.BundleError:
        raise
    except Exception as error:  # damaged bytes make NumPy raise almost anything
        reason = " ".join(str(error).split())[:200]
        raise bundle.BundleError(f"{path}: no baseline that can be read: {type(error).__name__}: {reason}") from None
    if found.state_sha256 != bundle.load_info(model_dir).state_sha256:
        raise bundle.BundleError(
            f"{path}: it is of other weights than those of {bundle.STATE_FILE}; train the model again"
        )
    return found


def _parse(arrays: dict[str, np.ndarray]) -> Baseline:
    """Return the baseline of arrays. Raises ValueError and KeyError for what is none."""
    if int(arrays["format"]) > FORMAT:
        raise ValueError(f"its format is {int(arrays['format'])}, newer than {FORMAT}; use a newer fastmaker")
    values = {name.removeprefix("values."): array for name, array in arrays.items() if name.startswith("values.")}
    if not set(values) <= {*OF_PIXELS, *OF_FILES, *OF_ANSWERS} or any(array.ndim != 1 for array in values.values()):
        raise ValueError("its values are not those of images")
    embedding = None
    if "embedding.mean" in arrays:
        mean, covariance = arrays["embedding.mean"], arrays["embedding.covariance"]
        if covariance.shape != (len(mean), len(mean)) or len(mean) > DIRECTIONS:
            raise ValueError("the shapes of its embedding do not fit each other")
        embedding = Embedding(int(arrays["embedding.size"]), mean, covariance)
    counts = dict(zip(map(str, arrays["labels"]), map(int, arrays["counts"]), strict=True))
    return Baseline(counts, values, embedding, int(arrays["images"]), str(arrays["state_sha256"]))
