"""URIs of objects: ``s3://bucket/key`` and ``file://path``, and what is wrong with a location."""

import os
from pathlib import Path
from types import TracebackType
from typing import Literal
from urllib.parse import unquote


class StorageError(OSError):
    """A location that does not exist or cannot be reached."""


class MissingError(StorageError):
    """A file or directory that does not exist."""


def scheme(uri: str) -> str:
    """Return ``s3``, ``file`` or whatever stands before ``://``, empty if nothing does."""
    return uri.partition("://")[0] if "://" in uri else ""


def local_path(uri: str) -> Path:
    """Return the path that a ``file://`` URI names, relative ones (``file://data``) too."""
    literal = literal_path(uri)
    return literal if os.path.exists(literal) else Path(unquote(str(literal)))


def literal_path(uri: str) -> Path:
    """Return the path in a URI that has nothing quoted: one of `absolute`, or of a name joined to such a one."""
    return Path(uri.removeprefix("file://"))


def absolute(uri: str) -> str:
    """Return a ``file://`` URI with its path made absolute; any other as it is."""
    return f"file://{local_path(uri).absolute()}" if scheme(uri) == "file" else uri


def uri_of(place: str) -> str:
    """Return the URI of a path; a URI as it is, but with a ``file://`` path made absolute."""
    return absolute(place if scheme(place) in ("s3", "file") else f"file://{Path(place).expanduser()}")


def check_scheme(uri: str) -> None:
    """Check that `uri` begins with s3:// or file://. Raises StorageError."""
    if scheme(uri) not in ("s3", "file"):
        raise StorageError(f"{uri!r}: expected a URI that begins with s3:// or file://")


def check(uri: str) -> None:
    """Check that `uri` is an S3 URI or names a file or folder that exists. Raises StorageError."""
    check_scheme(uri)
    if scheme(uri) == "file":
        path = local_path(uri)
        if not os.path.exists(path):
            raise MissingError(f"{uri}: no such file or directory")
        if not (path.is_file() or path.is_dir()):  # a pipe would be waited for, a device read without end
            raise StorageError(f"{uri}: neither a file nor a directory, but a pipe, a socket or a device")


def bucket_and_key(uri: str) -> tuple[str, str]:
    """Split an ``s3://`` URI into its bucket and its key or prefix, which may be empty."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def folder_of(prefix: str, all_below: bool) -> str:
    """Return the part of `prefix` that is cut off its keys to name what is made of them.

    As on AWS: what stands below ``prefix/`` comes relative to it, also where the slash was left out.
    """
    return prefix + "/" if all_below and prefix and not prefix.endswith("/") else prefix[: prefix.rfind("/") + 1]


def join(prefix: str, *parts: str) -> str:
    """Join the URI of a folder and names below it."""
    return "/".join([prefix.rstrip("/"), *parts])


class clear_errors:
    """Turn errors of boto3 and of the file system into a StorageError of one line that names the location."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Literal[False]:
        if kind is None or isinstance(error, StorageError):
            return False
        if isinstance(error, OSError):
            raise StorageError(f"{self.uri}: {error.strerror or error}") from None
        if kind.__module__.split(".")[0] in ("botocore", "boto3", "s3transfer"):
            raise StorageError(f"{self.uri}: {' '.join(str(error).split())}") from None
        return False
