"""Measure against the bare loop, side by side in one run: ``fastmaker benchmark endpoint|train|transform|...``.

    endpoint    an endpoint beside the same network and preprocessing in bare processes, without a server
    train       the training job beside a bare fastai loop over the same DataLoaders
    transform   a batch job beside the bare processes, beside one object at a time, and a large job beside a small one
    torchserve  a TorchServe archive that batches requests beside one that does not
    onnx        ONNX Runtime beside torch, the same bundle and threads

Every figure that matters is a ratio of two measurements that alternate within one run: the machine may be shared.
"""

import argparse
import concurrent.futures
import contextlib
import io
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import urllib3
from PIL import Image

from fastmaker.jobs import backends, cleanup, deploy, package, predict, train
from fastmaker.jobs.cli import errors, tables
from fastmaker.local.containers import free_ports, pack

ROUNDS = 3


def parse_args(argv=None):
    parser = argparse.ArgumentParser(prog="fastmaker benchmark", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    endpoint = commands.add_parser("endpoint", help="throughput, latency, memory and start of an endpoint")
    endpoint.add_argument(
        "--model", help="a bundle's directory (default: a fresh one: --arch at 224 pixels, a U-Net at 96x128)"
    )
    endpoint.add_argument("--task", choices=("classification", "segmentation"), default="classification")
    endpoint.add_argument("--arch", default="resnet34", help="(default: %(default)s)")
    endpoint.add_argument("--images", help="a folder of photos (default: generated JPEGs of 500x375)")
    endpoint.add_argument("--seconds", type=float, default=10, help="of each measurement (default: %(default)s)")
    training = commands.add_parser("train", help="images/s and start-up of a training job")
    training.add_argument("--data", help="a directory (default: generated JPEGs)")
    training.add_argument("--arch", default="resnet18", help="(default: %(default)s)")
    training.add_argument("--image-size", default="64", help="(default: %(default)s)")
    training.add_argument("--label-regex")
    training.add_argument("--epochs", default="5", help="(default: %(default)s)")
    training.add_argument(
        "--hosts", type=int, help="compare so many hosts with one that has batches as large as theirs"
    )
    batch = commands.add_parser("transform", help="throughput of batch jobs, and how it scales")
    batch.add_argument("--arch", default="resnet18", help="at 224 pixels (default: %(default)s)")
    batch.add_argument("--images", help="a folder of photos (default: generated JPEGs of 500x375)")
    batch.add_argument("--photos", type=int, default=600, help="objects of a job (default: %(default)s)")
    batch.add_argument("--digits", type=int, default=20000, help="objects of the large job (default: %(default)s)")
    archive = commands.add_parser("torchserve", help="what batches of requests are worth in a TorchServe archive")
    archive.add_argument("--task", choices=("classification", "segmentation"), default="classification")
    archive.add_argument("--arch", default="resnet34", help="(default: %(default)s)")
    archive.add_argument("--image-size", type=int, default=224, help="of a classifier (default: %(default)s)")
    archive.add_argument("--batch-size", type=int, default=8, help="(default: %(default)s)")
    archive.add_argument("--max-batch-delay", type=int, default=20, help="ms (default: %(default)s)")
    archive.add_argument("--clients", type=int, default=16, help="(default: %(default)s)")
    archive.add_argument("--seconds", type=float, default=10, help="of each measurement (default: %(default)s)")
    onnx = commands.add_parser("onnx", help="ONNX Runtime beside torch, without a server")
    onnx.add_argument("--threads", type=int, default=1, help="of each (default: %(default)s, as a worker a core has)")
    onnx.add_argument("--seconds", type=float, default=10, help="of each measurement (default: %(default)s)")
    return parser.parse_args(argv)


def main(args) -> None:
    {
        "endpoint": benchmark_endpoint,
        "train": benchmark_train,
        "transform": benchmark_transform,
        "torchserve": benchmark_torchserve,
        "onnx": benchmark_onnx,
    }[args.command](args)


# Endpoint


def benchmark_endpoint(args) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        fresh = {"classification": fresh_bundle, "segmentation": fresh_unet_bundle}[args.task]
        model_dir = Path(args.model) if args.model else fresh(args.arch, Path(scratch, "model"))
        photos = _photos(args.images) if args.images else generated_photos(32)
        rows = []
        for precision in ("float32", "bf16"):
            rows += _measure_endpoint(model_dir, photos, precision, args.seconds)
        f32, bf16 = (row[2] for row in rows if row[1] == "endpoint, 8 clients, images/s")
        rows.append(["bf16", "times float32, 8 clients", round(bf16 / f32, 2), ""])
        rows.append(["bf16", "answers as in float32", _agreement(model_dir, photos), ""])
        print("\n" + tables.table(["precision", "measured", "value", "ratio"], rows))


def _measure_endpoint(model_dir: Path, photos: list[bytes], precision: str, seconds: float) -> list[list]:
    cores = len(os.sched_getaffinity(0))
    bare_start, bare_memory = _bare_start(model_dir, precision)
    with tempfile.TemporaryDirectory() as scratch, _BareWorkers(cores, model_dir, precision) as workers:
        pack(model_dir, archive := Path(scratch, "model.tar.gz"))
        started = time.perf_counter()
        name = _deploy(f"file://{archive}", precision)
        try:
            sagemaker_session = backends.session()
            _invoke(sagemaker_session, name, photos[0])
            start = time.perf_counter() - started
            memory = _worker_memory(sagemaker_session, name)
            throughput, latency = (
                _alternate(
                    lambda: _throughput(sagemaker_session, name, photos, 8, seconds),
                    lambda: workers.throughput(photos, seconds),
                ),
                _alternate(
                    lambda: _latency(lambda photo: _invoke(sagemaker_session, name, photo), photos, seconds),
                    lambda: workers.latency(photos, seconds),
                ),
            )
        finally:
            cleanup.delete_endpoint(backends.Local(), name)
    ours, bare = throughput
    p50, bare_p50 = latency
    return [
        [precision, "endpoint, 8 clients, images/s", round(ours, 1), f"{ours / bare:.2f} of the bare loop"],
        [precision, f"bare loop, {cores} processes, images/s", round(bare, 1), ""],
        [precision, "endpoint, 1 client, p50 ms", round(1000 * p50, 1), f"{p50 / bare_p50:.2f} of one bare image"],
        [precision, "bare image, 1 thread, p50 ms", round(1000 * bare_p50, 1), ""],
        [precision, "worker memory, MB", round(memory), f"{memory - bare_memory:+.0f} on a bare process"],
        [precision, "deploy to first answer, s", round(start, 1), f"{start - bare_start:+.1f} on a bare process"],
    ]


def _alternate(ours, bare) -> tuple[float, float]:
    """Medians of two measurements taken in turn."""
    pairs = [(ours(), bare()) for _ in range(ROUNDS)]
    return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)


