"""Send images through every path to an answer, and fail if one disagrees: ``fastmaker verify MODEL IMAGES``.

    fastai       learn.predict of a Learner with the bundle's weights: what all others are compared with
    torch        the bundle, in this process
    endpoint     an endpoint of local mode
    torchserve   a TorchServe archive
    onnxruntime  the exported ONNX file
    triton       a Triton server that has the model, where --triton says
    bf16, int8   the bundle in bfloat16, the ONNX file quantised on these images: where a tolerance for them is given

A path fails if one of its probabilities is further off than the tolerance, or if it gives another label (of a mask: a
pixel another class) where fastai's two highest probabilities are further apart than twice that. Without fastai, the
first path is what the others are compared with; if it tells no probabilities of masks, each pixel counts. What cannot
run here is listed as not run. One image is under way at a time, on servers with one worker.
"""

import argparse
import contextlib
import functools
import io
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import urllib3
from PIL import Image
from tqdm import tqdm

from fastmaker.jobs import backends, cleanup, deploy, package, predict
from fastmaker.jobs.cli import errors, pictures, tables
from fastmaker.jobs.clients import triton
from fastmaker.local.containers import free_ports, pack

PATHS = ("fastai", "torch", "endpoint", "torchserve", "onnxruntime", "triton")
PICTURED = 24  # images in the picture of those that differ
CALIBRATING = 100  # images that give int8 its ranges, at most
TYPE, ACCEPT = "application/x-image", "application/x-npy"
ATTRIBUTES = "mask_size=model"  # ignored by classifiers
ONE_WORKER = "minWorkers: 1\nmaxWorkers: 1\n"


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        prog="fastmaker verify",
        description="Send the same images through every path to an answer; exit 1 if one disagrees with fastai.",
        epilog="example: fastmaker verify pets photos --picture differing.png",
    )
    parser.add_argument("model", metavar="MODEL", help="a training job, a model directory, a model.tar.gz or its URI")
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="image files, or folders of them")
    parser.add_argument("--paths", type=_paths, default=PATHS, help=f"some of {','.join(PATHS)} (default: all)")
    parser.add_argument("--tolerance", type=_tolerance, default=1e-4, help="of a probability (default: %(default)s)")
    parser.add_argument("--bf16", type=_tolerance, metavar="TOLERANCE", help="compare bfloat16 as well")
    parser.add_argument("--int8", type=_tolerance, metavar="TOLERANCE", help="compare the quantised ONNX file as well")
    parser.add_argument("--triton", metavar="URL", help="grpc://HOST:PORT or http://HOST:PORT of a Triton server")
    parser.add_argument("--triton-model", metavar="NAME", help="(default: the only one that is ready there)")
    parser.add_argument("--picture", type=Path, metavar="PNG", help="draw the images that differ")
    return parser.parse_args(argv)


def main(args) -> int:
    """Compare all paths, and print the table; returns 1 if one that ran disagrees. Raises ValueError."""
    from fastmaker import bundle

    files = [file for name in args.images for file in predict.image_files(name)]
    with ExitStack() as stack:
        model_dir = stack.enter_context(package.model_directory(args.model))
        info = bundle.load_info(model_dir)
        routes = _routes(args, model_dir, files)
        first = _image(files[0])
        for route in routes:
            route.start(stack, first)
        pictured = _compare(routes, files, info.labels)
    what = "pixels alike" if info.task == "segmentation" else "labels alike"
    header = ["path", what, "of", "largest difference", "images/s", "start, s", "result"]
    print(tables.table(header, [route.row() for route in routes]))
    if args.picture and pictured:
        args.picture.parent.mkdir(parents=True, exist_ok=True)
        pictures.contact_sheet(pictured, columns=min(6, len(pictured))).save(args.picture)
        print(f"\npicture: {args.picture}")
    return int(any(route.failure for route in routes))


@dataclass(frozen=True)
class Answer:
    """What a path says of one image."""

    classes: np.ndarray  # int () of a classifier, (H, W) of a U-Net
    probabilities: np.ndarray | None  # float32 (n_labels,) or (n_labels, H, W); servers of masks do not tell

    def gap(self) -> np.ndarray:
        """How far the two highest probabilities are apart, in the shape of `classes`; infinitely if nobody tells."""
        if self.probabilities is None:
            return np.full(self.classes.shape, np.inf)
        second, first = np.partition(self.probabilities, -2, axis=0)[-2:]
        return first - second


class Unavailable(Exception):
    """Why a path cannot run on this machine."""


