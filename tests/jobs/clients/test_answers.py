"""What the commands show of an endpoint's answers: in a table, in a collected CSV, on pictures."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from fastmaker import masks
from fastmaker.answers import Mask
from fastmaker.jobs import predict
from fastmaker.jobs.cli import pictures, tables
from fastmaker.jobs.clients import answers
from fastmaker.jobs.storage.listings import listed

LABELS = {"labels": ["cat", "dog"], "probabilities": {"cat": 0.75, "dog": 0.625, "owl": 0.125}}
NO_LABEL = {"labels": [], "probabilities": {"cat": 0.25, "dog": 0.125, "owl": 0.125}}
NAMED = {"values": [1.5, -20000.123], "named_values": {"age": 1.5, "weight": -20000.123}}
VALUES = {"values": [1.5, -20000.123, 0.0]}
POINTS = {"points": [[30.25, 20.0], [-1.0, 7.5]]}


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (LABELS, "cat 0.750, dog 0.625"),
        (NO_LABEL, "no label"),
        (VALUES, "1.5, -2e+04, 0"),
        ({"values": [1.0] * 5}, "1, 1, 1, 1, ..."),
        (NAMED, "age 1.5, weight -2e+04"),
        (POINTS, "(30.2, 20.0), (-1.0, 7.5)"),
    ],
)
def test_an_answer_is_shown_in_a_few_words(answer, text):
    assert tables.summarize(answer) == (text, None)


def test_the_table_of_predict_names_what_it_shows():
    assert predict._table([{"image": "a.jpg", **LABELS}]).split()[:3] == ["image", "label", "probability"]
    assert predict._table([{"image": "a.jpg", **POINTS}]).split()[:3] == ["image", "answer", "probability"]


@pytest.mark.parametrize(
    ("found", "row"),
    [
        (
            [LABELS, NO_LABEL],
            {"labels": "cat;dog", "probability_cat": "0.75", "probability_dog": "0.625", "probability_owl": "0.125"},
        ),
        ([NAMED], {"value_age": "1.5", "value_weight": "-20000.123"}),
        ([VALUES], {"value_1": "1.5", "value_2": "-20000.123", "value_3": "0.0"}),
        ([POINTS], {"x_1": "30.25", "y_1": "20.0", "x_2": "-1.0", "y_2": "7.5"}),
    ],
    ids=["several labels", "numbers with names", "numbers", "points"],
)
def test_collected_answers_have_a_column_for_each_number(tmp_path, found, row):
    (tmp_path / "in").mkdir()
    for number, answer in enumerate([*found, {"error": "no image"}]):
        (tmp_path / "in" / f"{number}.jpg").touch()
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / f"{number}.jpg.out").write_text(json.dumps(answer))
    with listed("S3Prefix", f"file://{tmp_path / 'in'}/") as inputs:
        answers.collect(inputs, f"file://{tmp_path / 'out'}", tmp_path / "all.csv")
    with open(tmp_path / "all.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {"key": "0.jpg", "error": "", **row}
    assert rows[-1] == {"key": f"{len(found)}.jpg", "error": "no image", **dict.fromkeys(row, "")}


def test_a_mask_covers_the_image_but_for_void_and_the_background():
    array = np.arange(6, dtype=np.uint8).reshape(2, 3) % 4
    labels = ("Background", "cat", "dog", "void")
    mask = Image.open(io.BytesIO(Mask(array, labels, void_code=3).as_png()))
    drawn = np.asarray(pictures.with_mask(Image.new("RGB", (3, 2), (10, 20, 30)), mask, 1))
    assert np.array_equal((drawn == (10, 20, 30)).all(axis=2), (array == 0) | (array == 3))
    assert np.array_equal(drawn[array == 1], masks.palette(labels)[[1]].repeat((array == 1).sum(), 0))


def test_points_are_drawn_where_they_are():
    image = Image.new("L", (200, 100))
    marked = np.asarray(pictures.with_points(image, [(150.0, 40.0)]))
    red = np.argwhere(marked[..., 0] > 200)
    assert np.allclose(red.mean(axis=0), (40, 150), atol=1)
    assert not np.asarray(image).any()
