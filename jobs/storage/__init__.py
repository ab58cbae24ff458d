"""Where inputs come from and outputs go: ``s3://`` through boto3, ``file://`` without a copy."""

import contextlib
import functools
import io
import os
import shutil
import stat
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

S3_CONNECTIONS = 64  # requests under way at once, of all threads
ONE_PUT = 8 * 2**20  # bytes; what is larger is uploaded in parts, which S3 shows once the last has come


class StorageError(OSError):
    """A location that does not exist or cannot be reached."""


class MissingError(StorageError):
    """A file or directory that does not exist."""


def local_path(uri: str) -> Path:
    """The path that a ``file://`` URI names, relative ones (``file://data``) too."""
    literal = _literal_path(uri)
    return literal if os.path.exists(literal) else Path(unquote(str(literal)))


def absolute(uri: str) -> str:
    """A ``file://`` URI with its path made absolute; any other as it is."""
    return f"file://{local_path(uri).absolute()}" if _scheme(uri) == "file" else uri


def uri_of(place: str) -> str:
    """The URI of a path; a URI as it is, but with a ``file://`` path made absolute."""
    return absolute(place if _scheme(place) in ("s3", "file") else f"file://{Path(place).expanduser()}")


def check_scheme(uri: str) -> None:
    """Raises StorageError unless `uri` begins with s3:// or file://."""
    if _scheme(uri) not in ("s3", "file"):
        raise StorageError(f"{uri!r}: expected a URI that begins with s3:// or file://")


def check(uri: str) -> None:
    """Raises StorageError unless `uri` is an S3 URI or names a file that exists."""
    check_scheme(uri)
    if _scheme(uri) == "file" and not os.path.exists(local_path(uri)):
        raise MissingError(f"{uri}: no such file or directory")


def link_or_download(uri: str, target: Path, shard: int = 0, shards: int = 1) -> None:
    """Make the data at `uri` appear as the directory `target`: S3 objects by their keys below the prefix.

    Of several shards it is one: each n-th object in the order of keys. What is local is linked, not copied.
    Raises StorageError.
    """
    if _scheme(uri) == "s3":
        _download_prefix(uri, target, shard, shards)
        return
    source = local_path(uri).resolve()
    if source.is_dir() and shards == 1:
        target.symlink_to(source)
        return
    root, listed = list_objects(f"file://{source}")
    target.mkdir()
    for name in sorted(name for name, _ in listed)[shard::shards]:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).symlink_to(_literal_path(root + name))


def fetch(uri: str, target: Path, s3=None) -> Path:
    """The single file at `uri`: where it lies, or downloaded to `target`, by the client `s3`. Raises StorageError."""
    if _scheme(uri) != "s3":
        check(uri)
        return local_path(uri)
    bucket, key = bucket_and_key(uri)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _clear_errors(uri):
        (s3 or _s3()).download_file(bucket, key, str(target))
    return target


def put(file: Path, uri: str, kms_key: str | None = None) -> None:
    """Copy `file` to `uri`, whole or not at all. Raises StorageError."""
    with open(file, "rb") as stream:
        put_stream(stream, uri, kms_key)


def put_stream(stream: BinaryIO, uri: str, kms_key: str | None = None) -> None:
    """Write what `stream` gives to `uri`, whole or not at all; in S3 encrypted by `kms_key`. Raises StorageError."""
    if _scheme(uri) == "s3":
        bucket, key = bucket_and_key(uri)
        encryption = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": kms_key} if kms_key else {}
        with _clear_errors(uri):
            start = stream.read(ONE_PUT)
            if len(start) < ONE_PUT:
                _s3().put_object(Bucket=bucket, Key=key, Body=start, **encryption)
            else:
                stream.seek(0)
                _s3().upload_fileobj(stream, bucket, key, ExtraArgs=encryption)
        return
    target = _literal_path(uri)
    partial = target.parent / f".fastmaker-{os.getpid()}-{threading.get_ident()}.partial"
    with _clear_errors(uri):
        try:
            with _new_file(partial) as file:
                shutil.copyfileobj(stream, file)
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def _new_file(path: Path) -> BinaryIO:
    """`path` opened to be written; its folder is made if it is missing, which it seldom is."""
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
    with _clear_errors(uri):
        if uri.startswith("s3://"):
            bucket, key = bucket_and_key(uri)
            _s3().delete_object(Bucket=bucket, Key=key)
        else:
            _literal_path(uri).unlink(missing_ok=True)