class Route:
    """A path to an answer, and how its answers compare."""

    def __init__(self, name: str, tolerance: float, serving: Callable):
        """`serving()` is a context manager that yields a function from an encoded image to an Answer."""
        self.name, self.tolerance, self.serving = name, tolerance, serving
        self.ask = None
        self.unavailable = self.failure = ""
        self.start_seconds = self.seconds = 0.0
        self.images = self.alike = self.total = 0
        self.largest = None

    def start(self, stack: ExitStack, image: bytes) -> None:
        """Start what answers, until the stack is closed; over with its first answer."""
        started = time.perf_counter()
        try:
            ask = stack.enter_context(self.serving())
            ask(image)
        except Unavailable as error:
            self.unavailable = str(error)
        except Exception as error:  # one path's fault is that path's result
            self.failure = _one_line(error)
        else:
            self.ask = ask
        self.start_seconds = time.perf_counter() - started

    def answer(self, file: Path, image: bytes) -> Answer | None:
        started = time.perf_counter()
        try:
            answer = self.ask(image)
        except Exception as error:
            self.failure = f"{file}: {_one_line(error)}"
            self.ask = None
            return None
        self.seconds += time.perf_counter() - started
        self.images += 1
        return answer

    def compare(self, file: Path, found: Answer, expected: Answer) -> bool:
        """Take in one answer; returns whether its classes are those expected."""
        if found.classes.shape != expected.classes.shape:
            self.failure = f"{file}: the answer's shape is {found.classes.shape}, not {expected.classes.shape}"
            return False
        differs = found.classes != expected.classes
        self.total += differs.size
        self.alike += int((~differs).sum())
        if (differs & (expected.gap() > 2 * self.tolerance)).any():
            self.failure = self.failure or f"{file}: another answer"
        if found.probabilities is not None and expected.probabilities is not None:
            difference = float(np.abs(found.probabilities - expected.probabilities).max())
            self.largest = max(self.largest or 0.0, difference)
            if not difference <= self.tolerance:  # nan is no answer either
                self.failure = self.failure or f"{file}: off by {difference:.1e}, more than {self.tolerance:g}"
        return not differs.any()

    def row(self) -> list:
        if self.unavailable or not self.images:
            return [self.name, "-", "-", "-", "-", "-", self._result()]
        largest = "-" if self.largest is None else f"{self.largest:.1e}"
        rate, start = round(self.images / self.seconds, 1), round(self.start_seconds, 1)
        return [self.name, self.alike, self.total, largest, rate, start, self._result()]

    def _result(self) -> str:
        if self.unavailable:
            return f"not run: {self.unavailable}"
        return f"FAILED: {self.failure}" if self.failure else "agrees"


def _compare(routes: list[Route], files: list[Path], labels: tuple[str, ...]) -> list[Image.Image]:
    """Ask each path about each image; returns cards of those on which one differs. Raises ValueError."""
    cards = []
    reference = next((route for route in routes if route.ask), None)
    for file in tqdm(files, unit="image", leave=False, disable=None):
        image = _image(file)
        running = [route for route in routes if route.ask]
        answers = [(route, route.answer(file, image)) for route in running]
        if not answers or answers[0][0] is not reference or answers[0][1] is None:
            break  # nothing is left to compare with
        expected = answers[0][1]
        for route, found in answers:
            if found and not route.compare(file, found, expected) and len(cards) < PICTURED:
                cards.append(_card(route.name, image, found, expected, labels))
    return cards


def _card(name: str, image: bytes, found: Answer, expected: Answer, labels: tuple[str, ...]) -> Image.Image:
    """The image with the label that differs, or with the pixels that differ in red."""
    picture = Image.open(io.BytesIO(image)).convert("RGB")
    if found.classes.ndim == 0:
        return pictures.captioned(picture, f"{name}: {labels[found.classes]}, not {labels[expected.classes]}")
    differs = found.classes != expected.classes
    pixels = np.asarray(picture.resize(differs.shape[::-1])).copy()
    pixels[differs] = (255, 0, 0)
    return pictures.captioned(Image.fromarray(pixels), f"{name}: {differs.sum()} pixels differ")


# The paths


def _routes(args, model_dir: Path, files: list[Path]) -> list[Route]:
    """The first is what the others are compared with."""
    float32 = {
        "fastai": functools.partial(_fastai, model_dir),
        "torch": functools.partial(_here, model_dir),
        "endpoint": functools.partial(_endpoint, model_dir),
        "torchserve": functools.partial(_torchserve, model_dir),
        "onnxruntime": functools.partial(_onnxruntime, model_dir),
        "triton": functools.partial(_triton, args.triton, args.triton_model),
    }
    routes = [Route(name, args.tolerance, float32[name]) for name in args.paths]
    if args.bf16 is not None:
        routes.append(Route("bf16", args.bf16, functools.partial(_here, model_dir, precision="bf16")))
    if args.int8 is not None:
        routes.append(Route("int8", args.int8, functools.partial(_int8, model_dir, files[:CALIBRATING])))
    return routes


@contextlib.contextmanager
def _fastai(model_dir: Path) -> Iterator[Callable]:
    from fastmaker.export import reference

    learn = reference.learner(model_dir)

    def ask(image: bytes) -> Answer:
        with learn.no_bar(), learn.no_logging():
            *_, classes, probabilities = learn.predict(image)
        return Answer(np.asarray(classes), np.asarray(probabilities))

    yield ask


