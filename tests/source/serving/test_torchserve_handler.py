"""The TorchServe handler with TorchServe's own context, without a server; the entry point says what is right."""

import base64
import dataclasses
import io
import json
import logging
import os
import shutil
import time

import numpy as np
import pytest
import torch
from helpers import lists
from helpers.lists import npy
from helpers.task_bundles import INFO
from PIL import Image
from ts.context import Context, RequestProcessor

from fastmaker import bundle, networks
from fastmaker.export import onnx_file
from fastmaker.serving import models
from fastmaker.serving.torchserve_handler import Handler


@pytest.fixture
def ask(digits_bundle):
    return asking(digits_bundle)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """The handler changes it, and the number of threads."""
    monkeypatch.setenv("TS_DECODE_INPUT_REQUEST", "true")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def asking(folder):
    """ask((body, content type, headers), ...) -> [(status, media type, answer), ...] of one batch."""
    context = Context("model", str(folder), {}, 8, None, "1.0", model_yaml_config={"batchSize": 8, "maxWorkers": 999})
    handler = Handler()
    handler.initialize(context)
    return lambda *batch: lists.ask(handler.handle, context, batch)


@pytest.fixture
def by_the_entry_point(entry_point):
    """by_the_entry_point(bundle, request) -> (answer, media type)."""

    def answered(folder, request):
        body, kind, headers = request
        context = Context("model", str(folder), {}, 1, None, "1.0")
        context.request_processor = [RequestProcessor(headers)]
        answer = entry_point.predict_fn(entry_point.input_fn(body, kind, context), models.load(folder))
        return entry_point.output_fn(answer, headers.get("Accept"))

    return answered


@pytest.fixture(scope="module")
def pngs(digits):
    return [file.read_bytes() for file in sorted(digits.rglob("*.png"))[::200]]


def instances(images) -> bytes:
    return json.dumps({"instances": [{"b64": base64.b64encode(data).decode()} for data in images]}).encode()


@pytest.mark.parametrize("accept", ["application/json", "application/jsonlines", "text/csv", "application/x-npy"])
def test_each_kind_of_request_has_the_bytes_that_the_entry_point_gives(
    by_the_entry_point, ask, digits_bundle, pngs, accept
):
    several = np.random.default_rng(0).integers(0, 256, (20, 9, 9, 3), dtype=np.uint8)
    for body, kind in [
        (pngs[0], "image/png"),
        (instances(pngs), "application/json"),
        (npy(several), "application/x-npy"),
    ]:
        request = body, kind, {"Accept": accept}
        [(status, media_type, answer)] = ask(request)
        assert (answer, media_type) == by_the_entry_point(digits_bundle, request)
        assert status == 200


def test_the_images_of_a_batch_go_through_together_and_answers_keep_their_order(
    by_the_entry_point, ask, digits_bundle, pngs, caplog
):
    requests = [(png, "image/png", {"Accept": "application/x-npy"}) for png in pngs[:5]]
    requests.insert(2, (instances(pngs[5:8]), "application/json", {"Accept": "application/x-npy"}))
    with caplog.at_level(logging.INFO, "fastmaker"):
        answers = ask(*requests)
    assert caplog.messages == ["6 requests: 8 images in one batch"]
    for request, (status, _, answer) in zip(requests, answers, strict=True):
        assert status == 200
        expected = np.load(io.BytesIO(by_the_entry_point(digits_bundle, request)[0]))
        assert np.allclose(np.load(io.BytesIO(answer)), expected, rtol=0, atol=1e-6)  # rounded otherwise


def test_requests_that_are_bad_fail_alone_each_in_its_own_way(by_the_entry_point, ask, digits_bundle, pngs):
    lab = io.BytesIO()
    Image.new("LAB", (9, 9)).save(lab, "TIFF")
    good = pngs[0], "image/png", {}
    bad = {
        (b"no image", "image/png"): (400, "not an image that Pillow can read"),
        (lab.getvalue(), "image/tiff"): (400, "cannot be made"),
        (b"", "image/png"): (400, "empty"),
        (b"{", "application/json"): (400, "is not JSON"),
        (b"x", "text/plain"): (415, "text/plain"),
        (b"x", "text/csv"): (415, "text/csv"),
    }
    answers = ask(*((*request, {}) for request in bad), good, (*good[:2], {"accept": "image/png"}))
    for (status, reason), (found, media_type, line) in zip(bad.values(), answers, strict=False):
        assert (found, media_type) == (status, None)
        assert reason in line
        assert "\n" not in line
    assert [status for status, _, _ in answers[-2:]] == [200, 406]
    label = json.loads(by_the_entry_point(digits_bundle, good)[0])["label"]
    assert json.loads(answers[-2][2])["label"] == label