def _deploy(archive: str, precision: str) -> str:
    arguments = deploy.parse_args(["--model", archive, "--env", f"FASTMAKER_PRECISION={precision}"])
    model = deploy.model_for(archive, arguments, backends.Local())
    return model.deploy(1, "local").endpoint_name


def _invoke(sagemaker_session, name: str, photo: bytes) -> None:
    runtime = sagemaker_session.sagemaker_runtime_client
    runtime.invoke_endpoint(EndpointName=name, ContentType="image/jpeg", Body=photo)["Body"].read()


def _throughput(sagemaker_session, name: str, photos: list[bytes], clients: int, seconds: float) -> float:
    """Answers a second with `clients` requests under way."""
    return _rate([lambda photo: _invoke(sagemaker_session, name, photo)] * clients, photos, seconds)


def _rate(clients: list[Callable[[bytes], object]], photos: list[bytes], seconds: float) -> float:
    """Photos a second, when each of the clients asks about one after the other."""
    deadline = time.perf_counter() + seconds

    def run(number: int) -> int:
        count = 0
        while time.perf_counter() < deadline:
            clients[number](photos[(number + count) % len(photos)])
            count += 1
        return count

    started = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(len(clients)) as pool:
        count = sum(pool.map(run, range(len(clients))))
    return count / (time.perf_counter() - started)


def _latency(ask, photos: list[bytes], seconds: float) -> float:
    """The median seconds of one call after another."""
    deadline = time.perf_counter() + seconds
    times = []
    while not times or time.perf_counter() < deadline:
        started = time.perf_counter()
        ask(photos[len(times) % len(photos)])
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _worker_memory(sagemaker_session, name: str) -> float:
    """Resident MB of the largest serving worker."""
    from fastmaker.local.serving import endpoints

    store = sagemaker_session.sagemaker_client.endpoints
    servers = store.read(name)["servers"]
    found = [p for server in servers for p in endpoints._container(store, name, server).processes()]
    workers = [p for p in found if any("model_service_worker" in word for word in p.cmdline())]
    return max(p.memory_info().rss for p in workers) / 2**20


