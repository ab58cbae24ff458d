"""An export.pkl of fastai, loaded in a process of its own: the code that a pickle holds never runs in this one."""

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

WARNING = "to load a pickle runs whatever code it holds"
MODULE = "fastmaker.training.convert"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of whatever loads an export: `trust`, `imports` and `ignored`."""
    parser.add_argument("--trust", action="store_true", help=f"load the pickle: {WARNING}")
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="FILE.py",
        help="a file, or a module, that defines what the pickle names and lacks; can be repeated",
    )
    parser.add_argument(
        "--ignore",
        dest="ignored",
        action="append",
        default=[],
        metavar="NAME",
        help="a callback that changes no answer, as __main__.Name; can be repeated",
    )


def check(file: Path, trust: bool) -> None:
    """Raise ValueError unless `file` is a file and may be loaded. Nothing is read of it.

    Raises ModuleNotFoundError where there is no fastai.
    """
    if not file.is_file():
        raise ValueError(f"{file} is {'a folder' if file.is_dir() else 'missing'}; expected a file of learn.export")
    if not trust:
        raise ValueError(f"{file}: {WARNING}; if you trust it, add --trust")
    if importlib.util.find_spec("fastai") is None:
        raise ModuleNotFoundError("No module named 'fastai'", name="fastai")


def convert(
    file: Path,
    model_dir: Path,
    *,
    imports: Sequence[str] = (),
    ignored: Sequence[str] = (),
    mask_size: str = "model",
    image_size: tuple[int, int] | None = None,
) -> list[str]:
    """Write the bundle of the Learner in `file`; return the names of the missing objects, which have stand-ins.

    `mask_size` and `image_size`, (height, width), are those of `fastmaker.save_bundle`. Raises ValueError, before
    anything is written, if the Learner cannot be loaded or a bundle cannot reproduce it.
    """
    words = ["--model-dir", str(model_dir.absolute()), "--mask-size", mask_size]
    words += ["--image-size", *map(str, image_size)] if image_size else []
    with _loading(file, imports, ignored, words) as (_, receive):
        names: list[str] = receive()["stand_ins"]
        return names


@contextlib.contextmanager
def answering(
    file: Path, *, imports: Sequence[str] = (), ignored: Sequence[str] = ()
) -> Iterator[Callable[[bytes], dict[str, np.ndarray]]]:
    """Yield a function from an encoded image to the arrays of ``learn.predict``: decoded, classes, array.

    Raises ValueError, as that function does.
    """
    with tempfile.TemporaryDirectory() as scratch:
        image, output = Path(scratch, "image"), Path(scratch, "answer.npz")
        with _loading(file, imports, ignored, ["--answers", str(output)]) as (send, receive):
            receive()

            def predict(data: bytes) -> dict[str, np.ndarray]:
                image.write_bytes(data)
                send(str(image))
                receive()
                with np.load(output, allow_pickle=False) as arrays:
                    return dict(arrays)

            yield predict


@contextlib.contextmanager
def _loading(
    file: Path, imports: Sequence[str], ignored: Sequence[str], words: Sequence[str]
) -> Iterator[tuple[Callable[[str], None], Callable[[], dict[str, Any]]]]:
    """Yield what sends a line to the process that has the pickle, and what returns its next reply."""
    options = [word for name in imports for word in ("--import", name)]
    options += [word for name in ignored for word in ("--ignore", name)]
    reading, writing = os.pipe()
    command = [sys.executable, "-m", MODULE, str(file), "--reply", str(writing), *words, *options]
    with contextlib.ExitStack() as stack:
        replies = stack.enter_context(os.fdopen(reading, encoding="utf-8"))
        log = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace"))
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, pass_fds=[writing], text=True
            )
        finally:
            os.close(writing)
        stack.enter_context(process)
        stack.callback(process.kill)

        def receive() -> dict[str, Any]:
            line = replies.readline()
            if not line:
                raise ValueError(f"{file}: the process that loaded it {_how_it_ended(process, log)}")
            reply: dict[str, Any] = json.loads(line)
            if "error" in reply:
                raise ValueError(reply["error"])
            return reply

        def send(line: str) -> None:
            assert process.stdin
            with contextlib.suppress(BrokenPipeError):  # `receive` says why
                process.stdin.write(line + "\n")
                process.stdin.flush()

        yield send, receive


def _how_it_ended(process: subprocess.Popen[str], log: Any) -> str:
    status = process.wait()
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    log.seek(0)
    lines = [line.strip() for line in log if line.strip()]
    return f"ended with status {status}: {lines[-1] if lines else 'it said nothing'}"