def test_slow_requests_of_a_batch_have_the_time_of_one_and_leave_another_its_own(ask, pngs, monkeypatch):
    monkeypatch.setenv("FASTMAKER_MAX_SECONDS", "1")
    stream = io.BytesIO()
    np.save(stream, np.zeros((10_000, 1, 1, 3), np.uint8))
    slow = (stream.getvalue(), "application/x-npy", {})
    ask((pngs[0], "image/png", {}))
    start = time.monotonic()
    *refused, (status, _, _) = ask(*[slow] * 7, (pngs[0], "image/png", {}))
    assert time.monotonic() - start < 5
    assert status == 200
    assert {status for status, _, _ in refused} == {400}


def test_a_batch_of_nothing_but_bad_requests_is_answered(ask, pngs):
    assert [status for status, _, _ in ask((b"x", "image/png", {}), (pngs[0], "text/plain", {}))] == [400, 415]
    assert ask((pngs[0], "image/png", {}))[0][0] == 200


def test_masks_in_a_batch_have_the_bytes_that_the_entry_point_gives(by_the_entry_point, scenes, scenes_bundle):
    ask = asking(scenes_bundle)
    stream = io.BytesIO()
    Image.open(scenes / "images" / "01.png").resize((112, 80)).save(stream, "PNG")
    original = {"X-Amzn-SageMaker-Custom-Attributes": "mask_size=original"}
    accepts = ("application/json", "application/jsonlines", "text/csv", "application/x-npy", "image/png")
    requests = [
        (stream.getvalue(), "image/png", {"Accept": accept, **more}) for accept in accepts for more in ({}, original)
    ]
    answers = ask(*requests, (stream.getvalue(), "image/png", {original.popitem()[0]: "mask_size=huge"}))
    for request, (status, media_type, answer) in zip(requests, answers, strict=False):
        assert status == 200
        assert (answer, media_type) == by_the_entry_point(scenes_bundle, request)
    assert answers[-1][0] == 400


def test_torchserve_leaves_bodies_as_they_were_sent_and_each_worker_its_share_of_the_cores(digits_bundle):
    asking(digits_bundle)
    assert os.environ["TS_DECODE_INPUT_REQUEST"] == "false"
    assert torch.get_num_threads() == 1


def test_a_batch_is_answered_by_onnx_runtime_as_well(digits_bundle, pngs, tmp_path, monkeypatch):
    requests = [(png, "image/png", {"Accept": "application/jsonlines"}) for png in pngs]
    expected = [json.loads(answer)["label"] for _, _, answer in asking(digits_bundle)(*requests)]
    shutil.copytree(digits_bundle, tmp_path / "model")
    onnx_file.to_onnx(digits_bundle, tmp_path / "model" / "model.onnx")
    (tmp_path / "model" / "model.pth").write_bytes(b"")  # what torch would fail at
    monkeypatch.setenv("FASTMAKER_ENGINE", "onnxruntime")
    assert [json.loads(answer)["label"] for _, _, answer in asking(tmp_path / "model")(*requests)] == expected


def test_forms_and_bodies_without_a_type_are_answered(ask, digits_bundle, pngs):
    good = pngs[0], "image/png", {}
    [expected] = ask(good)
    for kind in ("", "application/octet-stream", "multipart/form-data; boundary=x"):
        assert ask((pngs[0], kind, {})) == [expected]


def test_a_request_of_many_images_is_computed_alone(ask, pngs, monkeypatch):
    monkeypatch.setenv("FASTMAKER_MAX_SECONDS", "0")
    many = npy(np.zeros((40, 9, 9, 3), np.uint8)), "application/x-npy", {}
    answers = ask((pngs[0], "image/png", {}), many, (pngs[0], "image/png", {}))
    assert [status for status, _, _ in answers] == [200, 400, 200]
    assert "1 of the request's 40 images took 0 s" in answers[1][2]
    assert answers[0] == answers[2]


def test_an_image_that_the_network_does_not_take_fails_alone(tmp_path):
    info = dataclasses.replace(INFO, architecture="squeezenet1_1", resize_method="steps", steps=({"step": "any_size"},))
    bundle.save(tmp_path, networks.classifier("squeezenet1_1", len(INFO.labels)), info)
    ask = asking(tmp_path)
    good, dot = ((npy(np.zeros((side, side, 3), np.uint8)), "application/x-npy", {}) for side in (64, 1))
    first, refused, last = ask(good, dot, good)
    assert first == last
    assert first[0] == 200
    assert refused[0] == 400
    assert refused[2].startswith("the model takes no image of 1x1")
