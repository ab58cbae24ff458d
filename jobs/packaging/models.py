"""Finding the model that a name, a folder or a URI means, and packing or unpacking it.

A training job's name, a model directory, a model.tar.gz and an ``s3://`` URI all name a model.
"""

import contextlib
import hashlib
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from fastmaker.jobs import backends, storage
from fastmaker.jobs.backends.resources import is_missing
from fastmaker.local import archives
from fastmaker.local.containers import ContainerError, pack, unpack
from fastmaker.local.store import now

# What every bundle holds, of what source/fastmaker/bundle.py writes.
SERVING_FILE = "serving.json"  # not of every bundle
BUNDLE_FILES = ("model.json", "model.pth", "code/entry_point.py")


def model_archive(found: Path | str) -> str:
    """Return the URI of the model.tar.gz that `locate` has found; pack a directory into FASTMAKER_HOME."""
    if isinstance(found, str):
        return found
    return f"file://{_packed(found) if found.is_dir() else found}"


def locate(model: str, sagemaker_session: Callable) -> Path | str:
    """Return the model directory or model.tar.gz that `model` names, checked for a bundle's files.

    An S3 URI, also that of a training job's model, is returned unchecked. `sagemaker_session` is called only for a
    training job's name: making a session takes seconds. Raises ValueError if it is no bundle.
    """
    if model.startswith("s3://"):
        return model
    path = storage.local_path(model) if model.startswith("file://") else Path(model).expanduser()
    if path.is_dir():
        names = {name for name in BUNDLE_FILES if (path / name).is_file()}
        # A folder of images may be called as the job that was trained on them.
        if names or not _is_training_job(model, sagemaker_session):
            _check_files(path.resolve(), names)
            return path.resolve()
    if not path.is_file():
        uri = _archive_of_job(model, sagemaker_session())
        if uri.startswith("s3://"):
            return uri
        path = storage.local_path(uri)
    _check_files(path, archives.names(path))
    return path.resolve()


@contextlib.contextmanager
def model_directory(model: str, sagemaker_session: Callable) -> Iterator[Path]:
    """Yield the directory of the bundle that `model` names, as in `locate`; an archive is unpacked for the time being.

    Raises ValueError or StorageError.
    """
    found = locate(model, sagemaker_session)
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


def copy_with_this_code(model_dir: Path, folder: Path) -> None:
    """Copy a bundle into the new folder `folder`, with this version's code: the bundle's own may be older."""
    from fastmaker import bundle

    bundle.save_application(folder)
    copy_without_code(model_dir, folder)


def copy_without_code(model_dir: Path, folder: Path) -> None:
    """Copy the files of a bundle into `folder`, but not its code."""
    from fastmaker import bundle

    optional = (bundle.GRAPH_FILE, bundle.ONNX_FILE, bundle.SERVING_FILE, bundle.BASELINE_FILE)
    for name in (bundle.STATE_FILE, bundle.INFO_FILE, *optional):
        if (model_dir / name).is_file():
            shutil.copy2(model_dir / name, folder)


def serving_environment(found: Path | str, model: str, given: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables of a server for what `locate` has found: those `given`, and what serving.json asks for.

    A line says what serving.json has. The archive of a training job on AWS, which `model` named, has none and is not
    fetched for it; of one that cannot be read a line says why. Raises bundle.BundleError.
    """
    own = {} if isinstance(found, str) and found != model else _settings(found)
    if not (own or given):
        return {}
    from fastmaker.serving import settings

    return settings.with_workers({**own, **(given or {})})


def _settings(found: Path | str) -> dict[str, str]:
    """Return the variables that serving.json asks for, and print a line."""
    try:
        data = _content(found, SERVING_FILE)
    except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
        print(f"{SERVING_FILE} is not read, so that no setting of it counts: {error}")
        return {}
    if data is None:
        return {}
    from fastmaker.serving import settings

    own = settings.parse(data, f"{found}/{SERVING_FILE}")
    print(
        f"{SERVING_FILE}: {own.engine} {own.precision}, {own.workers} x {own.threads} threads, batches of"
        f" {own.batch_size}, measured on {own.measured.get('cores', '?')} cores"
    )
    return settings.environment(own)


def _content(model: Path | str, name: str) -> bytes | None:
    """Return the bytes of a file of a model directory or of its archive, None if it has none.

    An archive at a URI is read no further than to that file. Raises StorageError and what tarfile raises.
    """
    if isinstance(model, Path) and model.is_dir():
        return (model / name).read_bytes() if (model / name).is_file() else None
    uri = model if isinstance(model, str) else f"file://{model}"
    if uri == model:
        print(f"reading {uri} for its {name}", flush=True)
    with storage.open_object(uri) as stream, tarfile.open(fileobj=stream, mode="r|*") as archive:
        member = next((entry for entry in archive if entry.isfile() and os.path.normpath(entry.name) == name), None)
        file = archive.extractfile(member) if member else None
        return file.read() if file else None


def _is_training_job(name: str, sagemaker_session: Callable) -> bool:
    from botocore.exceptions import ClientError

    if not name.replace("-", "").isalnum():  # no job can have this name
        return False
    try:
        return bool(sagemaker_session().describe_training_job(name))
    except ClientError as error:
        if is_missing(error):
            return False
        raise


def _archive_of_job(name: str, sagemaker_session) -> str:
    from botocore.exceptions import ClientError

    try:
        description = sagemaker_session.describe_training_job(name)
    except ClientError as error:
        if is_missing(error):
            raise ValueError(f"{name}: no such training job, model directory or model.tar.gz") from None
        raise
    if description["TrainingJobStatus"] != "Completed":
        raise ValueError(f"training job {name} is {description['TrainingJobStatus']}; it has no model to deploy")
    return description["ModelArtifacts"]["S3ModelArtifacts"]


def _packed(folder: Path) -> Path:
    """Return the folder's archive in FASTMAKER_HOME, packed anew; what lies beside the folder is the user's own."""
    name = f"{folder.name.lstrip('.')}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]}"
    packed = backends.packed_models()
    with contextlib.suppress(FileExistsError):
        packed.create(name, {"Folder": str(folder), "CreationTime": now()})
    archive = packed.directory(name) / f"{folder.name}.tar.gz"
    print(f"packing {folder} into {archive}", flush=True)
    pack(folder, archive)
    return archive


def _check_files(model: Path, names: set[str]) -> None:
    if missing := [name for name in BUNDLE_FILES if name not in names]:
        raise ValueError(f"{model} is no bundle: it lacks {', '.join(missing)}")
