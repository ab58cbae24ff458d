"""Every engine and precision of this machine side by side: one image alone, and endpoints under load."""

import contextlib
import statistics
import tempfile
import time
from pathlib import Path

from fastmaker.jobs.benchmarks import common, tuning
from fastmaker.local.containers import pack
from fastmaker.serving.settings import Settings, cores

CLIENTS, IMAGES, ROUNDS = 8, 30, 5
HEADER = ["engine", "precision", "one image, ms", "faster", "images/s", "p99, ms", "more", "same", "difference"]


def measure(*, model_dir: Path | None, task: str, arch: str, images: str | None, seconds: float) -> list[list]:
    """Return rows of HEADER; without `model_dir`, of an untrained network of `arch`.

    One image goes through each in this process, on one thread; CLIENTS clients ask endpoints of a worker a core. The
    ratios are to torch in float32. `images` is a folder of photos (None: generated ones).
    """
    from fastmaker import bundle
    from fastmaker.export import onnx_file
    from fastmaker.jobs.packaging.models import copy_with_this_code

    photos = common.load_photos(images)
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        folder = Path(scratch, "model")
        if model_dir is None:
            untrained = common.untrained_unet if task == "segmentation" else common.untrained_classifier
            untrained(arch, folder)
        else:
            copy_with_this_code(model_dir, folder)
            (folder / bundle.SERVING_FILE).unlink(missing_ok=True)
        onnx_file.to_onnx(folder, folder / bundle.ONNX_FILE)
        computations = [it for it in tuning.compared(folder, photos, print, most=len(photos)) if not it.failure]
        latencies = _latencies(folder, computations, photos)
        pack(folder, archive := Path(scratch, "model.tar.gz"))
        candidates = [tuning.Candidate(it, Settings(it.engine, it.precision, cores())) for it in computations]
        running = tuning.started(candidates, archive, photos, stack)
        for _ in range(ROUNDS):
            tuning.measure(candidates, running, photos=photos, clients=CLIENTS, seconds=seconds)
    return [_row(*pair, candidates[0], latencies[0]) for pair in zip(candidates, latencies, strict=True)]


def _row(it: tuning.Candidate, latency: float, first: tuning.Candidate, slowest: float) -> list:
    own = it.computation
    alone = [round(1000 * latency, 1), f"{slowest / latency:.2f}"]
    if it.failure:
        return [own.engine, own.precision, *alone, "-", "-", it.failure, f"{own.same} of {own.total}", "-"]
    tail = round(1000 * statistics.median(it.tails))
    # Of each round, since other work on the machine changes from one to the next.
    times = statistics.median(a / b for a, b in zip(it.rates, first.rates, strict=True))
    under_load = [round(it.rate, 1), tail, f"{times:.2f}"]
    return [own.engine, own.precision, *alone, *under_load, f"{own.same} of {own.total}", f"{own.difference:.1e}"]


def _latencies(model_dir: Path, computations: list[tuning.Computation], photos: list[bytes]) -> list[float]:
    """Return the median seconds of one image for each computation, in turn, with one thread."""
    import torch

    from fastmaker import preprocess
    from fastmaker.serving import models

    torch.set_num_threads(1)
    loaded = [models.load(model_dir, engine=it.engine, precision=it.precision) for it in computations]
    tensors = [loaded[0].to_tensor(preprocess.decode(photo))[None] for photo in photos[:IMAGES]]
    times: list[list[float]] = [[] for _ in loaded]
    for number in range(IMAGES):
        for model, own in zip(loaded, times, strict=True):
            started = time.perf_counter()
            model.numbers(tensors[number % len(tensors)])
            own.append(time.perf_counter() - started)
    return [statistics.median(own) for own in times]