class _BareWorkers:
    """Processes with one thread each that load the bundle and predict, fed over pipes, without a server."""

    def __init__(self, count: int, model_dir: Path, precision: str):
        context = multiprocessing.get_context("spawn")
        self.pipes = []
        self.processes = []
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_bare_worker, args=(theirs, str(model_dir), precision), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def __enter__(self):
        for pipe in self.pipes:
            pipe.recv()
        return self

    def __exit__(self, *error):
        for process in self.processes:
            process.terminate()
            process.join()

    def throughput(self, photos: list[bytes], seconds: float) -> float:
        for pipe in self.pipes:
            pipe.send((photos, seconds))
        return sum(count / elapsed for count, elapsed, _ in (pipe.recv() for pipe in self.pipes))

    def latency(self, photos: list[bytes], seconds: float) -> float:
        self.pipes[0].send((photos, seconds))
        return self.pipes[0].recv()[2]


def _bare_worker(pipe, model_dir: str, precision: str) -> None:
    import torch

    from fastmaker import preprocess
    from fastmaker.serving import models

    torch.set_num_threads(1)
    model = models.load(model_dir, precision=precision)
    pipe.send("ready")
    while True:
        photos, seconds = pipe.recv()
        started = time.perf_counter()
        times = []
        while time.perf_counter() - started < seconds:
            at = time.perf_counter()
            model.predict([preprocess.decode(photos[len(times) % len(photos)])])
            times.append(time.perf_counter() - at)
        pipe.send((len(times), time.perf_counter() - started, statistics.median(times)))


BARE_START = """
import sys, torch, torchvision, psutil
from fastmaker import preprocess
from fastmaker.serving import models
torch.set_num_threads(1)
model = models.load(sys.argv[1], precision=sys.argv[2])
model.predict([preprocess.image_from_array(__import__("numpy").zeros((375, 500, 3), "uint8"))])
print(psutil.Process().memory_info().rss)
"""


def _bare_start(model_dir: Path, precision: str) -> tuple[float, float]:
    """Seconds until a bare process has answered once, and its resident MB."""
    started = time.perf_counter()
    command = [sys.executable, "-c", BARE_START, str(model_dir), precision]
    memory = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return time.perf_counter() - started, int(memory) / 2**20


def _agreement(model_dir: Path, photos: list[bytes]) -> str:
    """On how many photos bf16 gives float32's label, or on how many of their pixels its class."""
    from fastmaker import preprocess
    from fastmaker.serving import models

    f32, bf16 = (models.load(model_dir, precision=precision) for precision in ("float32", "bf16"))
    images = [preprocess.decode(photo) for photo in photos]
    pairs = list(zip(f32.predict(images), bf16.predict(images), strict=True))
    if f32.info.task == "segmentation":
        return f"{np.mean([(a.array == b.array).mean() for a, b in pairs]):.2%} of the pixels"
    return f"{sum(a.index == b.index for a, b in pairs)} of {len(pairs)}"


def fresh_bundle(architecture: str, folder: Path, size: int = 224, n_labels: int = 37) -> Path:
    """A bundle of an untrained network."""
    import torch

    from fastmaker import bundle, networks
    from fastmaker.training import data

    torch.manual_seed(0)
    mode = "L" if architecture == "convnet" else "RGB"
    mean, std = data.STATISTICS[mode]
    labels = tuple(f"label {number}" for number in range(n_labels))
    network = networks.classifier(architecture, n_labels, len(mean))
    info = bundle.ModelInfo("classification", architecture, labels, mode, (size, size), "crop", mean, std)
    bundle.save(folder, network, info)
    return folder


def fresh_unet_bundle(architecture: str, folder: Path, size: tuple[int, int] = (96, 128), n_labels: int = 12) -> Path:
    """A bundle of an untrained U-Net."""
    import torch

    from fastmaker import bundle, unet
    from fastmaker.training import data

    torch.manual_seed(0)
    mean, std = data.STATISTICS["RGB"]
    labels = tuple(f"class {number}" for number in range(n_labels))
    info = bundle.ModelInfo(
        "segmentation", architecture, labels, "RGB", size, "squish", mean, std, options=unet.OPTIONS
    )
    bundle.save(folder, unet.unet(architecture, n_labels, size), info)
    return folder


