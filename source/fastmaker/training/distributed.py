"""Distributed data parallel training: processes on one or several hosts, each with its shard of every batch.

Rank and world size come from torchrun (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE), or from SageMaker's training
toolkit, which starts one process a host (SM_HOSTS, SM_CURRENT_HOST, MASTER_ADDR, MASTER_PORT), or the drivers of the
SDK's version 3 (SM_MASTER_ADDR, SM_MASTER_PORT). For several processes a host, that process is replaced by torchrun
(`launch`).

N processes with batches of B images compute what one process computes with batches of N*B images, with two exceptions.
Batch norms normalise by the B images of their own process; the running statistics are averaged after each epoch. The
segmentation loss is the mean over the non-void pixels of each process, and then over the processes.
"""

import contextlib
import datetime
import hashlib
import inspect
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from fastai.vision.all import Callback, DataLoader, DataLoaders
from torch.nn.parallel import DistributedDataParallel

# Each process keeps its own batch norm statistics until `average_buffers`. torch 2.15 warns about the argument's old
# name. With the new one it still broadcasts rank 0's statistics at the start, when all are equal.
RENAMED = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
OWN_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if RENAMED else "broadcast_buffers": False}


class ProcessGroupError(ValueError):
    """Processes that cannot train together: a missing backend, a host that did not join, different images."""


@dataclass(frozen=True)
class Rank:
    """A process's rank among all processes and among those on its host."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1


def current_rank(env: Mapping[str, str] = os.environ) -> Rank:
    """Return the rank of this process."""
    if "WORLD_SIZE" in env:
        return Rank(*(int(env[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")))
    hosts = _hosts(env)
    return Rank(hosts.index(env["SM_CURRENT_HOST"]), len(hosts)) if hosts else Rank()


def processes_per_host(requested: int | None) -> int:
    """Return how many processes this host runs: `requested`, or one for each of its GPUs, or 1.

    Under torchrun, which has started them, it is 1. Raises ProcessGroupError.
    """
    gpus = torch.cuda.device_count()
    if gpus and requested and requested > gpus:
        raise ProcessGroupError(f"--processes {requested}: this host has {gpus} GPU(s), and each process needs one")
    return 1 if "WORLD_SIZE" in os.environ else requested or gpus or 1


def launch(processes: int) -> None:
    """Replace this process by torchrun, which starts this script `processes` times on this host. Does not return."""
    hosts = _hosts(os.environ)
    rendezvous = ["--standalone"]
    if len(hosts) > 1:
        node_rank = hosts.index(os.environ["SM_CURRENT_HOST"])
        rendezvous = ["--nnodes", str(len(hosts)), "--node_rank", str(node_rank)]
        address, port = _meeting_place(os.environ)
        rendezvous += ["--master_addr", address, "--master_port", port]
    threads = max(1, int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)) // processes)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # torchrun's default is one, whatever the host has
    command = ["-m", "torch.distributed.run", *rendezvous, "--nproc_per_node", str(processes), *sys.argv]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *command])


class ProcessGroup:
    """The processes that train together, and their collective operations, which do nothing in a single process."""

    def __init__(self, rank: Rank):
        self.rank, self.world_size, self.local_rank = rank.rank, rank.world_size, rank.local_rank

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes files and prints."""
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """Return the sum of each value over all ranks, computed in float64."""
        if self.world_size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=_device())
        dist.all_reduce(total)
        return total.tolist()

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is true on at least one rank."""
        return self.sum([float(flag)])[0] > 0

    def broadcast(self, function: Callable[[], Any]) -> Any:
        """Call `function` on rank 0 alone and return its result on all ranks; its ValueError is raised on all."""
        if self.world_size == 1:
            return function()
        result: list[Any] = [None, None]
        if self.is_first:
            try:
                result[0] = function()
            except ValueError as error:
                result[1] = error
        dist.broadcast_object_list(result, device=_device())
        if result[1] is not None:
            raise result[1]
        return result[0]

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, on each of them."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def on_each_host(self, function: Callable[[], Any]) -> None:
        """Call `function` in one process of each host, while the others wait; its ValueError is raised on all ranks."""
        failure = None
        if self.local_rank == 0:
            try:
                function()
            except ValueError as error:
                failure = error
        for found in filter(None, self.gather(failure)):
            raise found

    def all_equal(self, value: str) -> bool:
        """Return whether `value` is the same on all ranks."""
        return len(set(self.gather(value))) == 1

    def check_parameters(self, model: torch.nn.Module) -> str:
        """Return the SHA-256 of `model`'s parameters and buffers. Raises RuntimeError if the ranks differ."""
        digest = hashlib.sha256()
        for tensor in model.state_dict().values():
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        if not self.all_equal(digest.hexdigest()):
            raise RuntimeError("the processes have ended with different parameters")
        return digest.hexdigest()

    def average_buffers(self, model: torch.nn.Module) -> None:
        """Set each floating-point buffer of `model` (batch norm statistics) to its mean over all ranks."""
        buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        if self.world_size == 1 or not buffers:
            return
        flat = torch.cat([buffer.flatten() for buffer in buffers])
        dist.all_reduce(flat)
        flat /= self.world_size
        for buffer, mean in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(mean.view_as(buffer))

    def leave(self) -> None:
        """Wait for all ranks, so that none ends while another still needs it, and destroy the process group."""
        if self.world_size > 1:
            dist.barrier()
            dist.destroy_process_group()


