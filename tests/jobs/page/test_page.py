"""What the page asks, says, takes and saves, without a browser and without Gradio."""

import csv
import html
import io
import json
import zipfile

import numpy as np
import pytest
from helpers import task_bundles
from helpers.browser import png
from helpers.commands import exit_status, one_line
from PIL import Image

from fastmaker.jobs.clients import sources
from fastmaker.jobs.clients.errors import InvalidRequest
from fastmaker.jobs.page import asking, batch, command, corrections, markup, server
from fastmaker.jobs.page.asking import Asked
from fastmaker.training import data


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    return {task: task_bundles.save(folder / task, task) for task in task_bundles.INFOS}


@pytest.fixture(scope="module")
def scene_source(tmp_path_factory):
    return sources.Bundle(task_bundles.save_unet(tmp_path_factory.mktemp("scenes") / "model"), "scenes")


@pytest.mark.parametrize("task", task_bundles.INFOS)
def test_a_bundle_answers_with_the_bytes_of_its_endpoint(bundles, by_the_entry_point, task):
    source = sources.Bundle(bundles[task], "model")
    expected, _ = by_the_entry_point(bundles[task], png(), "application/x-image", "application/json")
    asked = asking.ask(source, "red.png", png())
    assert asked.raw == expected
    assert asked.task == task
    assert "red.png" in markup.answer(asked)
    assert asking.draw(asked).size == (7 * 48, 7 * 40)


@pytest.mark.parametrize(
    ("image", "accept", "words"),
    [
        (b"", "application/json", "400: the body is empty; expected application/x-image"),
        (b"no image", "application/json", "400: the 8 bytes are not an image that Pillow can read"),
        (png(), "image/png", "406: Accept is 'image/png'"),
    ],
)
def test_a_bundle_refuses_in_the_words_of_its_endpoint(bundles, image, accept, words):
    with pytest.raises(InvalidRequest) as refused:
        sources.Bundle(bundles["points"], "model").ask(image, accept)
    assert asking.reason(refused.value).startswith(words)


def test_a_mask_lies_on_the_image_with_a_legend(scene_source):
    asked = asking.ask(scene_source, "scene.png", png((90, 70)))
    assert asked.task == "segmentation"
    assert not asked.note
    assert asking.draw(asked, 1).size == (4 * 90, 4 * 70)
    assert sum(share for _, _, share in asking.legend(asked)) == pytest.approx(1)
    colours = {colour for _, colour, _ in asking.legend(asked)}
    shown = {pixel for _, pixel in asking.draw(asked, 1).getcolors(10_000)}
    assert shown <= colours
    assert asking.draw(asked, 0).getcolors() == [(16 * 90 * 70, (255, 0, 0))]


def test_what_a_file_or_a_label_is_called_is_no_markup():
    raw = json.dumps({"label": "<img src=x>", "index": 0, "probability": 1, "top": [], "predictions": 0}).encode()
    asked = Asked("<script>.png", b"", raw)
    said = markup.answer(asked) + markup.raw(asked) + markup.batch([asked], ["<b>"]) + markup.fault("<i>")
    assert not any(f"<{tag}" in said for tag in ("img", "script", "b>", "i>"))


def test_the_threshold_of_several_labels_is_moved_without_asking_again():
    raw = json.dumps({"labels": ["cat"], "probabilities": {"cat": 0.75, "dog": 0.25}}).encode()
    for threshold, headline in [(None, "cat 0.750"), (0.2, "cat, dog"), (0.9, "no label")]:
        assert f"<h2>{headline}</h2>" in markup.answer(Asked("a", b"", raw), threshold)


@pytest.mark.parametrize(
    ("named", "names"),
    [({}, ["1", "2"]), ({"named_values": {"age": 1.5, "<b>": 2000000.0}}, ["age", "&lt;b&gt;"])],
    ids=["without names", "with names"],
)
def test_numbers_stand_by_their_names(named, names):
    said = markup.answer(Asked("a", b"", json.dumps({"values": [1.5, 2000000.0], **named}).encode()))
    for name, value in zip(names, ("1.5", "2e+06"), strict=True):
        assert f"<tr><td>{name}</td><td>{value}</td></tr>" in said