def check_writable(uri: str) -> None:
    """Raises StorageError unless objects can be written below `uri`; nothing is left there."""
    check_scheme(uri)
    if _scheme(uri) == "file":
        folder = _literal_path(uri)
        with _clear_errors(uri):
            while not folder.exists():
                folder = folder.parent
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            raise StorageError(f"{uri}: {folder} is no directory that can be written to")
        return
    bucket, key = bucket_and_key(join(uri, "write-check"))
    with _clear_errors(uri):  # what begins an upload needs the permission to write, and is seen by nobody
        upload = _s3().create_multipart_upload(Bucket=bucket, Key=key)
        _s3().abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload["UploadId"])


def open_object(uri: str) -> BinaryIO:
    """The object at `uri`, to be read and closed. Raises StorageError."""
    if _scheme(uri) == "s3":
        bucket, key = bucket_and_key(uri)
        with _clear_errors(uri):
            return _Body(_s3().get_object(Bucket=bucket, Key=key)["Body"], uri)
    with _clear_errors(uri):
        return open(_literal_path(uri), "rb")


def list_objects(uri: str) -> tuple[str, Iterator[tuple[str, int]]]:
    """A root, and (name, bytes) of each object whose URI begins with `uri`: root + name is its URI.

    Folders are left out, and so are the empty objects that stand for them in S3. Raises StorageError.
    """
    check(uri)
    if _scheme(uri) == "s3":
        bucket, prefix = bucket_and_key(uri)
        return f"s3://{bucket}/", _listed_in_s3(bucket, prefix)
    path = local_path(uri).absolute()
    if path.is_dir():
        return f"file://{path}/", _listed_in_folder(path)
    return f"file://{path.parent}/", iter([(path.name, path.stat().st_size)])


def names_below(folder: str) -> Iterator[str]:
    """Names of the objects below a folder's URI, relative to it; none if it is not there. Raises StorageError."""
    with contextlib.suppress(MissingError):
        root, listed = list_objects(join(folder, ""))
        below = len(join(folder, "").removeprefix(root))
        yield from (name[below:] for name, _ in listed)


def sizes(prefix: str, names: Iterable[str]) -> Iterator[tuple[str, int | None]]:
    """(name, bytes) of the objects `prefix` + name, None for one that is not there. `names` come sorted."""
    if _scheme(prefix) == "s3":
        yield from _sizes_in_s3(*bucket_and_key(prefix), names)
        return
    for name in names:
        yield name, _file_size(prefix + name)


def folder_of(prefix: str, all_below: bool) -> str:
    """The part of keys that begin with `prefix` that is cut off to name what is made of them.

    As AWS has it: what stands below ``prefix/`` comes relative to it, also where the slash was left out.
    """
    return prefix + "/" if all_below and prefix and not prefix.endswith("/") else prefix[: prefix.rfind("/") + 1]


def join(prefix: str, *parts: str) -> str:
    return "/".join([prefix.rstrip("/"), *parts])


def _download_prefix(uri: str, target: Path, shard: int, shards: int) -> None:
    bucket, prefix = bucket_and_key(uri)
    target.mkdir(parents=True)
    with _clear_errors(uri):
        keys = [key for key, _ in _listed_in_s3(bucket, prefix)]
        if not keys:
            raise StorageError(f"{uri}: no object in S3 has this prefix")
        folder = folder_of(prefix, all(key.startswith(prefix + "/") for key in keys))

        def download(key: str) -> None:
            path = target / key[len(folder) :]
            if not path.resolve().is_relative_to(target.resolve()):
                raise StorageError(f"s3://{bucket}/{key}: its name leads out of the channel's directory")
            path.parent.mkdir(parents=True, exist_ok=True)
            _s3().download_file(bucket, key, str(path))

        with ThreadPoolExecutor(os.cpu_count() or 2) as pool:
            list(pool.map(download, sorted(keys)[shard::shards]))


