"""The page of `fastmaker monitor`: what was asked, what has changed, and the images to look at."""

import io
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from fastmaker.baseline import Baseline
from fastmaker.jobs.monitoring.captures import Reading
from fastmaker.jobs.monitoring.drift import ALPHA, LEAST_EFFECT, Change
from fastmaker.jobs.monitoring.window import Window

SHOWN = 12  # images of a picture
SHOWN_LABELS = 30
BINS = 30
MEANING = {
    "brightness": "the mean of the pixels, from 0 to 1",
    "contrast": "their standard deviation, relative to brightness",
    "sharpness": "the logarithm of the variation at edges, relative to contrast",
    "edges": "how many more lines stand than lie, as a logarithm",
    "axes": "how many lines stand or lie rather than slant",
    "size": "the square root of width times height of the file, in pixels",
    "shape": "the logarithm of width / height of the file",
    "distance": "how far an image is from the validation images, by what the network's last layer sees; usual is 1",
    "upright": "how far what tells above from below has moved: light, contrast, edges, shade; in standard deviations",
    "embedding": "how far the mean of what the last layer sees has moved, in standard deviations",
    "confidence": "how sure the network is of its answer",
    "labels": "the share of the label that has changed most",
}


def write(path: Path, window: Window, known: Baseline, changes: list[Change], reading: Reading) -> None:
    """Write the page, one file, to `path`."""
    from fastmaker.training.report import page, plots

    sections = [
        page.Section("What has changed", _about_tests(changes), _tests(known, window, changes)),
        *_labels(known, window),
        page.Section("Requests", _about_requests(window, reading), [_volume(window), *_faults(window, reading)]),
        *_images(window, known),
    ]
    pictures = [part for section in sections for part in section.parts if isinstance(part, page.Picture)]
    with tempfile.TemporaryDirectory() as scratch:
        plots.save(pictures, Path(scratch))
        page.write(Path(scratch, path.name), title(changes), _lead(window), _figures(window, changes), sections)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(Path(scratch, path.name).read_bytes())


def title(changes: list[Change]) -> str:
    """Return what has changed in a line, the likeliest cause first."""
    causes = list(dict.fromkeys(change.cause for change in changes if change.alarm))
    return f"Alarm: {', '.join(causes)}" if causes else "No alarm"


def _lead(window: Window) -> str:
    first, last = min(window.times), max(window.times)
    return f"{len(window.times)} captured requests from {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC."


def _figures(window: Window, changes: list[Change]) -> list[tuple[str, float | None]]:
    return [
        ("requests", len(window.times)),
        ("distinct", window.distinct),
        ("images compared", len(window.samples)),
        ("alarms", sum(change.alarm for change in changes)),
    ]


def _about_tests(changes: list[Change]) -> str:
    if not changes:
        return "There are too few images to compare."
    return (
        "Each value of the images is compared with the validation images of the training. The effect is the largest"
        " difference of the fractions below any value, from 0 to 1; p is the probability of such a difference by"
        f" chance, corrected for the number of tests. An alarm has p below {ALPHA} and an effect of at least"
        f" {LEAST_EFFECT}. The likeliest cause comes first."
    )


def _tests(known: Baseline, window: Window, changes: list[Change]) -> list[Any]:
    from fastmaker.training.report import page

    if not changes:
        return []
    rows = [
        [c.cause, MEANING[c.value], c.before, c.now, c.effect, f"{c.p:.1e}", f"{c.corrected:.1e}", _said(c)]
        for c in changes
    ]
    header = ("cause", "value", "median before", "median now", "effect", "p", "p corrected", "")
    return [page.Table("", header, rows), *_histograms(known, window, changes)]


def _said(change: Change) -> str:
    return "ALARM" if change.alarm else ""


def _histograms(known: Baseline, window: Window, changes: list[Change]) -> list[Any]:
    from fastmaker.training.report import page, plots

    shown = [change.value for change in changes if change.value in window.values]
    if not shown:
        return []

    def draw() -> Any:
        figure, cells = plots.grid(len(shown), 3, (3.4, 2.5))
        for axes, value in zip(cells, shown, strict=True):
            both = known.values[value], window.values[value]
            edges = np.histogram_bin_edges(np.concatenate(both), BINS)
            for values, colour, name in zip(both, (plots.BLUE, plots.ORANGE), ("training", "now"), strict=True):
                weights = np.full(len(values), 1 / len(values))
                axes.hist(values, edges, weights=weights, color=colour, alpha=0.55, label=name)
            axes.set_title(value)
            axes.set_yticks([])
        cells[0].legend(frameon=False)
        return figure

    alt = (
        "How each value is spread, in the validation images of the training and now; what has changed most comes first."
    )
    return [page.Picture("values.png", alt, draw)]