@contextlib.contextmanager
def _here(model_dir: Path, **options) -> Iterator[Callable]:
    """The bundle in this process, by models.load and its options."""
    from fastmaker import preprocess
    from fastmaker.serving import models

    model = models.load(model_dir, **options)

    def ask(image: bytes) -> Answer:
        tensor = model.to_tensor(preprocess.decode(image))
        [probabilities] = model.probabilities(tensor[None]).numpy()
        return Answer(probabilities.argmax(axis=0), probabilities)

    yield ask


@contextlib.contextmanager
def _endpoint(model_dir: Path) -> Iterator[Callable]:
    backend = backends.Local()
    with tempfile.TemporaryDirectory() as scratch:
        pack(model_dir, Path(scratch, "model.tar.gz"))
        words = ["--model", f"file://{scratch}/model.tar.gz", "--env", "SAGEMAKER_MODEL_SERVER_WORKERS=1"]
        arguments = deploy.parse_args(words)
        model = deploy.model_for(arguments.model, arguments, backend)
        with contextlib.redirect_stdout(io.StringIO()):  # the SDK's dashes while it waits
            endpoint = model.deploy(1, "local").endpoint_name
        try:
            invoke = backend.session.sagemaker_runtime_client.invoke_endpoint
            fixed = {"EndpointName": endpoint, "ContentType": TYPE, "Accept": ACCEPT, "CustomAttributes": ATTRIBUTES}
            yield lambda image: _from_npy(invoke(Body=image, **fixed)["Body"].read())
        finally:
            cleanup.delete_endpoint(backend, endpoint)


@contextlib.contextmanager
def _torchserve(model_dir: Path) -> Iterator[Callable]:
    headers = {"Content-Type": TYPE, "Accept": ACCEPT, "X-Amzn-SageMaker-Custom-Attributes": ATTRIBUTES}
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory() as scratch, urllib3.PoolManager(retries=False) as pool:
        package.make_archive(model_dir, "model", archive := Path(scratch, "model.mar"), ONE_WORKER)

        def ask(image: bytes) -> Answer:
            answer = pool.request("POST", url, body=image, headers=headers)
            if answer.status != 200:
                raise ValueError(f"{answer.status}: {answer.data.decode()}")
            return _from_npy(answer.data)

        with package.running(archive, "model", port) as (_, url):
            yield ask


@contextlib.contextmanager
def _onnxruntime(model_dir: Path) -> Iterator[Callable]:
    """The ONNX file that the model directory holds, else one that is made now."""
    with _onnx_directory(model_dir) as folder, _here(folder, engine="onnxruntime") as ask:
        yield ask


@contextlib.contextmanager
def _int8(model_dir: Path, files: list[Path]) -> Iterator[Callable]:
    from fastmaker import bundle
    from fastmaker.export import onnx_file

    with _onnx_directory(model_dir) as folder:
        onnx, info = folder / bundle.ONNX_FILE, bundle.load_info(folder)
        onnx_file.to_int8(onnx, quantised := folder / "int8.onnx", onnx_file.inputs(files, info))
        quantised.replace(onnx)
        with _here(folder, engine="onnxruntime") as ask:
            yield ask


@contextlib.contextmanager
def _onnx_directory(model_dir: Path) -> Iterator[Path]:
    """A copy of the model directory that holds an ONNX file. Raises Unavailable."""
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
    if url is None:
        raise Unavailable("--triton names a server that has the model of fastmaker package triton")
    model = triton.Model(url, name)

    def ask(image: bytes) -> Answer:
        answer = model.answer(image, "model")
        found = getattr(answer, "probabilities", None)
        return Answer(answer.array, None) if found is None else Answer(found.argmax(), found)

    yield ask


def _from_npy(data: bytes) -> Answer:
    """The answer of a server: a classifier's probabilities, or a mask."""
    array = np.load(io.BytesIO(data), allow_pickle=False)
    return Answer(array, None) if array.ndim == 2 else Answer(array.argmax(), array)


def _image(file: Path) -> bytes:
    """The image in the file. Raises ValueError if it is none."""
    from fastmaker import preprocess

    data = file.read_bytes()
    try:
        preprocess.decode(data)
    except preprocess.ImageError as error:
        raise ValueError(f"{file}: {error}") from None
    return data


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _paths(text: str) -> list[str]:
    chosen = text.split(",")
    if unknown := [name for name in chosen if name not in PATHS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r}: expected some of {','.join(PATHS)}")
    return [name for name in PATHS if name in chosen]


def _tolerance(text: str) -> float:
    if not (value := float(text)) > 0:
        raise argparse.ArgumentTypeError(f"{text}: expected more than 0")
    return value


if __name__ == "__main__":
    errors.run(sys.modules[__name__])
