"""moto's S3, which keeps what it holds: values and descriptions of objects are files, and are read at the start.

FOLDER/<bucket>/bucket.state          what the bucket has: region, versions, policy, tags
FOLDER/<bucket>/<number>.value        the bytes of one version of an object
FOLDER/<bucket>/<hash of key>.state   the versions of one object, whose values it names

A value is written before the state that names it, and removed after. Uploads in parts that are not complete are kept
in memory, and lost with the server.
"""

import contextlib
import hashlib
import importlib
import logging
import os
import pickle
import re
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from fastmaker import files

models: Any = importlib.import_module("moto.s3.models")  # moto is typed in part

BUCKET = "bucket.state"
STATE, VALUE = ".state", ".value"
CHUNK = 2**24  # bytes
READS = ("GET", "HEAD", "OPTIONS")
# What a bucket and an object hold that is not for a state: open files, locks, and each other.
OMITTED = {"keys", "multiparts", "multipart", "lock", "_value_buffer", "key"}
RANGE = re.compile(r"bytes=(\d{1,18})-(\d{0,18})")
MotoKey = models.FakeKey
log = logging.getLogger("fastmaker.aws")


class Key(MotoKey):  # type: ignore[misc, valid-type]
    """An object, whose value is a file."""

    folder: Path  # of all buckets
    unused: set[Path] = set()  # noqa: RUF012  # values of versions that are no more; the state that names them comes first
    file: Path | None = None
    _etag: str | None

    @property
    def value(self) -> bytes:
        if self.file is None:
            kept: bytes = MotoKey.value.fget(self)
            return kept
        return self.file.read_bytes()

    @value.setter
    def value(self, value: bytes | None) -> None:
        if value is None:  # of an object that is read from its state
            return
        if self.bucket_name is None:  # a part of an upload
            MotoKey.value.fset(self, value)
            return
        data = value.encode() if isinstance(value, str) else value
        file = self.folder / self.bucket_name / f"{secrets.token_hex(16)}{VALUE}"
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        if self.file:
            self.unused.add(self.file)
        self.file, self.contentsize = file, len(data)

    @property
    def etag(self) -> str:
        if self._etag is None and self.file is not None:
            digest = hashlib.md5(usedforsecurity=False)
            with open(self.file, "rb") as stream:
                while block := stream.read(CHUNK):
                    digest.update(block)
            self._etag = digest.hexdigest()
        text: str = MotoKey.etag.fget(self)
        return text

    def __copy__(self) -> "Key":
        return self

    def __deepcopy__(self, memo: Any) -> "Key":
        """Return the object itself, which has the file: what moto copies, it only reads."""
        return self

    def dispose(self, garbage: bool = False) -> None:
        """Note that the version is no more, unless it is the process that ends."""
        super().dispose(garbage=False)
        if not garbage and self.file is not None:
            self.unused.add(self.file)


class Keys(models._VersionedKeyStore):  # type: ignore[misc]
    """The objects of a bucket, which note what is changed."""

    def __init__(self) -> None:
        super().__init__()
        self.changed: set[str] = set()

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self.changed.add(key)

    def setlist(self, key: str, values: Any) -> None:
        super().setlist(key, values)
        self.changed.add(key)

    def pop(self, key: str) -> None:
        super().pop(key)
        self.changed.add(key)


