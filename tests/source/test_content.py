"""Each row of the tables of content types in and out, and each refusal with its HTTP status."""

import base64
import io
import json
import struct

import numpy as np
import pytest
from PIL import Image

from fastmaker import preprocess
from fastmaker.answers import Mask, Prediction
from fastmaker.serving import errors, wire

RANDOM = np.random.default_rng(5)
PIXELS = RANDOM.integers(0, 256, (12, 9, 3), dtype=np.uint8)
LABELS = ("cat", "dog", "Zürich, 東京", "owl", "fox", "bee")


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


@pytest.mark.parametrize("content_type", [None, "", "text/plain", "application/octet-stream", "images/png", "json"])
def test_an_unknown_content_type_is_refused_with_415_and_the_known_ones(content_type):
    reason = refused(415, png(), content_type)
    assert all(known in reason for known in ("image/*", *wire.DECODERS))


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


# Out


def prediction(*probabilities):
    return Prediction(np.asarray(probabilities, np.float32), LABELS)


@pytest.mark.parametrize("accept", ["application/json", "application/jsonlines"])
def test_what_json_cannot_hold_is_a_fault_and_no_answer(accept):
    with pytest.raises(errors.InternalError, match="are not finite; did its training diverge") as error:
        wire.encode(wire.Answer([prediction(np.nan, np.nan, np.nan)], single=True), accept)
    assert error.value.status == 500


CAT = prediction(0.7, 0.1, 0.05, 0.08, 0.04, 0.03)
OTHER = prediction(0.1, 0.1, 0.5, 0.1, 0.1, 0.1)
ONE, TWO = wire.Answer([CAT], single=True), wire.Answer([OTHER, CAT], single=False)


def assert_is_object(found, expected):
    assert found["label"] == expected.label
    assert found["index"] == found["predictions"] == expected.index
    assert found["probability"] == float(expected.probabilities[expected.index])
    assert len(found["top"]) == 5
    assert found["top"][0] == {"label": expected.label, "probability": found["probability"]}
    ranks = [entry["probability"] for entry in found["top"]]
    assert ranks == sorted(map(float, expected.probabilities), reverse=True)[:5]
    for entry in found["top"]:
        assert entry["probability"] == float(expected.probabilities[LABELS.index(entry["label"])])


def test_one_image_is_answered_with_one_json_object():
    body, media_type = wire.encode(ONE, "application/json")
    assert media_type == "application/json"
    assert_is_object(json.loads(body), CAT)


@pytest.mark.parametrize("answer", [TWO, wire.Answer([CAT], single=False)], ids=["two", "a list of one"])
def test_a_list_of_images_is_answered_with_a_json_list_in_order(answer):
    objects = json.loads(wire.encode(answer, "application/json")[0])
    for found, expected in zip(objects, answer.predictions, strict=True):
        assert_is_object(found, expected)


@pytest.mark.parametrize("answer", [ONE, TWO])
def test_json_lines_have_an_object_a_line_in_order(answer):
    body, media_type = wire.encode(answer, "application/jsonlines")
    assert media_type == "application/jsonlines"
    assert body.endswith(b"\n")
    for line, expected in zip(body.decode().splitlines(), answer.predictions, strict=True):
        assert_is_object(json.loads(line), expected)


def test_csv_has_label_index_and_probability_a_line():
    import csv

    body, media_type = wire.encode(TWO, "text/csv")
    assert media_type == "text/csv"
    rows = list(csv.reader(io.StringIO(body.decode())))
    assert [(label, int(index), float(p)) for label, index, p in rows] == [
        (p.label, p.index, float(p.probabilities[p.index])) for p in (OTHER, CAT)
    ]


@pytest.mark.parametrize(("answer", "shape"), [(ONE, (6,)), (TWO, (2, 6))])
def test_npy_holds_the_probabilities_as_float32(answer, shape):
    body, media_type = wire.encode(answer, "application/x-npy")
    array = np.load(io.BytesIO(body), allow_pickle=False)
    assert media_type == "application/x-npy"
    assert array.dtype == np.float32
    assert array.shape == shape
    assert np.array_equal(array.reshape(-1, 6), [p.probabilities for p in answer.predictions])


def test_two_labels_are_answered_with_both():
    two = Prediction(np.float32([0.25, 0.75]), ("a", "b"))
    assert [entry["label"] for entry in two.as_object()["top"]] == ["b", "a"]


def test_equal_probabilities_are_answered_in_the_order_of_the_labels():
    equal = prediction(*[1 / 6] * 6)
    assert equal.index == 0
    assert [entry["label"] for entry in equal.as_object()["top"]] == list(LABELS[:5])


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        (None, "application/json"),
        ("", "application/json"),
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        ("text/*", "text/csv"),
        ("TEXT/CSV", "text/csv"),
        ("text/csv; charset=utf-8", "text/csv"),
        ("image/png, text/csv", "text/csv"),
        ("text/csv, application/json", "text/csv"),
        ("text/csv;q=0.5, application/json", "application/json"),
        ("text/csv;q=0.2,application/x-npy;q=0.9,*/*;q=0.1", "application/x-npy"),
        ("application/json;q=0, application/jsonlines;q=0.1", "application/jsonlines"),
        ("image/png, */*;q=0.1", "application/json"),
        ("text/html,application/xhtml+xml,image/avif,*/*;q=0.8", "application/json"),
        ("text/csv;q=nonsense, application/x-npy;q=0.1", "application/x-npy"),
    ],
)
def test_the_accept_header_chooses_the_answers_type(accept, media_type):
    body, chosen = wire.encode(ONE, accept)
    assert chosen == media_type
    assert body == wire.encode(ONE, media_type)[0]


def mask(height, width):
    return Mask(np.zeros((height, width), np.uint8), LABELS)


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("image/png, application/json", "application/json"),
        ("image/*, */*", "application/json"),
        ("application/x-npy, text/csv", "text/csv"),
        ("image/png, application/json;q=0.5, text/csv", "text/csv"),
    ],
)
def test_what_one_type_cannot_hold_is_answered_in_the_next_that_is_accepted(accept, media_type):
    unequal = wire.Answer([mask(6, 9), mask(4, 4)], single=False)
    assert wire.encode(unequal, accept) == wire.encode(unequal, media_type)


def test_if_no_accepted_type_can_hold_the_answer_the_most_wanted_says_why():
    unequal = wire.Answer([mask(6, 9), mask(4, 4)], single=False)
    with pytest.raises(errors.NotAcceptable, match="one PNG holds one mask"):
        wire.encode(unequal, "application/x-npy;q=0.5, text/html, image/png")


@pytest.mark.parametrize(
    "accept", ["image/png", "text/html", "application/json;q=0", "json", "image/*", "tëxt/csv", "a\r\nb: c", "東" * 900]
)
def test_an_accept_that_cannot_be_met_is_refused_with_406_and_one_line(accept):
    with pytest.raises(errors.NotAcceptable) as error:
        wire.encode(ONE, accept)
    assert error.value.status_code == 406
    assert_one_ascii_line(error.value)


def test_a_refused_accept_is_answered_with_the_types_that_can_be_had():
    with pytest.raises(errors.NotAcceptable) as error:
        wire.encode(ONE, "image/png")
    assert all(known in error.value.message for known in wire.ENCODERS)


def test_an_image_error_becomes_one_line_of_ascii():
    with pytest.raises(preprocess.ImageError) as error:
        preprocess.decode(b"x")
    assert_one_ascii_line(errors.BadRequest(f"{error.value}\nzweite Zeile: größer"))