def generated_photos(count: int, seed: int = 0) -> list[bytes]:
    """JPEGs of 500x375 pixels with structure at every scale, about as long to decode as photos."""
    random = np.random.default_rng(seed)
    photos = []
    for _ in range(count):
        pixels = sum(
            np.asarray(Image.fromarray(random.integers(0, 256, (n, n, 3), np.uint8)).resize((500, 375))) / (2.0 * k)
            for k, n in enumerate((4, 16, 64, 256), 1)
        )
        stream = io.BytesIO()
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
        photos.append(stream.getvalue())
    return photos


def _photos(folder: str) -> list[bytes]:
    return [file.read_bytes() for file in predict.image_files(folder)]


# Training


def benchmark_train(args) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = args.data or str(_generated_classes(folder / "data"))
        hyperparameters = {"arch": args.arch, "epochs": args.epochs, "image-size": args.image_size}
        hyperparameters |= {"pretrained": "false", "batch-size": "32"}
        if args.label_regex:
            hyperparameters["label-regex"] = args.label_regex
        words = [word for name, value in hyperparameters.items() for word in (f"--{name}", value)]
        rows = _hosts_beside_one(data, words, args.hosts) if args.hosts else _beside_bare_loop(data, words, folder)
    print("\n" + tables.table(["measured", "value", "ratio"], rows))


def _beside_bare_loop(data: str, words: list[str], folder: Path) -> list[list]:
    rounds = [_train_round(data, words, folder / str(i)) for i in range(ROUNDS)]
    # The median over every epoch of every round.
    script, bare, fit = (statistics.median(rate for r in rounds for rate in r[i]) for i in range(3))
    script_seconds, fit_seconds = (statistics.median(r[i] for r in rounds) for i in (3, 4))
    return [
        ["entry point, images/s", round(script, 1), f"{script / bare:.2f} of the bare loop"],
        ["bare fastai loop, images/s", round(bare, 1), ""],
        ["fit through ProcessSession, images/s", round(fit, 1), f"{fit / bare:.2f} of the bare loop"],
        ["python source/entry_point.py, s", round(script_seconds, 1), ""],
        ["fit through ProcessSession, s", round(fit_seconds, 1), f"{fit_seconds - script_seconds:+.1f} s"],
    ]


def _train_round(data: str, words: list[str], folder: Path) -> tuple:
    """Images/s of each epoch by the entry point, the bare loop and fit; seconds of the entry point and of fit."""
    places = ["--train", data, "--model-dir", str(folder / "model"), "--output-data-dir", str(folder / "output")]

    def python(*command: str) -> str:
        return subprocess.check_output([sys.executable, *command, *words, *places], text=True)

    started = time.perf_counter()
    script = python(str(train.SOURCE / "entry_point.py"))
    script_seconds = time.perf_counter() - started
    bare = python("-c", BARE_LOOP)

    fit, fit_seconds = _fit(data, words)
    return _rates(script), _rates(bare), fit, script_seconds, fit_seconds


def _hosts_beside_one(data: str, words: list[str], hosts: int) -> list[list]:
    """Images/s of `hosts` local hosts, which share the cores, beside those of one host that has them all."""

    def rate(hosts: int, batch: int) -> float:
        more = ["--instance-count", str(hosts), "--batch-size", str(batch)]
        return statistics.median(_fit(data, [*words, *more])[0])

    together, alone = _alternate(lambda: rate(hosts, 32), lambda: rate(1, 32 * hosts))
    return [
        [f"{hosts} hosts, batches of 32 on each, images/s", round(together, 1), f"{together / alone:.2f} of one host"],
        [f"one host, batches of {32 * hosts}, images/s", round(alone, 1), ""],
    ]


def _fit(data: str, words: list[str]) -> tuple[list[float], float]:
    """Images/s of each epoch of a job, and the seconds that ``fit`` took."""
    backend = backends.Local()
    estimator = train.estimator_for(train.parse_args(["--data", data, *words]), backend, "benchmark")
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()) as log:
        estimator.fit({"train": f"file://{Path(data).resolve()}"})
    seconds = time.perf_counter() - started
    backend.session.sagemaker_client.delete_training_job(estimator.latest_training_job.name)
    return _rates(log.getvalue()), seconds


