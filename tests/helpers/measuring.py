"""What a run takes while it lasts: memory, descriptors and disk, sampled from a thread."""

import os
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil


class Samples:
    """Sample the processes that `find` returns, and the disk that a folder takes, while the context lasts."""

    def __init__(self, find: Callable[[], list[psutil.Process]], folder: Path, seconds: float):
        self.find, self.folder, self.seconds = find, folder, seconds
        self.taken: list[dict[str, float]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def _run(self):
        while not self._over.wait(self.seconds):
            found = {"MB": 0.0, "descriptors": 0, "processes": 0, "disk MB": _disk(self.folder) / 2**20}
            for process in self.find():
                try:
                    found["MB"] += process.memory_info().rss / 2**20
                    found["descriptors"] += process.num_fds()
                    found["processes"] += 1
                except psutil.Error:
                    continue
            self.taken.append(found)

    def growth(self) -> dict[str, tuple[float, float]]:
        """The median of each figure over the second and over the last quarter of the samples: the first warms up."""
        quarter = max(1, len(self.taken) // 4)
        second, last = self.taken[quarter : 2 * quarter] or self.taken, self.taken[-quarter:]
        return {
            name: tuple(round(statistics.median(sample[name] for sample in part), 1) for part in (second, last))
            for name in (self.taken[0] if self.taken else ())
        }


def _disk(folder: Path) -> int:
    size = 0
    for below, _, names in os.walk(folder):
        for name in names:
            try:
                size += os.lstat(os.path.join(below, name)).st_blocks * 512
            except OSError:
                continue
    return size


class Clock:
    """Seconds since it was made."""

    def __init__(self):
        self._start = time.monotonic()

    def __call__(self) -> float:
        return time.monotonic() - self._start
