"""Requests and jobs through `fastmaker aws` beside the same by ProcessSession: one endpoint, and one script."""

import contextlib
import http.client
import io
import multiprocessing
import os
import socket
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from fastmaker.jobs.benchmarks import common
from fastmaker.jobs.benchmarks.bare_processes import Processes
from fastmaker.jobs.packaging import endpoint
from fastmaker.local import aws
from fastmaker.local.containers import pack

HEADER = ["measured", "fastmaker aws", "ProcessSession", "compared"]
CLIENTS = 8
TURN_SECONDS = 2.0  # short: what else the machine does is then about the same for both
SCRIPT = """
import os, pathlib, time
time.sleep(5)
pathlib.Path(os.environ["SM_MODEL_DIR"], "weights").write_text("weights")
"""


def measure(*, arch: str, image_size: int, images: str | None, turns: int, fits: int) -> list[list]:
    """Return rows of HEADER: of an endpoint's latency and throughput, and of the seconds of a job of 5 s.

    The endpoint has an untrained network of `arch`, for images of `image_size`; it is asked through both in `turns` of
    2 s. `images` is a folder of photos (None: generated ones), `fits` the number of jobs through each.
    """
    with _home_of_its_own() as home, tempfile.TemporaryDirectory() as scratch, aws.running(home) as environment:
        archive = Path(scratch, "model.tar.gz")
        pack(common.untrained_classifier(arch, Path(scratch, "model"), image_size), archive)
        with endpoint.running(archive, {}) as (_, name):
            rows = _invocation_rows(environment, home, name, common.load_photos(images), turns)
        return [*rows, *_fit_rows(environment, home, Path(scratch), fits)]


@contextlib.contextmanager
def _home_of_its_own() -> Iterator[Path]:
    """Have a FASTMAKER_HOME that is gone afterwards; yield it."""
    given = {name: value for name, value in os.environ.items() if name == "FASTMAKER_HOME"}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FASTMAKER_HOME"] = folder
        try:
            yield Path(folder)
        finally:
            del os.environ["FASTMAKER_HOME"]
            os.environ.update(given)


def _invocation_rows(environment: dict[str, str], home: Path, name: str, photos: list[bytes], turns: int) -> list[list]:
    with (
        Processes(CLIENTS, boto3_client, environment, name) as ours,
        Processes(CLIENTS, process_client, str(home), name) as beside,
        _answering_at_once() as url,
        Processes(1, boto3_client, {**environment, "AWS_ENDPOINT_URL": url}, name) as alone,
    ):
        (p50, beside_p50), (rate, beside_rate) = latency_and_throughput(ours, beside, photos, turns)
        measures = [
            lambda: _cpu_of_a_request(ours, photos),
            *(lambda asked=asked: asked.one(photos, TURN_SECONDS)[3] for asked in (beside, alone)),
        ]
        cpu, beside_cpu, own = map(statistics.median, zip(*common.in_turn(measures, turns), strict=True))
    return [
        ["1 client, p50 ms", *rounded(1000 * p50, 1000 * beside_p50), f"{1000 * (p50 - beside_p50):+.1f} ms"],
        [
            "CPU, ms",
            *rounded(1000 * cpu, 1000 * beside_cpu),
            f"{1000 * (cpu - beside_cpu):+.1f} ms, without the model",
        ],
        ["of these boto3 alone, CPU, ms", round(1000 * own, 1), "", "signed, sent and answered at once"],
        [f"{CLIENTS} clients, images/s", *rounded(rate, beside_rate), f"{rate / beside_rate:.2f}"],
    ]