def _rates(log: str) -> list[float]:
    return [float(rate) for rate in re.findall(r"images_per_second=([0-9.]+)", log)]


# The entry point's samples, DataLoaders and network; fastai's own loop and no callback of ours but the clock.
BARE_LOOP = """
import sys, time
from fastmaker.training import arguments, data, learner, run
from fastai.vision.all import Callback, set_seed

class Clock(Callback):
    def before_train(self): self.started, self.images = time.perf_counter(), 0
    def after_batch(self): self.images += len(self.yb[0]) if self.training else 0
    def after_train(self): print(f"images_per_second={self.images / (time.perf_counter() - self.started)}")

args = arguments.parse_args(sys.argv[1:])
samples = data.read(args.train, None, args.label_regex, args.valid_pct, args.seed)
set_seed(args.seed, reproducible=True)
learn = learner.create(run.dataloaders(args, samples), args.arch, args.image_mode, args.pretrained)
with learn.no_bar(), learn.no_logging():
    learn.fit_one_cycle(args.epochs, args.lr, cbs=Clock())
"""


def _generated_classes(folder: Path, count: int = 600) -> Path:
    for number, photo in enumerate(generated_photos(count)):
        part = folder / f"class {number % 4}"
        part.mkdir(parents=True, exist_ok=True)
        (part / f"{number}.jpg").write_bytes(photo)
    return folder


# Batch transform


def benchmark_transform(args) -> None:
    photos = _photos(args.images) if args.images else generated_photos(32)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rows = _transform_beside_bare_processes(args.arch, photos, args.photos, folder / "photos")
        digits = _files(folder / "digits", _digits(), args.digits, ".png")
        some, small = (_files(folder / str(count), _digits(), count, ".png") for count in (8000, 1000))
        archive = _archive("convnet", 28, folder / "convnet")
        rows += _transform_beside_one_at_a_time(archive, some)
        rows += _large_job_beside_small(archive, digits, small)
    print("\n" + tables.table(["measured", "value", "ratio"], rows))


def _transform_beside_bare_processes(arch: str, photos: list[bytes], count: int, folder: Path) -> list[list]:
    cores = len(os.sched_getaffinity(0))
    data = _files(folder / "in", photos, count, ".jpg")
    archive = _archive(arch, 224, folder / "bundle")
    with _BareWorkers(cores, folder / "bundle", "float32") as workers:
        ours, bare = _alternate(
            lambda: count / _transform(archive, data)["answering"],
            lambda: workers.throughput(photos, count / 30),
        )
    return [
        [f"transform, {arch} at 224, images/s", round(ours, 1), f"{ours / bare:.2f} of the bare loop"],
        [f"bare loop, {cores} processes, images/s", round(bare, 1), ""],
    ]


def _transform_beside_one_at_a_time(archive: str, data: Path) -> list[list]:
    count = len(list(data.iterdir()))
    ours, single = _alternate(
        lambda: count / _transform(archive, data)["answering"], lambda: count / _one_at_a_time(archive, data)
    )
    return [
        ["transform, 28x28 digits, 2 workers, images/s", round(ours, 1), f"{ours / single:.2f} of one at a time"],
        ["one at a time, as the SDK's local mode, images/s", round(single, 1), ""],
    ]


def _large_job_beside_small(archive: str, large: Path, small: Path) -> list[list]:
    runs = [(_transform(archive, large), _transform(archive, small)) for _ in range(ROUNDS)]

    def median(job: int, figure: str) -> float:
        return statistics.median(run[job][figure] for run in runs)

    counts = [len(list(folder.iterdir())) for folder in (large, small)]
    per_object = [1000 * median(i, "seconds") / count for i, count in enumerate(counts)]
    memory = [median(i, "memory") for i in (0, 1)]
    return [
        [
            f"{counts[0]} objects, ms each",
            round(per_object[0], 2),
            f"{per_object[0] / per_object[1]:.2f} of few",
        ],
        [f"{counts[1]} objects, ms each", round(per_object[1], 2), ""],
        [f"memory at {counts[0]} objects, MB", round(memory[0]), f"{memory[0] - memory[1]:+.0f} on a small job"],
    ]