def _listed_in_s3(bucket: str, prefix: str) -> Iterator[tuple[str, int]]:
    with _clear_errors(f"s3://{bucket}/{prefix}"):
        for page in _s3().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for item in page.get("Contents", ()):
                if item["Size"] or not item["Key"].endswith("/"):
                    yield item["Key"], item["Size"]


def _listed_in_folder(folder: Path) -> Iterator[tuple[str, int]]:
    """Links are followed. Raises StorageError for one that leads nowhere, or back to a folder that it lies in."""
    waiting = [("", frozenset([os.path.realpath(folder)]))]  # folders, each with those that it lies in
    while waiting:
        below, above = waiting.pop()
        with _clear_errors(f"file://{folder / below}"), os.scandir(folder / below) as entries:
            for entry in entries:
                if entry.is_dir():
                    real = os.path.realpath(entry.path)
                    if real in above:
                        raise StorageError(f"file://{entry.path}: a link back to a folder that it lies in")
                    waiting.append((f"{below}{entry.name}/", above | {real}))
                elif entry.is_file():
                    yield below + entry.name, entry.stat().st_size
                elif entry.is_symlink():
                    raise StorageError(f"file://{entry.path}: a link that leads nowhere")


def _sizes_in_s3(bucket: str, prefix: str, names: Iterable[str]) -> Iterator[tuple[str, int | None]]:
    """By a page of the listing from each name that the last page did not reach: one call for up to 1,000 names."""
    page, last = {}, ""
    with _clear_errors(f"s3://{bucket}/{prefix}"):
        for name in names:
            key = prefix + name
            if last is not None and key > last:
                answer = _s3().list_objects_v2(Bucket=bucket, Prefix=prefix, StartAfter=key[:-1])
                page = {item["Key"]: item["Size"] for item in answer.get("Contents", ())}
                last = max(page) if answer["IsTruncated"] else None  # None: the page reaches to the end
            if last is not None and key > last:  # a thousand others stand between key[:-1] and key
                yield name, _size_in_s3(bucket, key)
            else:
                yield name, page.get(key)


def _size_in_s3(bucket: str, key: str) -> int | None:
    from botocore.exceptions import ClientError

    try:
        return _s3().head_object(Bucket=bucket, Key=key)["ContentLength"]
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
            return None
        raise


def _literal_path(uri: str) -> Path:
    """The path in a URI that has nothing quoted: one that `absolute` gave, or that was put together with one."""
    return Path(uri.removeprefix("file://"))


def bucket_and_key(uri: str) -> tuple[str, str]:
    """Of an ``s3://`` URI; the key, or prefix, may be empty."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def _s3():
    return _client(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"))


@functools.cache
def _client(endpoint: str | None):
    """One for each endpoint: it is given by the environment, where boto3 finds it too."""
    import boto3  # here, because a job that stays on this machine never needs it
    from botocore.config import Config

    return boto3.client("s3", config=Config(max_pool_connections=S3_CONNECTIONS))


class _Body(io.RawIOBase):
    """An S3 object's data; it stays open at its end, and what goes wrong is a StorageError."""

    def __init__(self, body, uri: str):
        self.body, self.uri = body, uri

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        with _clear_errors(self.uri):
            data = self.body.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self.body.close()
        super().close()


def _file_size(uri: str) -> int | None:
    try:
        found = os.stat(uri.removeprefix("file://"))
    except (OSError, ValueError):
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _scheme(uri: str) -> str:
    return uri.partition("://")[0] if "://" in uri else ""


class _clear_errors:
    """Errors of boto3 and of the file system as a StorageError of one line that names the location."""

    def __init__(self, uri: str):
        self.uri = uri

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if error is None or isinstance(error, StorageError):
            return False
        if isinstance(error, OSError):
            raise StorageError(f"{self.uri}: {error.strerror or error}") from None
        if kind.__module__.split(".")[0] in ("botocore", "boto3", "s3transfer"):
            raise StorageError(f"{self.uri}: {' '.join(str(error).split())}") from None
        return False
