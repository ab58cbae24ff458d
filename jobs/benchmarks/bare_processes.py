"""The bare loop of inference: processes that load a bundle and predict, without a server.

python -m fastmaker.jobs.benchmarks.bare_processes MODEL_DIR PRECISION   # predict once, print the resident bytes
"""

import multiprocessing
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil


class Processes:
    """`count` processes, fed over pipes; a context that waits for all and ends them.

    Each calls what `make` returns for `arguments` with one input after another; `make` is a function of a module.
    """

    def __init__(self, count: int, make: Callable[..., Callable], *arguments):
        context = multiprocessing.get_context("spawn")
        self.pipes = []
        self.processes = []
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_call_until_ended, args=(theirs, make, arguments), daemon=True)
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

    def throughput(self, inputs: list, seconds: float) -> float:
        """Return the calls a second of all processes."""
        for pipe in self.pipes:
            pipe.send((inputs, seconds))
        return sum(count / elapsed for count, elapsed, *_ in (pipe.recv() for pipe in self.pipes))

    def latency(self, inputs: list, seconds: float) -> float:
        """Return the median seconds of a call in one process, of at least one call."""
        return self.one(inputs, seconds)[2]

    def one(self, inputs: list, seconds: float) -> tuple[int, float, float, float]:
        """Return the number of calls in one process, the seconds of all, their median, and a call's CPU seconds."""
        self.pipes[0].send((inputs, seconds))
        return self.pipes[0].recv()


def first_answer(model_dir: Path, precision: str) -> tuple[float, float]:
    """Return the seconds until a new process has predicted once, and its resident MB."""
    started = time.perf_counter()
    command = [sys.executable, "-m", __name__, str(model_dir), precision]
    resident = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return time.perf_counter() - started, int(resident) / 2**20


def predictor(model_dir: str, precision: str, device: str = "cpu") -> Callable[[bytes], None]:
    """Return a function that predicts a photo in one thread, on a torch device."""
    from fastmaker import preprocess

    model = _load(model_dir, precision, device)

    def predict(photo: bytes) -> None:
        model.predict([preprocess.decode(photo)])

    return predict


def _call_until_ended(pipe, make: Callable[..., Callable], arguments: tuple) -> None:
    call = make(*arguments)
    pipe.send("ready")
    while True:
        inputs, seconds = pipe.recv()
        started, cpu = time.perf_counter(), time.process_time()
        times: list[float] = []
        while not times or time.perf_counter() - started < seconds:
            before = time.perf_counter()
            call(inputs[len(times) % len(inputs)])
            times.append(time.perf_counter() - before)
        elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu
        pipe.send((len(times), elapsed, statistics.median(times), cpu / len(times)))


def _load(model_dir: str, precision: str, device: str = "cpu"):
    import torch

    from fastmaker.serving import models

    torch.set_num_threads(1)
    return models.load(model_dir, device, precision)


def main(model_dir: str, precision: str) -> None:
    """Predict one black image, and print the resident bytes of this process."""
    from fastmaker import preprocess

    model = _load(model_dir, precision)
    model.predict([preprocess.image_from_array(np.zeros((375, 500, 3), "uint8"))])
    print(psutil.Process().memory_info().rss)


if __name__ == "__main__":
    main(*sys.argv[1:])
