"""What a worker of a Ray cluster runs: its copy of the model, and the objects of a chunk through it.

The driver sends this package's code along, so that a node needs Ray Data, PyTorch, torchvision and Pillow; boto3 for S3
and jsonpath-rfc9535 for filters.
"""

import contextlib
import importlib
import io
import itertools
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmaker.jobs import storage
from fastmaker.local.batch import records

if TYPE_CHECKING:
    from fastmaker.local.batch.data_processing import DataProcessing

IN_MEMORY = 8 * records.MB  # of an object's answers, before they go to disk
SERVER_ERROR = 500  # the least status of a request that is tried again


@dataclass(frozen=True)
class Settings:
    """What a job asks of each worker."""

    prefix: str  # prefix + name is an object's URI
    output: str  # the URI of a folder, where <name>.out goes
    content_type: str
    accept: str
    splitting: dict[str, Any]  # the arguments of records.payloads
    end_lines: bool  # AssembleWith is Line
    processing: "DataProcessing | None"  # None: records pass as they are
    retries: int
    ahead: int  # objects that are read or written while others are computed
    batch_size: int  # requests, of any objects, that go through the network together
    threads: int

    @property
    def packages(self) -> list[str]:
        """The packages that a worker needs, beside those of serving."""
        in_s3 = any(uri.startswith("s3://") for uri in (self.prefix, self.output))
        return ["pyarrow", *["boto3"] * in_s3, *["jsonpath_rfc9535"] * bool(self.processing)]


class Worker:
    """One copy of the model; Ray Data gives it chunks of names."""

    def __init__(self, settings: Settings, model: Callable[[], dict[str, bytes]]) -> None:
        self.settings = settings
        self.model = load(model(), settings.threads)

    def __call__(self, chunk: dict[str, Any]) -> dict[str, list]:
        """Answer the objects of a chunk that have no answer; return name, error ("" for none) and status of each.

        A chunk comes again if a worker or a node was lost: what it had written is not done twice.
        """
        names = [str(name) for name in chunk["name"]]
        try:
            failed = self._failures(names)
        except Exception as error:
            if len(names) > 1:  # then each comes again alone
                raise
            failed = dict.fromkeys(names, (f"{type(error).__name__}: {error}", 0))
        errors, statuses = zip(*(failed.get(name, ("", 0)) for name in names), strict=True)
        return {"name": names, "error": list(errors), "status": list(statuses)}

    def _failures(self, names: list[str]) -> dict[str, tuple[str, int]]:
        """Answer the objects; return the error and status of those that failed."""
        try:
            left = list(self._unanswered(names))
        except storage.StorageError as error:
            return dict.fromkeys(names, (str(error), 0))
        with ThreadPoolExecutor(self.settings.ahead) as pool:
            return {item.name: (item.error, item.status) for item in self._transform(left, pool) if item.error}

    def _unanswered(self, names: list[str]) -> Iterator[str]:
        written = storage.sizes(storage.join(self.settings.output, ""), sorted(f"{name}.out" for name in names))
        return (name.removesuffix(".out") for name, size in written if size is None)

    def _transform(self, names: list[str], pool: ThreadPoolExecutor) -> list["_Object"]:
        """Return the objects, each with its answer written or with its error."""
        batch: list[tuple[_Object, bytes, bytes]] = []
        under_way: list[_Object] = []
        writes: list[Future[_Object]] = []

        def compute() -> None:
            self._answer(batch)
            batch.clear()
            for item in [item for item in under_way if item.complete]:
                under_way.remove(item)
                writes.append(pool.submit(item.write, self.settings))

        for item in self._read_ahead(names, pool):
            under_way.append(item)
            for payload in item.payloads():
                if (body := self._filtered(item, payload)) is not None:
                    batch.append((item, payload, body))
                    item.waiting += 1
                if len(batch) == self.settings.batch_size:
                    compute()
                if item.error:
                    break
            item.is_read = True
        compute()
        return [write.result() for write in writes]

    def _read_ahead(self, names: list[str], pool: ThreadPoolExecutor) -> Iterator["_Object"]:
        opened = (pool.submit(_Object, name, self.settings) for name in names)
        window = deque(itertools.islice(opened, self.settings.ahead))
        while window:
            item = window.popleft().result()
            window.extend(itertools.islice(opened, 1))
            yield item

    def _filtered(self, item: "_Object", payload: bytes) -> bytes | None:
        """Return what the model gets of a payload; None if that fails, which is the object's error."""
        try:
            processing = self.settings.processing
            return _processed(processing.input, payload) if processing else payload
        except records.RecordError as error:
            item.fail(error)
            return None

    def _answer(self, batch: list[tuple["_Object", bytes, bytes]]) -> None:
        """Add the answer to each of the payloads to its object, or the error."""
        outcomes = self._respond([body for _, _, body in batch])
        for (item, payload, body), outcome in zip(batch, outcomes, strict=True):
            for _ in range(self.settings.retries):
                if isinstance(outcome, bytes) or outcome.status_code < SERVER_ERROR:
                    break
                [outcome] = self._respond([body])
            item.waiting -= 1
            if not isinstance(outcome, bytes):
                item.fail(f"{outcome.status_code}: {outcome.message}", outcome.status_code)
                continue
            try:
                processing = self.settings.processing
                item.add(_processed(processing.output, payload, outcome) if processing else outcome, self.settings)
            except records.RecordError as error:
                item.fail(error)

    def _respond(self, bodies: Sequence[bytes]) -> list:
        """Return the model's answer to each body, as bytes, or the RequestError."""
        from fastmaker.serving import batches, errors, wire

        if not bodies:
            return []
        decoders = [partial(wire.decode, body, self.settings.content_type) for body in bodies]
        images = batches.decode(decoders, [len(body) for body in bodies])
        answers = batches.predict(self.model, images)
        encoded = [batches.encode(answer, self.settings.accept) for answer in answers]
        return [found if isinstance(found, errors.RequestError) else found[0] for found in encoded]


