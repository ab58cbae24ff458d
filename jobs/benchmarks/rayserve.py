"""Ray Serve beside TorchServe, each with batches and without, and beside bare processes without a server."""

import contextlib
import functools
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from fastmaker.jobs import instance_types
from fastmaker.jobs.backends import servers
from fastmaker.jobs.benchmarks import common
from fastmaker.jobs.benchmarks.bare_processes import Processes, predictor
from fastmaker.jobs.cli import errors
from fastmaker.jobs.packaging import endpoint
from fastmaker.local.containers import pack
from fastmaker.local.serving import rayserve
from fastmaker.serving.settings import BATCH_DELAY, BATCH_SIZE, WORKERS, cores, with_workers

HEADER = ["measured", "images/s", "of the bare loop", "of TorchServe, no batches", "of TorchServe, batches"]


def measure(
    *,
    task: str,
    arch: str,
    instance_type: str,
    batch_size: int,
    max_batch_delay: int,
    clients: int,
    seconds: float,
    rounds: int,
) -> list[list]:
    """Return rows of HEADER; all servers run, and are measured in turn, `rounds` times for `seconds` each.

    Each has a worker a core, or one on the GPU with `instance_type` local_gpu. `max_batch_delay` is in ms, `clients`
    the number of concurrent requests; the ratios are medians over the rounds. Raises Failure without Ray Serve.
    """
    image = servers.public_ray_image(None)
    if reason := rayserve.missing(image):
        raise errors.Failure(reason)
    photos = common.generated_photos(32)
    count, device = (1, "cuda:0") if instance_types.is_gpu(instance_type) else (cores(), "cpu")
    workers = {WORKERS: str(count)}
    batches = with_workers({**workers, BATCH_SIZE: str(batch_size), BATCH_DELAY: str(max_batch_delay)})
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        untrained = common.untrained_unet if task == "segmentation" else common.untrained_classifier
        model_dir = untrained(arch, Path(scratch, "model"))
        pack(model_dir, archive := Path(scratch, "model.tar.gz"))
        bare = stack.enter_context(Processes(count, predictor, str(model_dir), "float32", device))
        measures: dict[str, Callable[[], float]] = {
            f"bare loop, {count} process(es)": functools.partial(bare.throughput, photos, seconds)
        }
        for server, of_it in (("Ray Serve", image), ("TorchServe", None)):
            for title, env in (("no batches", workers), (f"batches of {batch_size}", batches)):
                url = stack.enter_context(_serving(archive, env, of_it, instance_type, photos))
                asking = [common.http_client(url) for _ in range(clients)]
                rate = functools.partial(common.requests_per_second, asking, photos, seconds)
                measures[f"{server}, {title}"] = rate
        return _rows(list(measures), common.in_turn(list(measures.values()), rounds))


def _rows(names: list[str], found: list[list[float]]) -> list[list]:
    """Return a row for each of the measures, of which `found` has a list of images a second for each round."""
    rows = []
    for number, name in enumerate(names):
        rate = statistics.median(rates[number] for rates in found)
        ratios = [statistics.median(rates[number] / rates[other] for rates in found) for other in (0, 3, 4)]
        rows.append([name, round(rate, 1), *(f"{ratio:.2f}" for ratio in ratios)])
    return rows


@contextlib.contextmanager
def _serving(
    archive: Path, env: dict[str, str], image: str | None, instance_type: str, photos: list[bytes]
) -> Iterator[str]:
    """Serve an archive of the bundle; yield where its server is asked, once each worker has answered."""
    with endpoint.running(archive, env, image, instance_type=instance_type) as (session, name):
        [server] = session.sagemaker_client.endpoints.read(name)["servers"]
        url = f"http://127.0.0.1:{server['port']}/invocations"
        common.requests_per_second([common.http_client(url) for _ in range(2 * cores())], photos, 1)
        yield url
