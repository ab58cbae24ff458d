"""``fastmaker monitor``: captures in AWS's form beside the baseline of a bundle, and the page that it writes."""

import base64
import dataclasses
import io
import json
import shutil

import numpy as np
import pytest
import torch
from helpers import task_bundles
from PIL import Image

from fastmaker import baseline, bundle, networks, preprocess
from fastmaker.jobs import monitor
from fastmaker.serving import models

RANDOM = np.random.default_rng(7)


def photo(dark=1.0):
    """A PNG of smooth shapes."""
    small = Image.fromarray((RANDOM.random((5, 7, 3)) * 255 * dark).astype(np.uint8))
    stream = io.BytesIO()
    small.resize((80, 60), Image.Resampling.BICUBIC).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A folder of 60 photos."""
    folder = tmp_path_factory.mktemp("known")
    for number in range(60):
        (folder / f"{number:02}.png").write_bytes(photo())
    return folder


@pytest.fixture(scope="module")
def model(known, tmp_path_factory):
    """A bundle of random weights with the baseline of these photos."""
    folder = tmp_path_factory.mktemp("model") / "model"
    torch.manual_seed(3)
    info = dataclasses.replace(task_bundles.INFO, task="classification", activation="softmax", threshold=None)
    bundle.save(folder, networks.classifier("convnet", len(info.labels)), info)
    loaded = models.load(folder)
    tensors = [loaded.to_tensor(preprocess.decode(file.read_bytes())) for file in sorted(known.iterdir())]
    seen = baseline.Seen(loaded.info.mean, loaded.info.std)
    inputs = loaded.engine.prepare(torch.stack(tensors))
    with torch.inference_mode():
        seen.answered(inputs, lambda: loaded.engine.activation(loaded.engine.network(inputs)))
    baseline.save(folder, baseline.of(seen, loaded.info, [(80, 60)] * 60))
    return folder


def line(image, number=0, answer=b'{"label": "rings"}', **sides):
    data = {
        "endpointInput": {"observedContentType": "application/x-image", "mode": "INPUT", "encoding": "BASE64"}
        | {"data": base64.b64encode(image).decode()},
        "endpointOutput": {"observedContentType": "application/json", "mode": "OUTPUT", "encoding": "JSON"}
        | {"data": answer.decode()},
    } | sides
    data = {name: side for name, side in data.items() if side}
    metadata = {"eventId": f"event-{number}", "inferenceTime": f"2026-01-31T{number % 24:02}:00:00Z"}
    return json.dumps({"captureData": data, "eventMetadata": metadata, "eventVersion": "0"})


def captures(folder, *lines):
    file = folder / "e" / "v" / "2026" / "01" / "31" / "00" / "00-00-000-id.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text("".join(f"{each}\n" for each in lines))
    return folder


def monitored(model, place, *words, capsys):
    """The exit status and the JSON that the command prints."""
    status = monitor.main(monitor.parse_args([str(place), "--model", str(model), "--json", *words]))
    return status, json.loads(capsys.readouterr().out)


def test_dark_images_are_an_alarm_and_the_page_shows_them(model, tmp_path, capsys):
    place = captures(tmp_path / "captures", *(line(photo(0.3), number) for number in range(60)))
    page = tmp_path / "out" / "page.html"
    status, found = monitored(model, place, "--output", str(page), "--fail-on", "brightness", capsys=capsys)
    assert status == monitor.ALARM
    assert (found["requests"], found["images"]) == (60, 60)
    assert found["changes"][0]["cause"] == "brightness"
    assert found["title"].startswith("Alarm: brightness")
    text = page.read_text()
    for expected in ("Alarm: brightness", "Most unlike the training", "Least certain", "event-5", "data:image/png"):
        assert expected in text
    assert "http" not in text
    assert list(page.parent.iterdir()) == [page]


def test_images_like_those_of_the_training_are_no_alarm_and_what_is_wrong_is_told(model, tmp_path, capsys):
    again = photo()
    lines = [line(photo(), number) for number in range(50)] + [line(again, 7)] * 3
    lines += ["no JSON", '{"captureData": {}}', line(b"no image", 8), line(b"x", 9, endpointInput=None)]
    page = tmp_path / "page.html"
    place = captures(tmp_path / "captures", *lines)
    status, found = monitored(model, place, "--output", str(page), "--fail-on", "any", capsys=capsys)
    assert (status, found["title"]) == (0, "No alarm")
    assert (found["requests"], found["images"]) == (55, 51)
    text = page.read_text()
    for expected in (
        "52 requests differ, of which 52",
        "Of 1 requests the input was not",
        "JSONDecodeError",
        "KeyError",
    ):
        assert expected in text
    assert "captured labels are not those of this bundle" in text


def test_images_take_the_place_of_a_baseline(model, known, tmp_path, capsys):
    place = captures(tmp_path / "captures", *(line(photo(0.5), number) for number in range(60)))
    words = ["--output", str(tmp_path / "page.html")]
    _, expected = monitored(model, place, *words, capsys=capsys)
    without = bare(model, tmp_path / "bare")
    _, found = monitored(without, place, *words, "--baseline", str(known), capsys=capsys)
    assert found["title"].startswith("Alarm: ")
    for one, other in zip(found["changes"], expected["changes"], strict=True):
        assert (one["value"], one["alarm"]) == (other["value"], other["alarm"])
        assert (one["effect"], one["now"]) == pytest.approx((other["effect"], other["now"]), rel=1e-3)


def test_a_time_chooses_captures(model, tmp_path, capsys):
    place = captures(tmp_path / "captures", *(line(photo(), number) for number in range(24)))
    words = ["--since", "2026-01-31T06:00", "--until", "2026-01-31T09:00Z", "--output", str(tmp_path / "page.html")]
    assert monitored(model, place, *words, capsys=capsys)[1]["requests"] == 4


# What is wrong with the captures or the model, and the line that says so
WRONG = {
    "nothing there": (lambda folder, model: (folder, model), "no file of captures (.jsonl) is there"),
    "no folder": (lambda folder, model: (folder / "none", model), "no such file or directory"),
    "nothing at that time": (lambda folder, model: (captures(folder, "no JSON"), model), "no request that can be read"),
    "no baseline": (lambda folder, model: (folder, bare(model, folder / "bare")), "missing: it is `fastmaker train`"),
    "no image in the baseline": (
        lambda folder, model: (folder, model, "--baseline", damaged(folder)),
        "b.png: the 8 bytes are not an image",
    ),
}


def damaged(folder):
    (folder / "a.png").write_bytes(photo())
    (folder / "b.png").write_bytes(b"no image")
    return str(folder)


def bare(model, folder):
    shutil.copytree(model, folder)
    (folder / bundle.BASELINE_FILE).unlink()
    return folder


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_compared_is_refused_in_a_line(model, tmp_path, case):
    place, used, *words = WRONG[case][0](tmp_path, model)
    with pytest.raises((ValueError, OSError), match=WRONG[case][1].replace("(", r"\(").replace(")", r"\)")):
        monitor.main(monitor.parse_args([str(place), "--model", str(used), *words]))