SINGLE = ProcessGroup(Rank())


def join(backend: str = "auto", timeout: float = 600) -> ProcessGroup:
    """Join the process group and return it. `backend` is gloo, nccl, or auto: nccl where there is a GPU.

    `timeout` is in seconds, for joining and for each later collective operation. Raises ProcessGroupError.
    """
    here = current_rank()
    gpus = torch.cuda.device_count()
    if backend == "nccl" and not gpus:
        raise ProcessGroupError("--dist-backend nccl needs a GPU, and this host has none; use gloo")
    if here.local_world_size > max(gpus, 1) and (gpus or backend == "nccl"):
        raise ProcessGroupError(
            f"{here.local_world_size} processes on this host, which has {gpus} GPU(s); each process needs one"
        )
    if gpus:
        torch.cuda.set_device(here.local_rank)
    if here.world_size > 1:
        if interface := os.environ.get("SM_NETWORK_INTERFACE_NAME"):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        _rendezvous(
            here, ("nccl" if gpus else "gloo") if backend == "auto" else backend, datetime.timedelta(seconds=timeout)
        )
    return ProcessGroup(here)


def _rendezvous(here: Rank, backend: str, timeout: datetime.timedelta) -> None:
    seconds = f"{timeout.total_seconds():g} s (--timeout)"
    if "WORLD_SIZE" in os.environ:  # torchrun has the rendezvous
        with _quiet():
            dist.init_process_group(backend, timeout=timeout)
        del os.environ["RANK"], os.environ["WORLD_SIZE"]  # fastai would gather predictions where it finds them
        return
    hosts, (address, port) = _hosts(os.environ), _meeting_place(os.environ)
    try:
        store = dist.TCPStore(
            address, int(port), here.world_size, here.rank == 0, timeout=timeout, wait_for_workers=False
        )
    except dist.DistError:
        raise ProcessGroupError(f"host {hosts[0]} could not be reached at port {port} within {seconds}") from None
    store.set(f"here/{here.rank}", "")
    try:
        store.wait([f"here/{rank}" for rank in range(here.world_size)], timeout)
    except dist.DistError:
        missing = [host for rank, host in enumerate(hosts) if not _has(store, f"here/{rank}")]
        raise ProcessGroupError(f"host {', '.join(missing)} did not join within {seconds}") from None
    with _quiet():
        dist.init_process_group(backend, store=store, rank=here.rank, world_size=here.world_size, timeout=timeout)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Discard what is written to stdout: Gloo prints there how many ranks it is connected to."""
    sys.stdout.flush()
    stdout = os.dup(1)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


def _has(store: dist.Store, key: str) -> bool:
    try:
        return store.check([key])
    except dist.DistError:  # the first host, which holds the store, has given up as well
        return True


def _hosts(env: Mapping[str, str]) -> list[str]:
    return json.loads(env.get("SM_HOSTS", "[]"))


def _meeting_place(env: Mapping[str, str]) -> tuple[str, str]:
    """Return the address and the port at which hosts meet."""
    return env.get("MASTER_ADDR") or env["SM_MASTER_ADDR"], env.get("MASTER_PORT") or env["SM_MASTER_PORT"]


def _device() -> torch.device:
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


@contextlib.contextmanager
def sharded(dls: DataLoaders, group: ProcessGroup) -> Iterator[None]:
    """Let the DataLoaders of `dls` load only this rank's shard within the block.

    Training images are shuffled in the same order on all ranks; of each ``world_size * bs`` images, a rank takes `bs`.
    An incomplete last batch is dropped, as fastai does. Validation images are cut into `world_size` equal runs.
    """
    if group.world_size == 1:
        yield
        return
    train, valid = dls.train, dls.valid
    before = {dl: (dl.n, dl.get_idxs) for dl in (train, valid)}
    train.n, train.get_idxs = _training_shard(train, group)
    bounds = [valid.n * rank // group.world_size for rank in (group.rank, group.rank + 1)]
    valid.n, valid.get_idxs = bounds[1] - bounds[0], lambda: list(range(*bounds))
    try:
        yield
    finally:
        for dl, (n, get_idxs) in before.items():
            dl.n, dl.get_idxs = n, get_idxs


def _training_shard(dl: DataLoader, group: ProcessGroup) -> tuple[int, Callable[[], list[int]]]:
    """Return how many images a rank trains on in an epoch, and the function that draws their indexes."""
    n, batch, global_batch = dl.n, dl.bs, dl.bs * group.world_size
    batches = n // global_batch

    def draw() -> list[int]:
        order = dl.shuffle_fn(list(range(n)))
        starts = range(group.rank * batch, batches * global_batch, global_batch)
        return [index for start in starts for index in order[start : start + batch]]

    return batches * batch, draw


class DataParallel(Callback):
    """Average gradients, losses and metrics over the ranks of `group`.

    After each training batch, all ranks set `stop` if `stop_requested` is set on one of them.
    """

    order = 45  # before the Recorder, which records the losses and metrics

    def __init__(self, group: ProcessGroup, stop_requested: threading.Event, stop: threading.Event):
        self.group, self.stop_requested, self.stop = group, stop_requested, stop

    def before_fit(self) -> None:
        device = [self.group.local_rank] if self.dls.device.type == "cuda" else None
        self.network = DistributedDataParallel(self.learn.model, device_ids=device, **OWN_BUFFERS)

    def before_train(self) -> None:
        self.learn.model = self.network

    def after_batch(self) -> None:
        if not self.training:
            return
        loss, requests = self.group.sum([self.learn.loss.item(), float(self.stop_requested.is_set())])
        self.learn.loss = torch.full_like(self.learn.loss, loss / self.group.world_size)
        if requests:
            self.after_train()  # no rank trains another batch
            self.stop.set()

    def after_train(self) -> None:
        self.learn.model = self.network.module
        self.group.average_buffers(self.learn.model)

    def after_validate(self) -> None:
        for metric in [self.learn.recorder.loss, *self.learn.metrics]:
            if hasattr(metric, "sum_over"):
                metric.sum_over(self.group)
                continue
            metric.total, metric.count = self.group.sum([float(metric.total), float(metric.count)])
