"""The serving toolkit's own transformer with TorchServe's own context, without a server: requests that come at once."""

import io
import json
import logging

import numpy as np
import pytest
import torch
from helpers import REPOSITORY, lists
from helpers.lists import npy
from sagemaker_inference import content_types
from sagemaker_inference.transformer import Transformer
from sagemaker_pytorch_serving_container.default_pytorch_inference_handler import DefaultPytorchInferenceHandler
from ts.context import Context

from fastmaker.serving import wire

OWN = {
    "model_fn": "class M(models.Model): ...\n\ndef model_fn(d):\n    m = ours(d, C)\n    return M(m.engine, m.info)",
    "input_fn": "def input_fn(body, kind):\n    return entry_point.input_fn(body, kind)",
    "predict_fn": "def predict_fn(request, model):\n    return entry_point.predict_fn(request, model)",
    "output_fn": "def output_fn(answer, accept):\n    return entry_point.output_fn(answer, accept)",
}
IMPORTS = """from types import SimpleNamespace
import entry_point
from entry_point import *
from fastmaker.serving import models
ours = entry_point.model_fn
C = SimpleNamespace(system_properties={})
"""


@pytest.fixture(autouse=True)
def a_worker(monkeypatch):
    """What the entry point changes in the process of a worker is undone."""
    monkeypatch.setattr(Transformer, "transform", Transformer.transform)
    monkeypatch.setattr(content_types, "UTF8_TYPES", list(content_types.UTF8_TYPES))
    monkeypatch.syspath_prepend(REPOSITORY / "source")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def serve(monkeypatch, digits_bundle):
    """serve(program) -> ask((body, content type, headers), ...) -> [(status, media type, answer), ...] of one list."""

    def served(program="entry_point.py"):
        monkeypatch.setenv("SAGEMAKER_PROGRAM", program)
        transformer = Transformer(DefaultPytorchInferenceHandler())
        context = Context("model", str(digits_bundle), {}, 8, None, "1.0")
        transformer.validate_and_initialize(str(digits_bundle), context)

        return lambda *batch: lists.ask(transformer.transform, context, batch)

    return served


@pytest.fixture(scope="module")
def pngs(digits):
    return [file.read_bytes() for file in sorted(digits.rglob("*.png"))[::200]]


def test_requests_that_come_at_once_go_through_the_network_together_and_each_is_answered_as_if_alone(
    serve, pngs, caplog
):
    png, many = pngs[0], npy(np.zeros((20, 9, 9, 3), np.uint8))
    requests = [
        (b"no image", "image/png", {}),
        (png, "image/png", {}),
        (pngs[1], "image/png", {"accept": "text/csv"}),
        (pngs[2], "image/png", {"Accept": "application/x-npy"}),
        (many, "application/x-npy", {"Accept": "application/x-npy"}),
        (png, "text/plain", {}),
        (png, "image/png", {"Accept": "image/png"}),
        (png, "image/png", {"X-Amzn-SageMaker-Custom-Attributes": "mask_size=huge"}),
        (b"{", "application/json", {"Accept": "*/*"}),
    ]
    ask = serve()
    alone = [ask(request)[0] for request in requests]
    assert [status for status, _, _ in alone] == [400, 200, 200, 200, 200, 415, 406, 400, 400]
    with caplog.at_level(logging.INFO, "fastmaker"):
        together = ask(*requests)
    assert caplog.messages == ["9 requests: 4 images in one batch"]
    for (status, kind, answer), (expected, expected_kind, expected_answer) in zip(together, alone, strict=True):
        assert (status, kind) == (expected, expected_kind)
        if kind == "application/x-npy":
            numbers, expected_numbers = (np.load(io.BytesIO(it)) for it in (answer, expected_answer))
            assert np.allclose(numbers, expected_numbers, rtol=0, atol=1e-6)
        elif kind == "application/json":
            assert json.loads(answer)["label"] == json.loads(expected_answer)["label"]
        elif status == 200:
            assert answer[:5] == expected_answer[:5]
        else:
            lines, expected_lines = answer.splitlines(), expected_answer.splitlines()
            assert (lines[:2], lines[-1]) == (expected_lines[:2], expected_lines[-1])  # between them: its own lines


def test_forms_that_come_at_once_have_one_part_each(serve, pngs, monkeypatch):
    ask = serve()
    good = (pngs[0], "image/png", {})
    monkeypatch.setattr(wire, "body_of", lambda parts, body_of=wire.body_of: body_of({"data": parts["body"]}))
    assert [status for status, _, _ in ask(good, good)] == [200, 200]


@pytest.mark.parametrize("name", OWN)
def test_where_a_function_or_the_model_is_the_users_own_each_request_is_computed_alone(
    serve, pngs, tmp_path, monkeypatch, caplog, name
):
    (tmp_path / f"own_{name}.py").write_text(IMPORTS + OWN[name])
    monkeypatch.syspath_prepend(tmp_path)
    requests = [(png, "image/png", {"Accept": "application/x-npy"}) for png in pngs[:3]]
    ask, usual = serve(f"own_{name}.py"), serve()
    with caplog.at_level(logging.INFO, "fastmaker"):
        answers = ask(*requests, (b"", "image/png", {}))
        assert caplog.messages == []
        expected = [usual(request)[0] for request in requests]
    assert answers[:3] == expected
    assert answers[3][0] == 400
