"""What counts as a change between the training and captures, and which cause comes first."""

import numpy as np
import pytest

from fastmaker import baseline
from fastmaker.jobs import monitor
from fastmaker.jobs.monitoring import drift
from fastmaker.jobs.monitoring.window import Window

pytestmark = pytest.mark.fast
LABELS = [f"label {number}" for number in range(12)]
NAMES = (*drift.TESTS, *baseline.UPRIGHT)


def images(n, seed, shift=0.0, of=(), shares=None, moved=0.0):
    """Values, labels and embeddings of n images; the values named are shifted, the embeddings moved."""
    random = np.random.default_rng(seed)
    values = {name: (random.normal(size=n) + shift * (name in of)).astype(np.float32) for name in NAMES}
    labels = dict(zip(LABELS, random.multinomial(n, shares or [1 / 12] * 12).tolist(), strict=True))
    return values, labels, random.normal(size=(n, 40)) + moved


def known(seed=1000, n=300):
    values, labels, embeddings = images(n, seed)
    return baseline.Baseline(labels, values, baseline.fit(embeddings), n)


def changes(given, before=None):
    before = before or known()
    values, labels, embeddings = given
    return drift.compare(before, Window(labels=labels, values=values, projected=before.embedding.project(embeddings)))


def test_images_like_those_of_the_training_are_no_alarm():
    alarms = [any(change.alarm for change in changes(images(400, seed), known(1000 + seed))) for seed in range(20)]
    assert sum(alarms) <= 1


# What was done to 400 images, and the causes of which one comes first
CASES = {
    "one value": ({"of": ("sharpness",), "shift": 1}, {"sharpness"}),
    "and what follows from it": ({"of": ("brightness", "distance"), "shift": 1, "moved": 0.1}, {"brightness"}),
    "other labels": ({"shares": [0.45] + [0.05] * 11}, {"labels"}),
    "other embeddings": ({"moved": 0.5}, {"content"}),
    "farther": ({"of": ("distance",), "shift": 1}, {"content"}),
    "less sure": ({"of": ("confidence",), "shift": -1}, {"confidence"}),
    "surer": ({"of": ("confidence",), "shift": 1}, set()),
    "nearer": ({"of": ("distance",), "shift": -1}, set()),
}


@pytest.mark.parametrize("case", CASES)
def test_an_alarm_names_the_cause_first(case):
    given, expected = CASES[case]
    found = changes(images(400, 3, **given))
    assert {change.cause for change in found[:1] if change.alarm} == expected


@pytest.mark.parametrize(("shape", "expected"), [(-1, ["orientation"]), (0, ["shape"]), (1, [])])
def test_files_whose_width_and_height_are_swapped_were_turned(shape, expected):
    before, given = known(), images(400, 3)
    before.values["shape"] += 1
    given[0]["shape"] += shape
    assert [change.cause for change in changes(given, before) if change.alarm] == expected


UP = dict(zip(baseline.UPRIGHT, (0.1, 0.4, 0.3, -0.3), strict=True))
OTHERS = dict(zip(baseline.UPRIGHT, (0.3, -0.3, 0.4, 0.4), strict=True))  # at right angles to that


@pytest.mark.parametrize(
    ("move", "cause", "first"),
    [
        (lambda values, other: -values, "orientation", "orientation"),
        (lambda values, other: np.where(np.arange(len(values)) % 2, values, -values), "orientation", "confidence"),
        (lambda values, other: values, None, "confidence"),
        (lambda values, other: values + other, "content", "confidence"),
    ],
    ids=["upside down", "half of them", "as they were", "others"],
)
def test_a_turn_by_180_degrees_is_told_from_other_images(move, cause, first):
    before, given = known(), images(800, 3)
    for name, shift in UP.items():
        before.values[name] += shift
        given[0][name] = move(given[0][name] + shift, OTHERS[name])
    given[0]["confidence"] -= 2  # as a network is that knows its images well
    found = [change for change in changes(given, before) if change.alarm]
    assert {change.cause for change in found} == {"confidence", cause} - {None}
    assert found[0].cause == first


def test_a_large_sample_makes_a_small_change_sure_and_no_alarm():
    found = changes(images(9_000, 3, of=("size",), shift=0.15), known(n=9_000))
    (size,) = [change for change in found if change.value == "size"]
    assert size.corrected < drift.ALPHA
    assert not size.alarm


def test_few_images_are_not_tested():
    assert not [change.value for change in changes(images(3, 1)) if change.value in (*NAMES, "labels")]


def test_the_command_knows_every_cause():
    assert sorted(monitor.CAUSES) == sorted(drift.CAUSES)
