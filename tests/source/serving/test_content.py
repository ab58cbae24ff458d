"""What may come in: content types, and what is refused with which status."""

import base64
import io
import json
import struct

import numpy as np
import pytest
from PIL import Image

from fastmaker.serving import errors, wire

RANDOM = np.random.default_rng(5)
PIXELS = RANDOM.integers(0, 256, (12, 9, 3), dtype=np.uint8)


def png(pixels=PIXELS):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def npy(array, **options):
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def npy_with_header(header, data=b""):
    """Version 1.0 of NumPy's format with any text for a header."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode("latin1") + data


def npy_of_shape(shape, data=b""):
    return npy_with_header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n", data)


def b64(data):
    return {"b64": base64.b64encode(data).decode("ascii")}


def instances(*items):
    return json.dumps({"instances": items}).encode()


def lines(*items):
    return "".join(json.dumps(item) + "\n" for item in items).encode()


def pixels_of(images):
    return [np.asarray(image) for image in images.images]


def several(n=3):
    return [np.full((4, 5, 3), 40 * i, np.uint8) for i in range(n)]


def refused(status, body, content_type):
    """The reason why a request is refused; it fits into one line of ASCII, as TorchServe needs it."""
    with pytest.raises(errors.RequestError) as error:
        wire.decode(body, content_type)
    assert error.value.status_code == status
    return assert_one_ascii_line(error.value)


def assert_one_ascii_line(error):
    assert error.message == error.phrase == str(error)
    assert error.message.isascii()
    assert len(error.message.splitlines()) == 1
    assert len(error.message) <= 500
    return error.message


# In


@pytest.mark.parametrize(
    "content_type",
    ["application/x-image", "image/png", "image/jpeg", "image/anything", "IMAGE/PNG", "image/png; name=cat.png"],
)
def test_an_encoded_image_is_one_image(content_type):
    images = wire.decode(png(), content_type)
    assert images.single
    assert np.array_equal(*pixels_of(images), PIXELS)


@pytest.mark.parametrize("array", [PIXELS, PIXELS[..., 0], np.asfortranarray(PIXELS)], ids=["RGB", "gray", "Fortran"])
def test_an_array_of_one_image_is_one_image(array):
    images = wire.decode(npy(array), "application/x-npy")
    assert images.single
    assert np.array_equal(*pixels_of(images), array)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("n", [1, 3])
def test_an_array_of_n_images_is_a_list_in_order(n, order):
    array = RANDOM.integers(0, 256, (n, 6, 4, 3), dtype=np.uint8)
    images = wire.decode(npy(np.asarray(array, order=order)), "application/x-npy")
    assert not images.single
    assert np.array_equal(pixels_of(images), array)


def test_a_version_2_array_is_read():
    stream = io.BytesIO()
    np.lib.format.write_array(stream, PIXELS, version=(2, 0))
    assert np.array_equal(*pixels_of(wire.decode(stream.getvalue(), "application/x-npy")), PIXELS)


@pytest.mark.parametrize(("content_type", "build"), [("application/json", instances), ("application/jsonlines", lines)])
@pytest.mark.parametrize("n", [1, 5])
def test_base64_images_are_a_list_in_order(content_type, build, n):
    images = wire.decode(build(*(b64(png(pixels)) for pixels in several(n))), content_type)
    assert not images.single
    assert np.array_equal(pixels_of(images), several(n))


@pytest.mark.parametrize("width", [16, 76])
def test_base64_in_lines_is_read(width):
    """As `base64` and encodebytes write it."""
    text = base64.b64encode(png()).decode()
    for end in ("\n", "\r\n", " \t"):
        wrapped = "".join(text[i : i + width] + end for i in range(0, len(text), width))
        assert np.array_equal(*pixels_of(wire.decode(instances({"b64": wrapped}), "application/json")), PIXELS)


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        ("mask_size = original", "original"),
        ("Mask_Size=original", "original"),
        ("trace=7; MASK_SIZE =\tmodel ; other=1", "model"),
        ("trace=7, mask_size= original", "original"),
        ("my-mask_size = tiny, mask_sizes=tiny, the_Mask_Size=tiny", None),
    ],
)
def test_blanks_and_the_names_case_in_the_custom_attributes_do_not_matter(attributes, size):
    assert wire.decode(png(), "image/png", attributes).mask_size == size


@pytest.mark.parametrize(
    "attributes", ["mask_size=Original", "mask_size =", "Mask_Size = ori ginal", "mask_size=, a=b"]
)
def test_an_unknown_mask_size_is_refused_with_400_in_one_line(attributes):
    with pytest.raises(errors.BadRequest, match="expected one of model, original") as error:
        wire.decode(png(), "image/png", attributes)
    assert_one_ascii_line(error.value)


def test_text_that_a_server_has_decoded_already_is_read():
    images = wire.decode(instances(b64(png())).decode(), "application/json; charset=utf-8")
    assert np.array_equal(*pixels_of(images), PIXELS)


def test_blank_lines_and_carriage_returns_between_json_lines_are_skipped():
    body = b"\r\n".join([b"", lines(b64(png())).strip(), b"  ", lines(b64(png())).strip(), b""])
    assert len(wire.decode(body, "application/jsonlines").images) == 2


# Refused on the way in


@pytest.mark.parametrize("content_type", ["text/plain", "text/csv", "images/png", "json", "multipart/mixed"])
def test_an_unknown_content_type_is_refused_with_415_and_the_known_ones(content_type):
    reason = refused(415, png(), content_type)
    assert all(known in reason for known in ("image/*", *wire.DECODERS))


UNTYPED = [None, *wire.UNTYPED, "multipart/form-data; boundary=x", "Application/Octet-Stream"]


@pytest.mark.parametrize("content_type", UNTYPED)
def test_a_type_that_says_nothing_is_one_of_an_image(content_type):
    assert np.array_equal(pixels_of(wire.decode(png(), content_type))[0], PIXELS)
    for body in (b"no image", instances(b64(png())), npy(PIXELS), RANDOM.bytes(500)):
        reason = refused(415, body, content_type)
        assert all(known in reason for known in ("image/*", *wire.DECODERS))
    assert refused(400, png()[:-40], content_type).startswith("the image is damaged or truncated")
    assert refused(400, b"", content_type).startswith("the body is empty; expected ")


@pytest.mark.parametrize(
    ("parts", "body"),
    [
        ({"body": b"x"}, b"x"),
        ({"data": b"x"}, b"x"),  # curl -F data=@file
        ({"model_name": "model", "body": b"x"}, b"x"),  # a parameter of the URL
        ({"body": None}, None),
        ({}, None),
    ],
)
def test_the_body_is_found_among_the_parts_that_torchserve_passes_on(parts, body):
    assert wire.body_of(parts) == body


def test_a_form_of_several_parts_is_refused():
    with pytest.raises(errors.BadRequest, match="the form has 2 parts; expected one, which holds an image"):
        wire.body_of({"a": b"x", "b": b"y"})


@pytest.mark.parametrize(
    "content_type", ["text/Zürich", "text/東京", "text/\x00\x1b[1m", "text/a\r\nX-Evil: 1", "é" * 5000]
)
def test_a_refusal_is_one_line_of_ascii_whatever_was_sent(content_type):
    refused(415, png(), content_type)


@pytest.mark.parametrize("body", [b"", None, ""])
@pytest.mark.parametrize("content_type", wire.DECODERS)
def test_an_empty_body_is_refused_with_400(content_type, body):
    assert refused(400, body, content_type) == f"the body is empty; expected {content_type}"


@pytest.mark.parametrize("body", [b"no image", png()[:-40], png()[:20], RANDOM.bytes(500)])
def test_an_undecodable_image_is_refused_with_400(body):
    assert "image" in refused(400, body, "image/png")
    assert refused(400, instances(b64(png()), b64(body)), "application/json").startswith("instance 1: ")
    assert refused(400, lines(b64(png()), b64(body)), "application/jsonlines").startswith("line 2: ")


def test_an_oversized_image_is_refused_with_400(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # decode sets it: have it put back
    monkeypatch.setenv("FASTMAKER_MAX_PIXELS", "100")
    for body, content_type in ((png(), "image/png"), (npy(PIXELS), "application/x-npy")):
        assert "at most 100 pixels" in refused(400, body, content_type)


def test_a_pickled_array_is_refused_and_never_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'sprung')!r}, 'w')",)

    body = npy(np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(AttributeError):  # the trap works: NumPy springs it, then finds no array
        np.load(io.BytesIO(body), allow_pickle=True).shape.nothing  # noqa: B018
    (tmp_path / "sprung").unlink()
    assert "got object (1,)" in refused(400, body, "application/x-npy")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "array",
    [
        PIXELS.astype(np.float32),
        PIXELS.astype(np.int8),
        PIXELS > 9,
        np.zeros((3, 3), "U1"),
        np.zeros(3, [("a", "u1")]),
        PIXELS[0, 0],
        np.uint8(7),
        PIXELS[..., :2],
        np.zeros((2, 3, 3, 4), np.uint8),
        np.zeros((1, 1, 3, 3, 3), np.uint8),
        np.zeros((0, 4, 4, 3), np.uint8),
        np.zeros((0, 4), np.uint8),
        np.zeros((2, 0, 4, 3), np.uint8),
    ],
    ids=lambda array: f"{array.dtype} {array.shape}",
)
def test_an_array_that_is_no_image_is_refused_with_400(array):
    refused(400, npy(array), "application/x-npy")


@pytest.mark.parametrize("shape", ["(1000000, 1000000, 3)", f"({10**18}, {10**18})", "(12, 9)", "(3, 3, 4)"])
def test_a_declared_shape_that_the_bytes_do_not_fill_is_refused_before_memory_is_taken(shape):
    assert "does not fit the 27 bytes" in refused(400, npy_of_shape(shape, bytes(27)), "application/x-npy")


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("(-3, -3)", 9),
        ("(-1, 3)", 3),
        (f"({2**63}, 0)", 0),
        (f"({2**63 - 1}, 0)", 0),
        (f"({'1, ' * 70})", 1),
        ("(True, 3)", 3),
        ("(2.0, 2)", 4),
        ("3", 3),
    ],
)
def test_a_nonsensical_shape_is_refused_with_400(shape, size):
    refused(400, npy_of_shape(shape, bytes(size)), "application/x-npy")


@pytest.mark.parametrize(
    "header",
    [
        "",
        "junk",
        "{}",
        "{[]: 1}",
        "{3: 4, 'descr': 5}",
        "(" * 3000,
        "[" * 5000,
        "{'descr': '|u1', (((",
        "'",
        "x" * 20000,
    ],
    ids=lambda header: header[:12],
)
def test_a_nonsensical_array_header_is_refused_with_400(header):
    refused(400, npy_with_header(header, b"1234"), "application/x-npy")


@pytest.mark.parametrize("body", [b"\x93NUMPY", npy(PIXELS)[:30], b"\x93NUMPY\x09\x00" + npy(PIXELS)[8:], png()])
def test_a_body_that_is_no_array_is_refused_with_400(body):
    assert refused(400, body, "application/x-npy").startswith("the body is not a .npy array")


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"instances": [' + b"1" * 5000 + b"]}",
        b"null",
        b"[]",
        b"{}",
        b'{"instances": []}',
        b'{"instances": {"b64": ""}}',
        b'{"instances": ["text"]}',
        b'{"instances": [{"b64": 5}]}',
        b'{"instances": [{"b64": null}]}',
        b'{"instances": [{"b65": ""}]}',
        b'{"instances": [{"b64": ""}]}',
        b'{"instances": [{"b64": "****"}]}',
        b'{"instances": [{"b64": "abc"}]}',
        '{"instances": [{"b64": "é"}]}'.encode(),
        b'{"instances": [{"b64": "\\ud800"}]}',
    ],
    ids=lambda body: repr(body[:32]),
)
def test_json_that_holds_no_images_is_refused_with_400(body):
    refused(400, body, "application/json")


@pytest.mark.parametrize("line", [b"{", b"\xff", b"[]", b'"text"', b"1" * 5000, b'{"b64": "*"}', b"{}"])
def test_a_json_line_that_holds_no_image_is_refused_with_400_and_its_number(line):
    body = lines(b64(png())) + line + b"\n" + lines(b64(png()))
    assert refused(400, body, "application/jsonlines").startswith("line 2")


@pytest.mark.parametrize("body", [b"\n", b"  \r\n \n"])
def test_json_lines_without_a_line_are_refused_with_400(body):
    assert "got no line" in refused(400, body, "application/jsonlines")


def test_the_errors_keep_their_status_in_the_inference_toolkit():
    from sagemaker_inference.errors import BaseInferenceToolkitError

    for kind, status in (
        (errors.BadRequest, 400),
        (errors.NotAcceptable, 406),
        (errors.UnsupportedContentType, 415),
    ):
        assert issubclass(kind, BaseInferenceToolkitError)
        assert kind("why").status_code == status
