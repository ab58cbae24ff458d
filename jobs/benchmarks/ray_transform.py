"""A batch job on a Ray cluster of this machine beside the local one, in turns: same images, same model."""

import os
import statistics
import tempfile
import time
from pathlib import Path

from fastmaker.jobs import backends
from fastmaker.jobs.backends.cluster import Cluster
from fastmaker.jobs.benchmarks import common
from fastmaker.jobs.benchmarks.transform import answering_seconds, new_output_folder, run_job, write_files
from fastmaker.local.containers import pack
from fastmaker.serving import settings

HEADER = ["measured", "value", "ratio"]


def measure(*, arch: str, size: int, images: str | None, photos: int, batch_size: int) -> list[list]:
    """Return rows of HEADER: of `photos` images through `arch` at `size` pixels, on Ray and in a local job.

    `images` is a folder of photos (None: generated ones); they are repeated as often as is needed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["FASTMAKER_HOME"] = str(folder / "home")  # where Ray's jobs have their records
        data = write_files(folder / "in", common.load_photos(images), photos, ".jpg")
        archive = folder / "model.tar.gz"
        pack(common.untrained_classifier(arch, folder / "bundle", size, 10), archive)
        ray, local = [], []
        for _ in range(common.ROUNDS):
            local.append(run_job(archive, data)["answering"])
            ray.append(_on_ray(archive, data, batch_size))
        rates = [photos / seconds for seconds, _ in ray], [photos / seconds for seconds in local]
    own, beside = map(statistics.median, rates)
    return [
        [f"on Ray, {arch} at {size}, batches of {batch_size}, images/s", round(own, 1), f"{own / beside:.2f} of local"],
        ["local, images/s", round(beside, 1), ""],
        ["Ray's start and end, s", round(statistics.median(start for _, start in ray), 1), ""],
    ]


def _on_ray(archive: Path, data: Path, batch_size: int) -> tuple[float, float]:
    """Run the job; return the seconds from the first to the last answer, and the others."""
    out = new_output_folder(data)
    request = backends.TransformRequest(
        name=f"ray-{time.time_ns()}",
        model_data=f"file://{archive}",
        source=f"file://{data}",
        output=f"file://{out}",
        env={settings.BATCH_SIZE: str(batch_size)},
        max_concurrent_transforms=8,
    )
    started = time.perf_counter()
    Cluster().transform(request)
    answering = answering_seconds(out)
    return answering, time.perf_counter() - started - answering
