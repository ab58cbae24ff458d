"""The entry point in the hands of the inference toolkit's own handler, with TorchServe's own context."""

import base64
import importlib
import io
import json
import re
import sys

import numpy as np
import pytest
from PIL import Image

from fastmaker import preprocess
from fastmaker.serving import models


@pytest.fixture
def served_bundle(digits_bundle):
    return digits_bundle


@pytest.fixture
def ask_all(served_bundle, monkeypatch):
    """ask_all((parts, headers), ...) -> [(status, media type, answer), ...] of requests that come in one list."""
    import torch
    from sagemaker_inference import content_types
    from sagemaker_inference.transformer import Transformer
    from ts.context import Context, RequestProcessor

    monkeypatch.syspath_prepend(str(served_bundle / "code"))
    monkeypatch.setenv("SAGEMAKER_PROGRAM", "entry_point.py")
    monkeypatch.setenv("PYTHONPATH", "")  # the handler adds to it
    monkeypatch.setattr(content_types, "UTF8_TYPES", list(content_types.UTF8_TYPES))
    monkeypatch.setattr(Transformer, "transform", Transformer.transform)
    threads = torch.get_num_threads()
    handler = importlib.import_module("sagemaker_pytorch_serving_container.handler_service").HandlerService()
    context = Context("model", str(served_bundle), {}, 1, None, "1.0")

    def ask_all(*requests):
        context.request_processor = [RequestProcessor(headers) for _, headers in requests]
        context.request_ids = {number: f"request {number}" for number in range(len(requests))}
        handler.initialize(context)
        answers = handler.handle([parts for parts, _ in requests], context)
        numbers = range(len(requests))
        statuses = [context.get_response_status(number)[0] for number in numbers]
        return list(zip(statuses, map(context.get_response_content_type, numbers), answers, strict=True))

    yield ask_all
    torch.set_num_threads(threads)
    sys.modules.pop("entry_point", None)


@pytest.fixture
def ask(ask_all):
    """ask(body, content_type, accept) -> (status, media type, answer), through the container's HandlerService."""

    def ask(body, content_type, accept=None, **headers):
        headers |= {"Content-Type": content_type} | ({"Accept": accept} if accept else {})
        [answer] = ask_all(({"body": body}, headers))
        return answer

    return ask


@pytest.fixture(scope="module")
def png(digits):
    return sorted((digits / "4").iterdir())[0].read_bytes()


def test_an_image_is_answered_as_it_is_without_a_server(ask, digits_bundle, png):
    status, media_type, answer = ask(png, "image/png")
    assert (status, media_type) == (200, "application/json")
    [expected] = models.load(digits_bundle).predict([preprocess.decode(png)])
    found = json.loads(answer)
    assert found["label"] == expected.label
    assert found["probability"] == pytest.approx(expected.as_object()["probability"], abs=1e-6)


@pytest.mark.parametrize("accept", ["text/csv", "application/x-npy", "application/jsonlines", "application/json"])
def test_the_answer_is_labelled_with_the_type_that_was_asked_for(ask, png, accept):
    assert ask(png, "application/x-image", accept)[:2] == (200, accept)


def test_the_answers_type_is_the_one_chosen_from_several(ask, png):
    assert ask(png, "image/png", "image/webp, text/csv;q=0.5, */*;q=0.1")[1] == "text/csv"


@pytest.mark.parametrize(
    ("status", "body", "content_type", "accept"),
    [
        (415, b"x", "text/plain", None),
        (415, b"x", "text/csv", None),
        (415, b"\xff\xfe", "text/csv", None),
        (400, b"no image", "image/png", None),
        (400, b"", "application/json", None),
        (400, b"\xff\xfe{}", "application/json", None),
        (400, b"{}", "application/json", None),
        (400, b"{", "application/jsonlines", None),
        (400, b"x", "application/x-npy", None),
    ],
)
def test_a_bad_request_keeps_its_status_in_the_toolkit(ask, status, body, content_type, accept):
    assert ask(body, content_type, accept)[0] == status


def test_an_accept_that_cannot_be_met_keeps_its_status_in_the_toolkit(ask, png):
    assert ask(png, "image/png", "image/png")[0] == 406


def test_an_image_that_cannot_be_converted_is_a_bad_request(ask):
    stream = io.BytesIO()
    Image.new("LAB", (9, 9)).save(stream, "TIFF")
    assert ask(stream.getvalue(), "image/tiff")[0] == 400


def test_after_a_bad_request_the_next_one_is_answered(ask, png):
    assert ask(b"no image", "image/png")[0] == 400
    assert ask(png, "image/png")[0] == 200


def test_an_array_of_images_is_answered_with_an_array(ask):
    stream = io.BytesIO()
    np.save(stream, np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8))
    _, _, answer = ask(stream.getvalue(), "application/x-npy", "application/x-npy")
    assert np.load(io.BytesIO(answer)).shape == (3, 10)


# Segmentation


