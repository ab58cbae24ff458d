"""Package a model for another server: ``fastmaker package torchserve|triton|onnx|ray MODEL``.

torchserve  a TorchServe archive; see jobs/packaging/torchserve.py
triton      a model repository for NVIDIA's Triton Inference Server; see jobs/packaging/triton.py
onnx        an ONNX file, alone or in a model directory that ONNX Runtime serves; see jobs/packaging/onnx.py
ray         the manifest by which KubeRay serves it on Kubernetes; see jobs/packaging/kuberay.py
"""

import argparse
import os
import re
import shlex
import socket
import sys
from pathlib import Path

from fastmaker.files import write_text
from fastmaker.jobs import backends, storage
from fastmaker.jobs.cli import errors
from fastmaker.jobs.cli.arguments import at_least
from fastmaker.jobs.packaging import kuberay, models, onnx, torchserve, triton
from fastmaker.local.containers import ContainerError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # a model's name, as torch-model-archiver and Triton take it


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of `fastmaker package`."""
    return _parsers()[0]


def parse_args(argv=None) -> argparse.Namespace:
    """Return the arguments, checked against each other."""
    parser, commands = _parsers()
    args = parser.parse_args(argv)
    command = commands[args.command]
    if args.command == "onnx" and args.int8 != bool(args.calibrate):
        command.error("--int8 and --calibrate FOLDER go together")
    if args.command == "onnx" and args.bundle and args.input != "uint8":
        command.error("--bundle: endpoints give the model uint8 images")
    return args


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Return the parser and those of its subcommands by name."""
    parser = argparse.ArgumentParser(
        prog="fastmaker package",
        description="Package a trained model for another server.",
        epilog="example: fastmaker package torchserve digits --batch-size 8 --serve",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _add_torchserve(commands)
    _add_triton(commands)
    _add_onnx(commands)
    _add_ray(commands)
    for command in commands.choices.values():
        command.add_argument(
            "model", metavar="MODEL", help="a training job, a model directory, a model.tar.gz or its URI"
        )
        command.add_argument("--aws", action="store_true", help="MODEL is the name of a training job on AWS")
    return parser, commands.choices


def _add_torchserve(commands) -> None:
    parser = commands.add_parser("torchserve", help="a TorchServe archive (.mar)")
    parser.add_argument(
        "--output", type=Path, default=Path(), help="the .mar file, or a folder for it (default: the current folder)"
    )
    parser.add_argument("--model-name", help="(default: the name of the .mar file, or of MODEL)")
    parser.add_argument(
        "--batch-size",
        type=at_least(1),
        help="most requests that share a forward pass (default: serving.json's, else 1)",
    )
    parser.add_argument(
        "--max-batch-delay", type=at_least(0), default=20, help="ms to wait for a full batch (default: %(default)s)"
    )
    parser.add_argument(
        "--workers",
        type=at_least(1),
        help="worker processes (default: serving.json's, else one a core or GPU of the server)",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing archive")
    parser.add_argument("--serve", action="store_true", help="serve the archive on this machine until Ctrl-C")
    parser.add_argument("--port", type=at_least(1), default=8080, help="port of --serve (default: %(default)s)")


def _add_triton(commands) -> None:
    default = "(default: %(default)s)"
    parser = commands.add_parser("triton", help="a Triton model repository")
    parser.add_argument("--model-name", help="(default: the name of MODEL)")
    parser.add_argument("--output", type=Path, default=Path("model_repository"), help=f"the repository {default}")
    for name, least, meaning in (
        ("batch_size", 1, "most requests that share a forward pass"),
        ("max_batch_delay", 0, "ms to wait for a full batch"),
        ("instances", 1, "instances of each model, on each GPU"),
    ):
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(
            option, type=at_least(least), default=getattr(triton.Options, name), help=f"{meaning} {default}"
        )
    parser.add_argument(
        "--preprocessing", action="store_true", help="take encoded images: an ensemble of preprocessing and network"
    )
    parser.add_argument(
        "--backend",
        choices=triton.BACKENDS,
        default=triton.Options.backend,
        help=f"Triton backend that runs the network {default}",
    )
    parser.add_argument("--sagemaker", action="store_true", help="also write OUTPUT.tar.gz, for a SageMaker endpoint")
    parser.add_argument("--force", action="store_true", help="replace an existing model of this name")


def _add_onnx(commands) -> None:
    parser = commands.add_parser("onnx", help="an ONNX file with normalisation and softmax inside")
    target = parser.add_mutually_exclusive_group()
    target.add_argument(
        "--output", type=Path, default=Path(), help="the .onnx file, or a folder for it (default: the current folder)"
    )
    target.add_argument(
        "--bundle", type=Path, metavar="FOLDER", help="make a model directory with the file beside the bundle"
    )
    parser.add_argument(
        "--input",
        choices=("uint8", "float"),
        default="uint8",
        help="dtype of the image; float is 0..1 (default: %(default)s)",
    )
    parser.add_argument("--int8", action="store_true", help="quantise the network; needs --calibrate")
    parser.add_argument("--calibrate", type=Path, metavar="FOLDER", help="typical images, to calibrate --int8 with")
    parser.add_argument("--force", action="store_true", help="replace an existing file")


def _add_ray(commands) -> None:
    default = "(default: %(default)s)"
    parser = commands.add_parser("ray", help="a RayService for Kubernetes")
    parser.add_argument(
        "--kuberay", action="store_true", required=True, help="write the manifest of KubeRay's RayService"
    )
    parser.add_argument("--output", type=Path, help="the manifest (default: NAME.yaml)")
    parser.add_argument("--name", help="of the RayService (default: the name of MODEL)")
    place = parser.add_mutually_exclusive_group()
    place.add_argument(
        "--upload", metavar="URI", help="put the archive there, s3://.../model.tar.gz; each pod fetches it"
    )
    place.add_argument("--claim", metavar="NAME", help="a PersistentVolumeClaim whose root is the model directory")
    parser.add_argument(
        "--image",
        metavar="URI",
        help=f"with Ray and torch, and the model in {kuberay.MODEL_DIR} if it comes from nowhere"
        " else (default: AWS's ray:serve-ml-cpu, with --gpus ray:serve-ml-cuda)",
    )
    parser.add_argument("--ray-version", default=kuberay.RAY_VERSION, help=f"of the image {default}")
    for name, least, meaning in (
        ("pods", 1, "that serve, beside the head"),
        ("cpus", 1, "of each"),
        ("gpus", 0, "of each"),
    ):
        value = getattr(kuberay.Options, name)
        parser.add_argument(f"--{name}", type=at_least(least), default=value, help=f"{meaning} {default}")
    parser.add_argument("--memory", default=kuberay.Options.memory, help=f"of each {default}")
    parser.add_argument("--namespace", help="(default: that of kubectl)")
    parser.add_argument("--service-account", metavar="NAME", help="of the pods, with a role that may read the archive")
    parser.add_argument("--force", action="store_true", help="replace an existing file")


def main(args) -> int:
    """Make the package; return the exit status."""
    {"torchserve": _package_torchserve, "triton": _package_triton, "onnx": _package_onnx, "ray": _package_ray}[
        args.command
    ](args)
    return 0


def _package_torchserve(args) -> None:
    name, archive = _archive_target(args)
    if args.serve:
        _check_port(args.port)
    with _model_directory(args) as model_dir:
        torchserve.make_archive(
            model_dir,
            archive,
            model_name=name,
            batch_size=args.batch_size,
            max_batch_delay=args.max_batch_delay,
            workers=args.workers,
        )
    print(f"archive: {archive}", flush=True)
    if args.serve:
        try:
            torchserve.serve(archive, name, args.port)
        except ContainerError as error:
            raise errors.Failure(str(error)) from None
    else:
        print(
            "next:    torchserve --start --disable-token-auth --model-store "
            f"{shlex.quote(str(archive.parent))} --models {name}={shlex.quote(archive.name)}"
        )


def _package_triton(args) -> None:
    options = triton.Options(
        batch_size=args.batch_size,
        max_batch_delay=args.max_batch_delay,
        instances=args.instances,
        backend=args.backend,
        preprocessing=args.preprocessing,
    )
    name = _model_name(args.model_name, args.model)
    repository = args.output.resolve()
    archive = repository.with_name(repository.name + ".tar.gz") if args.sagemaker else None
    _check_repository(repository, triton.model_folders(name, options), archive, args.force)
    with _model_directory(args) as model_dir:
        triton.make_repository(model_dir, name, repository, options, archive)
    print(f"repository: {repository}")
    if archive:
        print(f"archive:    {archive}, for SageMaker with {triton.SAGEMAKER_MODEL_NAME}={name}")
    print(f"to serve:   {triton.docker_command(repository, options)}")
    print(f"next:       fastmaker predict --triton 127.0.0.1:8001 --model {name} IMAGE ...")


def _package_onnx(args) -> None:
    from fastmaker.export import onnx_file

    onnx_file.check_packages()
    target = _onnx_target(args)
    with _model_directory(args) as model_dir:
        if args.bundle:
            onnx.make_model_directory(model_dir, target, calibration_folder=args.calibrate)
        else:
            onnx.make_file(model_dir, target, image_input=args.input, calibration_folder=args.calibrate)
    print(f"made:       {target}")
    if args.bundle:
        print(f"next:       fastmaker deploy --model {shlex.quote(str(target))} --env FASTMAKER_ENGINE=onnxruntime")


def _package_ray(args) -> None:
    found = models.locate(args.model, _session(args))
    name = args.name or _model_name(None, args.model).lower().replace("_", "-").replace(".", "-")
    file = args.output or Path(f"{name}.yaml")
    _check_file(file, args.force)
    options = kuberay.Options(
        name,
        model_uri=_uri_in_pods(args, found),
        **{field: getattr(args, field) for field in kuberay.FIELDS},
    )
    with models.model_directory(str(found), _session(args)) as model_dir:
        text = kuberay.to_yaml(kuberay.manifest(model_dir, options))
    if args.upload:
        storage.put(storage.local_path(models.model_archive(found)), args.upload)
        print(f"uploaded: {args.upload}")
    write_text(file, text)
    print(f"manifest: {file}\nnext:     kubectl apply -f {shlex.quote(str(file))}")


def _uri_in_pods(args, found: Path | str) -> str | None:
    """Return the archive in S3 that pods fetch, None if they find the model elsewhere. Raises ValueError."""
    if args.upload:
        if isinstance(found, str):
            raise ValueError(f"--upload: the model is in S3 already, at {found}")
        if not re.fullmatch(r"s3://[^/]+/.+\.tar\.gz", args.upload):
            raise ValueError(f"--upload {args.upload}: expected s3://BUCKET/KEY.tar.gz")
        return args.upload
    if args.claim:
        return None
    if isinstance(found, Path) and not args.image:
        raise ValueError(
            f"{found} is on this machine, where pods do not find it: give --upload s3://BUCKET/KEY.tar.gz, --claim NAME"
            f" or an --image that has it in {kuberay.MODEL_DIR}"
        )
    return found if isinstance(found, str) else None


def _session(args):
    """Return a function that makes the SDK's session, which knows training jobs."""
    return lambda: backends.connect(backend="aws" if args.aws else "process").session


def _model_directory(args):
    return models.model_directory(args.model, _session(args))


def _archive_target(args) -> tuple[str, Path]:
    """Return the model's name and the path of its archive. Raises ValueError."""
    is_file = args.output.suffix == ".mar" and not args.output.is_dir()
    name = _model_name(args.model_name, args.output if is_file else args.model)
    archive = args.output if is_file else args.output / f"{name}.mar"
    _check_file(archive, args.force)
    return name, archive


def _onnx_target(args) -> Path:
    """Return the file to make, or the folder of --bundle. Raises ValueError."""
    if args.bundle:
        if args.bundle.exists():
            raise ValueError(f"{args.bundle} exists; --bundle makes a new folder")
        return args.bundle
    is_file = args.output.suffix == ".onnx" and not args.output.is_dir()
    file = args.output if is_file else args.output / ("model.int8.onnx" if args.int8 else "model.onnx")
    _check_file(file, args.force)
    return file


def _model_name(given: str | None, path: str | Path) -> str:
    """Return the name given, else that of the path. Raises ValueError if no server accepts it."""
    name = given or os.path.basename(os.path.abspath(path)).removesuffix(".mar").removesuffix(".tar.gz")
    if NAME.fullmatch(name):
        return name
    expected = "expected letters, digits, '_', '-' and '.', not at its start"
    if given:
        raise ValueError(f"--model-name {given!r}: {expected}")
    raise ValueError(f"{path} gives the model the name {name!r}: {expected}; give it another by --model-name NAME")


def _check_file(file: Path, force: bool) -> None:
    """Raise ValueError if the file cannot be written, or exists without `force`."""
    if file.is_dir():
        raise ValueError(f"{file} is a folder, where a file is to be made")
    if file.exists() and not force:
        raise ValueError(f"{file} exists; --force replaces it")


def _check_repository(repository: Path, folders: list[str], archive: Path | None, force: bool) -> None:
    """Raise ValueError if a model or the archive cannot be written, or exists without `force`."""
    if repository.exists() and not repository.is_dir():
        raise ValueError(f"--output {repository}: expected a folder")
    for path in (repository / folder for folder in folders):
        if path.exists() and not force:
            raise ValueError(f"{path} exists; --force replaces it")
    if archive:
        _check_file(archive, force)


def _check_port(port: int) -> None:
    """Raise ValueError if the port is in use or no port."""
    with socket.socket() as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise ValueError(f"--port {port} is not available: {error}") from None


if __name__ == "__main__":
    errors.run(sys.modules[__name__])
