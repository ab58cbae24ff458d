"""The driver of a batch job on a Ray cluster: it checks the nodes, and Ray Data shares the objects out to workers.

What is lost with a worker or a node is computed again; an object that ends its worker each time fails alone.
"""

import contextlib
import hashlib
import importlib.util
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fastmaker import bundle
from fastmaker.jobs.cli.errors import Failure
from fastmaker.jobs.cluster import worker
from fastmaker.jobs.runtime.ray_launcher import SETTINGS
from fastmaker.local import archives
from fastmaker.serving import settings as serving
from fastmaker.serving.models import MAX_BATCH

LOCAL = "local"  # the address of a cluster that is started for the job
CHUNK = 32  # objects that a worker is given at once, at most
RETRIES = 3  # of a chunk whose worker or node was lost
LOST = "the worker that computed it died each time"
JOBS, ENGINE = Path(__file__).parents[1], Path(archives.__file__).parent
# What runs on the workers, beside source/: where it is, and what of it goes there.
SENT = {
    "fastmaker/jobs": (JOBS, ("__init__.py", "cluster", "storage")),
    "fastmaker/local": (ENGINE, ("__init__.py", "batch/__init__.py", "batch/records.py", "batch/data_processing.py")),
}
PASSED = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")  # to the workers; no keys
Report = Callable[[str, str, int], None]  # name, error ("" for none), status


@dataclass(frozen=True)
class Plan:
    """How many workers there are, what each of them takes of its node, and how many requests it computes together."""

    workers: int
    threads: int
    gpus: int = 0  # 0 or 1
    batch_size: int = 1


def check_installed() -> None:
    """Raises Failure if Ray Data is not installed."""
    if not all(map(importlib.util.find_spec, ("ray", "pyarrow"))):
        raise Failure("Ray Data is not installed: pip install 'fastmaker[ray]'")


def read_model(archive: Path) -> dict[str, bytes]:
    """Return the files of a bundle's archive by their names, less its code: the workers run this version's."""
    with tempfile.TemporaryDirectory() as folder:
        archives.unpack(archive, Path(folder))
        names = [path.relative_to(folder) for path in sorted(Path(folder).rglob("*")) if path.is_file()]
        return {str(name): Path(folder, name).read_bytes() for name in names if name.parts[0] != bundle.CODE_DIR}


def digest(model: dict[str, bytes]) -> str:
    """Return what tells a model from another."""
    return hashlib.sha256(
        json.dumps([(n, hashlib.sha256(c).hexdigest()) for n, c in model.items()]).encode()
    ).hexdigest()


@contextlib.contextmanager
def connected(address: str, env: dict[str, str]) -> Iterator[None]:
    """Be a driver of the cluster at `address`, with `env` for the workers; LOCAL starts one. Raises Failure."""
    local = address == LOCAL
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # of this process, which says itself what is wrong
    if local:
        os.environ.update(SETTINGS)
    with tempfile.TemporaryDirectory() as code, _short_folder() as temporary:
        _copy_code(Path(code))
        import ray

        variables = {name: os.environ[name] for name in PASSED if os.environ.get(name)} | env
        own: dict[str, Any] = {"include_dashboard": False, "_temp_dir": temporary} if local else {}
        try:
            ray.init(
                address=address,
                runtime_env={"working_dir": code, "env_vars": variables},
                log_to_driver=False,
                logging_level=logging.ERROR,
                **own,
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise Failure(f"--address {address}: {' '.join(str(error).split())}") from None
        try:
            yield
        finally:
            ray.shutdown()


def plan(model: dict[str, bytes], env: dict[str, str]) -> Plan:
    """Return the workers of the cluster: one for each GPU, else for as many cores of a node as the bundle is tuned to.

    SAGEMAKER_MODEL_SERVER_WORKERS is a number of each node, as it is of each instance. MAX_BATCH requests go through
    the network together unless a variable or serving.json says otherwise. Raises Failure.
    """
    import ray

    file = model.get(bundle.SERVING_FILE)
    own = serving.parse(file, bundle.SERVING_FILE) if file else None
    batch_size = int(env.get(serving.BATCH_SIZE) or (own.batch_size if own else MAX_BATCH))
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if gpus := sum(int(of_node.get("GPU", 0)) for of_node in resources):
        return Plan(gpus, 1, 1, batch_size)
    cores = [int(of_node["CPU"]) for of_node in resources if of_node.get("CPU", 0) >= 1]
    if not cores:
        raise Failure("no node of the cluster has a core or a GPU to give")
    copies = int(env.get(serving.WORKERS) or min(cores))
    threads = int(env.get(serving.THREADS) or (own.threads if own else max(1, min(cores) // copies)))
    threads = min(threads, max(cores))
    return Plan(sum(of_node // threads for of_node in cores), threads, batch_size=batch_size)


def check_nodes(settings: worker.Settings, model: Any, name: str, token: str) -> None:
    """Have each node that workers may run on load the model and look at the places. Raises Failure, which names one.

    `name` is an object of the job, and `token` a file of the output folder, empty in S3.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    check = ray.remote(num_cpus=0, max_retries=0)(worker.why_not)
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    found = {
        node["NodeManagerAddress"]: check.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(settings, model, name, token)
        for node in nodes
    }
    for address, reference in found.items():
        try:
            reason = ray.get(reference)
        except ray.exceptions.RayError as error:
            *_, reason = str(error).strip().splitlines()
        if reason:
            raise Failure(f"the node {address} cannot take part: {reason}")


def run(settings: worker.Settings, model: Any, planned: Plan, names: list[str], report: Report) -> None:
    """Transform the objects, and report each one. What `report` raises ends the job."""
    size = max(1, min(CHUNK, math.ceil(len(names) / (4 * planned.workers))))
    left = _run_chunks(settings, model, planned, names, size, report)
    if left:  # each alone, so that one that ends its worker does not take others with it
        left = _run_chunks(settings, model, planned, left, 1, report)
    for name in left:
        report(name, LOST, 0)


def _run_chunks(
    settings: worker.Settings, model: Any, planned: Plan, names: list[str], size: int, report: Report
) -> list[str]:
    """Transform the objects in chunks of `size`; return those of chunks that were lost for good."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1
    rows = ray.data.from_items([{"name": name} for name in names], override_num_blocks=math.ceil(len(names) / size))
    results = rows.map_batches(
        worker.Worker,
        batch_size=None,  # a block, which is a chunk
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=planned.workers, initial_size=planned.workers),
        fn_constructor_args=(settings, partial(ray.get, model)),
        num_cpus=planned.threads,
        num_gpus=planned.gpus,
        max_task_retries=RETRIES,
    )
    left = dict.fromkeys(names)
    for batch in results.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
        for name, error, status in zip(batch["name"], batch["error"], batch["status"], strict=True):
            del left[str(name)]
            report(str(name), str(error), int(status))
    return list(left)


def _copy_code(folder: Path) -> None:
    """Copy into `folder` what the workers import of this package."""
    bundle.save_code(folder)
    for package, (source, names) in SENT.items():
        for name in names:
            target = folder / package / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if (source / name).is_dir():
                shutil.copytree(source / name, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(source / name, target)


@contextlib.contextmanager
def _short_folder() -> Iterator[str]:
    """Make a folder for Ray's files and remove it at the end. Among them are sockets, whose paths have 107 bytes."""
    parent = os.path.realpath(tempfile.gettempdir())
    with tempfile.TemporaryDirectory(prefix="ray-", dir=parent if len(parent) <= 20 else "/tmp") as folder:
        yield folder
