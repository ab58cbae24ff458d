"""S3 through boto3: listing, sizes, upload and download of the objects of a bucket."""

import functools
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fastmaker.jobs.storage.uris import StorageError, bucket_and_key, clear_errors, folder_of

CONNECTIONS = 64  # requests under way at once, of all threads
ONE_PUT = 8 * 2**20  # bytes; what is larger is uploaded in parts, which S3 shows once the last has come


def client() -> Any:
    """Return the client of the endpoint that the environment names, else of AWS."""
    return _client(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"))


@functools.cache
def _client(endpoint: str | None) -> Any:
    """Return one client for each `endpoint`, which boto3 itself reads from the environment."""
    import boto3  # here, because a job that stays on this machine never needs it
    from botocore.config import Config

    return boto3.client("s3", config=Config(max_pool_connections=CONNECTIONS))


def client_of(environment: Mapping[str, str]) -> Any:
    """Return a client of the S3 that the environment of a job names, which may not be that of this process."""
    import boto3

    session = boto3.Session(
        aws_access_key_id=environment.get("AWS_ACCESS_KEY_ID"),
        aws_secret_access_key=environment.get("AWS_SECRET_ACCESS_KEY"),
        aws_session_token=environment.get("AWS_SESSION_TOKEN"),
        region_name=environment.get("AWS_DEFAULT_REGION"),
    )
    url = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
    return session.client("s3", endpoint_url=url)


def download_prefix(uri: str, target: Path, shard: int = 0, shards: int = 1, s3: Any = None) -> None:
    """Download every `shards`-th object of a prefix, from number `shard`, into the folder `target`.

    The client `s3` does it, by default one of the environment. Raises StorageError.
    """
    bucket, prefix = bucket_and_key(uri)
    target.mkdir(parents=True, exist_ok=True)
    with clear_errors(uri):
        keys = [key for key, _ in list_keys(bucket, prefix, s3)]
        if not keys:
            raise StorageError(f"{uri}: no object in S3 has this prefix")
        folder = folder_of(prefix, all(key.startswith(prefix + "/") for key in keys))

        def download(key: str) -> None:
            path = target / key[len(folder) :]
            if not path.resolve().is_relative_to(target.resolve()):
                raise StorageError(f"s3://{bucket}/{key}: its name leads out of the channel's directory")
            path.parent.mkdir(parents=True, exist_ok=True)
            (s3 or client()).download_file(bucket, key, str(path))

        with ThreadPoolExecutor(os.cpu_count() or 2) as pool:
            list(pool.map(download, sorted(keys)[shard::shards]))


def list_keys(bucket: str, prefix: str, s3: Any = None) -> Iterator[tuple[str, int]]:
    """Yield (key, bytes) of a prefix's objects, less the empty ones that stand for folders. Raises StorageError."""
    with clear_errors(f"s3://{bucket}/{prefix}"):
        for page in (s3 or client()).get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for item in page.get("Contents", ()):
                if item["Size"] or not item["Key"].endswith("/"):
                    yield item["Key"], item["Size"]


def has_object(uri: str, s3: Any = None) -> bool:
    """Return whether there is an object at a URI. Raises StorageError if S3 does not say."""
    bucket, key = bucket_and_key(uri)
    with clear_errors(uri):
        return _size(bucket, key, s3) is not None


def has_objects(uri: str, s3: Any = None) -> bool:
    """Return whether objects are seen whose keys begin as a URI says. Raises StorageError if S3 does not say.

    None are seen in a bucket that does not exist or may not be listed.
    """
    from botocore.exceptions import ClientError

    bucket, prefix = bucket_and_key(uri)
    with clear_errors(uri):
        try:
            return bool((s3 or client()).list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1).get("Contents"))
        except ClientError as error:
            if error.response["Error"]["Code"] in ("NoSuchBucket", "AccessDenied"):
                return False
            raise


def sizes(bucket: str, prefix: str, names: Iterable[str]) -> Iterator[tuple[str, int | None]]:
    """Yield (name, bytes) of the objects `prefix` + name, None for a missing one; `names` come sorted.

    One call lists up to 1,000 of them: a page from each name that the last page did not reach.
    """
    page: dict[str, int] = {}
    last: str | None = ""  # None: the page reaches to the end
    with clear_errors(f"s3://{bucket}/{prefix}"):
        for name in names:
            key = prefix + name
            if last is not None and key > last:
                answer = client().list_objects_v2(Bucket=bucket, Prefix=prefix, StartAfter=key[:-1])
                page = {item["Key"]: item["Size"] for item in answer.get("Contents", ())}
                last = max(page) if answer["IsTruncated"] else None
            if last is not None and key > last:  # a thousand others stand between key[:-1] and key
                yield name, _size(bucket, key)
            else:
                yield name, page.get(key)


def _size(bucket: str, key: str, s3: Any = None) -> int | None:
    from botocore.exceptions import ClientError

    try:
        return int((s3 or client()).head_object(Bucket=bucket, Key=key)["ContentLength"])
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
            return None
        raise


class Body(io.RawIOBase):
    """Read an S3 object's data. It stays open at its end, and errors are StorageErrors."""

    def __init__(self, body: Any, uri: str) -> None:
        self.body, self.uri = body, uri

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with clear_errors(self.uri):
            data = self.body.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self.body.close()
        super().close()
