"""Package a model for another server.

``python -m jobs.package torchserve MODEL [--serve]`` makes a TorchServe archive. It serves with torch, torchvision,
Pillow and NumPy beside TorchServe, and answers as an endpoint does; see source/fastmaker/torchserve_handler.py.

``python -m jobs.package triton MODEL`` makes a model repository for NVIDIA's Triton; see jobs/triton.py.
"""

import argparse
import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from jobs import console, deploy, session, triton
from jobs.local import storage, torchserve
from jobs.local.container import Container, ContainerError, unpack

MODEL_HELP = "a training job, a model directory, a model.tar.gz or its URI"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # what torch-model-archiver takes, and Triton
STOP_SECONDS = 5
PASSED_ON = ("FASTMAKER_", "TS_MAX_")  # what of the environment a server should see


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m jobs.package",
        description="Package a trained model for another server.",
        epilog="example: python -m jobs.package torchserve digits --batch-size 8 --serve",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _add_torchserve(commands)
    _add_triton(commands)
    args = parser.parse_args(argv)
    limits = {"batch_size": 1, "max_batch_delay": 0, "workers": 1, "instances": 1, "port": 1}
    for name, least in limits.items():
        if (value := getattr(args, name, None)) is not None and value < least:
            commands.choices[args.command].error(f"--{name.replace('_', '-')} {value}: expected {least} or more")
    return args


def _add_torchserve(commands) -> None:
    archive = commands.add_parser("torchserve", help="a .mar, which TorchServe serves without more")
    archive.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    archive.add_argument("--output", type=Path, default=Path(), help="a .mar or a folder for it (default: here)")
    archive.add_argument("--model-name", help="(default: as --output or MODEL is called)")
    archive.add_argument("--batch-size", type=int, default=1, help="requests of a batch (default: %(default)s)")
    archive.add_argument("--max-batch-delay", type=int, default=20, help="ms to wait for them (default: %(default)s)")
    archive.add_argument("--workers", type=int, help="(default: as many as the server has cores, or GPUs)")
    archive.add_argument("--force", action="store_true", help="replace an archive that exists")
    archive.add_argument("--serve", action="store_true", help="serve it on this machine until Ctrl-C")
    archive.add_argument("--port", type=int, default=8080, help="of --serve (default: %(default)s)")


def _add_triton(commands) -> None:
    defaults = triton.Options()
    repository = commands.add_parser("triton", help="a model repository, which Triton serves without more")
    repository.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    repository.add_argument(
        "--output", type=Path, default=Path("model_repository"), help="the repository (default: %(default)s)"
    )
    repository.add_argument("--model-name", help="(default: as MODEL is called)")
    repository.add_argument(
        "--batch-size", type=int, default=defaults.batch_size, help="images of a batch (default: %(default)s)"
    )
    repository.add_argument(
        "--max-batch-delay",
        type=int,
        default=defaults.max_batch_delay,
        help="ms to wait for them (default: %(default)s)",
    )
    repository.add_argument(
        "--instances", type=int, default=defaults.instances, help="of each model, on each GPU (default: %(default)s)"
    )
    repository.add_argument("--preprocessing", action="store_true", help="take encoded images: an ensemble of models")
    repository.add_argument(
        "--backend", choices=triton.BACKENDS, default=defaults.backend, help="of the network (default: %(default)s)"
    )
    repository.add_argument("--sagemaker", action="store_true", help="write OUTPUT.tar.gz, for SageMaker, as well")
    repository.add_argument("--force", action="store_true", help="replace a model of this name in the repository")


def main(args) -> Path:
    """Package the model; returns the path of the archive or of the repository."""
    return {"torchserve": _package_torchserve, "triton": _package_triton}[args.command](args)


def _package_torchserve(args) -> Path:
    """Make the archive, and serve it if that is asked for; returns its path."""
    name, archive = _target(args)
    if args.serve:
        _check_port(args.port)
    with _model_directory(args.model) as model_dir:
        make_archive(model_dir, name, archive, _config(args))
    print(f"archive: {archive}", flush=True)
    if args.serve:
        with _signals([signal.SIGTERM], _interrupt):
            try:
                serve(archive, name, args.port)
            except ContainerError as error:
                console.fail(error, 1)
    else:
        print(
            "next:    torchserve --start --disable-token-auth --model-store "
            f"{shlex.quote(str(archive.parent))} --models {name}={shlex.quote(archive.name)}"
        )
    return archive


def _package_triton(args) -> Path:
    """Make the repository, and say how it is served; returns its path."""
    options = triton.Options(args.batch_size, args.max_batch_delay, args.instances, args.backend, args.preprocessing)
    name = _checked_name(args.model_name or _called(Path(os.path.abspath(args.model))))
    repository = args.output.resolve()
    archive = repository.with_name(repository.name + ".tar.gz") if args.sagemaker else None
    _check_targets(repository, triton.model_folders(name, options), archive, args.force)
    with _model_directory(args.model) as model_dir:
        triton.make_repository(model_dir, name, repository, options, archive)
    print(f"repository: {repository}")
    if archive:
        print(f"archive:    {archive}, for SageMaker with {triton.SAGEMAKER_MODEL_NAME}={name}")
    print(f"to serve:   {triton.docker_command(repository, options)}")
    print(f"next:       python -m jobs.predict --triton 127.0.0.1:8001 --model {name} IMAGE ...")
    return repository


