"""The routes to a prediction: each a context manager that yields a function from an encoded image to an Answer."""

import contextlib
import functools
import importlib.util
import io
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import urllib3

from fastmaker.jobs.backends import servers
from fastmaker.jobs.clients import triton
from fastmaker.jobs.packaging import endpoint, exported, torchserve
from fastmaker.jobs.verification.comparison import Answer, Route, Unavailable, answer
from fastmaker.local.containers import free_ports, pack
from fastmaker.local.serving import rayserve

NAMES = ("fastai", "torch", "endpoint", "ray", "torchserve", "onnxruntime", "openvino", "triton")
CALIBRATION_IMAGES = 100  # at most, for the ranges of int8
TYPE, ACCEPT = "application/x-image", "application/x-npy"
ATTRIBUTES = "mask_size=model"  # ignored by classifiers


@dataclass(frozen=True)
class Export:
    """A file of learn.export() that may be loaded, and what that takes (`packaging.exported`)."""

    file: Path
    imports: Sequence[str] = ()
    ignored: Sequence[str] = ()


def make_routes(
    model_dir: Path,
    files: list[Path],
    *,
    names: tuple[str, ...] = NAMES,
    tolerance: float = 1e-4,
    bf16: float | None = None,
    int8: float | None = None,
    triton_url: str | None = None,
    triton_model: str | None = None,
    export: Export | None = None,
) -> list[Route]:
    """Return the routes of `names`, and those of bfloat16 and int8 if a tolerance for them is given.

    The first is the reference. int8 is calibrated on the first of the image `files`. fastai's side is `export`, or
    rebuilt of the bundle.
    """
    float32 = {
        "fastai": functools.partial(_exported, export, model_dir) if export else functools.partial(_fastai, model_dir),
        "torch": functools.partial(_bundle, model_dir, engine="torch", precision="float32"),
        "endpoint": functools.partial(_endpoint, model_dir),
        "ray": functools.partial(_ray, model_dir),
        "torchserve": functools.partial(_torchserve, model_dir),
        "onnxruntime": functools.partial(_onnx_file, model_dir, engine="onnxruntime"),
        "openvino": functools.partial(_onnx_file, model_dir, engine="openvino"),
        "triton": functools.partial(_triton, triton_url, triton_model),
    }
    routes = [Route(name, tolerance, float32[name]) for name in names]
    if bf16 is not None:
        routes.append(Route("bf16", bf16, functools.partial(_bundle, model_dir, engine="torch", precision="bf16")))
        if "openvino" in names:
            in_openvino = functools.partial(_onnx_file, model_dir, engine="openvino", precision="bf16")
            routes.append(Route("openvino bf16", bf16, in_openvino))
    if int8 is not None:
        routes.append(Route("int8", int8, functools.partial(_int8, model_dir, files[:CALIBRATION_IMAGES])))
    return routes


@contextlib.contextmanager
def _fastai(model_dir: Path) -> Iterator[Callable]:
    """Yield learn.predict of a Learner with the bundle's weights."""
    from fastmaker import bundle
    from fastmaker.export import reference

    learn, info = reference.learner(model_dir), bundle.load_info(model_dir)

    def predict(image: bytes) -> Answer:
        with learn.no_bar(), learn.no_logging():
            *_, classes, numbers = learn.predict(image)
        return _decoded(np.asarray(numbers), np.asarray(classes), info)

    yield predict


def _decoded(numbers: np.ndarray, classes: np.ndarray, info: Any) -> Answer:
    """Return an answer of fastai's, with the classes that it decoded if these are classes."""
    found = answer(numbers, info)
    return replace(found, classes=classes) if info.task in ("classification", "segmentation") else found


@contextlib.contextmanager
def _exported(export: Export, model_dir: Path) -> Iterator[Callable]:
    """Yield learn.predict of the exported Learner, in a process of its own."""
    from fastmaker import bundle

    info = bundle.load_info(model_dir)
    with exported.answering(export.file, imports=export.imports, ignored=export.ignored) as ask:
        yield lambda image: of_export(ask(image), info)


def of_export(given: dict[str, np.ndarray], info: Any) -> Answer:
    """Return the answer of an exported Learner, with the classes that it decoded itself, not those of its numbers.

    Raises ValueError if its names for these are not the bundle's.
    """
    found = _decoded(given["array"], given["classes"], info)
    if info.task == "multilabel":
        found = replace(found, classes=given["classes"].astype(bool))
    if info.task in ("classification", "multilabel"):
        chosen = np.atleast_1d(np.asarray(info.labels)[found.classes]).tolist()
        theirs = np.atleast_1d(given["decoded"]).tolist()
        if chosen != theirs:
            raise ValueError(f"the Learner's label is {', '.join(theirs)} where the bundle's is {', '.join(chosen)}")
    return found


@contextlib.contextmanager
def _bundle(model_dir: Path, **options) -> Iterator[Callable]:
    """Yield the bundle in this process, loaded with the options of models.load."""
    from fastmaker import preprocess
    from fastmaker.serving import models

    model = models.load(model_dir, **options)

    def predict(image: bytes) -> Answer:
        tensor = model.to_tensor(preprocess.decode(image))
        return answer(model.numbers(tensor[None])[0].numpy(), model.info)

    yield predict