class _Object:
    """An object of the job, opened, with the answers that it has got."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        self.error, self.status = "", 0
        self.waiting = 0  # payloads whose answers have not come
        self.is_read = False
        self._answers = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115 (`write` closes it)
        self._stream: io.IOBase | None = None
        self._payloads: Iterator[bytes] = iter(())
        with self._errors():
            self._stream = storage.open_object(settings.prefix + name)
            payloads = records.payloads(self._stream, **settings.splitting)
            self._payloads = itertools.chain(list(itertools.islice(payloads, 1)), payloads)

    @property
    def complete(self) -> bool:
        """Whether it was read, and what was sent of it was answered."""
        return self.is_read and not self.waiting

    def payloads(self) -> Iterator[bytes]:
        """Yield the payloads until one cannot be read."""
        with self._errors():
            yield from self._payloads

    def add(self, answer: bytes, settings: Settings) -> None:
        """Put an answer behind those that came before."""
        self._answers.write(answer)
        if settings.end_lines and not answer.endswith(b"\n"):
            self._answers.write(b"\n")

    def fail(self, error: object, status: int = 0) -> None:
        """Note why it has no answer; the first reason stays."""
        if not self.error:
            self.error, self.status = str(error), status

    def write(self, settings: Settings) -> "_Object":
        """Write the answers, whole or not at all, if it has not failed; return it."""
        with self._errors(), self._answers:
            if self._stream:
                self._stream.close()
            if not self.error:
                self._answers.seek(0)
                storage.put_stream(self._answers, records.output_uri(settings.output, self.name))
        return self

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (records.RecordError, storage.StorageError) as error:
            self.fail(error)


def load(model: dict[str, bytes], threads: int) -> Any:
    """Return the `models.Model` of a bundle's files by their names. Raises bundle.BundleError."""
    import torch

    from fastmaker.serving import models

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        for name, content in model.items():
            Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
            Path(folder, name).write_bytes(content)
        return models.load(folder, "cuda:0" if torch.cuda.is_available() else "cpu")


def why_not(settings: Settings, model: dict[str, bytes], name: str, token: str) -> str:
    """Return why this node cannot take part in a job, empty if it can. It has loaded the model then.

    `name` is an object of the job, and `token` a file that the driver has made in an output folder, empty in S3.
    """
    try:
        for package in settings.packages:
            importlib.import_module(package)
        load(model, settings.threads)
        for place, seen in ((settings.prefix, name), (storage.join(settings.output, ""), token)):
            [(_, size)] = storage.sizes(place, [seen or "any"])
            if seen and size is None:
                return f"it does not see {place}{seen}"
    except ImportError as error:
        return f"it lacks {error.name or error}"
    except (ValueError, storage.StorageError) as error:
        return " ".join(str(error).split())
    return ""


def _processed(step: Any, *payloads: bytes) -> bytes:
    """Return what a step of DataProcessing makes of payloads. Raises RecordError."""
    from fastmaker.local.batch.data_processing import ProcessingError

    try:
        processed: bytes = step(*payloads)
    except ProcessingError as error:
        raise records.RecordError(str(error)) from None
    return processed
