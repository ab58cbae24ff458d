"""An endpoint beside the same network and preprocessing in bare processes, without a server."""

import functools
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from fastmaker.jobs.benchmarks import common
from fastmaker.jobs.benchmarks.bare_processes import Processes, first_answer, predictor
from fastmaker.jobs.packaging import endpoint
from fastmaker.local.containers import Container, pack

HEADER = ["precision", "measured", "value", "ratio"]
CLIENTS = 8
MEASURED_RATE = f"endpoint, {CLIENTS} clients, images/s"


def measure(*, model_dir: Path | None, task: str, arch: str, images: str | None, seconds: float) -> list[list]:
    """Return rows of HEADER for float32 and bfloat16; without `model_dir`, of an untrained network of `arch`.

    `images` is a folder of photos (None: generated ones), `seconds` the length of each measurement.
    """
    with tempfile.TemporaryDirectory() as scratch:
        if model_dir is None:
            untrained = common.untrained_unet if task == "segmentation" else common.untrained_classifier
            model_dir = untrained(arch, Path(scratch, "model"))
        photos = common.load_photos(images)
        rows = []
        for precision in ("float32", "bf16"):
            rows += _measure_precision(model_dir, photos, precision, seconds)
        float32, bf16 = (row[2] for row in rows if row[1] == MEASURED_RATE)
        rows.append(["bf16", f"times float32, {CLIENTS} clients", round(bf16 / float32, 2), ""])
        rows.append(["bf16", "answers as in float32", _agreement(model_dir, photos), ""])
    return rows


def _measure_precision(model_dir: Path, photos: list[bytes], precision: str, seconds: float) -> list[list]:
    cores = len(os.sched_getaffinity(0))
    bare_start, bare_memory = first_answer(model_dir, precision)
    with (
        tempfile.TemporaryDirectory() as scratch,
        Processes(cores, predictor, str(model_dir), precision) as bare_processes,
    ):
        archive = Path(scratch, "model.tar.gz")
        pack(model_dir, archive)
        started = time.perf_counter()
        with endpoint.running(archive, {"FASTMAKER_PRECISION": precision}) as (session, name):
            client = functools.partial(_invoke, session.sagemaker_runtime_client, name)
            client(photos[0])
            start = time.perf_counter() - started
            memory = _worker_memory(session, name)
            rate, bare_rate = common.alternate(
                lambda: common.requests_per_second([client] * CLIENTS, photos, seconds),
                lambda: bare_processes.throughput(photos, seconds),
            )
            p50, bare_p50 = common.alternate(
                lambda: common.median_latency(client, photos, seconds),
                lambda: bare_processes.latency(photos, seconds),
            )
    return [
        [precision, MEASURED_RATE, round(rate, 1), f"{rate / bare_rate:.2f} of the bare loop"],
        [precision, f"bare loop, {cores} processes, images/s", round(bare_rate, 1), ""],
        [precision, "endpoint, 1 client, p50 ms", round(1000 * p50, 1), f"{p50 / bare_p50:.2f} of one bare image"],
        [precision, "bare image, 1 thread, p50 ms", round(1000 * bare_p50, 1), ""],
        [precision, "worker memory, MB", round(memory), f"{memory - bare_memory:+.0f} on a bare process"],
        [precision, "deploy to first answer, s", round(start, 1), f"{start - bare_start:+.1f} on a bare process"],
    ]


def _invoke(runtime, name: str, photo: bytes) -> None:
    runtime.invoke_endpoint(EndpointName=name, ContentType="image/jpeg", Body=photo)["Body"].read()


def _worker_memory(session, name: str) -> float:
    """Return the resident MB of the largest serving worker."""
    store = session.sagemaker_client.endpoints
    containers = [Container(store.directory(name) / server["folder"]) for server in store.read(name)["servers"]]
    processes = [process for container in containers for process in container.processes()]
    workers = [p for p in processes if any("model_service_worker" in word for word in p.cmdline())]
    return max(p.memory_info().rss for p in workers) / 2**20


def _agreement(model_dir: Path, photos: list[bytes]) -> str:
    """Return for how many photos bfloat16 gives float32's label, or for how many of their pixels its class."""
    from fastmaker import preprocess
    from fastmaker.serving import models

    float32, bf16 = (models.load(model_dir, precision=precision) for precision in ("float32", "bf16"))
    images = [preprocess.decode(photo) for photo in photos]
    pairs = list(zip(float32.predict(images), bf16.predict(images), strict=True))
    if float32.info.task == "segmentation":
        return f"{np.mean([(a.array == b.array).mean() for a, b in pairs]):.2%} of the pixels"
    return f"{sum(a.index == b.index for a, b in pairs)} of {len(pairs)}"
