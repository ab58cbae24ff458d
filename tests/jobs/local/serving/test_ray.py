"""Endpoints and transform jobs on Ray Serve: `make test-ray` installs it beside what the other tests run with."""

import base64
import io
import json
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
import urllib3
from helpers.abuse import Server, survives
from helpers.local_mode import bundle_model, deployed, wait_until
from PIL import Image

from fastmaker.local import processes
from fastmaker.local.containers import pack
from fastmaker.local.serving import rayserve
from fastmaker.local.serving.instances import container_of
from fastmaker.serving import errors

pytestmark = pytest.mark.ray

IMAGE = "public.ecr.aws/deep-learning-containers/ray:serve-ml-sagemaker-cpu"
# An application of others, which says what reached it; with the name of the model that it was packed for.
FOREIGN = """
import asyncio, json, os
from ray import serve
from starlette.responses import Response

@serve.deployment(num_replicas=2, max_ongoing_requests=20)
class Echo:
    async def __call__(self, request):
        body = await request.body()
        if body.startswith(b"sleep"):
            await asyncio.sleep(float(body.split()[1]))
        if body == b"die":
            os._exit(1)
        seen = {{name: value for name, value in request.headers.items() if not name.startswith(("user-", "host"))}}
        said = {{"model": "{name}", "path": request.url.path, "headers": seen, "body": body.decode()}}
        headers = {{"X-Amzn-SageMaker-Custom-Attributes": "told", "X-Other": "lost"}}
        return Response(json.dumps(said), 201, headers, "application/x-said")

app = Echo.bind()
"""


@pytest.fixture(scope="module")
def server(session, digits_archive):
    """An endpoint with two replicas: its container, port and URL."""
    with deployed(session, digits_archive, image_uri=IMAGE, env={"SAGEMAKER_MODEL_SERVER_WORKERS": "2"}) as predictor:
        yield first_server(session, predictor.endpoint_name)


def first_server(session, name):
    endpoints = session.sagemaker_client.endpoints
    [server] = endpoints.read(name)["servers"]
    return container_of(endpoints, name, server), server["port"]