class KeptObjects:
    """A WSGI application around moto's, after whose changes of S3 the folder holds what S3 does.

    The process has one: it is moto that has the objects.
    """

    def __init__(self, application: Callable[..., Iterable[bytes]], folder: Path, account: str) -> None:
        self._application, self._folder = application, folder
        self._lock = threading.Lock()
        folder.mkdir(mode=0o700, exist_ok=True)
        Key.folder = folder
        models.FakeKey, models._VersionedKeyStore = Key, Keys
        self._backend = models.s3_backends[account]["aws"]
        for bucket in sorted(folder.iterdir()):
            self._read_bucket(bucket)

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request; one that changes S3 is answered once the change is on the disk."""
        name, _, key = unquote(environ["RAW_URI"].partition("?")[0]).lstrip("/").partition("/")
        if environ["REQUEST_METHOD"] in READS:
            part = self._part(environ, start, name, key)
            return self._application(environ, start) if part is None else [part]
        if not key and _is_folder_name(name):  # of a bucket that may be about to be created
            (self._folder / name).mkdir(mode=0o700, exist_ok=True)
        answered = b"".join(self._application(environ, start))
        with self._lock:
            self._keep(name, key)
        return [answered]

    def _part(self, environ: dict[str, Any], start: Callable[..., Any], name: str, key: str) -> bytes | None:
        """Answer a request for some bytes of an object, None if it is another: moto would read all of it.

        Clients download a model in parts, ten at once.
        """
        asked = RANGE.fullmatch(environ.get("HTTP_RANGE", ""))
        version = self._backend.buckets[name].keys.get(key) if name in self._backend.buckets else None
        if not (asked and environ["REQUEST_METHOD"] == "GET" and not environ["QUERY_STRING"]):
            return None
        if not isinstance(version, Key) or version.file is None:
            return None
        first, last = int(asked[1]), min(int(asked[2] or version.size), version.size - 1)
        heads: list[Any] = []
        whole = {name: value for name, value in environ.items() if name != "HTTP_RANGE"} | {"REQUEST_METHOD": "HEAD"}
        b"".join(self._application(whole, lambda *head: heads.append(head)))
        status, headers = heads[-1][:2]
        etag = next((value for name, value in headers if name.lower() == "etag"), None)
        if first > last or not status.startswith("200") or etag != version.etag:
            return None
        try:
            with open(version.file, "rb") as stream:
                stream.seek(first)
                part = stream.read(last - first + 1)
        except FileNotFoundError:  # replaced meanwhile
            return None
        # A checksum is that of the whole.
        kept = [pair for pair in headers if not pair[0].lower().startswith(("content-length", "x-amz-checksum"))]
        start("206 Partial Content", [*kept, ("Content-Range", f"bytes {first}-{last}/{version.size}")])
        return part

    def create_bucket(self, name: str, region: str) -> None:
        """Create a bucket unless there is one of this name."""
        if name not in self._backend.buckets:
            (self._folder / name).mkdir(mode=0o700, exist_ok=True)
            self._backend.create_bucket(name, region)
            self._keep(name, "")

    def _keep(self, name: str, key: str) -> None:
        """Write what a request to a bucket, or an object of it, has changed."""
        if bucket := self._backend.buckets.get(name):
            if not key:
                self._write(self._folder / name / BUCKET, {**_state(bucket), "tags": self._tags(bucket.arn)})
            elif key in bucket.keys:
                bucket.keys.changed.add(key)  # its tags or rights may be new
        for bucket in list(self._backend.buckets.values()):
            while bucket.keys.changed:
                self._keep_object(bucket, bucket.keys.changed.pop())
        while Key.unused:
            Key.unused.pop().unlink(missing_ok=True)
        if not key and _is_folder_name(name) and name not in self._backend.buckets:
            (self._folder / name / BUCKET).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # another request has made it again
                (self._folder / name).rmdir()

    def _keep_object(self, bucket: Any, key: str) -> None:
        file = self._folder / bucket.name / (hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest() + STATE)
        versions = bucket.keys.getlist(key, [])
        if not versions:
            file.unlink(missing_ok=True)
            return
        states = [{**_state(version), "tags": self._tags(getattr(version, "arn", ""))} for version in versions]
        self._write(file, states)

    def _tags(self, arn: str) -> dict[str, str]:
        tags: dict[str, str] = self._backend.tagger.get_tag_dict_for_resource(arn)
        return tags

    def _write(self, file: Path, value: Any) -> None:
        with files.atomic(file) as partial:
            partial.touch(0o600)
            partial.write_bytes(pickle.dumps(value))

    def _read_bucket(self, folder: Path) -> None:
        """Have moto hold a bucket of an earlier process; what cannot be read is named in the log and stays."""
        try:
            state = pickle.loads((folder / BUCKET).read_bytes())
            bucket = models.FakeBucket(folder.name, state["account_id"], state["region_name"])
            self._restore(bucket, state)
        except Exception:
            log.exception("the bucket in %s cannot be read", folder)
            return
        self._backend.buckets[folder.name] = bucket
        named = set()
        for file in sorted(folder.glob(f"*{STATE}")):
            if file.name != BUCKET:
                try:
                    named |= {version.file for version in self._read_object(bucket, file)}
                except Exception:
                    log.exception("the object in %s cannot be read", file)
                    return  # its values are not known, and stay
        bucket.keys.changed.clear()
        for value in set(folder.glob(f"*{VALUE}")) - named:  # of a process that was killed before it wrote the state
            value.unlink(missing_ok=True)

    def _read_object(self, bucket: Any, file: Path) -> Iterator[Any]:
        for state in pickle.loads(file.read_bytes()):
            version = Key(state["name"], None, bucket.account_id, bucket.region_name, bucket_name=bucket.name)
            if "file" in state:
                self._restore(version, {**state, "file": file.with_name(state["file"])})
                if os.path.getsize(version.file or "") != version.contentsize:
                    raise OSError(f"{version.file} has not the size of the object")
            else:
                version = models.FakeDeleteMarker(version)
                self._restore(version, state)
                version.file = None
            bucket.keys[state["name"]] = version
            yield version

    def _restore(self, thing: Any, state: dict[str, Any]) -> None:
        tags = state.pop("tags")
        vars(thing).update(state)
        if tags:
            self._backend.tagger.tag_resource(thing.arn, [{"Key": name, "Value": tags[name]} for name in tags])


def _state(thing: Any) -> dict[str, Any]:
    """Return what is kept of a bucket or of a version of an object; the name alone of a value's file."""
    state = {name: value for name, value in vars(thing).items() if name not in OMITTED}
    if state.get("file"):
        state["file"] = state["file"].name
    return state


def _is_folder_name(name: str) -> bool:
    return name not in ("", ".", "..") and not set("/\0") & set(name) and len(name) < 64
