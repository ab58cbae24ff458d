"""Data parallel training: the processes of one or several hosts, each with its share of every batch.

Where a process stands is told by torchrun (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE), or by SageMaker's training
toolkit, which starts one process a host (SM_HOSTS, SM_CURRENT_HOST, MASTER_ADDR, MASTER_PORT); for several processes a
host, that one makes way for torchrun (`launch`).

N processes with batches of B images compute what one process computes with batches of N*B images, but for two things.
Batch norms see less: each process normalises by its own B images, and the running statistics are averaged after each
epoch. The loss of masks is the mean over the pixels that are not void, in each process of its own.
"""

import contextlib
import datetime
import hashlib
import inspect
import json
import os
import sys
from dataclasses import dataclass

import torch
import torch.distributed as dist
from fastai.vision.all import Callback
from torch.nn.parallel import DistributedDataParallel

# Lets each process keep the statistics of its batch norms until `average_buffers`. torch 2.15 warns of the argument's
# old name. By the new one it still hands out the first process's at the start, when all have the same.
RENAMED = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
OWN_BUFFERS = {"forward_sync_buffers" if RENAMED else "broadcast_buffers": False}


class GroupError(ValueError):
    """Processes that cannot train together: a backend that is not there, a host that did not come, other images."""


@dataclass(frozen=True)
class Rank:
    """Where a process stands among all (`rank` of `size`) and on its host (`local_rank` of `local_size`)."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def place(env=os.environ) -> Rank:
    """The place of this process."""
    if "WORLD_SIZE" in env:
        return Rank(*(int(env[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")))
    hosts = _hosts(env)
    return Rank(hosts.index(env["SM_CURRENT_HOST"]), len(hosts)) if hosts else Rank()


def processes_of_host(wanted: int | None) -> int:
    """How many processes this host is to start: `wanted`, or one for each of its GPUs.

    None where torchrun has started them. Raises GroupError.
    """
    gpus = torch.cuda.device_count()
    if gpus and wanted and wanted > gpus:
        raise GroupError(f"--processes {wanted}: this host has {gpus} GPU(s), and each process needs one")
    return 1 if "WORLD_SIZE" in os.environ else wanted or gpus or 1


def launch(processes: int) -> None:
    """Replace this process by torchrun, which starts `processes` of it on this host. Does not return."""
    hosts = _hosts(os.environ)
    meeting = ["--standalone"]
    if len(hosts) > 1:
        number = hosts.index(os.environ["SM_CURRENT_HOST"])
        meeting = ["--nnodes", str(len(hosts)), "--node_rank", str(number)]
        meeting += ["--master_addr", os.environ["MASTER_ADDR"], "--master_port", os.environ["MASTER_PORT"]]
    threads = max(1, int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)) // processes)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # torchrun's default is one, whatever the host has
    command = ["-m", "torch.distributed.run", *meeting, "--nproc_per_node", str(processes), *sys.argv]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *command])


class Group:
    """The processes that train together. A single process needs no one: each method then returns at once."""

    def __init__(self, place: Rank):
        self.rank, self.size, self.local_rank = place.rank, place.size, place.local_rank

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and reports."""
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """Of each value, the sum over all processes (in float64)."""
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=_device())
        dist.all_reduce(total)
        return total.tolist()

    def any(self, flag: bool) -> bool:
        return self.sum([float(flag)])[0] > 0

    def broadcast(self, make):
        """What `make` returns in the first process, in all of them; a ValueError that it raises is raised in all."""
        if self.size == 1:
            return make()
        answer = [None, None]
        if self.first:
            try:
                answer[0] = make()
            except ValueError as error:
                answer[1] = error
        dist.broadcast_object_list(answer, device=_device())
        if answer[1] is not None:
            raise answer[1]
        return answer[0]

    def have_same(self, value: str) -> bool:
        """Whether all processes have the same `value`."""
        if self.size == 1:
            return True
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return len(set(values)) == 1

    def check_parameters(self, model: torch.nn.Module) -> str:
        """The SHA-256 of `model`'s parameters and buffers. Raises RuntimeError if another process has others."""
        digest = hashlib.sha256()
        for tensor in model.state_dict().values():
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        if not self.have_same(digest.hexdigest()):
            raise RuntimeError("the processes have ended with different parameters")
        return digest.hexdigest()

    def average_buffers(self, model: torch.nn.Module) -> None:
        """Give all processes the mean of each statistic of `model`'s batch norms."""
        buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        if self.size == 1 or not buffers:
            return
        flat = torch.cat([buffer.flatten() for buffer in buffers])
        dist.all_reduce(flat)
        flat /= self.size
        for buffer, mean in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(mean.view_as(buffer))

    def leave(self) -> None:
        """Wait until all have come here, so that none ends while another one still needs it."""
        if self.size > 1:
            dist.barrier()
            dist.destroy_process_group()


SINGLE = Group(Rank())