def post(port, body, **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    url = f"http://127.0.0.1:{port}/invocations"
    return urllib3.request("POST", url, body=body, headers=named, retries=False, timeout=60)


def foreign_archive(folder, name="m", config=True):
    (folder / name / "code").mkdir(parents=True)
    (folder / name / "code" / "echo.py").write_text(FOREIGN.format(name=name))
    if config:
        text = "applications:\n  - {name: echo, route_prefix: /, import_path: 'echo:app'}\n"
        (folder / name / "config.yaml").write_text(text)
    pack(folder / name, folder / f"{name}.tar.gz")
    return folder / f"{name}.tar.gz"


def npy(array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def test_it_answers_with_the_bytes_types_and_errors_of_the_entry_point(
    server, digits, digits_bundle, by_the_entry_point
):
    image = sorted(digits.rglob("*.png"))[0].read_bytes()
    b64 = base64.b64encode(image).decode()
    bodies = [
        (image, "image/png"),
        (npy(np.asarray(Image.open(io.BytesIO(image)))), "application/x-npy"),
        (json.dumps({"instances": [{"b64": b64}] * 3}).encode(), "application/json"),
        (b'{"b64": "%s"}\n' % b64.encode() * 2, "application/jsonlines"),
        (b"damaged", "image/png"),
        (b"", "image/png"),
        (b"x", "text/plain"),
        (b'{"instances": [{"b64": "%"}]}', "application/json"),
    ]
    for body, kind in bodies:
        for accept in ("application/json", "text/csv;q=0.5, application/x-npy", "text/csv", "image/png"):
            answer = post(server[1], body, Content_Type=kind, Accept=accept)
            try:
                content, media_type = by_the_entry_point(digits_bundle, body, kind, accept)
                expected = (200, content, media_type + ("; charset=utf-8" if media_type == "text/csv" else ""))
            except errors.RequestError as error:
                expected = (error.status_code, error.message.encode(), "text/plain; charset=utf-8")
            assert (answer.status, answer.data, answer.headers["Content-Type"]) == expected


def test_everything_listens_on_loopback_alone(server):
    container, port = server
    listening = [
        connection.laddr
        for process in container.processes()
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert port in {address.port for address in listening}
    assert {address.ip for address in listening} <= {"127.0.0.1", "::ffff:127.0.0.1"}


def test_bad_requests_are_refused_and_good_ones_answered_right_by_the_same_workers(server, good):
    container, port = server
    survives(Server(f"http://127.0.0.1:{port}/invocations", lambda: rayserve.workers(container)), good, 800)


def test_an_application_of_others_gets_what_awss_adapter_passes_on(session, tmp_path):
    archive = foreign_archive(tmp_path, config=False)
    with deployed(session, archive, image_uri=IMAGE, env={"SM_RAYSERVE_APP": "echo:app"}) as predictor:
        _, port = first_server(session, predictor.endpoint_name)
        answer = post(port, b"one", X_Amzn_SageMaker_Custom_Attributes="a=b", X_Other="lost", Accept="x/y")
        said = json.loads(answer.data)
        kept = {name: value for name, value in said["headers"].items() if name.startswith(("x-", "accept", "content"))}
        assert said["path"] == "/"
        assert (
            kept.items()
            >= {
                "x-amzn-sagemaker-custom-attributes": "a=b",
                "content-type": "application/json",
                "accept": "x/y",
            }.items()
        )
        assert "x-other" not in kept
        assert (answer.status, answer.headers["Content-Type"]) == (201, "application/x-said")
        assert answer.headers["X-Amzn-SageMaker-Custom-Attributes"] == "told"
        assert "X-Other" not in answer.headers
        large = b"x" * 30_000_000
        assert len(post(port, large).data) > len(large)


def every_process(container):
    """The processes of a server, by whose children they are: the engine's own way is to be checked."""
    first, *_ = container.processes()
    return {first, *first.children(recursive=True)}


def living(processes):
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def test_each_process_is_found_by_its_token_though_it_has_set_its_title(server):
    """So that all are ended when the first of them was killed."""
    container, _ = server
    token = json.loads((container.root / processes.PROCESS_FILE).read_text())["token"]
    assert set(processes.carrying(processes.VARIABLE, token)) >= every_process(container)


def settled(client, name):
    return wait_until(lambda: client.describe_endpoint(EndpointName=name)["EndpointStatus"] == "InService")


def test_a_process_of_ray_that_is_killed_loses_no_request_and_leaves_nothing(session, tmp_path):
    """A replica, the proxy and the controller are started again by Ray; without the others the server starts anew."""
    client, runtime = session.sagemaker_client, session.sagemaker_runtime_client
    with deployed(session, foreign_archive(tmp_path), image_uri=IMAGE) as predictor:
        name = predictor.endpoint_name

        def ask(number):
            body = runtime.invoke_endpoint(EndpointName=name, Body=f"sleep {number % 3}")["Body"].read()
            return json.loads(body)["body"] == f"sleep {number % 3}"

        for victim in ("ray::ServeReplica", "ray::ProxyActor", "ray::ServeController"):
            container, _ = first_server(session, name)
            with ThreadPoolExecutor(6) as pool:
                asked = [pool.submit(ask, number) for number in range(12)]
                time.sleep(0.5)
                next(found for found in container.processes() if victim in " ".join(found.cmdline()[:2])).kill()
                assert all(answer.result() for answer in asked), victim
        for victim in ("raylet", "gcs_server", "launcher"):
            container, port = first_server(session, name)
            before = every_process(container)
            next(found for found in before if victim in " ".join(found.cmdline()[:2])).kill()
            wait_until(lambda port=port: settled(client, name) and first_server(session, name)[1] != port)
            wait_until(lambda: rayserve.is_ready(first_server(session, name)[1]))
            assert ask(0)
            assert not living(before), victim
        before = every_process(first_server(session, name)[0])
    assert not living(before)


def test_replicas_of_a_bundle_that_are_killed_lose_no_request_and_answer_without_rays_proxy(server, good):
    container, port = server
    body, expected = good[0]

    def ask(_):
        answer = post(port, body, Content_Type="image/png", Accept="application/x-npy")
        return answer.status == 200 and np.allclose(np.load(io.BytesIO(answer.data)), expected, atol=1e-6)

    sockets = lambda: list(container.tmp.glob("*/replica-*"))  # noqa: E731
    before = set(wait_until(lambda: len(sockets()) >= 2 and sockets()))
    proxy = next(found for found in container.processes() if "ray::ProxyActor" in found.cmdline()[0])
    with ThreadPoolExecutor(6) as pool:
        proxy.suspend()
        try:
            assert all(pool.map(ask, range(50)))
        finally:
            proxy.resume()
        for victims in (1, 2):
            asked = [pool.submit(ask, number) for number in range(50)]
            for victim in rayserve.workers(container)[:victims]:
                psutil.Process(victim).kill()
            assert all(answer.result() for answer in asked), victims
    wait_until(lambda: len(set(sockets()) - before) >= 2)
    assert all(map(ask, range(4)))


def test_an_update_takes_over_without_a_lost_request_beside_the_old_server(session, tmp_path):
    client, runtime = session.sagemaker_client, session.sagemaker_runtime_client
    for name in ("first", "second"):
        container = {"Image": IMAGE, "ModelDataUrl": f"file://{foreign_archive(tmp_path, name)}"}
        client.create_model(ModelName=name, PrimaryContainer=container)
        variant = {"VariantName": "v", "ModelName": name, "InstanceType": "local", "InitialInstanceCount": 1}
        client.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])

    def model():
        answer = runtime.invoke_endpoint(EndpointName="updated", Body=b"x")["Body"].read()
        return json.loads(answer)["model"]

    client.create_endpoint(EndpointName="updated", EndpointConfigName="first")
    try:
        settled(client, "updated")
        client.update_endpoint(EndpointName="updated", EndpointConfigName="second")
        models = [model()]
        while client.describe_endpoint(EndpointName="updated")["EndpointStatus"] == "Updating":
            models.append(model())
        assert models[0] == "first"
        assert set(models) <= {"first", "second"}
        assert model() == "second"
    finally:
        client.delete_endpoint(EndpointName="updated")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda folder: (folder / "config.yaml").unlink(), "no config.yaml, and SM_RAYSERVE_APP is not set"),
        (lambda folder: (folder / "config.yaml").write_text("applications: {"), "config.yaml cannot be read"),
        (lambda folder: (folder / "code" / "echo.py").write_text("1/0"), "ZeroDivisionError: division by zero"),
    ],
    ids=["no config.yaml", "no YAML", "a module that fails"],
)
def test_a_model_that_cannot_be_served_fails_with_the_reason(session, tmp_path, change, reason):
    foreign_archive(tmp_path)
    change(tmp_path / "m")
    pack(tmp_path / "m", tmp_path / "m.tar.gz")
    model = bundle_model(session, tmp_path / "m.tar.gz", image_uri=IMAGE)
    client = session.sagemaker_client
    predictor = model.deploy(1, "local", wait=False)
    name = predictor.endpoint_name
    wait_until(lambda: client.describe_endpoint(EndpointName=name)["EndpointStatus"] != "Creating")
    assert reason in client.describe_endpoint(EndpointName=name)["FailureReason"]
    predictor.delete_model()
    predictor.delete_endpoint()


