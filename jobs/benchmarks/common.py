"""Models, photos and the ways to measure that the benchmarks share."""

import concurrent.futures
import io
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import urllib3
from PIL import Image

from fastmaker.jobs.clients import images

ROUNDS = 3
PHOTO_SIZE = (500, 375)


def alternate(first: Callable[[], float], second: Callable[[], float], rounds: int = ROUNDS) -> tuple[float, float]:
    """Take two measurements in turn, `rounds` times each; return the median of each."""
    pairs = in_turn([first, second], rounds)
    return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)


def in_turn(measures: Sequence[Callable[[], float]], rounds: int = ROUNDS) -> list[list[float]]:
    """Take several measurements in turn, `rounds` times each; return those of each round."""
    return [[measure() for measure in measures] for _ in range(rounds)]


def requests_per_second(clients: Sequence[Callable], photos: Sequence[bytes], seconds: float) -> float:
    """Let each client, in a thread of its own, send one photo after another; return the answers a second of all."""
    times, elapsed = times_of_requests(clients, photos, seconds)
    return len(times) / elapsed


def times_of_requests(
    clients: Sequence[Callable], photos: Sequence[bytes], seconds: float
) -> tuple[list[float], float]:
    """Do that, and return the seconds of each request, and those until the last client was done."""
    deadline = time.perf_counter() + seconds

    def run(number: int) -> list[float]:
        times: list[float] = []
        while time.perf_counter() < deadline:
            started = time.perf_counter()
            clients[number](photos[(number + len(times)) % len(photos)])
            times.append(time.perf_counter() - started)
        return times

    started = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(len(clients)) as pool:
        times = [one for of_client in pool.map(run, range(len(clients))) for one in of_client]
    return times, time.perf_counter() - started


def median_latency(client: Callable, inputs: Sequence, seconds: float) -> float:
    """Return the median seconds of a call, of as many calls in a row as fit into `seconds`."""
    deadline = time.perf_counter() + seconds
    times = []
    while not times or time.perf_counter() < deadline:
        started = time.perf_counter()
        client(inputs[len(times) % len(inputs)])
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def http_client(url: str) -> Callable[[bytes], None]:
    """Return a function that posts a JPEG to `url` and reads the answer."""
    pool = urllib3.PoolManager()

    def send(photo: bytes) -> None:
        answer = pool.request("POST", url, body=photo, headers={"Content-Type": "image/jpeg"}, retries=False)
        assert answer.status == 200, answer.data

    return send


def untrained_classifier(architecture: str, folder: Path, size: int = 224, n_labels: int = 37) -> Path:
    """Write the bundle of an untrained classifier for images of `size` x `size`; return its folder."""
    import torch

    from fastmaker import bundle, networks
    from fastmaker.training import data

    torch.manual_seed(0)
    mode = "L" if architecture == "convnet" else "RGB"
    mean, std = data.STATISTICS[mode]
    labels = tuple(f"label {number}" for number in range(n_labels))
    network = networks.classifier(architecture, n_labels, len(mean))
    info = bundle.ModelInfo("classification", architecture, labels, mode, (size, size), "crop", mean, std)
    bundle.save(folder, network, info)
    return folder


def untrained_unet(architecture: str, folder: Path, size: tuple[int, int] = (96, 128), n_labels: int = 12) -> Path:
    """Write the bundle of an untrained U-Net for images of `size` (height, width); return its folder."""
    import torch

    from fastmaker import bundle, unet
    from fastmaker.training import data

    torch.manual_seed(0)
    mean, std = data.STATISTICS["RGB"]
    labels = tuple(f"class {number}" for number in range(n_labels))
    info = bundle.ModelInfo(
        "segmentation", architecture, labels, "RGB", size, "squish", mean, std, options=unet.OPTIONS
    )
    bundle.save(folder, unet.unet(architecture, n_labels, size), info)
    return folder


def load_photos(folder: str | None) -> list[bytes]:
    """Return the images of a folder, or 32 generated photos."""
    if folder is None:
        return generated_photos(32)
    return [file.read_bytes() for file in images.image_files(folder)]


def generated_photos(count: int, seed: int = 0) -> list[bytes]:
    """Return JPEGs of 500x375 pixels with structure at every scale, which take about as long to decode as photos."""
    random = np.random.default_rng(seed)
    photos = []
    for _ in range(count):
        pixels = sum(
            np.asarray(Image.fromarray(random.integers(0, 256, (n, n, 3), np.uint8)).resize(PHOTO_SIZE)) / (2.0 * k)
            for k, n in enumerate((4, 16, 64, 256), 1)
        )
        stream = io.BytesIO()
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
        photos.append(stream.getvalue())
    return photos
