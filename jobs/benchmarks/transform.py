"""Batch transform jobs: beside the bare processes, beside one object at a time, and a large job beside a small one."""

import contextlib
import io
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import urllib3
from PIL import Image

from fastmaker.jobs import backends
from fastmaker.jobs.backends import pytorch
from fastmaker.jobs.benchmarks import common
from fastmaker.jobs.benchmarks.bare_processes import Processes, predictor
from fastmaker.jobs.packaging import endpoint
from fastmaker.local.containers import pack

HEADER = ["measured", "value", "ratio"]
BARE_IMAGES_PER_SECOND = 30  # how long the bare processes run for as many images as the job has
SMALL, MEDIUM = 1000, 8000  # objects of the small job, and of the job beside one object at a time
WORKERS = 2
# The settings of the managed container for the SDK's local mode: those of the toolkit, without ours.
STOCK_ENV = {"SAGEMAKER_MODEL_SERVER_WORKERS": str(WORKERS), "JDK_JAVA_OPTIONS": "", "TS_METRICS_MODE": "log"}


def measure(*, arch: str, images: str | None, photos: int, digits: int) -> list[list]:
    """Return rows of HEADER: of `photos` images through `arch`, and of `digits` small ones through a small network.

    `images` is a folder of photos (None: generated ones).
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rows = _beside_bare_processes(arch, common.load_photos(images), photos, folder / "photos")
        large, medium, small = (
            write_files(folder / f"digits-{count}", _digits(), count, ".png") for count in (digits, MEDIUM, SMALL)
        )
        archive = _untrained_archive("convnet", 28, folder / "convnet")
        rows += _beside_one_at_a_time(archive, medium)
        rows += _large_beside_small(archive, large, small)
    return rows


def _beside_bare_processes(arch: str, photos: list[bytes], count: int, folder: Path) -> list[list]:
    cores = len(os.sched_getaffinity(0))
    data = write_files(folder / "in", photos, count, ".jpg")
    archive = _untrained_archive(arch, 224, folder / "bundle")
    with Processes(cores, predictor, str(folder / "bundle"), "float32") as bare_processes:
        rate, bare_rate = common.alternate(
            lambda: count / run_job(archive, data)["answering"],
            lambda: bare_processes.throughput(photos, count / BARE_IMAGES_PER_SECOND),
        )
    return [
        [f"transform, {arch} at 224, images/s", round(rate, 1), f"{rate / bare_rate:.2f} of the bare loop"],
        [f"bare loop, {cores} processes, images/s", round(bare_rate, 1), ""],
    ]


def _beside_one_at_a_time(archive: Path, data: Path) -> list[list]:
    count = len(list(data.iterdir()))
    rate, single = common.alternate(
        lambda: count / run_job(archive, data)["answering"], lambda: count / _one_at_a_time(archive, data)
    )
    return [
        [
            f"transform, 28x28 digits, {WORKERS} workers, images/s",
            round(rate, 1),
            f"{rate / single:.2f} of one at a time",
        ],
        ["one at a time, as the SDK's local mode, images/s", round(single, 1), ""],
    ]


def _large_beside_small(archive: Path, large: Path, small: Path) -> list[list]:
    runs = [(run_job(archive, large), run_job(archive, small)) for _ in range(common.ROUNDS)]

    def median(job: int, figure: str) -> float:
        return statistics.median(run[job][figure] for run in runs)

    counts = [len(list(folder.iterdir())) for folder in (large, small)]
    per_object = [1000 * median(i, "seconds") / count for i, count in enumerate(counts)]
    memory = [median(i, "memory") for i in (0, 1)]
    return [
        [
            f"{counts[0]} objects, ms each",
            round(per_object[0], 2),
            f"{per_object[0] / per_object[1]:.2f} of few",
        ],
        [f"{counts[1]} objects, ms each", round(per_object[1], 2), ""],
        [f"memory at {counts[0]} objects, MB", round(memory[0]), f"{memory[0] - memory[1]:+.0f} on a small job"],
    ]


def run_job(archive: Path, data: Path) -> dict[str, float]:
    """Run a transform job; return `seconds` and peak `memory` in MB of its process, less the start of its server.

    `answering` is the seconds from the first to the last answer. Raises ValueError if the job fails.
    """
    backend = backends.Local()
    client = backend.session.sagemaker_client
    out = new_output_folder(data)
    env = {"SAGEMAKER_MODEL_SERVER_WORKERS": str(WORKERS)}
    transformer = pytorch.pytorch_model(f"file://{archive}", env=env, backend=backend).transformer(
        1, "local", output_path=f"file://{out}", accept="application/json", max_concurrent_transforms=8
    )
    transformer.transform(f"file://{data}", content_type="application/x-image", wait=False)
    name = transformer.latest_transform_job.name
    memory = _peak_memory(client, name)
    description = client.describe_transform_job(TransformJobName=name)
    if description["TransformJobStatus"] != "Completed":
        raise ValueError(f"the job is {description['TransformJobStatus']}: {description.get('FailureReason')}")
    client.delete_transform_job(TransformJobName=name)
    transformer.delete_model()
    listing = (description["TransformStartTime"] - description["CreationTime"]).total_seconds()
    answering = answering_seconds(out)
    return {"answering": answering, "seconds": listing + answering, "memory": memory}


def answering_seconds(out: Path) -> float:
    """Return the seconds from the first to the last answer in a folder, as if each took as long as those between."""
    written = sorted(path.stat().st_mtime for path in out.rglob("*.out"))
    return (written[-1] - written[0]) * len(written) / (len(written) - 1)


def _peak_memory(client, name: str) -> float:
    """Wait for a transform job to end; return the largest resident MB of its process."""
    peak = 0
    while client.describe_transform_job(TransformJobName=name)["TransformJobStatus"] == "InProgress":
        with contextlib.suppress(psutil.Error, KeyError):  # it enters itself into the record once it runs
            process = psutil.Process(client.transform_jobs.read(name)["supervisor"]["pid"])
            peak = max(peak, process.memory_info().rss)
        time.sleep(0.5)
    return peak / 2**20


def new_output_folder(data: Path) -> Path:
    """Make a folder that stays until the end: some file systems are slow after thousands of files were removed."""
    return Path(tempfile.mkdtemp(prefix="answers-", dir=data.parent))


def _one_at_a_time(archive: Path, data: Path) -> float:
    """Return the seconds of the SDK's local mode for these files: its classes, and its order of reading and writing.

    It gets a server as a job does, but with the settings of the managed container. The start of the server is not
    counted, nor the ``docker info`` that the SDK runs before each request.
    """
    from sagemaker.local import data as local_data

    http = urllib3.PoolManager()
    headers = {"Content-type": "application/x-image", "Accept": "application/json"}
    source = local_data.get_data_source_instance(f"file://{data}", None)
    strategy = local_data.get_batch_strategy_instance("SingleRecord", local_data.get_splitter_instance(None))
    out = new_output_folder(data)
    with endpoint.running(archive, STOCK_ENV) as (session, name):
        (server,) = session.sagemaker_client.endpoints.read(name)["servers"]
        url = f"http://localhost:{server['port']}/invocations"
        started = time.perf_counter()
        for file in source.get_file_list():
            with open(out / f"{Path(file).name}.out", "wb") as answers:
                for body in strategy.pad(file, 6):
                    answers.write(http.request("POST", url, body=body, preload_content=False, headers=headers).read())
        return time.perf_counter() - started


def _untrained_archive(arch: str, size: int, folder: Path) -> Path:
    """Write an untrained classifier into `folder`; return its model.tar.gz, beside it."""
    archive = folder.with_name(f"{folder.name}.tar.gz")
    pack(common.untrained_classifier(arch, folder, size, 10), archive)
    return archive


def _digits() -> list[bytes]:
    """Return scikit-learn's digits as PNGs of 28x28 pixels."""
    from sklearn.datasets import load_digits

    images = []
    for pixels in load_digits().images:
        stream = io.BytesIO()
        Image.fromarray((pixels * 15).astype(np.uint8)).resize((28, 28)).save(stream, "PNG")
        images.append(stream.getvalue())
    return images


def write_files(folder: Path, contents: list[bytes], count: int, suffix: str) -> Path:
    """Write `count` files with these contents, repeated as needed, into the new `folder`; return it."""
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number:06}{suffix}").write_bytes(contents[number % len(contents)])
    return folder
