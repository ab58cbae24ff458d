"""The report of a run: metrics.json, history.csv, and plots as PNG files."""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np

from fastmaker import masks

if TYPE_CHECKING:
    from fastai.vision.all import Learner

SHOWN_MASKS = 6
MAX_NUMBERED_CLASSES = 50


def write(learn: "Learner", output_dir: str | os.PathLike, metrics: dict[str, float]) -> list[Path]:
    """Write the report of a fitted classifier or U-Net into `output_dir` and return the files."""
    matplotlib.use("Agg")
    from fastai.vision.all import DynamicUnet
    from matplotlib import pyplot

    from fastmaker.training import targets

    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    recorder = learn.recorder
    names, values = list(recorder.metric_names[:-1]), np.asarray(recorder.values, dtype=float)
    losses, epoch_ends = list(recorder.losses), list(recorder.iters)
    _write_history(names, values, output_dir / "history.csv")

    plots: dict[str, Callable[[], None]] = {"curves.png": lambda: _plot_curves(names[1:], values, losses, epoch_ends)}
    with (
        learn.no_bar(),
        learn.no_logging(),
        learn.removed_cbs(learn.cbs.filter(lambda cb: cb.name == "metric_log")),
        pyplot.rc_context({"text.parse_math": False}),  # a class may be named $x
    ):
        if isinstance(learn.model, DynamicUnet):
            plots |= _mask_plots(learn, metrics)
        elif targets.task(learn) == "classification":
            plots |= _class_plots(learn)
        for name, plot in plots.items():
            plot()
            pyplot.savefig(output_dir / name, dpi=100, bbox_inches="tight")
            pyplot.close("all")
    return [output_dir / name for name in ("metrics.json", "history.csv", *plots)]


def _class_plots(learn: "Learner") -> dict[str, Callable[[], None]]:
    from fastai.vision.all import ClassificationInterpretation

    interpretation = ClassificationInterpretation.from_learner(learn)  # predicts, which resets the Recorder
    return {
        "confusion_matrix.png": lambda: _plot_confusion_matrix(interpretation),
        "top_losses.png": lambda: _plot_top_losses(interpretation),
    }


def _mask_plots(learn: "Learner", metrics: dict[str, float]) -> dict[str, Callable[[], None]]:
    from fastmaker.training import from_learner

    info = from_learner.describe(learn)
    colours = dict(zip(info.labels, masks.palette(len(info.labels), info.void_code) / 255, strict=True))
    return {"masks.png": lambda: _plot_masks(learn, colours), "iou.png": lambda: _plot_iou(metrics, colours)}


def _write_history(names: list[str], values: np.ndarray, path: Path) -> None:
    """Write a row an epoch: its number, the losses and the metrics."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([epoch, *row] for epoch, row in enumerate(values.tolist(), 1))


def _plot_curves(names: list[str], values: np.ndarray, losses: list[float], epoch_ends: list[int]) -> None:
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4))
    left.plot(losses, color="#9ecae1", label="train, each batch")
    left.plot(epoch_ends, values[:, 1], "o-", color="#d94801", label="valid, each epoch")
    # A single huge loss would flatten the rest of the curve.
    finite = [loss for loss in map(float, (*losses, *values[:, 1])) if np.isfinite(loss)]
    top = 1.1 * max(np.percentile(finite, 98), 1e-6) if finite else 1
    left.set(title="Loss", xlabel="batch", ylim=(0, top))
    left.legend()
    epochs = range(1, len(values) + 1)
    for name, column in zip(names[2:], values[:, 2:].T, strict=True):
        right.plot(epochs, column, "o-", label=f"{name} {column[-1]:.4f}")
    right.set(title="Validation metrics", xlabel="epoch", ylim=(0, 1.05))
    right.xaxis.set_major_locator(pyplot.MaxNLocator(integer=True))
    right.legend()
    figure.tight_layout()


def _plot_top_losses(interpretation: Any) -> None:
    from matplotlib import pyplot

    with pyplot.rc_context({"axes.titlesize": 8, "figure.titlesize": 11}):
        interpretation.plot_top_losses(min(9, len(interpretation.dl.dataset)), figsize=(12, 11))
    for axes in pyplot.gcf().axes:  # "predicted/actual / loss / probability", each on its own line
        axes.set_title(axes.get_title().replace(" / ", "\n"))
    pyplot.gcf().tight_layout()


def _plot_iou(metrics: dict[str, float], colours: dict[str, np.ndarray]) -> None:
    """Plot a bar for each class that occurs or is predicted, the best at the top."""
    from matplotlib import pyplot

    iou = sorted((metrics[f"iou_{label}"], label) for label in colours if f"iou_{label}" in metrics)
    axes = pyplot.figure(figsize=(8, 1.5 + 0.3 * len(iou))).gca()
    bars = axes.barh([label for _, label in iou], [value for value, _ in iou], color=[colours[name] for _, name in iou])
    axes.bar_label(bars, fmt="%.3f", padding=3)
    axes.set(title=f"Intersection over union, mean {metrics['mean_iou']:.3f}", xlim=(0, 1.1))


def _plot_masks(learn: "Learner", colours: dict[str, np.ndarray]) -> None:
    """Plot validation images, evenly spaced in the set, each beside its true and its predicted mask."""
    from matplotlib import patches, pyplot

    items = learn.dls.valid_ds.items
    shown = [items[i] for i in np.linspace(0, len(items) - 1, min(SHOWN_MASKS, len(items))).astype(int)]
    dl = learn.dls.test_dl(shown, with_labels=True, bs=len(shown))
    inputs, _, true, predicted = learn.get_preds(dl=dl, with_input=True, with_decoded=True)
    images = dl.decode((inputs,))[0].expand(-1, 3, -1, -1).permute(0, 2, 3, 1)  # 0 to 255
    palette = np.asarray(list(colours.values()))
    figure, axes = pyplot.subplots(len(shown), 3, figsize=(10, 2.6 * len(shown)), squeeze=False)
    for row, *pictures in zip(axes, images, palette[true], palette[predicted], strict=True):
        for cell, picture in zip(row, pictures, strict=True):
            cell.imshow(np.asarray(picture), interpolation="nearest")
            cell.set_axis_off()
    for cell, title in zip(axes[0], ("image", "truth", "prediction"), strict=True):
        cell.set_title(title)
    legend = [patches.Patch(color=tuple(colour), label=label) for label, colour in colours.items()]
    figure.tight_layout()
    figure.legend(handles=legend, loc="upper center", bbox_to_anchor=(0.5, 0), ncol=6)


def _plot_confusion_matrix(interpretation: Any) -> None:
    n = len(interpretation.vocab)
    size = min(5 + 0.3 * n, 20)
    # Numbers in the cells take minutes for hundreds of classes, and would be illegible.
    interpretation.plot_confusion_matrix(figsize=(size, size), plot_txt=n <= MAX_NUMBERED_CLASSES)