def join(backend: str = "auto", timeout: float = 600) -> Group:
    """Meet the other processes. `timeout` in seconds, for this and for each later exchange. Raises GroupError.

    `backend` is gloo, nccl, or auto: nccl where there is a GPU.
    """
    here = place()
    gpus = torch.cuda.device_count()
    if backend == "nccl" and not gpus:
        raise GroupError("--dist-backend nccl needs a GPU, and this host has none; use gloo")
    if here.local_size > max(gpus, 1) and (gpus or backend == "nccl"):
        raise GroupError(f"{here.local_size} processes on this host, which has {gpus} GPU(s); each process needs one")
    if gpus:
        torch.cuda.set_device(here.local_rank)
    if here.size > 1:
        if interface := os.environ.get("SM_NETWORK_INTERFACE_NAME"):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        _rendezvous(
            here, ("nccl" if gpus else "gloo") if backend == "auto" else backend, datetime.timedelta(seconds=timeout)
        )
    return Group(here)


def _rendezvous(here: Rank, backend: str, timeout: datetime.timedelta) -> None:
    seconds = f"{timeout.total_seconds():g} s (--timeout)"
    if "WORLD_SIZE" in os.environ:  # torchrun has brought all together
        with _quiet():
            dist.init_process_group(backend, timeout=timeout)
        del os.environ["RANK"], os.environ["WORLD_SIZE"]  # or fastai would gather what it computes, here and there
        return
    hosts, port = _hosts(os.environ), int(os.environ["MASTER_PORT"])
    try:
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"], port, here.size, here.rank == 0, timeout=timeout, wait_for_workers=False
        )
    except dist.DistError:
        raise GroupError(f"host {hosts[0]} could not be reached at port {port} within {seconds}") from None
    store.set(f"here/{here.rank}", "")
    try:
        store.wait([f"here/{rank}" for rank in range(here.size)], timeout)
    except dist.DistError:
        missing = [host for rank, host in enumerate(hosts) if not _has(store, f"here/{rank}")]
        raise GroupError(f"host {', '.join(missing)} did not come within {seconds}") from None
    with _quiet():
        dist.init_process_group(backend, store=store, rank=here.rank, world_size=here.size, timeout=timeout)


@contextlib.contextmanager
def _quiet():
    """Gloo tells stdout, in pieces, how many it has met."""
    sys.stdout.flush()
    stdout = os.dup(1)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


def _has(store, key: str) -> bool:
    try:
        return store.check([key])
    except dist.DistError:  # the first host, which held it, has given up as well
        return True


def _hosts(env) -> list[str]:
    return json.loads(env.get("SM_HOSTS", "[]"))


def _device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


@contextlib.contextmanager
def sharded(dls, group: Group):
    """Within, the DataLoaders of `dls` give this process its part of all images.

    Of each batch of ``size * bs`` training images, drawn in an order that is the same everywhere, the rank-th `bs`;
    what does not fill such a batch is dropped, as fastai drops a last batch that is not full. Of the images that
    validate, one of `size` equal runs.
    """
    if group.size == 1:
        yield
        return
    train, valid = dls.train, dls.valid
    before = {dl: (dl.n, dl.get_idxs) for dl in (train, valid)}
    train.n, train.get_idxs = _training_share(train, group)
    bounds = [valid.n * rank // group.size for rank in (group.rank, group.rank + 1)]
    valid.n, valid.get_idxs = bounds[1] - bounds[0], lambda: list(range(*bounds))
    try:
        yield
    finally:
        for dl, (n, get_idxs) in before.items():
            dl.n, dl.get_idxs = n, get_idxs


def _training_share(dl, group: Group) -> tuple:
    """How many images, and the function that draws them."""
    n, batch, of_all = dl.n, dl.bs, dl.bs * group.size
    batches = n // of_all

    def draw() -> list[int]:
        order = dl.shuffle_fn(list(range(n)))
        starts = range(group.rank * batch, batches * of_all, of_all)
        return [index for start in starts for index in order[start : start + batch]]

    return batches * batch, draw


class DataParallel(Callback):
    """Averages gradients, losses and metrics over the processes of `group`.

    After each training batch they agree on whether one of them was asked to stop (`asked`), and set `stop` together.
    """

    order = 45  # before the Recorder, which notes the losses and metrics

    def __init__(self, group: Group, asked, stop):
        self.group, self.asked, self.stop = group, asked, stop

    def before_fit(self):
        device = [self.group.local_rank] if self.dls.device.type == "cuda" else None
        self.network = DistributedDataParallel(self.learn.model, device_ids=device, **OWN_BUFFERS)

    def before_train(self):
        self.learn.model = self.network

    def after_batch(self):
        if not self.training:
            return
        loss, asked = self.group.sum([self.learn.loss.item(), float(self.asked.is_set())])
        self.learn.loss = torch.full_like(self.learn.loss, loss / self.group.size)
        if asked:
            self.after_train()  # no process trains another batch
            self.stop.set()

    def after_train(self):
        self.learn.model = self.network.module
        self.group.average_buffers(self.learn.model)

    def after_validate(self):
        for metric in [self.learn.recorder.loss, *self.learn.metrics]:
            if hasattr(metric, "sum_over"):
                metric.sum_over(self.group)
                continue
            metric.total, metric.count = self.group.sum([float(metric.total), float(metric.count)])
