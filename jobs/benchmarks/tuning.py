"""The search of ``fastmaker tune``: which engine, precision, workers, threads and batches serve a bundle fastest here.

A computation is an engine in a precision. Each is compared with torch in float32 in this process, and timed on one
image. By these times the settings are put in an order; endpoints of the most promising ones, and of the best of each
computation, are measured, then the fastest that agree once more, side by side.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import itertools
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastmaker.jobs.benchmarks import common
from fastmaker.jobs.packaging import endpoint
from fastmaker.jobs.verification.comparison import answer
from fastmaker.local.containers import pack
from fastmaker.serving import settings as serving
from fastmaker.serving.settings import THREADS, Settings, cores

HEADER = ("engine", "precision", "workers", "threads", "batch", "images/s", "p99, ms", "same", "difference", "result")
COMPARED = 64  # images, at most, that a computation is compared on
EXPLORED, FINALISTS, ROUNDS = 5, 3, 3
# A worker of TorchServe, its preprocessing and encoding cost about this in any engine: it keeps the order of settings
# honest where the network is small.
OVERHEAD_SECONDS = 0.002


@dataclass
class Computation:
    """An engine in a precision, with what it says of some images beside torch in float32."""

    engine: str
    precision: str
    same: int = 0  # labels, or pixels
    total: int = 0
    difference: float = 0.0  # of a number, above 1 relative to it
    failure: str = ""
    seconds: dict[int, float] = dataclasses.field(default_factory=dict)  # for one image, by threads

    def agrees(self, tolerance: float) -> bool:
        """Return whether every label is the same and every number within the tolerance."""
        return not self.failure and self.same == self.total and self.difference <= tolerance


@dataclass
class Candidate:
    """Settings, and what an endpoint with them was measured to do."""

    computation: Computation
    settings: Settings
    rates: list[float] = dataclasses.field(default_factory=list)  # images/s
    tails: list[float] = dataclasses.field(default_factory=list)  # p99, seconds
    failure: str = ""

    @property
    def rate(self) -> float:
        """The median of the measured images a second, 0 if there are none."""
        return statistics.median(self.rates) if self.rates else 0.0

    def expected_seconds(self) -> float:
        """Return what an image should take, by the time of the computation alone."""
        busy = min(self.settings.workers, max(1, cores() // self.settings.threads))
        return (self.computation.seconds[self.settings.threads] + OVERHEAD_SECONDS) / busy

    def row(self, tolerance: float, chosen: bool) -> list[object]:
        """Return the cells of HEADER."""
        own, it = self.settings, self.computation
        cells: list[object] = [own.engine, own.precision, own.workers, own.threads, own.batch_size]
        speed = [f"{self.rate:.1f}", f"{1000 * statistics.median(self.tails):.0f}"] if self.rates else ["-", "-"]
        result = self.failure or ("chosen" if chosen else "" if it.agrees(tolerance) else "outside the tolerance")
        return [*cells, *speed, f"{it.same} of {it.total}" if it.total else "-", f"{it.difference:.1e}", result]


def search(
    model_dir: Path,
    photos: Sequence[bytes],
    *,
    tolerance: float,
    clients: int,
    seconds: float,
    batch_sizes: Sequence[int],
    exhaustive: bool = False,
    say: Callable[[str], None] = print,
) -> list[Candidate]:
    """Measure the bundle in `model_dir`, and return the candidates that were measured, the best first.

    `model_dir` has a model.onnx if ONNX's engines are to be tried. `exhaustive` measures an endpoint of every setting.
    """
    computations = compared(model_dir, photos, say)
    waiting = _candidates([it for it in computations if not it.failure], batch_sizes)
    chosen = waiting if exhaustive else _promising(waiting, tolerance)
    say(f"{len(waiting)} settings; measuring endpoints of {len(chosen)}")
    with tempfile.TemporaryDirectory() as scratch:
        pack(model_dir, archive := Path(scratch, "model.tar.gz"))
        take = functools.partial(_take, archive=archive, photos=photos, clients=clients, seconds=seconds)
        _explore(chosen, take, say)
        if not exhaustive:
            others = _other_batches(_best(chosen, tolerance)[:FINALISTS], waiting)
            _explore(others, take, say)
            chosen = [*chosen, *others]
        finalists = _best(chosen, tolerance)[:FINALISTS]
        for it in finalists:  # what was measured at different times is not compared
            it.rates.clear(), it.tails.clear()
        take(finalists, ROUNDS)
    first = _best(finalists, tolerance)
    return [*first, *sorted((it for it in chosen if it not in first), key=lambda it: -it.rate)]


def _explore(candidates: list[Candidate], take: Callable[..., None], say: Callable[[str], None]) -> None:
    """Measure one candidate after the other."""
    for it in candidates:
        take([it])
        say(f"{_named(it)}: {it.failure or f'{it.rate:.1f} images/s'}")


def _take(candidates: list[Candidate], rounds: int = 1, *, archive: Path, photos: Sequence[bytes], **load) -> None:
    """Start an endpoint of each candidate, and measure them in turn, so many times."""
    with contextlib.ExitStack() as stack:
        running = started(candidates, archive, photos, stack)
        for _ in range(rounds):
            measure(candidates, running, photos=photos, **load)


def compared(
    model_dir: Path, photos: Sequence[bytes], say: Callable[[str], None], most: int = COMPARED
) -> list[Computation]:
    """Return every computation that this machine has, compared on `most` photos and timed."""
    from fastmaker import bundle, preprocess
    from fastmaker.serving import models

    names = [("torch", "float32"), ("torch", "bf16")]
    if (model_dir / bundle.ONNX_FILE).is_file():
        here = [engine for engine in ("onnxruntime", "openvino") if importlib.util.find_spec(engine)]
        names += [(engine, "float32") for engine in here]
        names += [("openvino", "bf16")] if "openvino" in here else []
    images = [preprocess.decode(photo) for photo in photos[:most]]
    info = bundle.load_info(model_dir)
    tensors = [models.pipeline.to_tensor(image, info) for image in images]
    found, expected = [], None
    for engine, precision in names:
        it = Computation(engine, precision)
        try:
            given = _numbers(model_dir, it, tensors)
        except (ValueError, RuntimeError) as error:  # bf16 is not for every graph, nor for every processor
            it.failure = " ".join(str(error).split())[:120]
        else:
            expected = given if expected is None else expected
            _compare(it, given, expected, info)
        found.append(it)
        say(f"{engine} {precision}: {it.failure or f'{it.same} of {it.total} the same, off by {it.difference:.1e}'}")
    return found


def _numbers(model_dir: Path, it: Computation, tensors: list) -> list[np.ndarray]:
    """Return the numbers of each image, and enter the seconds of one for each number of threads."""
    import torch

    from fastmaker.serving import models

    before, numbers = torch.get_num_threads(), []
    try:
        for threads in thread_counts():
            torch.set_num_threads(threads)
            model = models.load(model_dir, engine=it.engine, precision=it.precision)
            numbers = numbers or [model.numbers(tensor[None])[0].numpy() for tensor in tensors]
            times = []
            while len(times) < 3 or (sum(times) < 0.5 and len(times) < 50):
                started = time.perf_counter()
                model.numbers(tensors[len(times) % len(tensors)][None])
                times.append(time.perf_counter() - started)
            it.seconds[threads] = min(times)  # the least that other work has disturbed
    finally:
        torch.set_num_threads(before)
    return numbers


def _compare(it: Computation, given: list[np.ndarray], expected: list[np.ndarray], info) -> None:
    for one, other in zip(given, expected, strict=True):
        classes = answer(one, info).classes == answer(other, info).classes
        it.same, it.total = it.same + int(classes.sum()), it.total + classes.size
        difference = float((np.abs(one - other) / np.maximum(1, np.abs(other))).max())
        it.difference = max(it.difference, difference if np.isfinite(difference) else np.inf)


def thread_counts() -> list[int]:
    """Return the numbers of threads of a worker that are tried: 1, 2, 4, ... and all cores."""
    return sorted({*itertools.takewhile(lambda n: n < cores(), (2**k for k in range(11))), cores()})


def _candidates(computations: list[Computation], batch_sizes: Sequence[int]) -> list[Candidate]:
    """Return every setting that does not ask for more than twice the cores."""
    counts = thread_counts()
    return [
        Candidate(it, Settings(it.engine, it.precision, workers, threads, size))
        for it in computations
        for workers, threads, size in itertools.product(counts, counts, batch_sizes)
        if workers * threads <= 2 * cores()
    ]


def _promising(waiting: list[Candidate], tolerance: float) -> list[Candidate]:
    """Return the EXPLORED settings that should be the fastest that agree, and the best one of each computation.

    They have the smallest batches: what others gain is found out where the rest is known (`_other_batches`).
    """
    smallest = min((it.settings.batch_size for it in waiting), default=1)
    ordered = sorted((it for it in waiting if it.settings.batch_size == smallest), key=Candidate.expected_seconds)
    agreeing = [it for it in ordered if it.computation.agrees(tolerance)][:EXPLORED]
    of_each = {(it.settings.engine, it.settings.precision): it for it in reversed(ordered)}
    return [*agreeing, *(it for it in of_each.values() if it not in agreeing)]


def _other_batches(best: list[Candidate], waiting: list[Candidate]) -> list[Candidate]:
    """Return the candidates that differ from those of `best` in their batches alone."""
    alike = [dataclasses.replace(it.settings, batch_size=1) for it in best]
    return [it for it in waiting if it not in best and dataclasses.replace(it.settings, batch_size=1) in alike]


def _best(candidates: list[Candidate], tolerance: float) -> list[Candidate]:
    agreeing = [it for it in candidates if it.rates and not it.failure and it.computation.agrees(tolerance)]
    return sorted(agreeing, key=lambda it: -it.rate)


def started(
    candidates: list[Candidate], archive: Path, photos: Sequence[bytes], stack: contextlib.ExitStack
) -> list[Callable[[bytes], object] | None]:
    """Return for each candidate a function that asks its endpoint, which runs until the stack closes.

    None takes the place of one that cannot be served.
    """
    running: list[Callable[[bytes], object] | None] = []
    for it in candidates:
        try:
            session, name = stack.enter_context(endpoint.running(archive, environment(it.settings)))
            ask = functools.partial(_ask, session.sagemaker_runtime_client, name)
            for photo in itertools.islice(itertools.cycle(photos), 2 * it.settings.workers):
                ask(photo)
        except KeyboardInterrupt:  # the session's is an Exception as well
            raise
        except Exception as error:  # a setting that cannot be served is the result of that setting
            it.failure = _one_line(error)
            running.append(None)
        else:
            running.append(ask)
    return running


def environment(settings: Settings) -> dict[str, str]:
    """Return all of the settings as variables of an endpoint."""
    return {
        "FASTMAKER_ENGINE": settings.engine,
        "FASTMAKER_PRECISION": settings.precision,
        THREADS: str(settings.threads),
        **serving.with_workers(serving.environment(settings)),
    }


def _ask(runtime, name: str, photo: bytes) -> None:
    runtime.invoke_endpoint(EndpointName=name, ContentType="application/x-image", Body=photo)["Body"].read()


def measure(candidates, running, *, photos: Sequence[bytes], clients: int, seconds: float) -> None:
    """Measure each candidate whose endpoint is running, once and in turn, and enter what was found."""
    for it, ask in zip(candidates, running, strict=True):
        if ask is None:
            continue
        try:
            rate, tail = throughput(ask, photos, clients, seconds)
        except KeyboardInterrupt:
            raise
        except Exception as error:
            it.failure = _one_line(error)
        else:
            it.rates.append(rate)
            it.tails.append(tail)


def _one_line(error: Exception) -> str:
    return f"FAILED: {type(error).__name__}: {' '.join(str(error).split())[:120]}"


def throughput(
    ask: Callable[[bytes], object], photos: Sequence[bytes], clients: int, seconds: float
) -> tuple[float, float]:
    """Let so many clients send one photo after another; return the images a second of all and the p99 in seconds."""
    times, elapsed = common.times_of_requests([ask] * clients, photos, seconds)
    return len(times) / elapsed, float(np.quantile(times, 0.99))


def measured(best: Candidate, clients: int) -> dict[str, object]:
    """Return by what a candidate was chosen, for serving.json."""
    return {
        "images_per_second": round(best.rate, 1),
        "p99_ms": round(1000 * statistics.median(best.tails), 1),
        "clients": clients,
        "largest_difference": best.computation.difference,
        "cores": cores(),
        "machine": platform.machine(),
    }


def _named(it: Candidate) -> str:
    own = it.settings
    return f"{own.engine} {own.precision}, {own.workers} x {own.threads} threads, batches of {own.batch_size}"
