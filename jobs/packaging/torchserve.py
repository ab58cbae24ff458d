"""TorchServe archives: a bundle as a .mar file, and a TorchServe on this machine that serves it.

The archive answers as an endpoint does (source/fastmaker/serving/torchserve_handler.py) and needs torch, torchvision,
Pillow and NumPy beside TorchServe.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from fastmaker.files import atomic
from fastmaker.jobs.cli import errors
from fastmaker.jobs.packaging import models
from fastmaker.local.containers import Container, ContainerError
from fastmaker.local.serving import torchserve as server

STOP_SECONDS = 5
PASSED_PREFIXES = ("FASTMAKER_", "TS_MAX_")  # of the environment variables that a server gets


def make_archive(
    model_dir: Path,
    archive: Path,
    *,
    model_name: str,
    batch_size: int | None = None,
    max_batch_delay: int = 20,
    workers: int | None = None,
) -> None:
    """Write the bundle in `model_dir` as `archive`, whole or not at all.

    A batch is at most `batch_size` requests, for which the first waits at most `max_batch_delay` ms; without them
    they are those of serving.json, else 1. Without `workers` there are those of serving.json, else TorchServe starts
    one a core, or a GPU. Raises bundle.BundleError.
    """
    from fastmaker import bundle
    from fastmaker.serving import settings

    bundle.load(model_dir)  # fails for a bundle that cannot be served
    own = settings.load(model_dir)
    workers = workers or (own.workers if own else None)
    batch_size = batch_size or (own.batch_size if own else 1)
    with tempfile.TemporaryDirectory() as scratch:
        contents = Path(scratch, "contents")
        # The installed code, not the bundle's, which may be older than the handler. TorchServe puts the archive's root
        # on the path.
        bundle.save_code(contents)
        models.copy_without_code(model_dir, contents)
        config_file = Path(scratch, "model-config.yaml")
        config_file.write_text(_model_config(batch_size, max_batch_delay, workers))
        # The archiver puts it into the archive's root; nothing imports it from the package.
        handler = (contents / "fastmaker" / "serving" / "torchserve_handler.py").rename(
            Path(scratch, "torchserve_handler.py")
        )
        _run_archiver(model_name, handler, contents, config_file, Path(scratch))
        archive.parent.mkdir(parents=True, exist_ok=True)
        with atomic(archive) as partial:
            shutil.move(Path(scratch, f"{model_name}.mar"), partial)


def serve(archive: Path, model_name: str, port: int) -> None:
    """Run TorchServe on the archive until Ctrl-C. Raises ContainerError if it cannot start, or ends."""
    # A shell that starts a command in the background may have it ignore SIGINT.
    with errors.signals((signal.SIGINT,), signal.default_int_handler):
        try:
            with running(archive, model_name, port) as (container, url):
                print(f"serving: {url}")
                print(f"next:    curl -H 'Content-Type: image/png' --data-binary @IMAGE {url}")
                print(f"log:     {container.log}")
                print("to end:  Ctrl-C", flush=True)
                while container.alive():
                    time.sleep(0.5)
                raise ContainerError(f"TorchServe has ended: {container.last_line()}")
        except KeyboardInterrupt:
            print("\nstopped")


@contextlib.contextmanager
def running(archive: Path, model_name: str, port: int) -> Iterator[tuple[Container, str]]:
    """Start TorchServe on loopback, wait for all workers, yield its container and the model's URL, and stop it.

    Raises ContainerError.
    """
    with tempfile.TemporaryDirectory() as scratch:
        container = Container(Path(scratch, "server"))
        env = {key: value for key, value in os.environ.items() if key.startswith(PASSED_PREFIXES)}
        try:
            server.start_archive(container, archive.resolve(), model_name, port, env)
            _await_workers(container, model_name, port)
            yield container, f"http://127.0.0.1:{port}/predictions/{model_name}"
        finally:
            # A second Ctrl-C would leave processes running.
            with errors.signals((signal.SIGINT, signal.SIGTERM), signal.SIG_IGN):
                container.close(STOP_SECONDS)


def _await_workers(container: Container, model_name: str, port: int) -> None:
    while not (server.all_workers_ready(container, port, model_name) and container.accepts(port)):
        if reason := server.why_not_starting(container):
            raise ContainerError(reason)
        time.sleep(0.1)


def _model_config(batch_size: int, max_batch_delay: int, workers: int | None) -> str:
    """Return the text of model-config.yaml (https://pytorch.org/serve/configuration.html#config-model)."""
    values = {"batchSize": batch_size, "maxBatchDelay": max_batch_delay}
    if workers:
        values |= {"minWorkers": workers, "maxWorkers": workers}
    return "".join(f"{key}: {value}\n" for key, value in values.items())


def _run_archiver(model_name: str, handler: Path, contents: Path, config_file: Path, export_path: Path) -> None:
    command = [sys.executable, "-m", "model_archiver.model_packaging", "--version", "1.0", "--model-name", model_name]
    command += ["--handler", handler, "--extra-files", contents, "--config-file", config_file]
    command += ["--export-path", export_path]
    # The archiver empties TMPDIR/<model name>, even if another program uses it.
    (temporary := export_path / "archiver").mkdir()
    done = subprocess.run(command, env={**os.environ, "TMPDIR": str(temporary)}, capture_output=True, text=True)
    if done.returncode:
        *_, reason = done.stderr.splitlines() or [f"exit status {done.returncode}"]
        raise RuntimeError(f"torch-model-archiver failed: {reason}")
