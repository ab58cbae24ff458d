"""What the plots of all tasks share, and those of the training itself: losses, metrics, learning rates."""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fastmaker.training.report.page import Picture

if TYPE_CHECKING:
    from fastai.vision.all import Learner
    from matplotlib.axes import Axes

MAX_NAMED = 120  # rows of a matrix; more names would be illegible
NAME_LENGTH = 28  # of a class on a plot; the tables have whole names
BLUE, ORANGE, GREEN = "#2b6cb0", "#d94801", "#2f855a"
STYLE: Any = {
    "text.parse_math": False,  # a class may be named $x
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
}


def save(pictures: Iterable[Picture], folder: Path) -> list[Path]:
    """Draw the pictures as PNG files in `folder`, and return the files."""
    files = []
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # The fonts that are at hand lack emoji and many scripts; the page has the names as they are.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        for picture in pictures:
            files.append(folder / picture.file)
            picture.draw().savefig(files[-1], dpi=100, bbox_inches="tight", facecolor="white")
    return files


def short(name: str) -> str:
    """Return a class's name for a plot, in one line: the beginning and the end of a long one."""
    name = "".join(letter if letter.isprintable() else " " for letter in name)
    half = NAME_LENGTH // 2
    return name if len(name) <= NAME_LENGTH else f"{name[:half]}…{name[1 - half :]}"


def grid(count: int, columns: int, size: tuple[float, float]) -> tuple[Figure, "list[Axes]"]:
    """Return a figure with `count` axes in rows of `columns`, each of `size` (width, height) in inches."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="tight")
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for unused in axes[count:]:
        unused.set_axis_off()
    return figure, axes[:count]


def show_image(axes: "Axes", image: np.ndarray, title: str = "") -> None:
    """Show an image, uint8 (H, W, 3), without axes, as its pixels are."""
    axes.imshow(image, interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.set(xticks=[], yticks=[])  # not set_axis_off, of which a tight layout forgets the title
    axes.spines[:].set_visible(False)


def bars(rows: list[list[Any]]) -> Figure:
    """Return a plot of rows that begin with a name, precision, recall and F1: dots on a line each."""
    figure, [axes] = grid(1, 1, (6.4, 1.6 + 0.26 * len(rows)))
    names = [short(row[0]) for row in rows]
    for column, (name, marker, colour) in enumerate(
        (("precision", "<", BLUE), ("recall", ">", ORANGE), ("F1", "o", GREEN)), 1
    ):
        places = [(row[column], y) for y, row in enumerate(rows) if row[column] is not None]
        axes.plot(*zip(*places, strict=True) if places else ((), ()), marker, color=colour, label=name, alpha=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlim=(-0.02, 1.02), ylim=(len(rows) - 0.5, -0.5))
    axes.grid(axis="both", color="#e6ebf0")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)
    return figure


def matrix(counts: np.ndarray, names: Sequence[str], max_numbered: int) -> Figure:
    """Return a plot of counts (n, n), with numbers in the cells unless there are more than `max_numbered` rows."""
    n = len(names)
    size = min(5 + 0.3 * n, 20)
    figure, [axes] = grid(1, 1, (size, size))
    axes.imshow(counts, cmap="Blues", interpolation="nearest")
    ticks = list(names) if n <= MAX_NAMED else []
    axes.set_xticks(range(len(ticks)), ticks, rotation=90, fontsize=min(10, 1200 / n))
    axes.set_yticks(range(len(ticks)), ticks, fontsize=min(10, 1200 / n))
    axes.spines[:].set_visible(False)
    for i, j in np.argwhere(counts) if n <= max_numbered else ():
        colour = "white" if counts[i, j] > counts.max() / 2 else "black"
        axes.text(j, i, str(counts[i, j]), ha="center", va="center", color=colour, fontsize=min(10, 400 / n))
    return figure


def of_training(learn: "Learner") -> list[Picture]:
    """Return the plots of losses, metrics and learning rates, and that of the learning rate's finder if it ran."""
    recorder = learn.recorder
    names, values = list(recorder.metric_names[:-1]), np.asarray(recorder.values, dtype=float)
    losses, ends, rates = list(recorder.losses), list(recorder.iters), list(recorder.lrs)
    pictures = [
        Picture(
            "curves.png",
            "The loss of each batch in training and of each epoch in validation, and the validation metrics by epoch.",
            lambda: _curves(names[1:], values, losses, ends),
        ),
        Picture(
            "learning_rate.png",
            f"The learning rate of each of {len(rates)} batches, up to {max(rates, default=0):.2g}.",
            lambda: _learning_rate(rates),
        ),
    ]
    if found := getattr(learn, "kept", {}).get("lr_finder"):
        alt = f"The loss by the learning rate, as the finder tried it; it chose {found['lr']:.2g}."
        pictures.append(Picture("lr_finder.png", alt, lambda: _finder(found)))
    return pictures


def _curves(names: Sequence[str], values: np.ndarray, losses: Sequence[float], epoch_ends: Sequence[int]) -> Figure:
    figure, (left, right) = grid(2, 2, (5.5, 4))
    left.plot(losses, color="#9ecae1", label="train, each batch")
    left.plot(epoch_ends, values[:, 1], "o-", color=ORANGE, label="valid, each epoch")
    left.set(title="Loss", xlabel="batch", ylim=(0, _top([*losses, *values[:, 1]])))
    left.legend()
    epochs = range(1, len(values) + 1)
    for name, column in zip(names[2:], values[:, 2:].T, strict=True):
        right.plot(epochs, column, "o-", label=f"{short(name).lstrip('_')} {column[-1]:.4f}")
    if np.nanmax(values[:, 2:], initial=0) <= 1:
        right.set_ylim(0, 1.05)
    right.set(title="Validation metrics", xlabel="epoch")
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(names) > 2:
        right.legend()
    return figure


def _top(losses: Sequence[float]) -> float:
    """Return the top of an axis of losses: a single huge loss would flatten the rest of the curve."""
    finite = [loss for loss in map(float, losses) if np.isfinite(loss)]
    return float(1.1 * max(np.percentile(finite, 98), 1e-6)) if finite else 1.0


def _learning_rate(rates: Sequence[float]) -> Figure:
    figure, [axes] = grid(1, 1, (5.5, 3.2))
    axes.plot(rates, color=BLUE)
    axes.set(title="Learning rate", xlabel="batch", ylim=(0, None))
    return figure


def _finder(found: dict[str, Any]) -> Figure:
    figure, [axes] = grid(1, 1, (5.5, 3.2))
    losses = [float(loss) for loss in found["losses"]]
    axes.plot(found["lrs"], losses, color=BLUE)
    axes.axvline(found["lr"], color=ORANGE, label=f"chosen: {found['lr']:.2g}")
    finite = [loss for loss in losses if np.isfinite(loss)]
    if finite:  # what diverges at the end would hide the minimum
        low, start = min(finite), losses[0] if np.isfinite(losses[0]) else max(finite)
        axes.set_ylim(low - 0.1 * (start - low + 1e-6), start + 0.5 * (start - low + 1e-6))
    axes.set(title="Learning rate finder", xlabel="learning rate", ylabel="loss", xscale="log")
    axes.xaxis.set_major_formatter("{x:.0e}")
    axes.tick_params(axis="x", labelsize=7)
    axes.legend()
    return figure