def test_requests_of_a_batch_have_an_answer_each_and_a_bad_one_fails_alone(session, digits_archive, good):
    env = {"SAGEMAKER_TS_BATCH_SIZE": "4", "SAGEMAKER_TS_MAX_BATCH_DELAY": "200"}
    with deployed(session, digits_archive, image_uri=IMAGE, env=env) as predictor:
        _, port = first_server(session, predictor.endpoint_name)
        bodies = [body for body, _ in good[:7]] + [b"damaged"]
        with ThreadPoolExecutor(8) as pool:
            answers = list(
                pool.map(lambda body: post(port, body, Content_Type="image/png", Accept="application/x-npy"), bodies)
            )
        assert [answer.status for answer in answers] == [200] * 7 + [400]
        for answer, (_, expected) in zip(answers[:7], good, strict=False):
            assert np.load(io.BytesIO(answer.data)) == pytest.approx(expected, abs=1e-6)
        begun = time.monotonic()
        assert post(port, bodies[0], Content_Type="image/png").status == 200
        assert time.monotonic() - begun > 0.2  # it waits for others, and none comes


def test_a_transform_job_has_the_answers_of_the_entry_point(
    session, digits, digits_bundle, digits_archive, tmp_path, by_the_entry_point
):
    model = bundle_model(session, digits_archive, image_uri=IMAGE)
    transformer = model.transformer(1, "local", output_path=f"file://{tmp_path}", accept="application/json")
    transformer.transform(f"file://{digits / '7'}", content_type="image/png", logs=False)
    for file in sorted((digits / "7").iterdir())[::50]:
        expected, _ = by_the_entry_point(digits_bundle, file.read_bytes(), "image/png", "application/json")
        assert (tmp_path / f"{file.name}.out").read_bytes() == expected
    transformer.delete_model()
