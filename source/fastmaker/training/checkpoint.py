"""Checkpoints of a run: files after each epoch, at intervals within one, and at SIGTERM, from which it can resume.

    epoch-0003.pt               after three epochs: the output of torch.save, then the 32 bytes of its SHA-256
    epoch-0003-batch-000120.pt  after three epochs and 120 batches

A file appears under its name when it is complete and on the disk, whenever the process is killed. The newest two are
kept, in case one gets damaged. They are read with ``weights_only=True``: tensors, numbers, strings, lists and dicts, no
code.

Epochs count from the start of the run, including the one that trains only the new head when a network is fine-tuned.
Random states are not saved: each epoch and batch is seeded anew (`callbacks.Position`).
"""

import contextlib
import hashlib
import io
import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from fastmaker import files

if TYPE_CHECKING:
    from fastai.vision.all import Learner, Recorder

FORMAT = 1
KEPT = 2
DIGEST_BYTES = 32
NAME = re.compile(r"epoch-(\d{4,})(?:-batch-(\d{6,}))?\.pt")


class CheckpointError(ValueError):
    """A checkpoint that the run cannot resume from, or a directory that cannot hold any."""


def prepare(folder: str | os.PathLike) -> Path:
    """Create the directory if needed and return it. Raises CheckpointError if nothing can be written into it."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / "probe.partial"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise CheckpointError(f"no checkpoint can be written into {folder}: {error.strerror}") from None
    return folder


def write(folder: Path, state: dict[str, Any]) -> Path:
    """Write `state`, delete all but the newest two checkpoints, and return the new file, which is on the disk."""
    batch = f"-batch-{state['batch']:06}" if state["batch"] else ""
    path = folder / f"epoch-{state['epoch']:04}{batch}.pt"
    with files.atomic(path) as partial, open(partial, "w+b") as file:
        torch.save(state | {"format": FORMAT}, file)
        file.seek(0)
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
        file.write(digest.digest())
    _delete_others(folder, (state["epoch"], state["batch"]))
    return path


def newest(folder: Path) -> tuple[Path | None, dict[str, Any] | None, list[str]]:
    """Return the newest intact file, its state, and a line for each newer file that is damaged.

    Without an intact file, file and state are None.
    """
    damaged: list[str] = []
    for _, path in sorted(_files(folder), reverse=True):
        try:
            return path, _read(path), damaged
        except (CheckpointError, OSError) as error:
            damaged.append(f"checkpoint {path} is skipped: {error}")
    return None, None, damaged


def exists(folder: str | os.PathLike) -> bool:
    """Return whether a directory holds a checkpoint, damaged or not."""
    return Path(folder).is_dir() and bool(_files(Path(folder)))


def check(path: Path, state: dict[str, Any], run: dict[str, Any]) -> None:
    """Raise CheckpointError unless the checkpoint is of the same run: each value of `run` is that of state["run"]."""
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{path} has the format {state.get('format')}; this version reads {FORMAT}")
    for name, expected in run.items():
        saved = state["run"].get(name)
        if saved != expected:
            raise CheckpointError(
                f"{path} is of another run, with {name} {_short(saved)}, not {_short(expected)}; give the arguments and"
                " data of that run, or another --checkpoint-dir"
            )


def capture(learn: "Learner", epoch: int, batch: int, run: dict[str, Any]) -> dict[str, Any]:
    """Return the state of `learn` after `epoch` epochs and `batch` batches, for `write`; tensors are on the CPU.

    `run` is what `check` compares. What `learn.kept` has is kept as well: tensors, numbers, strings, lists and dicts.
    """
    recorder, model, mixed = learn.recorder, learn.model, getattr(learn, "mixed_precision", None)
    if isinstance(model, DistributedDataParallel):
        model = model.module
    history = {
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
        "scaler": mixed.scaling.state_dict() if mixed else {},  # of float16's gradients
        "log": list(learn.metric_log.lines),
        "recorder": _plain(history),
        "kept": _plain(getattr(learn, "kept", {})),
    }


def restore(learn: "Learner", state: dict[str, Any]) -> None:
    """Load the weights and the optimiser's state into a new `learn`."""
    learn.model.load_state_dict(state["model"])
    learn.create_opt()
    saved, device = state["optimizer"], learn.dls.device
    on_device = [{k: v.to(device) if torch.is_tensor(v) else v for k, v in of.items()} for of in saved["state"]]
    learn.opt.load_state_dict({"hypers": saved["hypers"], "state": on_device})


def restore_recorder(recorder: "Recorder", state: dict[str, Any]) -> None:
    """Load the history of losses and metrics into `recorder`; call it after ``before_fit``, which empties it."""
    saved = state["recorder"]
    recorder.lrs, recorder.iters = list(saved["lrs"]), list(saved["iters"])
    recorder.values, recorder.losses = [list(row) for row in saved["values"]], list(saved["losses"])
    recorder.smooth_loss.val, recorder.smooth_loss.count = saved["smooth_loss"], saved["smooth_count"]


@contextlib.contextmanager
def sigterm_event(enabled: bool = True) -> Iterator[threading.Event]:
    """Yield an Event; if `enabled`, SIGTERM sets it instead of ending the process."""
    stop = threading.Event()
    if not enabled or threading.current_thread() is not threading.main_thread():  # no other thread may set a handler
        yield stop
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


def ignore_platform_sigterm(*_: Any) -> None:
    """Ignore SIGTERM in a DataLoader worker unless its parent sent it; a ``worker_init_fn``.

    A platform that stops a job may signal each process, and the workers are needed until the checkpoint is written.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    parent = os.getppid()

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def _files(folder: Path) -> list[tuple[tuple[int, int], Path]]:
    """Return ((epoch, batch), file) of each checkpoint."""
    matches = ((NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return [((int(match[1]), int(match[2] or 0)), path) for match, path in matches if match]


def _read(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    body, digest = memoryview(data)[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise CheckpointError("its SHA-256 does not match; it was altered or cut short")
    try:
        return torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make torch raise almost anything
        raise CheckpointError(
            f"torch cannot read it with weights_only=True: {' '.join(str(error).split())[:200]}"
        ) from None


def _delete_others(folder: Path, newest: tuple[int, int]) -> None:
    # A newer file is a damaged one that was skipped: it must not count as one of those kept.
    found = sorted(_files(folder))
    kept = [path for place, path in found if place <= newest][-KEPT:]
    for path in [path for _, path in found if path not in kept] + list(folder.glob("*.partial")):
        path.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    """Return `value` as ``weights_only=True`` reads it: without fastai's lists and tensors and NumPy's numbers."""
    if torch.is_tensor(value):
        return value.detach().cpu().as_subclass(torch.Tensor)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        return value
    return [_plain(item) for item in value]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."
