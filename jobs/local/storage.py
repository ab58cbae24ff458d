"""Where inputs come from and outputs go: ``s3://`` through boto3, ``file://`` without a copy."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote, urlparse


class StorageError(Exception):
    """A location that does not exist or cannot be reached."""


def local_path(uri: str) -> Path:
    """The path that a ``file://`` URI names, relative ones (``file://data``) too."""
    parsed = urlparse(uri)
    path = parsed.netloc + parsed.path
    literal = Path(path)
    return literal if literal.exists() else Path(unquote(path))


def absolute(uri: str) -> str:
    """A ``file://`` URI with its path made absolute; any other as it is."""
    return f"file://{local_path(uri).absolute()}" if urlparse(uri).scheme == "file" else uri


def check(uri: str) -> None:
    """Raises StorageError unless `uri` is an S3 URI or names a file that exists."""
    scheme = urlparse(uri).scheme
    if scheme not in ("s3", "file"):
        raise StorageError(f"{uri!r}: expected a URI that begins with s3:// or file://")
    if scheme == "file" and not local_path(uri).exists():
        raise StorageError(f"{uri}: no such file or directory")


def link_or_download(uri: str, target: Path) -> None:
    """Make the data at `uri` appear as the directory `target`: S3 objects by their keys below the prefix.

    A local directory is linked, not copied. Raises StorageError.
    """
    if urlparse(uri).scheme == "s3":
        _download_prefix(uri, target)
        return
    source = local_path(uri).resolve()
    if source.is_dir():
        target.symlink_to(source)
    else:
        target.mkdir()
        (target / source.name).symlink_to(source)


def fetch(uri: str, target: Path) -> Path:
    """The single file at `uri`: where it lies, or downloaded to `target`. Raises StorageError."""
    if urlparse(uri).scheme != "s3":
        check(uri)
        return local_path(uri)
    bucket, key = _bucket_and_key(uri)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _clear_errors(uri):
        _s3().download_file(bucket, key, str(target))
    return target


def put(file: Path, uri: str) -> None:
    """Copy `file` to `uri`. Raises StorageError."""
    if urlparse(uri).scheme == "s3":
        bucket, key = _bucket_and_key(uri)
        with _clear_errors(uri):
            _s3().upload_file(str(file), bucket, key)
        return
    target = local_path(uri)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    shutil.copyfile(file, partial)
    partial.replace(target)


def join(prefix: str, *parts: str) -> str:
    return "/".join([prefix.rstrip("/"), *parts])


def _download_prefix(uri: str, target: Path) -> None:
    bucket, prefix = _bucket_and_key(uri)
    s3 = _s3()
    folder = prefix if prefix.endswith("/") or not prefix else prefix.rpartition("/")[0] + "/"
    folder = folder.lstrip("/")
    target.mkdir(parents=True)

    def download(key: str) -> None:
        path = target / (key[len(folder) :] if key.startswith(folder) else key)
        if not path.resolve().is_relative_to(target.resolve()):
            raise StorageError(f"s3://{bucket}/{key}: its name leads out of the channel's directory")
        path.parent.mkdir(parents=True, exist_ok=True)
        s3.download_file(bucket, key, str(path))

    with _clear_errors(uri), ThreadPoolExecutor(os.cpu_count() or 2) as pool:
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        keys = [item["Key"] for page in pages for item in page.get("Contents", ()) if not item["Key"].endswith("/")]
        # As AWS has it: what stands below prefix/ comes relative to it, also where the slash was left out.
        if keys and all(key.startswith(prefix + "/") for key in keys):
            folder = prefix + "/"
        if not keys:
            raise StorageError(f"{uri}: no object in S3 has this prefix")
        list(pool.map(download, keys))


def _bucket_and_key(uri: str) -> tuple[str, str]:
    parsed = urlparse(uri, allow_fragments=False)
    return parsed.netloc, parsed.path.lstrip("/") + ("?" + parsed.query if parsed.query else "")


def _s3():
    import boto3  # here, because a job that stays on this machine never needs it

    return boto3.client("s3")


class _clear_errors:
    """botocore's and boto3's errors as a StorageError that names the location."""

    def __init__(self, uri: str):
        self.uri = uri

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if error is not None and kind.__module__.split(".")[0] in ("botocore", "boto3", "s3transfer"):
            raise StorageError(f"{self.uri}: {error}") from None
        return False
