"""How long `fastmaker train` takes to its first batch: many images beside few.

The images are links to FILES photos, which a machine has in its memory: what is measured is what is done with them.
"""

import os
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from fastmaker.jobs import backends
from fastmaker.jobs.benchmarks import common
from fastmaker.local.store import default_home

HEADER = ["measured", "value", "ratio"]
FILES = 40
CLASSES = 4
FEW = 0.01  # of the images
SECONDS = 1800


def measure(*, images: int, hyperparameters: dict[str, str]) -> list[list]:
    """Return rows of HEADER about a job that trains on so many `images`, and on FEW of them."""
    with tempfile.TemporaryDirectory() as scratch:
        many = linked_classes(Path(scratch) / "many", images)
        few = linked_classes(Path(scratch) / "few", max(int(images * FEW), 100))
        long, short = common.alternate(
            lambda: seconds_to_first_batch(many, hyperparameters), lambda: seconds_to_first_batch(few, hyperparameters)
        )
        more = images - len(list(few.rglob("*.jpg")))
    return [
        [f"from train to the first batch, {images:,} images, s", round(long, 1), f"{long / short:.2f} of the few"],
        [f"the same, {images - more:,} images, s", round(short, 1), ""],
        ["each image more, ms", round(1000 * (long - short) / more, 3), ""],
    ]


def seconds_to_first_batch(data: Path, hyperparameters: dict[str, str]) -> float:
    """Start `fastmaker train`, stop its job after the first batch; return the seconds from the start to that batch.

    The job says so by its first checkpoint, whose writing is part of these.
    """
    job = f"benchmark-start-{uuid.uuid4().hex[:8]}"
    command = [sys.executable, "-m", "fastmaker.jobs.train", "--data", str(data), "--job-name", job]
    options = {**hyperparameters, "checkpoint-minutes": "1e-6"}
    command += [word for name, value in options.items() for word in (f"--{name}", value)]
    client = backends.Local().session.sagemaker_client
    with tempfile.TemporaryDirectory() as folder, open(Path(folder, "log"), "w+") as log:
        command += ["--checkpoints", str(Path(folder, "checkpoints"))]
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
        try:
            while not any(_checkpoints(job)):
                if process.poll() is not None or time.perf_counter() > started + SECONDS:
                    raise RuntimeError(f"no batch was trained: {Path(folder, 'log').read_text()[-2000:]}")
                time.sleep(0.02)
            seconds = time.perf_counter() - started
            client.stop_training_job(TrainingJobName=job)
        finally:
            process.wait()
        client.delete_training_job(TrainingJobName=job)
    return seconds


def _checkpoints(job: str) -> list[Path]:
    """Return the checkpoints that a job on one host has written so far."""
    return list((default_home() / "training-jobs" / job / "algo-1" / "checkpoints").glob("epoch-*.pt"))


def linked_classes(folder: Path, images: int) -> Path:
    """Write so many links to FILES generated photos into class folders below `folder`; return it."""
    photos = [folder.with_name(f"{folder.name} files") / f"{number}.jpg" for number in range(FILES)]
    photos[0].parent.mkdir(parents=True)
    for file, photo in zip(photos, common.generated_photos(FILES), strict=True):
        file.write_bytes(photo)
    for number in range(CLASSES):
        (folder / f"class {number}").mkdir(parents=True)
    for number in range(images):
        os.symlink(photos[number % FILES], folder / f"class {number % CLASSES}" / f"{number}.jpg")
    return folder
