"""Requests in the forms in which people send them, to the entry point on the toolkit, and to an archive."""

import io
import json
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers.invocations import ask
from helpers.local_mode import deployed, workers_of
from helpers.waiting import wait_until
from PIL import Image

from fastmaker.jobs.packaging.torchserve import make_archive, running
from fastmaker.local.containers import free_ports
from fastmaker.local.serving import torchserve
from fastmaker.local.serving.instances import container_of
from fastmaker.serving import models, settings

pytestmark = pytest.mark.server
BATCH = {"SAGEMAKER_TS_BATCH_SIZE": "8", "SAGEMAKER_TS_MAX_BATCH_DELAY": "300"}


@pytest.fixture(scope="module")
def endpoint(session, digits_archive):
    """The URL of an endpoint whose worker gets requests in lists, and whose settings would open its management."""
    env = {
        **BATCH,
        "FASTMAKER_MAX_SECONDS": "2",
        "TS_MANAGEMENT_ADDRESS": "http://127.0.0.1:8081",
        "TS_INFERENCE_ADDRESS": "http://0.0.0.0:8080",
    }
    with deployed(session, digits_archive, env=env) as predictor:
        (server,) = session.sagemaker_client.endpoints.read(predictor.endpoint_name)["servers"]
        container = container_of(session.sagemaker_client.endpoints, predictor.endpoint_name, server)
        assert torchserve.describe(container, server["port"])["batchSize"] == 8
        yield f"http://127.0.0.1:{server['port']}/invocations", lambda: workers_of(session, predictor.endpoint_name)


@pytest.fixture(scope="module")
def archive(digits_bundle, tmp_path_factory):
    """The URL of plain TorchServe with the bundle's archive."""
    archive = tmp_path_factory.mktemp("archive") / "digits.mar"
    make_archive(digits_bundle, archive, model_name="digits", batch_size=8, max_batch_delay=300, workers=1)
    (port,) = free_ports(1)
    with running(archive, "digits", port) as (container, url):
        yield url, lambda: torchserve.ready_workers(container, port, "digits")


@pytest.fixture(params=["endpoint", "archive"])
def server(request):
    """(URL, what gives the workers' pids)."""
    return request.getfixturevalue(request.param)


def npy(array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["-T", "{}"], 200),
        (["-F", "data=@{}"], 200),
        (["-F", "image=@{};type=image/png"], 200),
        (["-F", "a=@{}", "-F", "b=@{}"], 400),
        (["-F", "data=text"], 415),
        (["-H", "Content-Type:", "--data-binary", "@{}"], 200),
        (["-H", "Content-Type: application/octet-stream", "--data-binary", "@{}"], 200),
        (["-H", "Content-Type: image/png", "--data-binary", "@{}"], 200),
        (["-H", "Content-Type: application/octet-stream", "--data-binary", "text"], 415),
    ],
)
def test_curl_gets_an_answer(server, pngs, tmp_path, words, status):
    (tmp_path / "7.png").write_bytes(pngs[0])
    words = [word.format(tmp_path / "7.png") for word in words]
    done = subprocess.run(["curl", "-sS", "-w", "\n%{http_code}", *words, server[0]], capture_output=True, text=True)
    answer, _, found = done.stdout.rpartition("\n")
    assert int(found) == status, done
    if status == 200:
        assert json.loads(answer)["label"] == json.loads(ask(server[0], pngs[0], "image/png")[1])["label"]


def test_requests_that_come_together_are_answered_as_if_they_came_alone(server, pngs):
    url, _ = server
    array = npy(np.asarray(Image.open(io.BytesIO(pngs[0]))))
    requests = [
        (b"no image", "image/png", "*/*"),
        (pngs[0], "image/png", "application/json"),
        (pngs[0], "image/png", "text/csv"),
        (array, "application/x-npy", "application/x-npy"),
        (pngs[0], "text/plain", "*/*"),
        (pngs[0], "image/png", "image/png"),
        (b"{}", "application/json", "*/*"),
        (pngs[0], "image/png", "application/jsonlines"),
    ]
    alone = [ask(url, *request) for request in requests]
    assert [status for status, _, _ in alone] == [400, 200, 200, 200, 415, 406, 400, 200]
    with ThreadPoolExecutor(len(requests)) as pool:
        for _ in range(3):
            together = list(pool.map(lambda request: ask(url, *request), requests))
            for (status, body, kind), (expected, expected_body, expected_kind) in zip(together, alone, strict=True):
                assert (status, kind) == (expected, expected_kind)
                if status == 200 and kind == "application/x-npy":
                    assert np.allclose(np.load(io.BytesIO(body)), np.load(io.BytesIO(expected_body)), atol=1e-6)
                elif status == 200:
                    assert body[:9] == expected_body[:9]
                else:
                    assert body.splitlines()[0] == expected_body.splitlines()[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "workers"),
    [
        (settings.with_workers({**BATCH, settings.WORKERS: "2"}), 2),
        ({**BATCH, settings.WORKERS: "2", "TS_DEFAULT_WORKERS_PER_MODEL": "2"}, 1),
        ({settings.WORKERS: "1", "TS_DEFAULT_WORKERS_PER_MODEL": "2"}, 2),
    ],
)
def test_torchserve_starts_the_workers_among_which_the_cores_are_shared_out(
    session, digits_archive, pngs, monkeypatch, env, workers
):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert models.toolkit_workers() == workers
    with deployed(session, digits_archive, env=env) as predictor:
        invoke = session.sagemaker_runtime_client.invoke_endpoint
        assert len(workers_of(session, predictor.endpoint_name)) == workers

        (log,) = session.sagemaker_client.endpoints.directory(predictor.endpoint_name).rglob("container.log")

        def batches():
            with ThreadPoolExecutor(8) as pool:
                asked = {"EndpointName": predictor.endpoint_name, "ContentType": "image/png", "Body": pngs[0]}
                assert len({it["Body"].read()[:9] for it in pool.map(lambda _: invoke(**asked), range(8))}) == 1
            return "images in one batch" in log.read_text()

        if BATCH.items() <= env.items():
            wait_until(batches)
        else:
            assert not batches()


def test_slow_requests_that_come_together_have_the_time_of_one_and_leave_another_its_own(endpoint, pngs):
    url, workers = endpoint
    before = workers()
    slow = (npy(np.zeros((10_000, 1, 1, 3), np.uint8)), "application/x-npy")
    start = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda request: ask(url, *request), [*[slow] * 7, (pngs[0], "image/png")]))
    assert time.monotonic() - start < 7  # alone each has 2 seconds
    *refused, (status, _, _) = answers
    assert status == 200
    assert {status for status, _, _ in refused} == {400}
    assert all(b" s, which is all that it has" in line for _, line, _ in refused)
    assert workers() == before


def test_a_bomb_is_refused_and_the_worker_lives_on(server, pngs):
    url, workers = server
    before = workers()
    status, line, _ = ask(url, npy(np.zeros((500_000, 1, 1, 3), np.uint8)), "application/x-npy")
    assert status == 400
    assert b"the request has 500,000 images; at most 10,000 are accepted" in line
    assert ask(url, pngs[0], "image/png")[0] == 200
    assert workers() == before
    assert len(before) == 1
