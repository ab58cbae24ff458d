"""serving.json of a bundle: how a machine serves it fastest, as ``fastmaker tune`` has measured.

Engine, precision and threads are followed wherever the bundle is loaded. Workers and batches are the server's, which
starts before it reads a bundle: who starts one asks for `environment`. Environment variables win over all of them.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastmaker import bundle, checks, files
from fastmaker.serving.engines import PRECISIONS

ENGINES = ("torch", "onnxruntime", "openvino")
WORKERS = "SAGEMAKER_MODEL_SERVER_WORKERS"
BATCH_SIZE = "SAGEMAKER_TS_BATCH_SIZE"
BATCH_DELAY = "SAGEMAKER_TS_MAX_BATCH_DELAY"  # in ms
MIN_WORKERS, MAX_WORKERS = "SAGEMAKER_TS_MIN_WORKERS", "SAGEMAKER_TS_MAX_WORKERS"
# Once one of these is set, the toolkit asks TorchServe for MIN_WORKERS workers, by default 1, whatever WORKERS says.
OF_TORCHSERVE = (BATCH_SIZE, BATCH_DELAY, MIN_WORKERS, MAX_WORKERS, "SAGEMAKER_TS_RESPONSE_TIMEOUT")
THREADS = "FASTMAKER_THREADS"
MOST = 1024  # workers, threads, requests in a batch


@dataclass(frozen=True)
class Settings:
    """The content of serving.json."""

    engine: str = "torch"  # one of ENGINES
    precision: str = "float32"  # one of engines.PRECISIONS
    workers: int = 1
    threads: int = 1  # of each worker
    batch_size: int = 1  # requests that a worker is given at once, at most
    measured: dict[str, Any] = field(default_factory=dict)  # by what they were chosen; for people alone


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load(model_dir: str | os.PathLike) -> Settings | None:
    """Return the settings of the bundle in `model_dir`, None if it has none. Raises BundleError."""
    path = Path(model_dir) / bundle.SERVING_FILE
    try:
        return parse(path.read_bytes(), path)
    except FileNotFoundError:
        return None


def parse(data: bytes, path: str | os.PathLike) -> Settings:
    """Return the settings that the bytes of the file at `path` are. Raises BundleError."""
    try:
        values = checks.parse(data.decode()) if len(data) <= checks.MAX_BYTES else None
    except ValueError as error:
        raise bundle.BundleError(f"{path}: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise bundle.BundleError(f"{path}: expected one JSON object, found {type(values).__name__}")
    known = {f.name: f.default for f in dataclasses.fields(Settings)}
    if unknown := values.keys() - known.keys():
        raise bundle.BundleError(f"{path}: {checks.shown(min(unknown))} is no setting; expected {', '.join(known)}")
    settings = Settings(**values)
    for key, allowed in {"engine": ENGINES, "precision": PRECISIONS}.items():
        _check(path, settings, key, getattr(settings, key) in allowed, f"one of {', '.join(allowed)}")
    for key in ("workers", "threads", "batch_size"):
        value = getattr(settings, key)
        _check(path, settings, key, type(value) is int and 1 <= value <= MOST, f"a whole number, 1 to {MOST}")
    _check(path, settings, "measured", isinstance(settings.measured, dict), "an object")
    combined = settings.engine != "onnxruntime" or settings.precision == "float32"
    _check(path, settings, "precision", combined, "float32, as the engine is onnxruntime")
    return settings


def _check(path: str | os.PathLike, settings: Settings, key: str, good: bool, expected: str) -> None:
    if not good:
        raise bundle.BundleError(f"{path}: {key!r} is {checks.shown(getattr(settings, key))}; expected {expected}")


def save(model_dir: str | os.PathLike, settings: Settings) -> None:
    """Write the settings into the bundle in `model_dir`."""
    text = json.dumps(dataclasses.asdict(settings), indent=2, ensure_ascii=False) + "\n"
    files.write_text(Path(model_dir) / bundle.SERVING_FILE, text)


def environment(settings: Settings) -> dict[str, str]:
    """Return the variables that ask a server for the settings; `with_workers` completes them for AWS's toolkit."""
    env = {WORKERS: str(settings.workers)}
    if settings.batch_size > 1:
        env[BATCH_SIZE] = str(settings.batch_size)
    return env


def with_workers(env: Mapping[str, str]) -> dict[str, str]:
    """Return variables of a server, and those by which the toolkit starts the workers that WORKERS asks for."""
    if not (env.get(WORKERS, "").isdigit() and int(env[WORKERS]) and any(name in env for name in OF_TORCHSERVE)):
        return dict(env)
    return {**dict.fromkeys((MIN_WORKERS, MAX_WORKERS), env[WORKERS]), **env}