# Bytes that an answer may have, and what is then said of an image of 1600x1200
LIMITS = [
    (6_000_000, ""),
    (4_500, "The mask does not lie on the image: 406: as image/png the answer has"),
    (200, "406: as application/json the answer has"),
]


@pytest.mark.parametrize(("limit", "words"), LIMITS)
def test_a_mask_over_the_limit_of_responses_is_told(scene_source, monkeypatch, limit, words):
    monkeypatch.setenv("TS_MAX_RESPONSE_SIZE", str(limit))
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize((1600, 1200), Image.Resampling.NEAREST).save(stream, "PNG")
    asked = asking.ask(scene_source, "large.png", stream.getvalue())
    assert (asked.note or asked.error).startswith(words)
    assert bool(asked.note or asked.error) == bool(words)
    assert html.escape(words) in markup.answer(asked)
    assert asking.draw(asked).width >= 2 * 1280 if asked.note else asking.draw(asked).width == 1280


# Many images


def zipped(path, **files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/"), content)
    return [(str(path), path.name)]


def test_a_zip_is_read_without_its_hidden_files_and_a_broken_image_is_a_row(bundles, tmp_path):
    names = {"a.png": png(), "in__b.png": b"no image", "notes.txt": b"", ".hidden.png": png(), "..__..__c.png": png()}
    files, notes = batch.images(zipped(tmp_path / "images.zip", **names))
    asked = list(batch.ask_all(sources.Bundle(bundles["classification"], "model"), files))
    assert [one.name for one in asked] == ["a.png", "in/b.png", "../../c.png"]
    assert [bool(one.error) for one in asked] == [False, True, False]
    assert "notes.txt" in notes[0]
    assert batch.sheet(asked).width == 2 * batch.CARD
    batch.write_csv(asked, tmp_path / "answers.csv")
    with open(tmp_path / "answers.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["key"] for row in rows] == [one.name for one in asked]
    assert rows[0]["label"] == json.loads(asked[0].raw)["label"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.csv", "images.zip"]


@pytest.mark.parametrize(
    ("limits", "files", "words"),
    [
        ({"MOST_IMAGES": 2}, {"a.png": b"", "b.png": b"", "c.png": b""}, "there are more than 2 images"),
        ({"MOST_BYTES_OF_ALL": 10}, {"a.png": bytes(11)}, "the images have 11 bytes; at most 10 are accepted at once"),
        ({}, {"a.txt": b""}, "there is no image among the files"),
    ],
    ids=["count", "size", "none"],
)
def test_a_zip_beyond_the_limits_is_refused_before_it_is_read(monkeypatch, tmp_path, limits, files, words):
    for name, value in limits.items():
        monkeypatch.setattr(batch, name, value)
    with pytest.raises(batch.BatchError, match=words):
        batch.images(zipped(tmp_path / "images.zip", **files))


def test_what_a_zip_says_of_a_size_is_not_believed(bundles, monkeypatch, tmp_path):
    """A bomb says that it is small; of one image no more is read than an image may have."""
    monkeypatch.setattr(batch, "MOST_BYTES", 1000)
    uploads = zipped(tmp_path / "bomb.zip", **{"a.png": bytes(1_000_000)})
    files, _ = batch.images(uploads)
    source = sources.Bundle(bundles["classification"], "model")
    [asked] = batch.ask_all(source, files)
    assert asked.error == "it has more than 1,000 bytes"
    monkeypatch.setattr(batch, "MOST_BYTES_OF_ALL", 5)
    with pytest.raises(batch.BatchError, match="more than 5 bytes, though the zip says otherwise"):
        list(batch.ask_all(source, [batch.File("a.png", 1, lambda most: b"more than that")]))


def test_a_damaged_zip_is_named(tmp_path):
    zipped(tmp_path / "cut.zip", **{"a.png": png()})
    content = (tmp_path / "cut.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(content.replace(b"PK\x01\x02", b"PK\x01\x03"))
    with pytest.raises(batch.BatchError, match=r"cut\.zip: the zip cannot be read"):
        batch.images([(str(tmp_path / "cut.zip"), "cut.zip")])


# Corrections


@pytest.mark.parametrize(
    ("task", "given", "labels", "expected"),
    [
        ("classification", ["cat", 'a "b", c'], (), ['a "b", c', "cat"]),
        ("multilabel", [["cat"], ["dog", "cat"]], ("cat", "dog"), [("cat",), ("cat", "dog")]),
        ("regression", ["1.5", "2"], (), [(1.5,), (2.0,)]),
    ],
    ids=str,
)
def test_corrections_are_read_by_training(tmp_path, task, given, labels, expected):
    saved = corrections.Corrections(tmp_path / "saved")
    for number, label in enumerate(given * 2):
        saved.save(png((20 + number, 20)), f"../a/{number} é.png", task, label, labels)
    samples = data.read(tmp_path / "saved", task=task)
    assert sorted(map(str, samples.labels)) == sorted(map(str, expected * 2))
    assert sorted(file.read_bytes() for file in samples.images) == sorted(png((20 + n, 20)) for n in range(4))


def test_an_image_that_was_saved_before_stays_as_it_is(tmp_path):
    saved = corrections.Corrections(tmp_path)
    saved.save(png(), "a.png", "classification", "cat")
    before = (tmp_path / "labels.csv").read_text()
    assert "It was saved before" in saved.save(png(), "b.png", "classification", "cat")
    with pytest.raises(corrections.CorrectionError, match=r"labels\.csv with cat; change its line there"):
        saved.save(png(), "b.png", "classification", "dog")
    assert (tmp_path / "labels.csv").read_text() == before


@pytest.mark.parametrize(
    ("task", "label", "labels", "words"),
    [
        ("classification", " ", (), "say what it is"),
        ("classification", "a\nb", (), "say what it is"),
        ("multilabel", ["owl"], ("cat",), "owl: the model has no such label"),
        ("multilabel", [], ("image",), "a label is called 'image'"),
        ("regression", "many", (), "expected numbers"),
        ("segmentation", "", (), "corrections are for classification, multilabel, regression"),
    ],
)
def test_a_correction_that_training_would_not_read_is_refused(tmp_path, task, label, labels, words):
    with pytest.raises(corrections.CorrectionError, match=words):
        corrections.Corrections(tmp_path).save(png(), "a.png", task, label, labels)
    assert not (tmp_path / "labels.csv").exists()


def test_corrections_do_not_go_among_other_files(tmp_path):
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(ValueError, match="it holds other files; name a folder that is new or empty"):
        corrections.Corrections(tmp_path)


# The command


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model", "--endpoint", "e"], "MODEL and --endpoint: expected one of them"),
        (["--endpoint", "e", "--triton", "u"], "--endpoint and --triton: expected one of them"),
        (["model", "--model", "m"], "--model is a model of --triton, which is missing"),
        (["model", "--password-file", "f"], "--password-file is the password of --share-on, which is missing"),
        (["model", "--share-on", "0.0.0.0"], "--share-on needs a password"),
        (
            ["model", "--share-on", "0.0.0.0", "--password-file", "short"],
            "expected a password of at least 8 characters",
        ),
        (["model", "--examples", "."], ".: the folder holds no image"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_served_is_refused_in_a_line(capsys, monkeypatch, tmp_path, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short").write_text("secret\n")
    assert exit_status(command, *words) == 2
    assert message in one_line(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("address", "hosts"),
    [
        (None, ["127.0.0.1", "localhost"]),
        ("10.0.0.7", ["127.0.0.1", "localhost", "10.0.0.7"]),
        ("0.0.0.0", ["*"]),
    ],
)
def test_requests_are_for_the_pages_own_host(address, hosts):
    assert server._hosts(address) == hosts