@contextlib.contextmanager
def _ray(model_dir: Path) -> Iterator[Callable]:
    """Yield an endpoint on Ray Serve with one replica. Raises Unavailable without the package or its configuration."""
    image = servers.public_ray_image(None)
    if reason := rayserve.missing(image):
        raise Unavailable(reason)
    if not (model_dir / servers.CONFIG).is_file():
        raise Unavailable(f"the bundle has no {servers.CONFIG}: an earlier version of fastmaker wrote it")
    with _endpoint(model_dir, image) as predict:
        yield predict


@contextlib.contextmanager
def _endpoint(model_dir: Path, image: str | None = None) -> Iterator[Callable]:
    """Yield an endpoint of local mode with one worker; `image` says what serves, by default TorchServe."""
    with tempfile.TemporaryDirectory() as scratch:
        archive = Path(scratch, "model.tar.gz")
        pack(model_dir, archive)
        with endpoint.running(archive, {"SAGEMAKER_MODEL_SERVER_WORKERS": "1"}, image) as (session, name):
            invoke = session.sagemaker_runtime_client.invoke_endpoint
            fixed = {"EndpointName": name, "ContentType": TYPE, "Accept": ACCEPT, "CustomAttributes": ATTRIBUTES}
            yield lambda image: _from_npy(invoke(Body=image, **fixed)["Body"].read(), model_dir)


@contextlib.contextmanager
def _torchserve(model_dir: Path) -> Iterator[Callable]:
    """Yield a TorchServe archive on a server with one worker."""
    headers = {"Content-Type": TYPE, "Accept": ACCEPT, "X-Amzn-SageMaker-Custom-Attributes": ATTRIBUTES}
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory() as scratch, urllib3.PoolManager(retries=False) as pool:
        archive = Path(scratch, "model.mar")
        torchserve.make_archive(model_dir, archive, model_name="model", workers=1)

        def predict(image: bytes) -> Answer:
            response = pool.request("POST", url, body=image, headers=headers)
            if response.status != 200:
                raise ValueError(f"{response.status}: {response.data.decode()}")
            return _from_npy(response.data, model_dir)

        with torchserve.running(archive, "model", port) as (_, url):
            yield predict


@contextlib.contextmanager
def _onnx_file(model_dir: Path, *, engine: str, precision: str = "float32") -> Iterator[Callable]:
    """Yield the ONNX file of the model directory, or an exported one, in an engine and, of OpenVINO, a precision.

    Raises Unavailable without the engine's package, or if the processor lacks the precision.
    """
    from fastmaker.serving import openvino_engine

    if importlib.util.find_spec(engine) is None:
        raise Unavailable(f"{engine} is not installed here: pip install {engine}")
    if precision == "bf16" and not openvino_engine.supports(precision):
        raise Unavailable("OpenVINO has no units for bf16 on this processor")
    with _with_onnx_file(model_dir) as folder, _bundle(folder, engine=engine, precision=precision) as predict:
        yield predict


@contextlib.contextmanager
def _int8(model_dir: Path, files: list[Path]) -> Iterator[Callable]:
    """Yield the ONNX file quantised to int8, calibrated on the image files."""
    from fastmaker import bundle
    from fastmaker.export import onnx_file

    with _with_onnx_file(model_dir) as folder:
        float_file, info = folder / bundle.ONNX_FILE, bundle.load_info(folder)
        onnx_file.to_int8(float_file, quantised := folder / "int8.onnx", onnx_file.inputs(files, info))
        quantised.replace(float_file)
        with _bundle(folder, engine="onnxruntime") as predict:
            yield predict


@contextlib.contextmanager
def _with_onnx_file(model_dir: Path) -> Iterator[Path]:
    """Yield a copy of the model directory that holds an ONNX file. Raises Unavailable."""
    from fastmaker import bundle
    from fastmaker.export import onnx_file

    try:
        onnx_file.check_packages()
    except onnx_file.ExportError as error:
        raise Unavailable(str(error)) from None
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "model")
        shutil.copytree(model_dir, folder)
        if not (folder / bundle.ONNX_FILE).is_file():
            onnx_file.to_onnx(folder, folder / bundle.ONNX_FILE)
        yield folder


@contextlib.contextmanager
def _triton(url: str | None, name: str | None) -> Iterator[Callable]:
    """Yield a model of the Triton server at `url`. Raises Unavailable."""
    if url is None:
        raise Unavailable("--triton names a server that has the model of fastmaker package triton")
    model = triton.Model(url, name)

    def predict(image: bytes) -> Answer:
        array = model.answer(image, "model").array
        info: Any = SimpleNamespace(**model.info)
        return Answer(array, None) if info.task == "segmentation" else answer(array, info)

    yield predict


def _from_npy(data: bytes, model_dir: Path) -> Answer:
    """Return the answer of a server of the bundle: its numbers, or a mask (H, W)."""
    from fastmaker import bundle

    info, array = bundle.load_info(model_dir), np.load(io.BytesIO(data), allow_pickle=False)
    return Answer(array, None) if info.task == "segmentation" else answer(array, info)