def make_archive(model_dir: Path, name: str, archive: Path, config: str) -> None:
    """Write the bundle in `model_dir` as `archive`, whole or not at all; `config` is the text of model-config.yaml.

    Raises bundle.BundleError.
    """
    from fastmaker import bundle

    bundle.load(model_dir)  # what cannot be served is not packaged
    with tempfile.TemporaryDirectory() as scratch:
        contents = Path(scratch, "contents")
        # The code is ours, not the bundle's: it may be older than the handler. TorchServe puts the archive's root on
        # the path.
        bundle.save_code(contents)
        for file in (bundle.STATE_FILE, bundle.INFO_FILE):
            shutil.copy2(model_dir / file, contents)
        (config_file := Path(scratch, "model-config.yaml")).write_text(config)
        handler = contents / "fastmaker" / "torchserve_handler.py"
        _archiver(name, handler, contents, config_file, Path(scratch))
        archive.parent.mkdir(parents=True, exist_ok=True)
        partial = archive.with_name(archive.name + ".partial")
        shutil.move(Path(scratch, f"{name}.mar"), partial)
        partial.replace(archive)


def serve(archive: Path, name: str, port: int) -> None:
    """Run TorchServe on the archive until a KeyboardInterrupt. Raises ContainerError if it cannot, or ends."""
    try:
        with running(archive, name, port) as (container, url):
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
def running(archive: Path, name: str, port: int) -> Iterator[tuple[Container, str]]:
    """A TorchServe on loopback with all workers ready, and the URL of the model; afterwards nothing runs.

    Raises ContainerError.
    """
    with tempfile.TemporaryDirectory() as scratch:
        container = Container(Path(scratch, "server"))
        env = {key: value for key, value in os.environ.items() if key.startswith(PASSED_ON)}
        try:
            torchserve.start_archive(container, archive.resolve(), name, port, env)
            _await_workers(container, name, port)
            yield container, f"http://127.0.0.1:{port}/predictions/{name}"
        finally:
            with _signals((signal.SIGINT, signal.SIGTERM), signal.SIG_IGN):  # not left half done by a second Ctrl-C
                container.close(STOP_SECONDS)


def _await_workers(container: Container, name: str, port: int) -> None:
    while not torchserve.all_workers_ready(port, name):
        if reason := torchserve.why_not_starting(container):
            raise ContainerError(reason)
        time.sleep(0.1)


def _target(args) -> tuple[str, Path]:
    """The model's name and the path of its archive. Raises ValueError."""
    is_file = args.output.suffix == ".mar" and not args.output.is_dir()
    name = _checked_name(args.model_name or _called(args.output if is_file else Path(os.path.abspath(args.model))))
    archive = args.output if is_file else args.output / f"{name}.mar"
    if archive.exists() and not args.force:
        raise ValueError(f"{archive} exists; --force replaces it")
    return name, archive


def _called(path: Path) -> str:
    return path.name.removesuffix(".mar").removesuffix(".tar.gz")


def _checked_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError(f"--model-name {name!r}: expected letters, digits, '_', '-' and '.', not at its start")
    return name


def _check_targets(repository: Path, folders: list[str], archive: Path | None, force: bool) -> None:
    """Raises ValueError if something is in the way."""
    if repository.exists() and not repository.is_dir():
        raise ValueError(f"--output {repository}: expected a folder")
    for path in (*(repository / folder for folder in folders), archive):
        if path and path.exists() and not force:
            raise ValueError(f"{path} exists; --force replaces it")


def _config(args) -> str:
    """model-config.yaml (https://pytorch.org/serve/configuration.html#config-model)."""
    values = {"batchSize": args.batch_size, "maxBatchDelay": args.max_batch_delay}
    if args.workers:
        values |= {"minWorkers": args.workers, "maxWorkers": args.workers}
    return "".join(f"{key}: {value}\n" for key, value in values.items())


@contextlib.contextmanager
def _model_directory(model: str) -> Iterator[Path]:
    """The directory of the bundle that `model` means, unpacked if need be. Raises ValueError or StorageError."""
    found = deploy.locate(model, session.session)
    if isinstance(found, Path) and found.is_dir():
        yield found
        return
    with tempfile.TemporaryDirectory() as scratch:
        if isinstance(found, str):
            found = storage.fetch(found, Path(scratch, "model.tar.gz"))
        try:
            unpack(found, Path(scratch, "model"))
        except ContainerError as error:
            raise ValueError(str(error)) from None
        yield Path(scratch, "model")


def _archiver(name: str, handler: Path, contents: Path, config_file: Path, export_path: Path) -> None:
    command = [sys.executable, "-m", "model_archiver.model_packaging", "--version", "1.0", "--model-name", name]
    command += ["--handler", handler, "--extra-files", contents, "--config-file", config_file]
    # It empties TMPDIR/<model name>, whosever that is.
    (own := export_path / "archiver").mkdir()
    done = subprocess.run(
        [*command, "--export-path", export_path], env={**os.environ, "TMPDIR": str(own)}, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"torch-model-archiver failed:\n{done.stderr}")


def _check_port(port: int) -> None:
    with socket.socket() as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise ValueError(f"--port {port} cannot be had: {error}") from None


def _interrupt(*_) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _signals(numbers: Iterable[int], handler) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, of_before in before.items():
            signal.signal(number, of_before)


if __name__ == "__main__":
    arguments = parse_args()
    with console.errors_as_one_line():
        main(arguments)
