"""The training job beside a bare fastai loop over the same DataLoaders, hosts beside one, bf16 beside float32."""

import contextlib
import functools
import io
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fastmaker.jobs import backends, files
from fastmaker.jobs.backends import pytorch
from fastmaker.jobs.benchmarks import common

HEADER = ["measured", "value", "ratio"]
BATCH_SIZE = 32  # of one host
GENERATED_PHOTOS = 600
ENTRY_POINT = str(files.SOURCE / "entry_point.py")


def measure(
    *, data: str | None, hyperparameters: dict[str, str], hosts: int | None, precision: str | None = None
) -> list[list]:
    """Return rows of HEADER: of the job beside the bare loop, of `hosts` beside one, or of `precision` beside float32.

    `data` is a training data directory (None: generated photos in four classes).
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = data or str(_generated_classes(folder / "data"))
        given = {"pretrained": "false", "batch-size": str(BATCH_SIZE), "precision": "float32"}
        hyperparameters = {**hyperparameters, **given}
        if precision:
            return _beside_float32(data, hyperparameters, precision, folder)
        if hosts:
            return _hosts_beside_one(data, hyperparameters, hosts)
        return _beside_bare_loop(data, hyperparameters, folder)


def _beside_bare_loop(data: str, hyperparameters: dict[str, str], folder: Path) -> list[list]:
    # A seed of its own for each: what the augmentation draws takes longer with some, and the loops draw differently.
    rounds = [_measure_once(data, {**hyperparameters, "seed": str(i)}, folder / str(i)) for i in range(common.ROUNDS)]
    # The median over every epoch of every round.
    script, bare, fit = (statistics.median(rate for r in rounds for rate in r[i]) for i in range(3))
    script_seconds, fit_seconds = (statistics.median(r[i] for r in rounds) for i in (3, 4))
    return [
        ["entry point, images/s", round(script, 1), f"{script / bare:.2f} of the bare loop"],
        ["bare fastai loop, images/s", round(bare, 1), ""],
        ["fit through ProcessSession, images/s", round(fit, 1), f"{fit / bare:.2f} of the bare loop"],
        ["python source/entry_point.py, s", round(script_seconds, 1), ""],
        ["fit through ProcessSession, s", round(fit_seconds, 1), f"{fit_seconds - script_seconds:+.1f} s"],
    ]


def _beside_float32(data: str, hyperparameters: dict[str, str], precision: str, folder: Path) -> list[list]:
    def rate(kind: str) -> float:
        options = {**hyperparameters, "precision": kind}
        return statistics.median(_rates(_python(ENTRY_POINT, data=data, hyperparameters=options, folder=folder)))

    halves, whole = common.alternate(lambda: rate(precision), lambda: rate("float32"))
    return [
        [f"entry point in {precision}, images/s", round(halves, 1), f"{halves / whole:.2f} of float32"],
        ["entry point in float32, images/s", round(whole, 1), ""],
    ]


def _python(*command: str, data: str, hyperparameters: dict[str, str], folder: Path) -> str:
    """Run a program with the arguments of the entry point; return what it prints."""
    arguments = [word for name, value in hyperparameters.items() for word in (f"--{name}", value)]
    arguments += ["--train", data, "--model-dir", str(folder / "model"), "--output-data-dir", str(folder / "output")]
    return subprocess.check_output([sys.executable, *command, *arguments], text=True)


def _measure_once(data: str, hyperparameters: dict[str, str], folder: Path) -> tuple:
    """Return images/s by epoch of the entry point, the bare loop and fit; seconds of the entry point and of fit."""
    python = functools.partial(_python, data=data, hyperparameters=hyperparameters, folder=folder)
    started = time.perf_counter()
    script = python(ENTRY_POINT)
    script_seconds = time.perf_counter() - started
    bare = python("-m", "fastmaker.jobs.benchmarks.bare_loop")
    fit, fit_seconds = _fit(data, hyperparameters)
    return _rates(script), _rates(bare), fit, script_seconds, fit_seconds


def _hosts_beside_one(data: str, hyperparameters: dict[str, str], hosts: int) -> list[list]:
    """Measure `hosts` local hosts, which share the cores, beside one that has all cores and batches as large."""

    def rate(hosts: int, batch_size: int) -> float:
        return statistics.median(_fit(data, {**hyperparameters, "batch-size": str(batch_size)}, hosts)[0])

    together, alone = common.alternate(lambda: rate(hosts, BATCH_SIZE), lambda: rate(1, BATCH_SIZE * hosts))
    return [
        [
            f"{hosts} hosts, batches of {BATCH_SIZE} on each, images/s",
            round(together, 1),
            f"{together / alone:.2f} of one host",
        ],
        [f"one host, batches of {BATCH_SIZE * hosts}, images/s", round(alone, 1), ""],
    ]


def _fit(data: str, hyperparameters: dict[str, str], hosts: int = 1) -> tuple[list[float], float]:
    """Run a training job on `hosts`; return the images/s of each epoch, and the seconds that ``fit`` took."""
    backend = backends.Local()
    channels = {"train": f"file://{Path(data).resolve()}"}
    # A copy, to which the SDK adds its own.
    request = backends.TrainingRequest("benchmark", channels, dict(hyperparameters), instance_count=hosts)
    estimator = pytorch.estimator(request, backend)
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()) as log:
        estimator.fit(channels)
    seconds = time.perf_counter() - started
    backend.session.sagemaker_client.delete_training_job(TrainingJobName=estimator.latest_training_job.name)
    return _rates(log.getvalue()), seconds


def _rates(log: str) -> list[float]:
    return [float(rate) for rate in re.findall(r"images_per_second=([0-9.]+)", log)]


def _generated_classes(folder: Path) -> Path:
    """Write generated photos into four class folders; return the folder of these."""
    for number, photo in enumerate(common.generated_photos(GENERATED_PHOTOS)):
        class_folder = folder / f"class {number % 4}"
        class_folder.mkdir(parents=True, exist_ok=True)
        (class_folder / f"{number}.jpg").write_bytes(photo)
    return folder
