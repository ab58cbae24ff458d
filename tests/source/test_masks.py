"""A mask at the size of its image, in each form of an answer, and in colours."""

import base64
import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from fastmaker import masks, preprocess
from fastmaker.answers import LEGEND, Mask
from fastmaker.serving import errors, wire

RANDOM = np.random.default_rng(8)
LABELS = ("sky", "Straße, 東京", "tree", "Void")


def mask(height=6, width=9, n=3):
    return Mask(RANDOM.integers(0, n, (height, width), dtype=np.uint8), LABELS, void_code=3)


ONE = wire.Answer([mask()], single=True)
TWO = wire.Answer([mask(), mask()], single=False)
UNEQUAL = wire.Answer([mask(), mask(4, 4)], single=False)


def encoded(answer, accept):
    body, media_type = wire.encode(answer, accept)
    assert media_type == accept
    return body


# As large as the image


def test_a_squished_mask_is_restored_by_nearest_neighbour():
    small = mask(3, 5).array
    assert np.array_equal(
        masks.resize_to_original(small, (10, 9), "squish", None), small.repeat(3, axis=0).repeat(2, axis=1)
    )


def test_a_mask_of_the_images_size_stays_as_it_is():
    small = mask().array
    for method in (*preprocess.RESIZE_METHODS, preprocess.NO_RESIZE):
        assert np.array_equal(masks.resize_to_original(small, (9, 6), method, None), small)


@pytest.mark.parametrize("method", ["squish", "pad", "crop"])
@pytest.mark.parametrize("size", [(64, 48), (48, 64), (200, 50), (31, 97)], ids=str)
def test_each_pixel_gets_the_class_that_the_model_saw_there(method, size):
    """An image whose left, right, top and bottom differ is its own mask."""
    width, height = size
    truth = (np.arange(width)[None] >= width / 2) + 2 * (np.arange(height)[:, None] >= height / 2)
    seen = preprocess.resize(Image.fromarray(truth.astype(np.uint8) * 60), (40, 40), method)
    found = masks.resize_to_original(np.rint(np.asarray(seen) / 60).astype(np.uint8), size, method, void_code=9)
    assert found.shape == truth.shape
    assert np.mean(found[found != 9] == truth[found != 9]) > 0.9
    assert (9 in found) == (method == "crop")


def test_what_was_cut_off_is_void():
    found = masks.resize_to_original(np.ones((4, 4), np.uint8), (8, 4), "crop", void_code=2)
    assert np.array_equal(found, [[2, 2, 1, 1, 1, 1, 2, 2]] * 4)


def test_an_image_that_was_padded_has_a_mask_of_its_size_though_its_window_ends_a_pixel_short():
    assert preprocess.window((61, 45), (224, 224), "pad")[2] == 60
    whole = np.full((224, 224), 1, np.uint8)
    assert np.array_equal(masks.resize_to_original(whole, (61, 45), "pad", void_code=None), np.ones((45, 61)))


def test_without_a_void_class_a_cut_off_part_has_no_mask():
    with pytest.raises(preprocess.ImageError, match=r"sees 4x4 of the image's 8x4 pixels.*mask_size=model"):
        masks.resize_to_original(np.ones((4, 4), np.uint8), (8, 4), "crop", void_code=None)


# Answers


def test_json_holds_the_bytes_of_the_mask_its_shape_and_the_classes_in_it():
    [answer] = ONE.predictions
    found = json.loads(encoded(ONE, "application/json"))
    assert found["shape"] == [6, 9]
    assert base64.b64decode(found["base64_prediction"]) == answer.array.tobytes()
    counts = np.bincount(answer.array.ravel())
    assert found["classes"] == [{"label": LABELS[i], "index": i, "pixels": int(n)} for i, n in enumerate(counts) if n]


def test_json_of_several_images_is_a_list_in_order():
    found = json.loads(encoded(TWO, "application/json"))
    expected = [base64.b64encode(answer.array).decode() for answer in TWO.predictions]
    assert [item["base64_prediction"] for item in found] == expected


def test_json_lines_and_csv_hold_the_pixels_of_each_class():
    counts = [[int((answer.array == i).sum()) for i in range(4)] for answer in TWO.predictions]
    lines = encoded(TWO, "application/jsonlines").decode().splitlines()
    assert [json.loads(line) for line in lines] == [dict(zip(LABELS, row, strict=True)) for row in counts]
    rows = csv.reader(io.StringIO(encoded(TWO, "text/csv").decode()))
    assert [list(map(int, row)) for row in rows] == counts


@pytest.mark.parametrize("answer", [ONE, TWO], ids=["one", "two"])
def test_npy_holds_the_mask_as_uint8(answer):
    found = np.load(io.BytesIO(encoded(answer, "application/x-npy")), allow_pickle=False)
    assert found.dtype == np.uint8
    assert found.shape == ((6, 9) if answer.single else (2, 6, 9))
    assert np.array_equal(found.reshape(-1, 6, 9), [mask.array for mask in answer.predictions])


def test_png_holds_the_mask_in_a_palette_with_its_legend():
    image = Image.open(io.BytesIO(encoded(ONE, "image/png")))
    assert (image.format, image.mode, image.size) == ("PNG", "P", (9, 6))
    assert np.array_equal(image, ONE.predictions[0].array)
    assert json.loads(image.text[LEGEND]) == list(LABELS)
    assert image.getpalette()[:12] == masks.palette(LABELS, void_code=3).ravel().tolist()


@pytest.mark.parametrize("accept", ["image/*", "image/png;q=0.9, text/csv;q=0.1", "text/html, image/*, */*;q=0.1"])
def test_a_png_is_chosen_by_the_accept_header(accept):
    assert wire.encode(ONE, accept)[1] == "image/png"


def test_json_is_the_default():
    assert wire.encode(ONE, "*/*")[1] == wire.encode(ONE, None)[1] == "application/json"


@pytest.mark.parametrize(("answer", "accept"), [(TWO, "image/png"), (UNEQUAL, "application/x-npy"), (ONE, "text/html")])
def test_a_form_that_cannot_hold_the_answer_is_refused_with_406(answer, accept):
    with pytest.raises(errors.NotAcceptable) as error:
        wire.encode(answer, accept)
    assert error.value.status_code == 406
    assert "application/json" in error.value.message


# What size


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        (None, None),
        ("", None),
        ("trace=7", None),
        ("mask_size=original", "original"),
        ("trace=7;mask_size=model,other=mask_size", "model"),
        ("my_mask_size=tiny", None),
    ],
)
def test_the_custom_attributes_say_how_large_the_mask_shall_be(attributes, size):
    stream = io.BytesIO()
    Image.new("L", (3, 3)).save(stream, "PNG")
    assert wire.decode(stream.getvalue(), "image/png", attributes).mask_size == size


def test_an_unknown_mask_size_is_refused_with_400():
    with pytest.raises(
        errors.BadRequest, match="mask_size is 'huge' in the custom attributes; expected one of model, original"
    ):
        wire.decode(b"x", "image/png", "mask_size=huge")


# Colours


def test_the_colours_of_256_classes_differ_and_void_and_a_background_are_black():
    labels = [str(number) for number in range(255)] + ["Background"]
    colours = masks.palette(labels, void_code=7)
    assert len({tuple(colour) for colour in colours.tolist()}) > 250
    assert [index for index, colour in enumerate(colours) if not colour.any()] == [7, 255]
    first = masks.palette(labels[:32]).astype(int)
    assert min(abs(a - b).sum() for i, a in enumerate(first) for b in first[:i]) > 20
