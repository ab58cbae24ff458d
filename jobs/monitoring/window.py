"""What a window of captures holds: images as the bundle's network sees them, answers, and what could not be read."""

import hashlib
import heapq
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fastmaker import baseline
from fastmaker.jobs.monitoring.captures import Record, Side

THUMBNAIL = 160  # pixels


@dataclass
class Sample:
    """An image that was sent, once however often it was."""

    name: str  # of its request
    time: datetime
    size: tuple[int, int]  # (width, height)
    thumbnail: bytes  # JPEG
    label: str = ""  # that the bundle gives it, of one label an image


@dataclass
class Window:
    """What is known of the captures between two moments."""

    times: list[datetime] = field(default_factory=list)  # of the requests
    distinct: int = 0  # requests that differ
    analysed: int = 0  # of these, those that the bundle has answered again
    without_input: int = 0  # requests whose input was not captured
    bad_inputs: Counter[str] = field(default_factory=Counter)  # requests without an image, by reason
    compared: int = 0  # answers whose label was compared with the bundle's
    differing: int = 0  # of these, those with another label
    samples: list[Sample] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    values: dict[str, np.ndarray] = field(default_factory=dict)  # by the names of a baseline's, an image of `samples`
    projected: np.ndarray | None = None  # embeddings in the directions of the baseline's, (n, k)


def measure(records: Iterable[Record], model: Any, known: baseline.Baseline, most: int) -> Window:
    """Return the window of `records`, of whose distinct requests at most `most` are answered again by the bundle.

    An image that was sent often counts once: tests take images for independent of each other. `model` is a
    `fastmaker.serving.models.Model` of the engine torch.
    """
    window, seen = Window(), baseline.Seen(model.info.mean, model.info.std)
    answers: list[str | None] = []
    _compute(_tensors(_chosen(records, window, most), model, window, answers), model, seen)
    if not window.samples:
        return window
    numbers, embeddings = seen.numbers(), seen.embeddings()
    window.values = baseline.values_of(seen, model.info, [sample.size for sample in window.samples])
    if known.embedding and embeddings is not None and embeddings.shape[1] == known.embedding.size:
        window.projected = known.embedding.project(embeddings)
        window.values["distance"] = known.embedding.distances(window.projected).astype(np.float32)
    window.labels = baseline.labels(numbers, model.info)
    if model.info.task == "classification":
        for sample, answer, index in zip(window.samples, answers, numbers.argmax(1), strict=True):
            sample.label = model.info.labels[index]
            window.compared += answer is not None
            window.differing += answer not in (None, sample.label)
    return window


def baseline_of(images: Iterable[Path], model: Any) -> baseline.Baseline:
    """Return the baseline of image files, which `model` answers. Raises ValueError for one that it refuses."""
    window, seen = Window(), baseline.Seen(model.info.mean, model.info.std)

    def records() -> Iterator[Record]:
        for file in images:
            yield Record(datetime.now(timezone.utc), file.name, Side(file.read_bytes(), "application/x-image"), None)
            for reason in window.bad_inputs:
                raise ValueError(f"{file}: {reason}")

    _compute(_tensors(records(), model, window, []), model, seen)
    return baseline.of(seen, model.info, [sample.size for sample in window.samples])


def _chosen(records: Iterable[Record], window: Window, most: int) -> list[Record]:
    """Return at most `most` distinct requests in the order of their times: a draw that is the same each time."""
    kept: list[tuple[int, int, Record]] = []  # the largest digest first: the smallest ones stay
    digests = set()
    for number, record in enumerate(records):
        window.times.append(record.time)
        if record.input is None:
            window.without_input += 1
            continue
        digest = int.from_bytes(hashlib.sha256(record.input.body).digest(), "big")
        if digest not in digests:
            digests.add(digest)
            (heapq.heappush if len(kept) < most else heapq.heappushpop)(kept, (-digest, number, record))
    window.distinct, window.analysed = len(digests), len(kept)
    return sorted((record for *_, record in kept), key=lambda record: record.time)


def _tensors(records: Iterable[Record], model: Any, window: Window, answers: list[str | None]) -> Iterator[Any]:
    """Yield the images of requests as the model takes them, after their samples and answered labels were added."""
    from fastmaker import preprocess
    from fastmaker.serving import errors, wire

    for record in records:
        assert record.input
        try:
            images = wire.decode(record.input.body, record.input.content_type).images
            tensors = [model.to_tensor(image) for image in images]
        except (errors.RequestError, preprocess.ImageError) as error:
            window.bad_inputs[str(error)] += 1
            continue
        labels = _labels(record.output)
        answers += labels if len(labels) == len(images) else [None] * len(images)
        window.samples += [Sample(record.name, record.time, image.size, _thumbnail(image)) for image in images]
        yield from tensors


def _compute(tensors: Iterable[Any], model: Any, seen: baseline.Seen) -> None:
    import torch

    from fastmaker.serving import models

    engine = model.engine
    for batch in models.batches(tensors, models.MAX_BATCH):
        with torch.inference_mode():
            inputs = engine.prepare(torch.stack(batch))
            seen.answered(inputs, partial(_answer, engine, inputs))


def _answer(engine: Any, inputs: Any) -> Any:
    return engine.activation(engine.network(inputs))


def _labels(output: Side | None) -> list[str | None]:
    """Return the labels of an answer in JSON, [] of another."""
    try:
        answer = json.loads(output.body) if output else []
    except ValueError:
        return []
    objects = answer if isinstance(answer, list) else [answer]
    return [each.get("label") if isinstance(each, dict) else None for each in objects]


def _thumbnail(image: Any) -> bytes:
    small, stream = image.convert("RGB"), io.BytesIO()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    small.save(stream, "JPEG", quality=85)
    return stream.getvalue()
