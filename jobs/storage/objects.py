"""Objects of S3 and files alike: list, open, copy, write and remove what a URI names."""

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from fastmaker.files import atomic
from fastmaker.jobs.storage import s3
from fastmaker.jobs.storage.uris import (
    MissingError,
    StorageError,
    bucket_and_key,
    check,
    check_scheme,
    clear_errors,
    join,
    literal_path,
    local_path,
    scheme,
)

LOOP, NOWHERE = "a link back to a folder that it lies in", "a link that leads nowhere"
SPECIAL = "a pipe, a socket or a device"


def link_or_download(uri: str, target: Path, shard: int = 0, shards: int = 1) -> None:
    """Make the data at `uri` appear as the directory `target`, S3 objects by their keys below the prefix.

    With several `shards`, take every shards-th object in the order of keys, from number `shard`. Local files are
    linked, not copied. Raises StorageError.
    """
    if scheme(uri) == "s3":
        s3.download_prefix(uri, target, shard, shards)
        return
    source = local_path(uri).resolve()
    if source.is_dir() and shards == 1:
        for _ in _list_folder(source, skipped=(LOOP, NOWHERE)):
            pass  # a script would wait for a pipe for ever
        target.symlink_to(source)
        return
    root, listed = list_objects(f"file://{source}")
    target.mkdir()
    for name in sorted(name for name, _ in listed)[shard::shards]:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).symlink_to(literal_path(root + name))


def fetch(uri: str, target: Path, client: Any = None) -> Path:
    """Return the path of the single file at `uri`; of one in S3 it is `target`, where it is downloaded to.

    `client` is boto3's for S3, by default one of the environment. Raises StorageError.
    """
    if scheme(uri) != "s3":
        check(uri)
        return local_path(uri)
    bucket, key = bucket_and_key(uri)
    target.parent.mkdir(parents=True, exist_ok=True)
    with clear_errors(uri):
        (client or s3.client()).download_file(bucket, key, str(target))
    return target


def download(uri: str, target: Path, client: Any = None) -> None:
    """Copy the objects below the folder `uri` into the folder `target`. `client` is as for `fetch`.

    Raises StorageError.
    """
    if scheme(uri) == "s3":
        s3.download_prefix(join(uri, ""), target, s3=client)
        return
    root, listed = list_objects(uri)
    for name, _ in listed:
        copy(root + name, target / name)


def download_one(uri: str, target: Path, client: Any = None) -> None:
    """Copy the single object at `uri` into the folder `target`, under the last part of its name.

    `client` is as for `fetch`. Raises StorageError.
    """
    file = target / uri.rpartition("/")[2]
    found = fetch(uri, file, client)
    if found != file:
        copy(uri, file)


def put_folder(folder: Path, uri: str, kms_key: str | None = None) -> None:
    """Copy the files below `folder` to the folder `uri`, as `put` does each. Raises StorageError.

    What has no content stays behind: pipes, sockets, devices and links that lead nowhere or back.
    """
    for name, _ in _list_folder(folder, skipped=(LOOP, NOWHERE, SPECIAL)):
        put(folder / name, join(uri, name), kms_key)


def put(file: Path, uri: str, kms_key: str | None = None) -> None:
    """Copy `file` to `uri`, whole or not at all. Raises StorageError."""
    with open(file, "rb") as stream:
        put_stream(stream, uri, kms_key)


def put_stream(stream: IO[bytes], uri: str, kms_key: str | None = None) -> None:
    """Write the bytes of `stream` to `uri`, whole or not at all; in S3 encrypted by `kms_key`. Raises StorageError."""
    if scheme(uri) == "s3":
        bucket, key = bucket_and_key(uri)
        encryption = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": kms_key} if kms_key else {}
        with clear_errors(uri):
            start = stream.read(s3.ONE_PUT)
            if len(start) < s3.ONE_PUT:
                s3.client().put_object(Bucket=bucket, Key=key, Body=start, **encryption)
            else:
                stream.seek(0)
                s3.client().upload_fileobj(stream, bucket, key, ExtraArgs=encryption)
        return
    with clear_errors(uri), atomic(literal_path(uri)) as partial, _new_file(partial) as file:
        shutil.copyfileobj(stream, file)


def _new_file(path: Path) -> BinaryIO:
    """Open `path` for writing; its folder is made if it is missing, which it seldom is."""
    try:
        return open(path, "wb")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "wb")


