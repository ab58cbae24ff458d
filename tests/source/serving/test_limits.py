"""Requests that ask for more than a worker can give: each is refused with 400, soon, and in one line."""

import base64
import gzip
import io
import json
import os
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from fastmaker import preprocess
from fastmaker.serving import errors, limits, models, wire

SOON_SECONDS = 5
PIXEL = np.zeros((1, 1, 3), np.uint8)


def encoded(image, form="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def huge_png(side, data=b""):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def scanned(side, scans):
    """A progressive JPEG whose last scan comes many times."""
    data = encoded(Image.new("L", (side, side), 128), "JPEG", progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * scans + data[-2:]


def packed_fits(side):
    """A FITS of zeros, packed by gzip, which Pillow unpacks pixel by pixel."""

    def cards(**values):
        lines = [f"{key:<8}= {value:>20}".ljust(80) for key, value in values.items()]
        text = "".join([*lines, "END".ljust(80)])
        return text.ljust(-(-len(text) // 2880) * 2880).encode()

    data = gzip.compress(bytes(side * side))
    table = {"XTENSION": "'BINTABLE'", "BITPIX": 8, "NAXIS": 2, "NAXIS1": 8, "NAXIS2": 1, "PCOUNT": len(data)}
    image = {"ZIMAGE": "T", "ZCMPTYPE": "'GZIP_1  '", "ZBITPIX": 8, "ZNAXIS": 2, "ZNAXIS1": side, "ZNAXIS2": side}
    return cards(SIMPLE="T", BITPIX=8, NAXIS=0) + cards(**table, GCOUNT=1, TFIELDS=1, **image) + bytes(8) + data


def b64(data):
    return {"b64": base64.b64encode(data).decode("ascii")}


def instances(*items):
    return json.dumps({"instances": items}).encode()


def lines(*items):
    return b"\n".join(json.dumps(item).encode() for item in items)


DOT = b64(encoded(Image.fromarray(PIXEL)))
LARGE = b64(encoded(Image.new("1", (5000, 5000))))  # 25 million pixels in 4 kB
MANY = limits.DEFAULT_MAX_IMAGES + 1
COUNT = f"the request has {MANY:,} images; at most 10,000 are accepted"
BOMBS = {
    "images of an array": (npy(np.zeros((500_000, 1, 1, 3), np.uint8)), "x-npy", "has 500,000 images; at most 10,000"),
    "instances": (instances(*[DOT] * MANY), "json", COUNT),
    "instances that are none": (instances(*[{}] * MANY), "json", COUNT),
    "lines": (lines(*[DOT] * MANY), "jsonlines", COUNT),
    "pixels of instances": (instances(*[LARGE] * 3), "json", "more than 64,000,000 pixels together"),
    "pixels of lines": (lines(*[LARGE] * 3), "jsonlines", "more than 64,000,000 pixels together"),
    "pixels of an array": (npy(np.zeros((9000, 9000), np.uint8)), "x-npy", "at most 64,000,000 pixels"),
    "a gigapixel by its header": (huge_png(2**31 - 1), "x-image", "64,000,000 pixels"),
    "pixels that unpack": (huge_png(10_000, bytes(30_010_000)), "x-image", "64,000,000 pixels"),
    "a TIFF": (encoded(Image.new("1", (9000, 9000)), "TIFF", compression="group4"), "x-image", "64,000,000 pixels"),
    "a GIF": (encoded(Image.new("P", (9000, 9000)), "GIF"), "x-image", "64,000,000 pixels"),
    "scans of a JPEG": (scanned(2000, 2000), "x-image", "the image is 2000x2000 in 2,0"),
    "many scans of a small one": (scanned(400, 50_000), "x-image", "the image is 400x400 in 50,0"),
    "a packed FITS": (packed_fits(7000), "x-image", "a FITS whose pixels (fits_gzip) Pillow reads too slowly"),
    "a PPM of few colours": (b"P6 900 900 9\n" + bytes(900 * 900 * 3), "x-image", "a PPM whose pixels (ppm) Pillow"),
    "text in a PNG": (huge_png(1)[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8))), "x-image", "damaged"),
    "nested lists": (b"[" * 1_000_000, "json", "is not JSON"),
    "nested objects": (b'{"instances":' * 100_000, "json", "is not JSON"),
    "nested in a line": (b"[" * 1_000_000, "jsonlines", "is not JSON"),
    "digits": (b'{"instances": [' + b"9" * 1_000_000 + b"]}", "json", "is not JSON: Exceeds the limit"),
    "an exponent": (b'{"instances": [1e999999999]}', "json", "instance 0: expected"),
    "base64 that is none": (instances({"b64": "=" * 6_000_000}), "json", "instance 0: not base64"),
    "a shape": (npy(PIXEL)[:60].replace(b"(1, 1, 3)", b"(9,9**9,)") + b" " * 60, "x-npy", "is not a .npy array"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_soon(name, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # decode sets it: have it put back
    body, kind, reason = BOMBS[name]
    start = time.monotonic()
    with pytest.raises(errors.BadRequest) as error:
        wire.decode(body, f"application/{kind}")
    assert time.monotonic() - start < SOON_SECONDS
    assert reason in error.value.message
    assert len(error.value.message.splitlines()) == 1


def test_each_decoder_that_pillow_has_in_python_is_known():
    """One that a new Pillow brings is refused until it was measured."""
    assert set(Image.DECODERS) == {*preprocess.PYTHON_DECODERS, "fits_gzip", "ppm"}


@pytest.mark.parametrize(
    "data",
    [
        b"qoif" + struct.pack(">IIBB", 4000, 4000, 3, 0) + b"\xfd" * 258_065 + bytes(8),
        b"P3 300 300 255\n" + b"1 " * 270_000,
        b"P5 300 300 65535\n" + bytes(180_000),
    ],
    ids=["QOI", "plain PPM", "PGM of 16 bits"],
)
def test_formats_that_pillow_reads_in_python_soon_enough_are_read(data):
    start = time.monotonic()
    preprocess.decode(data)
    assert time.monotonic() - start < SOON_SECONDS


def test_a_jpeg_of_many_scans_is_decoded_if_that_takes_no_time():
    assert wire.decode(scanned(50, 200), "image/jpeg").images[0].size == (50, 50)


def test_as_many_images_as_are_allowed_are_decoded(monkeypatch):
    monkeypatch.setenv("FASTMAKER_MAX_IMAGES", "3")
    for build in (instances, lines):
        kind = "application/json" if build is instances else "application/jsonlines"
        assert len(wire.decode(build(*[DOT] * 3), kind).images) == 3
        with pytest.raises(errors.BadRequest, match="the request has 4 images; at most 3 are accepted"):
            wire.decode(build(*[DOT] * 4), kind)


def test_a_request_that_takes_too_long_is_given_up(digits_bundle, entry_point, monkeypatch):
    model = models.load(digits_bundle)
    images = wire.decode(npy(np.zeros((40, 1, 1, 3), np.uint8)), "application/x-npy")
    assert len(entry_point.predict_fn(images, model).predictions) == 40
    monkeypatch.setenv("FASTMAKER_MAX_SECONDS", "0")
    with pytest.raises(errors.BadRequest) as error:
        entry_point.predict_fn(images, model)
    assert error.value.message == (
        "1 of the request's 40 images took 0 s, which is all that it has; send fewer in one request"
    )
    alone = wire.decode(npy(PIXEL), "application/x-npy")
    assert len(entry_point.predict_fn(alone, model).predictions) == 1  # one image always has the time that it takes
    assert len(model.predict([preprocess.image_from_array(PIXEL)] * 3)) == 3  # as has who calls it without a server


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({}, 50),
        ({"SAGEMAKER_TS_BATCH_SIZE": "8"}, 25),
        ({"SAGEMAKER_TS_BATCH_SIZE": "8", "SAGEMAKER_MODEL_SERVER_TIMEOUT": "3600"}, 25),
        ({"SAGEMAKER_MODEL_SERVER_TIMEOUT": "3600"}, 1500),
        ({"SAGEMAKER_TS_RESPONSE_TIMEOUT": "60", "SAGEMAKER_MODEL_SERVER_TIMEOUT": "3600"}, 25),
        ({"TS_DEFAULT_RESPONSE_TIMEOUT": "1"}, 1),
        ({"SAGEMAKER_MODEL_SERVER_TIMEOUT": "3600", "FASTMAKER_MAX_SECONDS": "7"}, 7),
    ],
)
def test_a_request_has_the_more_time_the_longer_the_server_waits(monkeypatch, variables, seconds):
    for name in [*limits.TIMEOUTS, *filter(lambda name: name.startswith("SAGEMAKER_TS_"), os.environ)]:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert limits.max_seconds() == seconds


@pytest.mark.parametrize(
    ("sizes", "order", "used", "shares"),
    [
        ([5], [0], [0], [8]),
        ([5, 5], [0, 1], [4, 0], [4, 4]),
        ([9, 1, 5], [1, 2, 0], [0, 0, 0], [8 / 3, 4, 8]),  # what small ones leave is for the largest
        ([1, 1, 1, 1], [0, 1, 2, 3], [2, 2, 2, 2], [2, 2, 2, 2]),
        ([1, 2, 3], [0, 1, 2], [20, 0, 0], [8 / 3, 0, 0]),  # one image always has the time that it takes
        ([], [], [], []),
    ],
)
def test_requests_that_come_at_once_share_the_time_of_one(monkeypatch, sizes, order, used, shares):
    monkeypatch.setenv("FASTMAKER_MAX_SECONDS", "8")
    moment = 0.0
    monkeypatch.setattr(limits.time, "monotonic", lambda: moment)
    seen = []
    for number, seconds in zip(limits.in_turn(sizes), [*used, 0], strict=False):
        seen.append((number, pytest.approx(limits._share.get())))
        moment += seconds
    assert seen == list(zip(order, shares, strict=True))
    assert limits._share.get() is None


@pytest.mark.parametrize(("build", "kind"), [(instances, "json"), (lines, "jsonlines")])
def test_images_that_take_too_long_to_decode_are_given_up(build, kind, monkeypatch):
    monkeypatch.setenv("FASTMAKER_MAX_SECONDS", "0")
    with pytest.raises(errors.BadRequest, match="1 of the request's 3 images took 0 s"):
        wire.decode(build(*[DOT] * 3), f"application/{kind}")
    assert len(wire.decode(build(DOT), f"application/{kind}").images) == 1


@pytest.mark.parametrize("name", ["FASTMAKER_MAX_PIXELS", "FASTMAKER_MAX_IMAGES", "FASTMAKER_MAX_SECONDS"])
def test_a_limit_that_is_no_number_is_noticed_when_the_model_is_loaded(digits_bundle, monkeypatch, name):
    monkeypatch.setenv(name, "many")
    with pytest.raises(ValueError, match="many"):
        models.load(digits_bundle)


def test_large_images_are_computed_in_smaller_batches():
    import torch

    def sizes(side, number, most):
        return [len(batch) for batch in models.batches([torch.zeros(3, side, side)] * number, most)]

    assert sizes(224, 40, 16) == [16, 16, 8]
    assert sizes(1000, 5, 16) == [2, 2, 1]
    assert sizes(3000, 2, 16) == [1, 1]