def _transform(archive: str, data: Path) -> dict[str, float]:
    """Seconds and peak MB of a job, less the start of its server; `answering`: from the first to the last answer."""
    arguments = deploy.parse_args(["--model", archive, "--env", "SAGEMAKER_MODEL_SERVER_WORKERS=2"])
    backend = backends.Local()
    client = backend.session.sagemaker_client
    out = _folder_for_answers(data)
    transformer = deploy.model_for(archive, arguments, backend).transformer(
        1, "local", output_path=f"file://{out}", accept="application/json", max_concurrent_transforms=8
    )
    transformer.transform(f"file://{data}", content_type="application/x-image", wait=False)
    name = transformer.latest_transform_job.name
    process, memory = psutil.Process(client.transform_jobs.read(name)["supervisor"]["pid"]), 0
    while client.describe_transform_job(TransformJobName=name)["TransformJobStatus"] == "InProgress":
        with contextlib.suppress(psutil.Error):
            memory = max(memory, process.memory_info().rss)
        time.sleep(0.5)
    description = client.describe_transform_job(TransformJobName=name)
    if description["TransformJobStatus"] != "Completed":
        raise ValueError(f"the job is {description['TransformJobStatus']}: {description.get('FailureReason')}")
    cleanup.delete_transform_job(client, name)
    written = sorted(path.stat().st_mtime for path in out.rglob("*.out"))
    listing = (description["TransformStartTime"] - description["CreationTime"]).total_seconds()
    answering = (written[-1] - written[0]) * len(written) / (len(written) - 1)
    return {"answering": answering, "seconds": listing + answering, "memory": memory / 2**20}


def _folder_for_answers(data: Path) -> Path:
    """A new folder, which stays until the end: some file systems are slow after thousands of files were removed."""
    return Path(tempfile.mkdtemp(prefix="answers-", dir=data.parent))


def _one_at_a_time(archive: str, data: Path) -> float:
    """Seconds of the SDK's local mode for these files: its classes, and its order of reading, asking and writing.

    A server is started for it, as for a job, with the toolkit's own settings, which are the managed container's. Its
    start is not counted, nor the ``docker info`` that the SDK runs before each request.
    """
    import urllib3
    from sagemaker.local import data as local_data

    http = urllib3.PoolManager()
    headers = {"Content-type": "application/x-image", "Accept": "application/json"}
    source = local_data.get_data_source_instance(f"file://{data}", None)
    strategy = local_data.get_batch_strategy_instance("SingleRecord", local_data.get_splitter_instance(None))
    out = _folder_for_answers(data)
    with _digits_endpoint(archive) as port:
        url = f"http://localhost:{port}/invocations"
        started = time.perf_counter()
        for file in source.get_file_list():
            with open(out / f"{Path(file).name}.out", "wb") as answers:
                for body in strategy.pad(file, 6):
                    answers.write(http.request("POST", url, body=body, preload_content=False, headers=headers).read())
        return time.perf_counter() - started


@contextlib.contextmanager
def _digits_endpoint(archive: str) -> Iterator[int]:
    """The port of an endpoint's only server, which has two workers."""
    stock = ("SAGEMAKER_MODEL_SERVER_WORKERS=2", "JDK_JAVA_OPTIONS=", "TS_METRICS_MODE=log")
    arguments = deploy.parse_args(["--model", archive, *(word for pair in stock for word in ("--env", pair))])
    backend = backends.Local()
    name = deploy.model_for(archive, arguments, backend).deploy(1, "local").endpoint_name
    try:
        yield backend.session.sagemaker_client.endpoints.read(name)["servers"][0]["port"]
    finally:
        cleanup.delete_endpoint(backend, name)


def _archive(arch: str, size: int, folder: Path) -> str:
    pack(fresh_bundle(arch, folder, size, 10), archive := folder.with_name(f"{folder.name}.tar.gz"))
    return f"file://{archive}"


def _digits() -> list[bytes]:
    """scikit-learn's digits as PNGs of 28x28 pixels."""
    from sklearn.datasets import load_digits

    images = []
    for pixels in load_digits().images:
        stream = io.BytesIO()
        Image.fromarray((pixels * 15).astype(np.uint8)).resize((28, 28)).save(stream, "PNG")
        images.append(stream.getvalue())
    return images


