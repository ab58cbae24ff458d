"""Many requests, one in twenty of them bad, from several clients at once."""

import io
import random
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import urllib3
from PIL import Image

from helpers import PATIENCE

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
    pool = urllib3.PoolManager(retries=False, maxsize=CLIENTS, timeout=PATIENCE)

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
