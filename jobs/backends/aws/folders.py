"""The folders in S3 that jobs and endpoints have, and uploads to them."""

import functools
from concurrent.futures import ThreadPoolExecutor

from botocore.config import Config
from sagemaker.config import SESSION_DEFAULT_S3_BUCKET_PATH
from sagemaker.s3 import s3_path_join
from sagemaker.utils import resolve_value_from_config
from tqdm import tqdm

from fastmaker.jobs import storage
from fastmaker.jobs.backends.aws import checks, inventory
from fastmaker.jobs.cli.errors import Failure

FOLDER = "fastmaker"  # of the bucket, below the prefix that the SDK's configuration names
MARKER = "made-by-fastmaker"  # an object in each folder of a job or an endpoint, with the tag as its metadata
UPLOADS = 16  # at once


class Folders:
    """The folders KIND/NAME of one account and region. `created` names those that were made here.

    They lie in the bucket that the SDK's configuration names, or in the SDK's default bucket, which is made if missing.
    """

    def __init__(self, boto, session, account: str, tag: str, dry_run: bool):
        self.created: set[str] = set()
        self._boto, self._session, self._account = boto, session, account
        self._tag, self._dry_run = tag, dry_run

    @property
    def bucket_name(self) -> str:
        return self._configured_bucket or f"sagemaker-{self._boto.region_name}-{self._account}"

    @functools.cached_property
    def root(self) -> str:
        """The URI, without a slash at its end, below which all folders lie."""
        return s3_path_join("s3://", self.bucket_name, self._session.default_bucket_prefix, FOLDER)

    def folder(self, kind: str, name: str) -> str:
        """Return the URI, without a slash at its end, of the folder of a job or an endpoint, marked as made here.

        Raises Failure if something is there that has no such mark.
        """
        uri = f"{self.root}/{kind}/{name}"
        if f"{kind}/{name}" in self.created:
            return uri
        key = storage.bucket_and_key(f"{uri}/{MARKER}")[1]
        client = self._session.s3_client
        if not inventory.is_marked(client, self._bucket, key, self._tag):
            if inventory.holds_any(client, self._bucket, key.removesuffix(MARKER)):
                raise Failure(f"{uri} holds what fastmaker did not make: choose another name")
            client.put_object(Bucket=self._bucket, Key=key, Body=b"", Metadata={self._tag: name})
            self.created.add(f"{kind}/{name}")
        return uri

    def upload(self, uri: str, kind: str, name: str, part: str) -> str:
        """Upload a file or folder to `part` of the folder of a job or an endpoint; return its URI in S3.

        What is in S3 already stays where it is.
        """
        if uri.startswith("s3://"):
            return uri
        root, listed = storage.list_objects(uri)
        files = list(listed)
        target = f"{self.folder(kind, name)}/{part}"
        size = sum(size for _, size in files)
        verb = "would upload" if self._dry_run else "uploading"
        print(f"{verb} {len(files)} files, {size / 1e6:.1f} MB, to {target}", flush=True)
        if not self._dry_run:
            self._send(root, files, target, size)
        return f"{target}/" if storage.local_path(uri).is_dir() else f"{target}/{files[0][0]}"

    @property
    def _configured_bucket(self) -> str | None:
        return resolve_value_from_config(None, SESSION_DEFAULT_S3_BUCKET_PATH, sagemaker_session=self._session)

    @functools.cached_property
    def _bucket(self) -> str:
        """The bucket's name, once it is there. Raises Failure for a configured bucket that does not exist."""
        name, region = self.bucket_name, self._boto.region_name
        owner = None if self._configured_bucket else self._account
        if not checks.bucket_exists(self._boto, name, owner):
            if self._configured_bucket:
                raise Failure(f"there is no bucket {name}, which the SDK's configuration names")
            place = {"CreateBucketConfiguration": {"LocationConstraint": region}}
            self._session.s3_client.create_bucket(Bucket=name, **({} if region == "us-east-1" else place))
        return name

    def _send(self, root: str, files: list[tuple[str, int]], target: str, size: int) -> None:
        bucket, prefix = storage.bucket_and_key(target)
        client = self._boto.client("s3", config=Config(max_pool_connections=4 * UPLOADS))
        with (
            tqdm(total=size, unit="B", unit_scale=True, leave=False, disable=None) as bar,  # on a terminal alone
            ThreadPoolExecutor(UPLOADS) as pool,
        ):

            def send(name: str) -> None:
                client.upload_file(storage.local_path(root + name), bucket, f"{prefix}/{name}", Callback=bar.update)

            list(pool.map(send, (name for name, _ in files)))