def copy(uri: str, target: Path) -> None:
    """Write the object at `uri` to the file `target`. Raises StorageError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with open_object(uri) as source, open(target, "wb") as file:
        shutil.copyfileobj(source, file)


def remove(uri: str) -> None:
    """Remove the object at `uri`, if there is one. Raises StorageError."""
    with clear_errors(uri):
        if uri.startswith("s3://"):
            bucket, key = bucket_and_key(uri)
            s3.client().delete_object(Bucket=bucket, Key=key)
        else:
            literal_path(uri).unlink(missing_ok=True)


def check_writable(uri: str) -> None:
    """Check that objects can be written below `uri`; leave nothing there. Raises StorageError."""
    check_scheme(uri)
    if scheme(uri) == "file":
        folder = literal_path(uri)
        with clear_errors(uri):
            while not folder.exists():
                folder = folder.parent
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            raise StorageError(f"{uri}: {folder} is no directory that can be written to")
        return
    bucket, key = bucket_and_key(join(uri, "write-check"))
    with clear_errors(uri):  # to begin an upload takes the permission to write, and shows no object
        upload = s3.client().create_multipart_upload(Bucket=bucket, Key=key)
        s3.client().abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload["UploadId"])


def open_object(uri: str) -> BinaryIO:
    """Open the object at `uri` for reading. Raises StorageError."""
    if scheme(uri) == "s3":
        bucket, key = bucket_and_key(uri)
        with clear_errors(uri):
            return cast(BinaryIO, s3.Body(s3.client().get_object(Bucket=bucket, Key=key)["Body"], uri))
    with clear_errors(uri):
        return open(literal_path(uri), "rb", opener=_open_file)


def _open_file(path: str, flags: int) -> int:
    """Return a descriptor of a file, but not of a pipe, which would be waited for. Raises OSError."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, SPECIAL)


def list_objects(uri: str) -> tuple[str, Iterator[tuple[str, int]]]:
    """Return a root, and (name, bytes) of each object whose URI begins with `uri`: root + name is its URI.

    Folders are left out, and so are the empty objects that stand for them in S3. Raises StorageError.
    """
    check(uri)
    if scheme(uri) == "s3":
        bucket, prefix = bucket_and_key(uri)
        return f"s3://{bucket}/", s3.list_keys(bucket, prefix)
    path = local_path(uri).absolute()
    if path.is_dir():
        return f"file://{path}/", _list_folder(path)
    return f"file://{path.parent}/", iter([(path.name, path.stat().st_size)])


def names_below(folder: str) -> Iterator[str]:
    """Yield the names of the objects below a folder's URI, relative to it; none if there is no such folder.

    Raises StorageError.
    """
    with contextlib.suppress(MissingError):
        root, listed = list_objects(join(folder, ""))
        below = len(join(folder, "").removeprefix(root))
        yield from (name[below:] for name, _ in listed)


def sizes(prefix: str, names: Iterable[str]) -> Iterator[tuple[str, int | None]]:
    """Yield (name, bytes) of the objects `prefix` + name, None for one that is missing. `names` come sorted."""
    if scheme(prefix) == "s3":
        yield from s3.sizes(*bucket_and_key(prefix), names)
        return
    for name in names:
        yield name, _file_size(prefix + name)


def _list_folder(folder: Path, skipped: Collection[str] = ()) -> Iterator[tuple[str, int]]:
    """Yield (name, bytes) of the files below a folder; links are followed.

    Raises StorageError for what is LOOP, NOWHERE or SPECIAL, if that is not `skipped`.
    """

    def check(path: str, reason: str) -> None:
        if reason not in skipped:
            raise StorageError(f"file://{path}: {reason}")

    waiting = [("", frozenset([os.path.realpath(folder)]))]  # folders, each with those that it lies in
    while waiting:
        below, above = waiting.pop()
        with clear_errors(f"file://{folder / below}"), os.scandir(folder / below) as entries:
            for entry in entries:
                if entry.is_dir():
                    real = os.path.realpath(entry.path)
                    if real in above:
                        check(entry.path, LOOP)
                    else:
                        waiting.append((f"{below}{entry.name}/", above | {real}))
                elif entry.is_file():
                    yield below + entry.name, entry.stat().st_size
                else:
                    check(entry.path, SPECIAL if os.path.exists(entry.path) else NOWHERE)


def _file_size(uri: str) -> int | None:
    """Return the bytes of the file at `uri`, None if there is no regular file."""
    try:
        found = os.stat(uri.removeprefix("file://"))
    except (OSError, ValueError):
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None
