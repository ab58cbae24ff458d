"""A TorchServe archive that batches requests beside one that does not."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fastmaker.jobs.benchmarks import common
from fastmaker.jobs.packaging import torchserve
from fastmaker.local.containers import free_ports


def measure(
    *, task: str, arch: str, image_size: int, batch_size: int, max_batch_delay: int, clients: int, seconds: float
) -> tuple[list[str], list[list]]:
    """Return the header and rows; both archives are served at once and measured in turn, for `seconds` each.

    `image_size` is that of a classifier, `max_batch_delay` in ms, `clients` the number of concurrent requests.
    """
    photos = common.generated_photos(32)
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as servers:
        model_dir = Path(scratch, "model")
        if task == "segmentation":
            common.untrained_unet(arch, model_dir)
        else:
            common.untrained_classifier(arch, model_dir, image_size)
        urls = [
            servers.enter_context(_serving(model_dir, Path(scratch), size, max_batch_delay)) for size in (1, batch_size)
        ]
        rates = common.alternate(*(_rate(url, photos, clients, seconds) for url in urls))
        latencies = common.alternate(*(_latency(url, photos, seconds) for url in urls))
    header = ["measured", "no batches", f"batches of {batch_size}", "ratio"]
    return header, [
        [f"{clients} clients, images/s", *(round(rate, 1) for rate in rates), round(rates[1] / rates[0], 2)],
        ["1 client, p50 ms", *(round(1000 * p50, 1) for p50 in latencies), round(latencies[1] / latencies[0], 2)],
    ]


def _rate(url: str, photos: list[bytes], clients: int, seconds: float):
    return lambda: common.requests_per_second([common.http_client(url) for _ in range(clients)], photos, seconds)


def _latency(url: str, photos: list[bytes], seconds: float):
    return lambda: common.median_latency(common.http_client(url), photos, seconds)


@contextlib.contextmanager
def _serving(model_dir: Path, folder: Path, batch_size: int, max_batch_delay: int) -> Iterator[str]:
    """Serve an archive of the bundle; yield the model's URL."""
    name = f"batches-of-{batch_size}"
    archive = folder / f"{name}.mar"
    torchserve.make_archive(model_dir, archive, model_name=name, batch_size=batch_size, max_batch_delay=max_batch_delay)
    (port,) = free_ports(1)
    with torchserve.running(archive, name, port) as (_, url):
        yield url
