"""Package a model for another server: ``fastmaker package torchserve|triton|onnx MODEL``.

torchserve  a TorchServe archive, which serves with torch, torchvision, Pillow and NumPy beside TorchServe, and
            answers as an endpoint does; see source/fastmaker/serving/torchserve_handler.py
triton      a model repository for NVIDIA's Triton Inference Server; see jobs/packaging/triton.py
onnx        one ONNX file, alone or in a model directory that ONNX Runtime serves; see
            source/fastmaker/export/onnx_file.py
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
from collections.abc import Iterator
from pathlib import Path

from fastmaker.jobs import backends, deploy, storage
from fastmaker.jobs.cli import errors
from fastmaker.jobs.packaging import triton
from fastmaker.local.containers import Container, ContainerError, unpack
from fastmaker.local.serving import torchserve

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # what torch-model-archiver takes, and Triton
STOP_SECONDS = 5
PASSED_ON = ("FASTMAKER_", "TS_MAX_")  # what of the environment a server should see


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        prog="fastmaker package",
        description="Package a trained model for another server.",
        epilog="example: fastmaker package torchserve digits --batch-size 8 --serve",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _add_torchserve(commands)
    _add_triton(commands)
    _add_onnx(commands)
    for command in commands.choices.values():
        command.add_argument(
            "model", metavar="MODEL", help="a training job, a model directory, a model.tar.gz or its URI"
        )
        command.add_argument("--aws", action="store_true", help="a training job that is called MODEL is one on AWS")
    args = parser.parse_args(argv)
    command = commands.choices[args.command]
    limits = {"batch_size": 1, "max_batch_delay": 0, "workers": 1, "instances": 1, "port": 1}
    for name, least in limits.items():
        if (value := getattr(args, name, None)) is not None and value < least:
            command.error(f"--{name.replace('_', '-')} {value}: expected {least} or more")
    if args.command == "onnx" and args.int8 != bool(args.calibrate):
        command.error("--int8 and --calibrate FOLDER go together")
    if args.command == "onnx" and args.bundle and args.input != "uint8":
        command.error("--bundle: endpoints give the model uint8 images")
    return args


def _add_torchserve(commands) -> None:
    archive = commands.add_parser("torchserve", help="a .mar, which TorchServe serves without more")
    archive.add_argument("--output", type=Path, default=Path(), help="a .mar or a folder for it (default: here)")
    archive.add_argument("--model-name", help="(default: as --output or MODEL is called)")
    archive.add_argument("--batch-size", type=int, default=1, help="requests of a batch (default: %(default)s)")
    archive.add_argument("--max-batch-delay", type=int, default=20, help="ms to wait for them (default: %(default)s)")
    archive.add_argument("--workers", type=int, help="(default: as many as the server has cores, or GPUs)")
    archive.add_argument("--force", action="store_true", help="replace an archive that exists")
    archive.add_argument("--serve", action="store_true", help="serve it on this machine until Ctrl-C")
    archive.add_argument("--port", type=int, default=8080, help="of --serve (default: %(default)s)")


def _add_triton(commands) -> None:
    repository = commands.add_parser("triton", help="a model repository, which Triton serves without more")
    repository.add_argument("--model-name", help="(default: as MODEL is called)")
    triton.add_arguments(repository)
    repository.add_argument("--force", action="store_true", help="replace a model of this name in the repository")


def _add_onnx(commands) -> None:
    onnx = commands.add_parser("onnx", help="one ONNX file, normalisation and softmax inside it")
    place = onnx.add_mutually_exclusive_group()
    place.add_argument("--output", type=Path, default=Path(), help="a .onnx or a folder for it (default: here)")
    place.add_argument(
        "--bundle", type=Path, metavar="FOLDER", help="make a model directory that has it beside the bundle"
    )
    onnx.add_argument(
        "--input", choices=("uint8", "float"), default="uint8", help="float is 0..1 (default: %(default)s)"
    )
    onnx.add_argument("--int8", action="store_true", help="quantise it; needs --calibrate")
    onnx.add_argument("--calibrate", type=Path, metavar="FOLDER", help="images like those that it will see")
    onnx.add_argument("--force", action="store_true", help="replace a file that exists")


def main(args) -> Path:
    """Make what is asked for; returns its path."""
    return {"torchserve": package_torchserve, "triton": package_triton, "onnx": package_onnx}[args.command](args)


def package_torchserve(args) -> Path:
    """Make the archive, and serve it if that is asked for; returns its path."""
    name, archive = _target(args)
    if args.serve:
        _check_port(args.port)
    with model_directory(args.model, args.aws) as model_dir:
        make_archive(model_dir, name, archive, _config(args))
    print(f"archive: {archive}", flush=True)
    if args.serve:
        try:
            serve(archive, name, args.port)
        except ContainerError as error:
            errors.fail(error, 1)
    else:
        print(
            "next:    torchserve --start --disable-token-auth --model-store "
            f"{shlex.quote(str(archive.parent))} --models {name}={shlex.quote(archive.name)}"
        )
    return archive


def package_triton(args) -> Path:
    """Make the repository, and say how it is served; returns its path."""
    options = triton.options(args)
    name = _model_name(args.model_name, args.model)
    repository = args.output.resolve()
    archive = repository.with_name(repository.name + ".tar.gz") if args.sagemaker else None
    _check_targets(repository, triton.model_folders(name, options), archive, args.force)
    with model_directory(args.model, args.aws) as model_dir:
        triton.make_repository(model_dir, name, repository, options, archive)
    print(f"repository: {repository}")
    if archive:
        print(f"archive:    {archive}, for SageMaker with {triton.SAGEMAKER_MODEL_NAME}={name}")
    print(f"to serve:   {triton.docker_command(repository, options)}")
    print(f"next:       fastmaker predict --triton 127.0.0.1:8001 --model {name} IMAGE ...")
    return repository


def package_onnx(args) -> Path:
    """Make the ONNX file, with --bundle in a new model directory; returns the path of either."""
    from fastmaker import bundle
    from fastmaker.export import onnx_file

    onnx_file.check_packages()
    target = _onnx_target(args)
    with model_directory(args.model, args.aws) as model_dir:
        if args.bundle:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=f"{target.name}.") as scratch:
                # The code is ours, not the bundle's: it may be older than the engine.
                bundle.save_code((whole := Path(scratch, "bundle")) / bundle.CODE_DIR)
                _copy_model(model_dir, whole)
                make_onnx(model_dir, whole / bundle.ONNX_FILE, args.input, args.calibrate)
                whole.rename(target)
        else:
            make_onnx(model_dir, target, args.input, args.calibrate)
    print(f"made:       {target}")
    if args.bundle:
        print(f"next:       fastmaker deploy --model {shlex.quote(str(target))} --env FASTMAKER_ENGINE=onnxruntime")
    return target


def make_onnx(model_dir: Path, file: Path, image_input: str = "uint8", calibrate: Path | None = None) -> None:
    """Write the bundle in `model_dir` as `file`, in int8 if there is a folder to `calibrate` with; say how good it is.

    Raises bundle.BundleError or onnx_file.ExportError.
    """
    from fastmaker import bundle
    from fastmaker.export import onnx_file

    with tempfile.TemporaryDirectory() as scratch:
        info = bundle.load_info(model_dir)
        images = onnx_file.calibration_images(calibrate, info, image_input) if calibrate else []
        float_file = Path(scratch, "float32.onnx") if calibrate else file
        difference = onnx_file.to_onnx(model_dir, float_file, image_input)
        print(f"float32:    {_megabytes(float_file)}, probabilities within {difference:.1e} of torch's")
        if calibrate:
            same, of = onnx_file.to_int8(float_file, file, images)
            things = "pixels" if info.task == "segmentation" else "labels"
            print(f"int8:       {_megabytes(file)}, {same} of {of} {things} as in float32 on {len(images)} images")


def _megabytes(file: Path) -> str:
    return f"{file.stat().st_size / 1e6:.1f} MB"


def _onnx_target(args) -> Path:
    """The file to make, or the folder of --bundle. Raises ValueError."""
    if args.bundle:
        if args.bundle.exists():
            raise ValueError(f"{args.bundle} exists; --bundle makes a new folder")
        return args.bundle
    is_file = args.output.suffix == ".onnx" and not args.output.is_dir()
    file = args.output if is_file else args.output / ("model.int8.onnx" if args.int8 else "model.onnx")
    _check_file(file, args.force)
    return file


def _copy_model(model_dir: Path, folder: Path) -> None:
    """Copy what a model directory holds beside its code."""
    from fastmaker import bundle

    for name in (bundle.STATE_FILE, bundle.INFO_FILE, bundle.ONNX_FILE):
        if (model_dir / name).is_file():
            shutil.copy2(model_dir / name, folder)


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
        _copy_model(model_dir, contents)
        (config_file := Path(scratch, "model-config.yaml")).write_text(config)
        # The archiver puts it into the archive's root; nothing imports it from the package.
        handler = (contents / "fastmaker" / "serving" / "torchserve_handler.py").rename(
            Path(scratch, "torchserve_handler.py")
        )
        _archiver(name, handler, contents, config_file, Path(scratch))
        archive.parent.mkdir(parents=True, exist_ok=True)
        partial = archive.with_name(archive.name + ".partial")
        try:
            shutil.move(Path(scratch, f"{name}.mar"), partial)
            partial.replace(archive)
        finally:
            partial.unlink(missing_ok=True)


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
            # Not left half done by a second Ctrl-C.
            with errors.signals((signal.SIGINT, signal.SIGTERM), signal.SIG_IGN):
                container.close(STOP_SECONDS)


def _await_workers(container: Container, name: str, port: int) -> None:
    while not torchserve.all_workers_ready(port, name):
        if reason := torchserve.why_not_starting(container):
            raise ContainerError(reason)
        time.sleep(0.1)


def _target(args) -> tuple[str, Path]:
    """The model's name and the path of its archive. Raises ValueError."""
    is_file = args.output.suffix == ".mar" and not args.output.is_dir()
    name = _model_name(args.model_name, args.output if is_file else args.model)
    archive = args.output if is_file else args.output / f"{name}.mar"
    _check_file(archive, args.force)
    return name, archive