def _labels(known: Baseline, window: Window) -> list[Any]:
    from fastmaker.training.report import page, plots

    if not known.labels or not window.labels:
        return []
    totals = [max(1, sum(counts.values())) for counts in (known.labels, window.labels)]
    rows = [[label, known.labels[label] / totals[0], window.labels[label] / totals[1]] for label in known.labels]
    rows.sort(key=lambda row: -abs(row[2] - row[1]))
    shown = rows[:SHOWN_LABELS]

    def draw() -> Any:
        figure, [axes] = plots.grid(1, 1, (6.4, 1.2 + 0.26 * len(shown)))
        places = np.arange(len(shown))
        axes.barh(places - 0.2, [row[1] for row in shown], 0.4, color=plots.BLUE, label="training")
        axes.barh(places + 0.2, [row[2] for row in shown], 0.4, color=plots.ORANGE, label="now")
        axes.set_yticks(places, [plots.short(row[0]) for row in shown])
        axes.invert_yaxis()
        axes.legend(frameon=False)
        return figure

    alt = (
        f"The shares of {len(shown)} labels among the answers, in the training and now; the largest change at the top."
    )
    table = page.Table(f"Labels, the largest change first ({len(rows)})", ("label", "training", "now"), rows)
    return [page.Section("Labels", "", [page.Picture("labels.png", alt, draw), table])]


def _about_requests(window: Window, reading: Reading) -> str:
    parts = [
        f"{window.distinct} requests differ, of which {window.analysed} were answered again by the bundle.",
        f"{reading.files} files were read.",
    ]
    if window.without_input:
        parts.append(f"Of {window.without_input} requests the input was not captured.")
    if window.compared:
        parts.append(f"{window.differing} of {window.compared} captured labels are not those of this bundle.")
    parts.append("Captures do not say how long an answer took, and requests that failed are not captured.")
    return " ".join(parts)


def _volume(window: Window) -> Any:
    from fastmaker.training.report import page, plots

    def draw() -> Any:
        figure, [axes] = plots.grid(1, 1, (6.4, 2.6))
        times = np.array([time.timestamp() for time in window.times])
        start = times.min()
        span = max(times.max() - start, 1.0)
        unit, seconds = next(((n, s) for n, s in (("days", 86400), ("hours", 3600)) if span > 2 * s), ("minutes", 60))
        axes.hist((times - start) / seconds, min(48, max(1, int(span / seconds * 4))), color=plots.BLUE)
        axes.set(xlabel=f"{unit} after the first request", ylabel="requests")
        return figure

    return page.Picture("volume.png", "How many requests were captured at which time.", draw)


def _faults(window: Window, reading: Reading) -> list[Any]:
    from fastmaker.training.report import page

    found: Counter[str] = reading.unreadable + window.bad_inputs
    rows = [[reason, count] for reason, count in found.most_common()]
    return [page.Table("What could not be read", ("reason", "count"), rows)] if rows else []


def _images(window: Window, known: Baseline) -> list[Any]:
    """Return the pictures of the images to look at, each with a table of the requests that they are of."""
    from fastmaker.training.report import page

    sections = []
    for value, name, text, sign in (
        ("distance", "Most unlike the training", "Their distance from the validation images is the largest.", -1),
        ("confidence", "Least certain", "Their labels would teach the network most.", 1),
    ):
        if value in window.values:
            order = np.argsort(sign * window.values[value], kind="stable")[:SHOWN].tolist()
            rows = [_row(window, value, i) for i in order]
            picture = page.Picture(f"{value}.png", f"{name}: {len(order)} images.", _drawn(window, value, order))
            table = page.Table("Their requests", ("request", "time", "label", value), rows)
            sections.append(page.Section(name, text, [picture, table]))
    return sections


def _row(window: Window, value: str, index: int) -> list[Any]:
    sample = window.samples[index]
    return [sample.name, f"{sample.time:%Y-%m-%d %H:%M:%S}", sample.label, float(window.values[value][index])]


def _drawn(window: Window, value: str, order: list[int]) -> Any:
    from PIL import Image

    from fastmaker.training.report import plots

    def draw() -> Any:
        figure, cells = plots.grid(len(order), 4, (2.4, 2.7))
        for cell, i in zip(cells, order, strict=True):
            sample = window.samples[i]
            image = np.asarray(Image.open(io.BytesIO(sample.thumbnail)))
            plots.show_image(cell, image, f"{plots.short(sample.label)}\n{value} {window.values[value][i]:.2f}".strip())
        return figure

    return draw
