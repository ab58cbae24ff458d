"""What goes out: the types of an answer, and how the Accept header chooses one."""

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest

from fastmaker import preprocess
from fastmaker.answers import LabelSet, Mask, Points, Prediction, Values
from fastmaker.serving import errors, wire

LABELS = ("cat", "dog", "Zürich, 東京", "owl", "fox", "bee")


def assert_one_ascii_line(error):
    assert error.message == error.phrase == str(error)
    assert error.message.isascii()
    assert len(error.message.splitlines()) == 1
    assert len(error.message) <= 500
    return error.message


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


SEVERAL = LabelSet(np.float32([0.75, 0.5, 0.625, 0.2]), ("cat", "dog", "Zürich", "owl"), 0.5)
VALUES = Values(np.float32([1.5, -2.25, 0]))
POINTS = Points(np.float32([-0.5, 0.25, 1.5, 0]), np.float64([[25.0, 62.5], [125.0, 50.0]]))
FORMS = [
    (
        SEVERAL,
        {
            "labels": ["cat", "Zürich"],
            "probabilities": {"cat": 0.75, "dog": 0.5, "Zürich": 0.625, "owl": float(np.float32(0.2))},
        },
        ["cat;Zürich", "0.75", "0.5", "0.625", repr(float(np.float32(0.2)))],
    ),
    (VALUES, {"values": [1.5, -2.25, 0.0]}, ["1.5", "-2.25", "0.0"]),
    (POINTS, {"points": [[25.0, 62.5], [125.0, 50.0]]}, ["25.0", "62.5", "125.0", "50.0"]),
]


@pytest.mark.parametrize(("found", "as_object", "row"), FORMS, ids=["labels", "values", "points"])
def test_an_answer_of_every_task_has_every_form(found, as_object, row):
    one, two = wire.Answer([found], single=True), wire.Answer([found] * 2, single=False)
    assert json.loads(wire.encode(one, None)[0]) == as_object
    assert json.loads(wire.encode(two, "application/json")[0]) == [as_object] * 2
    lines = wire.encode(two, "application/jsonlines")[0].decode().splitlines()
    assert list(map(json.loads, lines)) == [as_object] * 2
    assert list(csv.reader(io.StringIO(wire.encode(two, "text/csv")[0].decode()))) == [row] * 2
    array = np.load(io.BytesIO(wire.encode(two, "application/x-npy")[0]))
    assert array.dtype == np.float32
    assert np.array_equal(array, [found.array] * 2)
    with pytest.raises(errors.NotAcceptable):
        wire.encode(one, "image/png")


@pytest.mark.parametrize(
    ("threshold", "labels"), [(0.2, ["cat", "dog", "Zürich"]), (None, []), ((0.8, 0.4, 0.7, 0), ["dog", "owl"])]
)
def test_labels_are_those_above_the_threshold(threshold, labels):
    assert replace(SEVERAL, threshold=threshold).labels == labels


def test_numbers_with_names_have_both():
    found = replace(VALUES, names=("age", "Größe", "0"))
    assert found.as_object() == {"values": [1.5, -2.25, 0.0], "named_values": {"age": 1.5, "Größe": -2.25, "0": 0.0}}
    assert found.as_row() == VALUES.as_row()


def test_a_single_number_is_a_list_of_one():
    assert Values(np.float32(2.5)).as_object() == {"values": [2.5]}


@pytest.mark.parametrize(
    "found", [replace(SEVERAL, probabilities=np.float32([np.nan] * 4)), Values(np.float32([np.inf]))]
)
def test_numbers_that_json_cannot_hold_are_a_fault(found):
    with pytest.raises(errors.InternalError, match="numbers are not finite"):
        wire.encode(wire.Answer([found], single=True), None)


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
