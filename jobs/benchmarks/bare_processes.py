"""The bare loop of inference: processes that load a bundle and predict, without a server.

python -m fastmaker.jobs.benchmarks.bare_processes MODEL_DIR PRECISION   # predict once, print the resident bytes
"""

import multiprocessing
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil


class BareProcesses:
    """`count` processes with one thread each, fed over pipes; a context that waits for all and ends them."""

    def __init__(self, count: int, model_dir: Path, precision: str):
        context = multiprocessing.get_context("spawn")
        self.pipes = []
        self.processes = []
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_predict_until_ended, args=(theirs, str(model_dir), precision), daemon=True
            )
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def __enter__(self):
        for pipe in self.pipes:
            pipe.recv()
        return self

    def __exit__(self, *error):
        for process in self.processes:
            process.terminate()
            process.join()

    def throughput(self, photos: list[bytes], seconds: float) -> float:
        """Return the images a second of all processes."""
        for pipe in self.pipes:
            pipe.send((photos, seconds))
        return sum(count / elapsed for count, elapsed, _ in (pipe.recv() for pipe in self.pipes))

    def latency(self, photos: list[bytes], seconds: float) -> float:
        """Return the median seconds of an image in one process."""
        self.pipes[0].send((photos, seconds))
        return self.pipes[0].recv()[2]


def first_answer(model_dir: Path, precision: str) -> tuple[float, float]:
    """Return the seconds until a new process has predicted once, and its resident MB."""
    started = time.perf_counter()
    command = [sys.executable, "-m", __name__, str(model_dir), precision]
    resident = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return time.perf_counter() - started, int(resident) / 2**20


def _predict_until_ended(pipe, model_dir: str, precision: str) -> None:
    from fastmaker import preprocess

    model = _load(model_dir, precision)
    pipe.send("ready")
    while True:
        photos, seconds = pipe.recv()
        started = time.perf_counter()
        times = []
        while time.perf_counter() - started < seconds:
            before = time.perf_counter()
            model.predict([preprocess.decode(photos[len(times) % len(photos)])])
            times.append(time.perf_counter() - before)
        pipe.send((len(times), time.perf_counter() - started, statistics.median(times)))


def _load(model_dir: str, precision: str):
    import torch

    from fastmaker.serving import models

    torch.set_num_threads(1)
    return models.load(model_dir, precision=precision)


def main(model_dir: str, precision: str) -> None:
    """Predict one black image, and print the resident bytes of this process."""
    from fastmaker import preprocess

    model = _load(model_dir, precision)
    model.predict([preprocess.image_from_array(np.zeros((375, 500, 3), "uint8"))])
    print(psutil.Process().memory_info().rss)


if __name__ == "__main__":
    main(*sys.argv[1:])