class TestMasks:
    @pytest.fixture
    def served_bundle(self, scenes_bundle):
        return scenes_bundle

    @pytest.fixture
    def photo(self, scenes):
        """A scene twice as large as the model sees it."""
        stream = io.BytesIO()
        Image.open(scenes / "images" / "01.png").resize((112, 80)).save(stream, "PNG")
        return stream.getvalue()

    @pytest.mark.parametrize(
        "accept", ["text/csv", "application/x-npy", "application/jsonlines", "application/json", "image/png"]
    )
    def test_a_mask_can_be_had_in_every_form(self, ask, photo, accept):
        assert ask(photo, "image/png", accept)[:2] == (200, accept)

    def test_the_mask_has_the_models_size_or_on_request_the_images(self, ask, photo):
        masks = {}
        for size in ("model", "original"):
            header = {"X-Amzn-SageMaker-Custom-Attributes": f"mask_size={size}"}
            masks[size] = np.asarray(Image.open(io.BytesIO(ask(photo, "image/png", "image/png", **header)[2])))
        assert np.array_equal(Image.open(io.BytesIO(ask(photo, "image/png", "image/png")[2])), masks["model"])
        assert masks["model"].shape == (40, 56)
        assert np.array_equal(masks["original"], masks["model"].repeat(2, axis=0).repeat(2, axis=1))

    def test_the_headers_name_may_be_in_any_case(self, ask, photo):
        header = {"x-amzn-sagemaker-custom-attributes": "mask_size=original"}
        _, _, answer = ask(photo, "image/png", **header)
        assert json.loads(answer)["shape"] == [80, 112]

    def test_an_unknown_mask_size_is_a_bad_request(self, ask, photo):
        header = {"X-Amzn-SageMaker-Custom-Attributes": "mask_size=huge"}
        assert ask(photo, "image/png", **header)[0] == 400

    def test_an_answer_that_torchserve_could_not_send_is_not_acceptable(self, ask, photo, monkeypatch):
        header = {"X-Amzn-SageMaker-Custom-Attributes": "mask_size=original"}
        monkeypatch.setenv("TS_MAX_RESPONSE_SIZE", "5000")
        assert ask(photo, "image/png", "application/json", **header)[0] == 406
        assert ask(photo, "image/png", "image/png", **header)[0] == 200

    def test_a_png_of_two_masks_is_not_acceptable(self, ask):
        stream = io.BytesIO()
        np.save(stream, np.zeros((2, 40, 56, 3), np.uint8))
        assert ask(stream.getvalue(), "application/x-npy", "image/png")[0] == 406


def parts(answer):
    """The status, type, text and numbers of an answer; of an error its line, without the toolkit's traceback."""
    status, media_type, body = answer
    if status != 200:
        return status, media_type, body.splitlines()[0], []
    if media_type == "application/x-npy":
        return status, media_type, b"", np.load(io.BytesIO(body)).ravel().tolist()
    number = rb"-?\d+\.\d+(?:e-?\d+)?"
    return status, media_type, re.sub(number, b"", body), list(map(float, re.findall(number, body)))


def test_each_request_of_a_list_is_answered_as_if_it_had_come_alone(ask_all, png):
    array = io.BytesIO()
    np.save(array, np.asarray(Image.open(io.BytesIO(png))))
    lines = json.dumps({"b64": base64.b64encode(png).decode()}).encode()
    requests = [
        ({"body": b"no image"}, {"Content-Type": "image/png"}),
        ({"body": png}, {"Content-Type": "image/png"}),
        ({"body": array.getvalue()}, {"Content-Type": "application/x-npy", "Accept": "application/x-npy"}),
        ({"body": png}, {"Content-Type": "text/csv", "Accept": "text/csv"}),
        ({"body": png}, {"Content-Type": "image/png", "accept": "text/csv"}),
        ({"body": lines}, {"Content-Type": "application/jsonlines", "Accept": "application/jsonlines"}),
        ({"body": png}, {"Content-Type": "image/png", "Accept": "image/png"}),
        ({"data": png}, {"Content-Type": "multipart/form-data; boundary=x"}),
        ({"a": png, "b": png}, {"Content-Type": "multipart/form-data; boundary=x"}),
        ({"body": png}, {"Content-Length": "1"}),
        ({}, {"Content-Type": "image/png"}),
        ({"body": png}, {"Content-Type": "image/png", "X-Amzn-SageMaker-Custom-Attributes": "mask_size=huge"}),
    ]
    together = ask_all(*requests)
    alone = [answer for request in requests for answer in ask_all(request)]
    for (*told, found), (*expected, numbers) in zip(map(parts, together), map(parts, alone), strict=True):
        assert told == expected
        assert found == pytest.approx(numbers, abs=1e-6)
    assert [status for status, _, _ in together] == [400, 200, 200, 415, 200, 200, 406, 200, 400, 200, 400, 400]
    types = [media_type for _, media_type, _ in together]
    assert types == [
        *(None, "application/json", "application/x-npy", None, "text/csv", "application/jsonlines"),
        *(None, "application/json", None, "application/json", None, None),
    ]
    assert together[7] == together[9] == together[1]
    assert together[8][2].startswith("the form has 2 parts; expected one, which holds an image")
