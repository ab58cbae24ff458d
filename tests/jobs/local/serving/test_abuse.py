"""Many requests, one in twenty of them bad, from several clients at once; and one after the other to every server.

`make test-servers` runs what takes minutes, with Ray Serve among the servers.
"""

import base64
import io
import itertools
import json

import numpy as np
import pytest
import urllib3
from helpers.abuse import MULTIPART, bad_requests, pickled_npy, survives
from helpers.servers import SERVERS, endpoint, endpoint_of_an_archive, plain_torchserve
from PIL import Image

from fastmaker.jobs.packaging.torchserve import make_archive

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def mar(digits_bundle, tmp_path_factory):
    """An archive that computes in batches, with two workers."""
    archive = tmp_path_factory.mktemp("archive") / "digits.mar"
    make_archive(digits_bundle, archive, model_name="digits", batch_size=4, max_batch_delay=5, workers=2)
    return archive


@pytest.mark.containers
def test_bad_requests_are_refused_and_good_ones_answered_right_by_the_same_workers(session, digits_archive, good):
    with endpoint(session, digits_archive) as server:
        survives(server, good, 800)


def test_an_archive_in_plain_torchserve_survives_the_same(mar, good):
    with plain_torchserve(mar) as server:
        survives(server, good, 400)


@pytest.mark.slow
def test_an_archive_in_the_serving_toolkit_survives_the_same(session, mar, good, tmp_path):
    with endpoint_of_an_archive(session, mar, tmp_path) as server:
        survives(server, good, 400)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("kind", SERVERS)
def test_ten_thousand_requests_with_every_broken_file(session, digits_archive, mar, good, test_data, tmp_path, kind):
    broken = ("truncated.jpg", "broken_data_stream.png", "broken_header.png", "decompression_bomb.gif")
    with SERVERS[kind](session, digits_archive, mar, tmp_path) as server:
        survives(server, good, 10_000, [test_data / "ugly_images" / name for name in broken])


def encoded(image: Image.Image, form: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form)
    return stream.getvalue()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def bodies(file) -> list[tuple[bytes, str]]:
    """A body of every kind and its type, made of the PNG of a digit; the bad ones of `bad_requests` that are small."""
    image, small = Image.open(file), 100_000
    png, gray = file.read_bytes(), np.asarray(image.convert("L"))
    colour = np.stack([gray] * 3, axis=-1)
    b64 = base64.b64encode(png).decode()
    return [
        (png, "image/png"),
        (png, "application/x-image"),
        (encoded(image.convert("RGB").resize((50, 40)), "JPEG"), "image/jpeg"),
        (encoded(image.convert("P"), "GIF"), "image/gif"),
        (encoded(image.convert("RGBA"), "PNG"), "image/*"),
        (npy(gray), "application/x-npy"),
        (npy(colour), "application/x-npy"),
        (npy(np.stack([colour] * 2)), "application/x-npy"),
        (npy(gray.astype("float32")), "application/x-npy"),
        (json.dumps({"instances": [{"b64": b64}]}).encode(), "application/json"),
        (json.dumps({"instances": [{"b64": b64}] * 3}).encode(), "application/json; charset=utf-8"),
        (json.dumps({"instances": []}).encode(), "application/json"),
        (b'{"b64": "%s"}\n' % b64.encode() * 2, "application/jsonlines"),
        (b'{"b64": 1}\n', "application/jsonlines"),
        (b"damaged", "image/png"),
        (pickled_npy(), "application/x-npy"),
        *[it for it in bad_requests(()) if len(it[0]) < small and it[1].isascii() and it[0] != MULTIPART],
    ]


ACCEPTS = (
    "application/json",
    "application/jsonlines",
    "text/csv",
    "application/x-npy",
    "text/csv;q=0.5, application/x-npy",
    "image/png",
    "*/*",
)


@pytest.fixture(scope="module")
def asked(digits):
    """Requests of every kind: bodies, their types and what they accept."""
    return list(itertools.product(bodies(sorted(digits.rglob("*.png"))[0]), ACCEPTS))


def answers(server, asked) -> dict[str, tuple[int, str, bytes]]:
    """The status, media type and body of the answer to each request, asked alone.

    Of an error it is the first line, which says what is wrong: the toolkits put a traceback behind it, without a type.
    """
    found, pool = {}, urllib3.PoolManager(retries=False)
    for number, ((body, kind), accept) in enumerate(asked):
        headers = {"Content-Type": kind, "Accept": accept}
        answer = pool.request("POST", server.url, body=body, headers=headers)
        media_type = answer.headers.get("Content-Type", "").partition(";")[0]
        told = (media_type, answer.data) if answer.status == 200 else ("", answer.data.partition(b"\n")[0])
        found[f"{number}: {kind} for {accept}"] = (answer.status, *told)
    return found


@pytest.fixture(scope="module")
def expected(session, digits_archive, asked):
    """What AWS's toolkits answer."""
    with endpoint(session, digits_archive) as server:
        return answers(server, asked)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in SERVERS if kind != "bundle"])
def test_every_server_answers_with_the_statuses_types_and_bytes_of_awss_toolkits(
    session, digits_archive, mar, tmp_path, asked, expected, kind
):
    assert len(expected) > 170
    with SERVERS[kind](session, digits_archive, mar, tmp_path) as server:
        found = answers(server, asked)
    assert {name: (found[name], it) for name, it in expected.items() if found[name] != it} == {}