def _files(folder: Path, contents: list[bytes], count: int, suffix: str) -> Path:
    """`count` files in `folder`, over and over with these contents."""
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number:06}{suffix}").write_bytes(contents[number % len(contents)])
    return folder


# TorchServe


def benchmark_torchserve(args) -> None:
    """Both archives on servers of their own at once, asked in turn: the one that waits takes no time."""
    photos = generated_photos(32)
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as servers:
        model_dir = Path(scratch, "model")
        if args.task == "segmentation":
            fresh_unet_bundle(args.arch, model_dir)
        else:
            fresh_bundle(args.arch, model_dir, args.image_size)
        single, batched = (
            servers.enter_context(_archive_server(model_dir, Path(scratch), args, size))
            for size in (1, args.batch_size)
        )
        both = single, batched
        rates = _alternate(*(lambda url=url: _posted(url, photos, args.clients, args.seconds) for url in both))
        times = _alternate(*(lambda url=url: _latency(_asking(url), photos, args.seconds) for url in both))
    rows = [
        [f"{args.clients} clients, images/s", *(round(rate, 1) for rate in rates), round(rates[1] / rates[0], 2)],
        ["1 client, p50 ms", *(round(1000 * seconds, 1) for seconds in times), round(times[1] / times[0], 2)],
    ]
    print("\n" + tables.table(["measured", "no batches", f"batches of {args.batch_size}", "ratio"], rows))


@contextlib.contextmanager
def _archive_server(model_dir: Path, folder: Path, args, batch_size: int) -> Iterator[str]:
    """The URL of an archive's model."""
    name = f"batches-of-{batch_size}"
    config = f"batchSize: {batch_size}\nmaxBatchDelay: {args.max_batch_delay}\n"
    package.make_archive(model_dir, name, folder / f"{name}.mar", config)
    (port,) = free_ports(1)
    with package.running(folder / f"{name}.mar", name, port) as (_, url):
        yield url


def _asking(url: str):
    pool = urllib3.PoolManager()

    def ask(photo: bytes) -> None:
        answer = pool.request("POST", url, body=photo, headers={"Content-Type": "image/jpeg"}, retries=False)
        assert answer.status == 200, answer.data

    return ask


def _posted(url: str, photos: list[bytes], clients: int, seconds: float) -> float:
    """Answers a second with `clients` requests under way."""
    return _rate([_asking(url) for _ in range(clients)], photos, seconds)


# ONNX


def benchmark_onnx(args) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        bundles = {
            "resnet34 at 224": fresh_bundle("resnet34", Path(scratch, "resnet34")),
            "U-Net on resnet18 at 96x128": fresh_unet_bundle("resnet18", Path(scratch, "unet")),
        }
        rows = [
            [name, n, *_onnx_beside_torch(model_dir, n, args)] for name, model_dir in bundles.items() for n in (1, 8)
        ]
    header = ["float32, images/s", "batch", "torch", "ONNX Runtime", "ratio", "largest difference"]
    print(f"\n{args.threads} thread(s)\n" + tables.table(header, rows))


def _onnx_beside_torch(model_dir: Path, n: int, args) -> tuple[float, float, float, str]:
    """Images a second through both engines, `n` at a time: normalisation, network and softmax."""
    import torch

    from fastmaker import bundle
    from fastmaker.export import onnx_file
    from fastmaker.serving import models

    torch.set_num_threads(args.threads)
    if not (model_dir / bundle.ONNX_FILE).exists():
        onnx_file.to_onnx(model_dir, model_dir / bundle.ONNX_FILE)
    in_torch, in_onnx = (models.load(model_dir, precision="float32", engine=engine) for engine in models.ENGINES)
    batch = torch.stack([in_torch.to_tensor(Image.open(io.BytesIO(photo))) for photo in generated_photos(n)])
    difference = (in_torch.probabilities(batch) - in_onnx.probabilities(batch)).abs().max().item()
    seconds = _alternate(
        *(lambda model=model: _latency(model.probabilities, [batch], args.seconds) for model in (in_torch, in_onnx))
    )
    rates = [round(n / each, 1) for each in seconds]
    return *rates, round(seconds[0] / seconds[1], 2), f"{difference:.0e}"


if __name__ == "__main__":
    errors.run(sys.modules[__name__])