def latency_and_throughput(
    ours: Processes, beside: Processes, photos: list[bytes], turns: int
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Ask both in turns of TURN_SECONDS; return the median seconds of a request, and the requests a second, of each."""
    return (
        common.alternate(
            lambda: ours.latency(photos, TURN_SECONDS), lambda: beside.latency(photos, TURN_SECONDS), turns
        ),
        common.alternate(
            lambda: ours.throughput(photos, TURN_SECONDS), lambda: beside.throughput(photos, TURN_SECONDS), turns
        ),
    )


def _cpu_of_a_request(clients: Processes, photos: list[bytes]) -> float:
    """Return the CPU seconds of a request to `fastmaker aws`, of the client and of the server, which is a child."""
    (server,) = [child for child in psutil.Process().children() if aws.SERVER in child.cmdline()]
    before = sum(server.cpu_times()[:2])
    count, *_, cpu = clients.one(photos, TURN_SECONDS)
    return cpu + (sum(server.cpu_times()[:2]) - before) / count


def rounded(*values: float) -> list[float]:
    """Return the values to one decimal."""
    return [round(value, 1) for value in values]


def boto3_client(environment: dict[str, str], name: str) -> Callable[[bytes], None]:
    """Return a function that sends an endpoint a JPEG by boto3, as `environment` says where."""
    import boto3

    key = environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"]
    session = boto3.Session(*key, region_name=environment["AWS_REGION"])
    return _sending(session.client("sagemaker-runtime", endpoint_url=environment["AWS_ENDPOINT_URL"]), name)


def process_client(home: str, name: str) -> Callable[[bytes], None]:
    """Return a function that sends an endpoint a JPEG as ProcessSession does."""
    from fastmaker.local import ProcessSession

    return _sending(ProcessSession(home=home).sagemaker_runtime_client, name)


def _sending(runtime, name: str) -> Callable[[bytes], None]:
    def send(photo: bytes) -> None:
        runtime.invoke_endpoint(EndpointName=name, ContentType="image/jpeg", Body=photo)["Body"].read()

    return send


@contextlib.contextmanager
def _answering_at_once() -> Iterator[str]:
    """Serve the same answer to each request, without looking at it, in a process of its own; yield the URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    process = multiprocessing.get_context("spawn").Process(target=_answer_at_once, args=(listener,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        process.terminate()
        process.join()
        listener.close()


def _answer_at_once(listener: socket.socket) -> None:
    """Answer the requests of one connection after another."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    while True:
        connection = listener.accept()[0]
        with connection, connection.makefile("rb") as stream:
            while stream.readline():
                headers = http.client.parse_headers(stream)
                stream.read(int(headers["Content-Length"]))
                connection.sendall(answer)


def _fit_rows(environment: dict[str, str], home: Path, folder: Path, fits: int) -> list[list]:
    (folder / "train.py").write_text(SCRIPT)
    with (
        Processes(1, fit_of_ml, environment, str(folder)) as ours,
        Processes(1, fit_here, str(home), str(folder)) as beside,
    ):
        rounds = [(*ours.one([None], 0)[2:], *beside.one([None], 0)[2:]) for _ in range(fits)]
    seconds, cpu, beside_seconds, beside_cpu = map(statistics.median, zip(*rounds, strict=True))
    longer = f"{seconds - beside_seconds:+.1f} s"
    return [
        ["fit of a script that sleeps 5 s, s", *rounded(seconds, beside_seconds), longer],
        ["CPU of its client, s", *rounded(cpu, beside_cpu), f"{cpu - beside_cpu:+.1f} s"],
    ]


def fit_of_ml(environment: dict[str, str], source: str) -> Callable[[None], None]:
    """Return a function that trains on an instance of AWS's, as `environment` says where."""
    os.environ.update(environment)
    import sagemaker

    return _fitting(sagemaker.Session(), "ml.m5.large", source)


def fit_here(home: str, source: str) -> Callable[[None], None]:
    """Return a function that trains by ProcessSession."""
    from fastmaker.local import ProcessSession

    return _fitting(ProcessSession(home=home), "local", source)


def _fitting(session, instance_type: str, source: str) -> Callable[[None], None]:
    from sagemaker.pytorch import PyTorch

    def fit(_: None) -> None:
        estimator = PyTorch(
            entry_point="train.py",
            source_dir=source,
            role="arn:aws:iam::000000000000:role/benchmark",
            framework_version="2.6.0",
            py_version="py312",
            instance_count=1,
            instance_type=instance_type,
            sagemaker_session=session,
        )
        with contextlib.redirect_stdout(io.StringIO()):
            estimator.fit()

    return fit
