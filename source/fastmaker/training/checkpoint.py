"""Checkpoints of a run: files after each epoch, now and then within one, and at its stop, from which it can go on.

    epoch-0003.pt               after three epochs: what torch.save wrote, then the 32 bytes of its SHA-256
    epoch-0003-batch-000120.pt  the same after 120 batches more

A file appears under its name when it is whole and on the disk, whenever the process is killed. The newest two are kept,
so that one that got damaged has a predecessor. All of it is read with ``weights_only=True``: tensors, numbers, strings,
lists and dicts, no code.

Epochs count from the start of the run, with the one that trains the new head alone when a network is fine-tuned.
Random states are not kept: each epoch and batch is seeded anew (`learner.Position`).
"""

import contextlib
import hashlib
import io
import os
import re
import signal
import threading
from pathlib import Path

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

FORMAT = 1
KEPT = 2
DIGEST_BYTES = 32
NAME = re.compile(r"epoch-(\d{4,})(?:-batch-(\d{6,}))?\.pt")


class CheckpointError(ValueError):
    """A checkpoint that the run cannot go on from, or a directory that cannot hold any."""


def prepare(folder: str | os.PathLike) -> Path:
    """Make the directory. Raises CheckpointError if nothing can be written into it."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / "probe.partial"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise CheckpointError(f"no checkpoint can be written into {folder}: {error.strerror}") from None
    return folder


def write(folder: Path, state: dict) -> Path:
    """Write `state`, and delete all but the newest two. Returns when it is on the disk."""
    batch = f"-batch-{state['batch']:06}" if state["batch"] else ""
    path = folder / f"epoch-{state['epoch']:04}{batch}.pt"
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w+b") as file:
        torch.save(state | {"format": FORMAT}, file)
        file.seek(0)
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
        file.write(digest.digest())
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    _sync(folder)  # or a crash of the machine could undo the rename, and not the deletions below
    _delete_others(folder, (state["epoch"], state["batch"]))
    return path


def newest(folder: Path) -> tuple[Path | None, dict | None, list[str]]:
    """(file, its state, a line for each newer file that is damaged); without a whole file, None and None."""
    damaged = []
    for _, path in sorted(_files(folder), reverse=True):
        try:
            return path, _read(path), damaged
        except (CheckpointError, OSError) as error:
            damaged.append(f"checkpoint {path} is passed over: {error}")
    return None, None, damaged


def check(path: Path, state: dict, run: dict) -> None:
    """Raise CheckpointError unless the checkpoint is of `run`, which has what `state["run"]` was given."""
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{path} has the format {state.get('format')}; this version reads {FORMAT}")
    for name, here in run.items():
        there = state["run"].get(name)
        if there != here:
            raise CheckpointError(
                f"{path} is of another run, with {name} {_short(there)}, not {_short(here)}; give the arguments and"
                " data of that run, or another --checkpoint-dir"
            )


def state_of(learn, epoch: int, batch: int, run: dict) -> dict:
    """What `write` writes after `epoch` epochs of `learn` and `batch` batches; tensors are on the CPU."""
    recorder, model = learn.recorder, learn.model
    if isinstance(model, DistributedDataParallel):
        model = model.module
    recorded = {
        "lrs": recorder.lrs,
        "iters": recorder.iters,
        "values": recorder.values,
        "losses": torch.tensor([float(loss) for loss in recorder.losses]),  # one tensor, not one for each batch
        "smooth_loss": recorder.smooth_loss.val,
        "smooth_count": recorder.smooth_loss.count,
    }
    return {
        "epoch": epoch,
        "batch": batch,
        "run": run,
        "model": _plain(dict(model.state_dict())),
        "optimizer": _plain(learn.opt.state_dict()),
        "log": list(learn.metric_log.lines),
        "recorder": _plain(recorded),
    }


def restore(learn, state: dict) -> None:
    """Give a new `learn` the weights and the optimiser's state."""
    learn.model.load_state_dict(state["model"])
    learn.create_opt()
    saved, device = state["optimizer"], learn.dls.device
    on_device = [{k: v.to(device) if torch.is_tensor(v) else v for k, v in of.items()} for of in saved["state"]]
    learn.opt.load_state_dict({"hypers": saved["hypers"], "state": on_device})


def restore_recorder(recorder, state: dict) -> None:
    """Let `recorder` go on where the one of the checkpoint stopped; ``before_fit`` empties it."""
    saved = state["recorder"]
    recorder.lrs, recorder.iters = list(saved["lrs"]), list(saved["iters"])
    recorder.values, recorder.losses = [list(row) for row in saved["values"]], list(saved["losses"])
    recorder.smooth_loss.val, recorder.smooth_loss.count = saved["smooth_loss"], saved["smooth_count"]


@contextlib.contextmanager
def noting_sigterm(wanted: bool = True):
    """Yields an Event; if `wanted`, a SIGTERM sets it, instead of ending the process."""
    stop = threading.Event()
    if not wanted or threading.current_thread() is not threading.main_thread():  # no other thread may set a handler
        yield stop
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


def outlive_sigterm(*_) -> None:
    """For a process that loads images: SIGTERM ends it only if its parent sent it.

    A platform that stops a job may signal each process, and this one is needed until the checkpoint is written.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    parent = os.getppid()

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def _files(folder: Path) -> list[tuple[tuple[int, int], Path]]:
    """((epoch, batch), file)"""
    matches = ((NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return [((int(match[1]), int(match[2] or 0)), path) for match, path in matches if match]


def _read(path: Path) -> dict:
    data = path.read_bytes()
    body, digest = memoryview(data)[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise CheckpointError("its SHA-256 is another; it was altered or cut short")
    try:
        return torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what the bytes lead it to
        raise CheckpointError(
            f"torch cannot read it with weights_only=True: {' '.join(str(error).split())[:200]}"
        ) from None


def _delete_others(folder: Path, newest: tuple[int, int]) -> None:
    # A newer file is a damaged one that was passed over: it must not count as one of those kept.
    files = sorted(_files(folder))
    kept = [path for place, path in files if place <= newest][-KEPT:]
    for path in [path for _, path in files if path not in kept] + list(folder.glob("*.partial")):
        path.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _plain(value):
    """`value` as ``weights_only=True`` reads it: fastai's lists and tensors and NumPy's numbers made plain."""
    if torch.is_tensor(value):
        return value.detach().cpu().as_subclass(torch.Tensor)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        return value
    return [_plain(item) for item in value]


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."