def _model_name(given: str | None, path: str | Path) -> str:
    """The name given, else that of the path. Raises ValueError if no server takes it."""
    name = given or os.path.basename(os.path.abspath(path)).removesuffix(".mar").removesuffix(".tar.gz")
    if NAME.fullmatch(name):
        return name
    expected = "expected letters, digits, '_', '-' and '.', not at its start"
    if given:
        raise ValueError(f"--model-name {given!r}: {expected}")
    raise ValueError(f"{path} gives the model the name {name!r}: {expected}; give it another by --model-name NAME")


def _check_file(file: Path, force: bool) -> None:
    """Raises ValueError if something is in the way of the file."""
    if file.is_dir():
        raise ValueError(f"{file} is a folder, where a file is to be made")
    if file.exists() and not force:
        raise ValueError(f"{file} exists; --force replaces it")


def _check_targets(repository: Path, folders: list[str], archive: Path | None, force: bool) -> None:
    """Raises ValueError if something is in the way."""
    if repository.exists() and not repository.is_dir():
        raise ValueError(f"--output {repository}: expected a folder")
    for path in (repository / folder for folder in folders):
        if path.exists() and not force:
            raise ValueError(f"{path} exists; --force replaces it")
    if archive:
        _check_file(archive, force)


def _config(args) -> str:
    """model-config.yaml (https://pytorch.org/serve/configuration.html#config-model)."""
    values = {"batchSize": args.batch_size, "maxBatchDelay": args.max_batch_delay}
    if args.workers:
        values |= {"minWorkers": args.workers, "maxWorkers": args.workers}
    return "".join(f"{key}: {value}\n" for key, value in values.items())


@contextlib.contextmanager
def model_directory(model: str, aws: bool = False) -> Iterator[Path]:
    """The directory of the bundle that `model` means, unpacked if need be. Raises ValueError or StorageError.

    A training job is one on AWS if `aws`.
    """
    place = argparse.Namespace(backend="aws" if aws else "process")
    found = deploy.locate(model, lambda: backends.backend(place).session)
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


if __name__ == "__main__":
    errors.run(sys.modules[__name__])
