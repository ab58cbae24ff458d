"""What data capture costs: an endpoint that captures each request beside one of the same model that captures none."""

import functools
import os
import tempfile
from pathlib import Path

from fastmaker.jobs.benchmarks import aws, common
from fastmaker.jobs.benchmarks.bare_processes import Processes
from fastmaker.jobs.packaging import endpoint
from fastmaker.local.containers import pack
from fastmaker.local.store import default_home

HEADER = ["measured", "captured", "not captured", "compared"]
CLIENTS = 8


def measure(*, arch: str, image_size: int, images: str | None, turns: int) -> list[list]:
    """Return rows of HEADER about two endpoints of an untrained network of `arch`, for images of `image_size`.

    Both are asked as ProcessSession does, in `turns` of 2 s. `images` is a folder of photos (None: generated ones).
    """
    photos = common.load_photos(images)
    with tempfile.TemporaryDirectory() as scratch:
        archive = Path(scratch, "model.tar.gz")
        pack(common.untrained_classifier(arch, Path(scratch, "model"), image_size), archive)
        running = functools.partial(endpoint.running, archive, {})
        home = os.fspath(default_home())
        with (
            running(capture=f"file://{scratch}/captured") as (_, captured),
            running() as (_, not_captured),
            Processes(CLIENTS, aws.process_client, home, captured) as ours,
            Processes(CLIENTS, aws.process_client, home, not_captured) as beside,
        ):
            (p50, beside_p50), (rate, beside_rate) = aws.latency_and_throughput(ours, beside, photos, turns)
    return [
        ["1 client, p50 ms", *aws.rounded(1000 * p50, 1000 * beside_p50), f"{1000 * (p50 - beside_p50):+.2f} ms"],
        [f"{CLIENTS} clients, images/s", *aws.rounded(rate, beside_rate), f"{rate / beside_rate:.2f}"],
    ]
