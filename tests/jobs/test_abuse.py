"""Many requests, one in twenty of them bad, from several clients at once."""

import io
import random
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
import urllib3
from local_mode import deployed
from PIL import Image
from test_endpoints import workers_of

from fastmaker.jobs.packaging.torchserve import make_archive, running
from fastmaker.local.containers import free_ports, pack
from fastmaker.local.serving import torchserve

CLIENTS = 8
MULTIPART = b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\nx\r\n--b--\r\n'


def png_of(width: int, height: int) -> bytes:
    """A valid PNG of any size in a few kilobytes: one row of zeros, repeated, deflated."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1 + width // 8) * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def pickled_npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return stream.getvalue()


def bad_requests(ugly_images) -> list[tuple[bytes, str]]:
    noise = random.Random(0).randbytes(30_000_000)
    broken = [(file.read_bytes(), "image/png") for file in ugly_images]
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)).save(whole, "JPEG")
    return [
        *broken,
        (whole.getvalue()[:-200], "image/jpeg"),
        (b"", "application/x-image"),
        (b"", "application/json"),
        (noise, "application/x-image"),
        (noise[:50_000], "application/x-image"),
        (noise[:50_000], "application/json"),
        (b"{}", "application/json"),
        (b'{"instances": [{"b64": "%"}]}', "application/json"),
        (pickled_npy(), "application/x-npy"),
        (b"hello", "text/plain"),
        (b"1,2,3", "text/csv"),
        (b"x", "application/\xe9".encode("latin-1").decode("latin-1")),
        (MULTIPART, "multipart/form-data; boundary=b"),
        (png_of(20_000, 20_000), "image/png"),
    ]


@dataclass
class Server:
    """Something that serves the digits' bundle."""

    url: str
    workers: Callable[[], list[int]]
    """The pids of those that are ready."""
    tolerance: float = 0
    """How far its probabilities may be from those of an image alone."""


def hammer(server: Server, good: list[tuple[bytes, np.ndarray]], bad: list[tuple[bytes, str]], n: int) -> Counter:
    """Counts of (kind, outcome) over `n` requests; each twentieth is bad."""
    pool = urllib3.PoolManager(retries=False, maxsize=CLIENTS, timeout=120)

    def ask(number: int) -> tuple[str, str]:
        if number % 20:
            body, expected = good[number % len(good)]
            headers = {"Content-Type": "image/png", "Accept": "application/x-npy"}
            answer = pool.request("POST", server.url, body=body, headers=headers)
            if answer.status != 200:
                return "good", f"{answer.status}"
            difference = np.abs(np.load(io.BytesIO(answer.data)) - expected).max()
            return "good", "right" if difference <= server.tolerance else f"off by {difference}"
        body, content_type = bad[number // 20 % len(bad)]
        try:
            answer = pool.request("POST", server.url, body=body, headers={"Content-Type": content_type})
        except urllib3.exceptions.ProtocolError:  # refused before all of it was sent
            return "bad", "too large" if len(body) > 6_553_500 else "connection lost"
        # TorchServe itself refuses what is too large, and says so in the status line.
        reason = answer.data.decode().partition("\n")[0] or answer.reason
        refused = 400 <= answer.status < 500 and reason
        return "bad", "refused" if refused else f"{answer.status} for {len(body)} bytes of {content_type}"

    with ThreadPoolExecutor(CLIENTS) as clients:
        return Counter(clients.map(ask, range(n)))


def survives(server: Server, good, n_requests: int, ugly_images=()) -> None:
    before = server.workers()
    assert before
    outcomes = hammer(server, good, bad_requests(ugly_images), n_requests)
    assert set(outcomes) <= {("good", "right"), ("bad", "refused"), ("bad", "too large")}, outcomes
    assert outcomes["good", "right"] == n_requests - n_requests // 20
    assert sorted(server.workers()) == sorted(before)


@contextmanager
def endpoint(session, archive):
    """An endpoint of local mode with two workers."""
    with deployed(session, archive, env={"SAGEMAKER_MODEL_SERVER_WORKERS": "2"}) as predictor:
        name = predictor.endpoint_name
        port = session.sagemaker_client.endpoints.read(name)["servers"][0]["port"]
        yield Server(f"http://127.0.0.1:{port}/invocations", lambda: workers_of(session, name))


@pytest.fixture(scope="module")
def mar(digits_bundle, tmp_path_factory):
    """An archive that computes in batches, with two workers."""
    archive = tmp_path_factory.mktemp("archive") / "digits.mar"
    make_archive(digits_bundle, archive, model_name="digits", batch_size=4, max_batch_delay=5, workers=2)
    return archive


@contextmanager
def plain_torchserve(mar):
    (port,) = free_ports(1)
    with running(mar, "digits", port) as (_, url):
        yield Server(url, lambda: torchserve.ready_workers(port, "digits"), tolerance=1e-6)


@contextmanager
def endpoint_of_an_archive(session, mar, folder):
    """The archive's content in the serving toolkit."""
    with zipfile.ZipFile(mar) as packed:
        packed.extractall(folder / "unpacked")
    pack(folder / "unpacked", folder / "model.tar.gz")
    with endpoint(session, folder / "model.tar.gz") as server:
        server.tolerance = 1e-6
        yield server


def test_bad_requests_are_refused_and_good_ones_answered_right_by_the_same_workers(session, digits_archive, good):
    with endpoint(session, digits_archive) as server:
        survives(server, good, 800)


def test_an_archive_in_plain_torchserve_survives_the_same(mar, good):
    with plain_torchserve(mar) as server:
        survives(server, good, 400)


def test_an_archive_in_the_serving_toolkit_survives_the_same(session, mar, good, tmp_path):
    with endpoint_of_an_archive(session, mar, tmp_path) as server:
        survives(server, good, 400)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("kind", ["bundle", "archive", "archive in the toolkit"])
def test_ten_thousand_requests_with_every_broken_file(session, digits_archive, mar, good, test_data, tmp_path, kind):
    broken = ("truncated.jpg", "broken_data_stream.png", "broken_header.png", "decompression_bomb.gif")
    servers = {
        "bundle": lambda: endpoint(session, digits_archive),
        "archive": lambda: plain_torchserve(mar),
        "archive in the toolkit": lambda: endpoint_of_an_archive(session, mar, tmp_path),
    }
    with servers[kind]() as server:
        survives(server, good, 10_000, [test_data / "ugly_images" / name for name in broken])
