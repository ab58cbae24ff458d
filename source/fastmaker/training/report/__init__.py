"""The report of a run: metrics.json, history.csv, plots as PNG files, and report.html with all of it to look at.

    findings = report.measure(learn)
    report.write(learn, "output", metrics, findings)

A module a task gathers the answers to the validation images in one pass: what it says in metrics.json (`details`), and
what it shows (`sections`).
"""

import csv
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmaker import baseline
from fastmaker.training import losses, targets
from fastmaker.training.report import page, plots, predictions
from fastmaker.training.report.classification import Classes
from fastmaker.training.report.masks import Masks
from fastmaker.training.report.multilabel import Labels
from fastmaker.training.report.points import Points
from fastmaker.training.report.regression import Numbers

if TYPE_CHECKING:
    from fastai.vision.all import Learner

Gathered = Classes | Labels | Numbers | Points | Masks


@dataclass(frozen=True)
class Run:
    """What a report says of the run beside its results."""

    options: dict[str, Any] = field(default_factory=dict)
    summary: str = ""  # of the data
    seconds: float | None = None  # that it took
    names: Sequence[str] = ()  # of several numbers
    best_epoch: int | None = None  # whose weights were kept, from 1; None if they are the last one's


@dataclass(frozen=True)
class Findings:
    """What the pass over the validation images found."""

    task: str
    gathered: Gathered
    images: int
    lost: int  # images whose answers are no finite numbers, which the figures leave out

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics that those of the training lack, by their flat names."""
        return self.gathered.metrics() if self.lost < self.images else {}


def measure(
    learn: "Learner", names: Sequence[str] = (), passes: int = 0, seed: int = 0, seen: baseline.Seen | None = None
) -> Findings:
    """Return what `learn` answers to its validation images, one pass over them.

    `names` are those of several numbers. `passes` and `seen` are as `predictions.gather` says.
    """
    task = targets.task(learn)
    gathered: Gathered
    if task == "segmentation":
        gathered = Masks(list(targets.labels(learn)), targets.void_code(learn))
    elif task == "classification":
        gathered = Classes(list(targets.labels(learn)))
    elif task == "multilabel":
        labels = list(targets.labels(learn))
        gathered = Labels(labels, losses.read(learn.loss_func, task, (len(labels),)).get("threshold"))
    else:
        gathered = Points(predictions.input_size(learn)) if task == "points" else Numbers(names)
    lost = predictions.gather(learn, gathered, passes, seed, seen)
    return Findings(task, gathered, len(learn.dls.valid_ds), lost)


def write(
    learn: "Learner",
    output_dir: str | os.PathLike,
    metrics: dict[str, float],
    findings: Findings | None = None,
    run: Run | None = None,
) -> list[Path]:
    """Write the report of a fitted `learn` into `output_dir` and return the files.

    `findings` are those of `measure`, which is called without them. The option ``tta`` of the run, if it is not 0, adds
    what averaging over as many augmented passes gives.
    """
    folder, run = Path(output_dir), run or Run()
    folder.mkdir(parents=True, exist_ok=True)
    findings = findings or measure(learn, run.names)
    known = findings.lost < findings.images
    details = findings.gathered.details() if known else {}
    if known and run.options.get("tta"):
        details["tta"] = _averaged(learn, findings, run)
    lost = {"images_without_finite_answers": findings.lost} if findings.lost else {}
    document = metrics | lost | ({"details": details} if details else {})
    (folder / "metrics.json").write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")
    _write_history(learn.recorder, folder / "history.csv")
    sections = _sections(learn, findings, details)
    pictures = [part for section in sections for part in section.parts if isinstance(part, page.Picture)]
    files = plots.save(pictures, folder)
    figures = {name: value for name, value in metrics.items() if name not in findings.metrics}  # a table has those
    figures = (findings.gathered.key_figures() if known else {}) | figures
    page.write(
        folder / "report.html",
        _title(findings, run),
        _lead(learn, run),
        figures.items(),
        [*sections, _about(findings, run)],
    )
    return [folder / "metrics.json", folder / "history.csv", *files, folder / "report.html"]


def _sections(learn: "Learner", findings: Findings, details: dict[str, Any]) -> list[page.Section]:
    """Return the parts of the page that have plots, and those of the task if its figures are known."""
    sections = [page.Section("Training", "", plots.of_training(learn))]
    if "tta" in details:
        sections.append(_tta_section(details["tta"]))
    return sections + (findings.gathered.sections(learn) if details else [])


def _averaged(learn: "Learner", findings: Findings, run: Run) -> dict[str, Any]:
    passes, seed = run.options["tta"], run.options.get("seed", 0)
    averaged = measure(learn, run.names, passes, seed).gathered
    return {"passes": passes, "without": findings.gathered.key_figures(), "with": averaged.key_figures()}


def _tta_section(found: dict[str, Any]) -> page.Section:
    return page.Section(
        "Test-time augmentation",
        f"The answers to an image averaged over {found['passes']} passes that augment it as in training, and one that"
        " does not. The model that is served does not do so.",
        [
            page.Table(
                "Without and with it",
                ("", "without", "with"),
                [[name, value, found["with"][name]] for name, value in found["without"].items()],
            )
        ],
    )


def _write_history(recorder: Any, path: Path) -> None:
    """Write a row an epoch: its number, the losses and the metrics."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(recorder.metric_names[:-1])
        values = np.asarray(recorder.values, dtype=float).tolist()
        writer.writerows([epoch, *row] for epoch, row in enumerate(values, 1))


def _title(findings: Findings, run: Run) -> str:
    arch = f", {run.options['arch']}" if "arch" in run.options else ""
    return f"{findings.task.capitalize()}{arch}: {findings.images} validation images"


def _lead(learn: "Learner", run: Run) -> str:
    """Return the sentences below the title: what was trained on what, and which epoch was kept."""
    epochs = len(learn.recorder.values)
    size = f", images of {_value(run.options['image_size'])} pixels" if "image_size" in run.options else ""
    took = f" in {_duration(run.seconds)}" if run.seconds is not None else ""
    kept = f" The weights are those of epoch {run.best_epoch}, the best one." if run.best_epoch else ""
    return (
        f"{epochs} {'epoch' if epochs == 1 else 'epochs'}{took}{size}.{kept} {run.summary[:1].upper()}{run.summary[1:]}"
    )


def _about(findings: Findings, run: Run) -> page.Section:
    """Return the part that says what ran: the data, the options, the versions."""
    modules = {name: sys.modules[name] for name in ("fastmaker", "fastai", "torch", "torchvision")}
    versions = ", ".join(f"{name} {module.__version__}" for name, module in modules.items())
    facts = [["data", run.summary]] if run.summary else []
    if findings.lost:
        facts.append(["left out", f"{findings.lost} images, whose answers are not finite numbers"])
    if run.seconds is not None:
        facts.append(["duration", _duration(run.seconds)])
    facts.append(["versions", f"Python {platform.python_version()}, {versions}"])
    options = [["--" + name.replace("_", "-"), _value(value)] for name, value in run.options.items()]
    tables = [page.Table("", ("", ""), facts)]
    if options:
        tables.append(page.Table(f"Options ({len(options)})", ("option", "value"), options))
    return page.Section("The run", "", tables)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ("x" if isinstance(value, tuple) else " ").join(map(str, value))
    return "-" if value is None else str(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
