"""Asynchronous endpoints: every request that was accepted has an answer or a failure, and no more than one."""

import json
import re
from urllib.parse import quote

import pytest
from botocore.exceptions import ClientError
from helpers.engine_requests import IMAGE, client_of, settled
from helpers.waiting import running_below, wait_until

from fastmaker.jobs.backends import asynchronous
from fastmaker.local import processes
from fastmaker.local.containers import Container, pack
from fastmaker.local.runtime_client import SageMakerRuntime
from fastmaker.local.serving import queues

pytestmark = pytest.mark.server
# Each request that reaches the model is counted; one that begins with `stop` is answered when the test says so.
SERVE = """
import os, time
def model_fn(model_dir): return os.environ["NOTES"]
def input_fn(body, content_type): return bytes(body)
def predict_fn(body, notes):
    with open(os.path.join(notes, body.decode()), "a") as file: file.write("x")
    while body.startswith(b"stop") and not os.path.exists(os.path.join(notes, "go " + body.decode())): time.sleep(0.02)
    return b"answer to " + body if not body.startswith(b"bad") else 1 / 0
def output_fn(answer, accept): return answer, accept
"""


TOPIC = "arn:aws:sns:us-west-2:000000000000:topic"


class Endpoint:
    """An asynchronous endpoint `e` with its folders: of answers, of failures, and of what the model was asked."""

    def __init__(self, client, folder, archive, workers=1, most=2, count=1):
        self.client, self.folder, self.home = client, folder, client.endpoints.folder.parent
        self.runtime = SageMakerRuntime(self.home)
        for name in ("out", "failed", "notes"):
            (folder / name).mkdir()
        env = {"NOTES": str(folder / "notes"), "SAGEMAKER_MODEL_SERVER_WORKERS": str(workers)}
        container = {**IMAGE, "ModelDataUrl": f"file://{archive}", "Environment": {**IMAGE["Environment"], **env}}
        client.create_model(ModelName="m", PrimaryContainer=container)
        self.configure("c", {"ClientConfig": {"MaxConcurrentInvocationsPerInstance": most}}, count)
        client.create_endpoint(EndpointName="e", EndpointConfigName="c")
        assert settled(client) == "InService"

    def configure(self, name, config=None, count=1):
        variant = {"VariantName": "v", "ModelName": "m", "InstanceType": "local", "InitialInstanceCount": count}
        output = {"S3OutputPath": f"file://{self.folder}/out", "S3FailurePath": f"file://{self.folder}/failed"}
        output["NotificationConfig"] = {"SuccessTopic": TOPIC}
        mode = {} if config is None else {"AsyncInferenceConfig": {"OutputConfig": output, **config}}
        self.client.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant], **mode)

    def ask(self, text, **request):
        return self.runtime.invoke_endpoint_async(
            EndpointName="e", Body=text.encode(), InferenceId=text, ContentType="text/x", **request
        )

    def outcomes(self):
        """The texts that were answered and that failed."""
        answered = {file.name.removesuffix(".out"): file.read_text() for file in (self.folder / "out").glob("*.out")}
        failed = {file.name.removesuffix("-error.out") for file in (self.folder / "failed").glob("*.out")}
        assert all(answer == f"answer to {text}" for text, answer in answered.items())
        assert not answered.keys() & failed
        return set(answered), failed

    def settled(self, count):
        return wait_until(lambda: (found := self.outcomes()) and sum(map(len, found)) >= count and found)

    def asked(self, text):
        """How often the model was asked."""
        file = self.folder / "notes" / text
        return len(file.read_text()) if file.exists() else 0

    def release(self, text):
        """Have the model answer."""
        (self.folder / "notes" / f"go {text}").touch()

    def worker(self):
        known = json.loads((self.home / "endpoints/e/process.json").read_text())
        return processes.find(known)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    (folder / "code").mkdir()
    (folder / "code" / "inference.py").write_text(SERVE)
    pack(folder, folder.with_suffix(".tar.gz"))
    return folder.with_suffix(".tar.gz")


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory, archive):
    with client_of(tmp_path_factory.mktemp("home")) as client:
        yield Endpoint(client, tmp_path_factory.mktemp("folders"), archive)


def test_each_request_has_an_answer_or_a_failure_though_the_process_is_killed(endpoint):
    """One is with the model when the process that asked is killed; what it had not answered is asked again."""
    for text in ("one", "bad", "stop"):
        answer = endpoint.ask(text)
        assert answer["InferenceId"] == text
        assert answer["OutputLocation"] == f"file://{endpoint.folder}/out/{text}.out"
        assert answer["FailureLocation"] == f"file://{endpoint.folder}/failed/{text}-error.out"
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 202
    wait_until(lambda: endpoint.asked("stop"))
    endpoint.worker().kill()
    endpoint.ask("after")
    endpoint.release("stop")
    assert endpoint.settled(4) == ({"one", "stop", "after"}, {"bad"})
    assert [endpoint.asked(text) for text in ("one", "bad", "after")] == [1, 1, 1]
    assert "division by zero" in (endpoint.folder / "failed" / "bad-error.out").read_text()
    wait_until(lambda: not queues.waiting(endpoint.home / "endpoints/e/async"))


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({}, "expected an InputLocation or a Body, and not both"),
        ({"InputLocation": "s3://b/k", "Body": b"x"}, "expected an InputLocation or a Body, and not both"),
        ({"Body": b"x" * 128_001}, "length less than or equal to 128000"),
        ({"Body": b"x", "S3OutputPathExtension": "a/../../b"}, "expected a path without .."),
        ({"Body": b"x", "RequestTTLSeconds": 21_601}, "less than or equal to 21600"),
        ({"Body": b"x", "ContentType": "a\nb"}, "expected printable ASCII"),
        ({"Body": b"x", "EndpointName": "another"}, "Endpoint another of account 000000000000 not found"),
    ],
)
def test_a_request_that_cannot_be_answered_is_not_accepted(endpoint, request_, reason):
    with pytest.raises(ClientError, match=f"ValidationError.*{re.escape(reason)}"):
        endpoint.runtime.invoke_endpoint_async(**{"EndpointName": "e", **request_})


OUTCOMES = {
    "a file": ({"InputLocation": "{folder}/in/file"}, "out/{id}.out", "answer to file"),
    "no such file": ({"InputLocation": "{folder}/in/none"}, "failed/{id}-error.out", "no such file"),
    "another scheme": ({"InputLocation": "https://host/key"}, "failed/{id}-error.out", "expected a URI"),
    "a place": ({"Body": b"p", "Filename": "f.json", "S3OutputPathExtension": "a/b"}, "out/a/b/f.json", "answer to p"),
    "any characters": ({"Body": b"q", "InferenceId": "../a b"}, "out/..%2Fa%20b.out", "answer to q"),
    "too late": (
        {"Body": b"stop late", "InvocationTimeoutSeconds": 1},
        "failed/{id}-error.out",
        "no answer within 1 s",
    ),
}


def test_an_outcome_is_where_the_answer_said(endpoint):
    (endpoint.folder / "in").mkdir()
    (endpoint.folder / "in" / "file").write_text("file")
    for case, (request, place, text) in OUTCOMES.items():
        uri = f"file://{endpoint.folder}"
        texts = {name: text.format(folder=uri) for name, text in request.items() if isinstance(text, str)}
        answer = endpoint.runtime.invoke_endpoint_async(EndpointName="e", **{**request, **texts})
        place = place.format(id=answer["InferenceId"])
        assert f"{uri}/{place}" in (answer["OutputLocation"], answer["FailureLocation"]), case
        wait_until((endpoint.folder / place).exists)
        assert text in (endpoint.folder / place).read_text(), case
    endpoint.release("stop late")


def test_an_endpoint_takes_one_kind_of_requests(endpoint):
    with pytest.raises(ClientError, match=r"ValidationError.*Endpoint e is asynchronous; use InvokeEndpointAsync"):
        endpoint.runtime.invoke_endpoint(EndpointName="e", Body=b"x")
    folder = endpoint.client.endpoints.directory("e") / endpoint.client.endpoints.read("e")["servers"][0]["folder"]
    assert f"no notification is sent here to {TOPIC}" in (folder / "container.log").read_text()
    found = endpoint.client.describe_endpoint(EndpointName="e")["AsyncInferenceConfig"]
    assert found["ClientConfig"] == {"MaxConcurrentInvocationsPerInstance": 2}


def test_what_predict_asks_by_waits_for_answers_and_leaves_no_request(endpoint):
    output = asynchronous.output_of(endpoint.client, "e")
    assert output == f"file://{endpoint.folder}/out"
    runtime = asynchronous.AsyncRuntime(endpoint.runtime, None, f"file://{endpoint.folder}/sent")
    assert runtime.invoke_endpoint(EndpointName="e", Body=b"waits")["Body"].read() == b"answer to waits"
    with pytest.raises(ClientError, match="division by zero") as caught:
        runtime.invoke_endpoint(EndpointName="e", Body=b"bad one")
    assert caught.value.response["Error"]["Code"] == "ModelError"
    assert not list((endpoint.folder / "sent" / "requests").iterdir())


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ({}, "lacks S3OutputPath"),
        ({"S3OutputPath": "/tmp/out"}, "S3OutputPath: '/tmp/out': expected a URI"),
        ({"S3OutputPath": "s3://b/o", "S3FailurePath": "ftp://b"}, "S3FailurePath: 'ftp://b': expected a URI"),
        ({"S3OutputPath": "s3://sagemaker-us-west-2-000000000000/o"}, "no place outside of AWS"),
    ],
)
def test_a_configuration_without_a_place_for_answers_is_refused(endpoint, output, reason):
    variant = {"VariantName": "v", "ModelName": "m", "InstanceType": "local"}
    with pytest.raises(ClientError, match=re.escape(reason)):
        endpoint.client.create_endpoint_config(
            EndpointConfigName="bad", ProductionVariants=[variant], AsyncInferenceConfig={"OutputConfig": output}
        )


def test_requests_that_wait_when_the_endpoint_is_deleted_fail(endpoint):
    """It is the last test of the endpoint."""
    texts = {f"stop {number}" for number in range(4)}
    for text in sorted(texts):
        endpoint.ask(text)
    wait_until(lambda: any(map(endpoint.asked, texts)))
    endpoint.client.delete_endpoint(EndpointName="e")
    for text in texts:
        failure = (endpoint.folder / "failed" / f"{quote(text)}-error.out").read_text()
        assert failure == "the endpoint was deleted before the request was answered"
        assert not (endpoint.folder / "out" / f"{quote(text)}.out").exists()


@pytest.mark.slow
def test_500_requests_through_a_server_and_a_process_that_are_killed_each_have_one_outcome(tmp_path, archive):
    """20 are broken, and the endpoint is updated meanwhile."""
    with client_of(tmp_path / "home") as client:
        endpoint = Endpoint(client, tmp_path, archive, most=4)
        good, bad = {f"good{number}" for number in range(480)}, {f"bad{number}" for number in range(20)}
        for number, text in enumerate(sorted(good | bad, key=hash)):
            endpoint.ask(text)
            if number in (100, 400):
                endpoint.worker().kill()
            if number == 400:  # the next call finds that there is no process
                for guard in running_below(tmp_path / "home", "--settle"):
                    guard.kill()
            if number == 200:
                server = client.endpoints.read("e")["servers"][0]
                Container(client.endpoints.directory("e") / server["folder"]).processes()[0].kill()
            if number == 300:
                settled(client)
                endpoint.configure("again", {})
                client.update_endpoint(EndpointName="e", EndpointConfigName="again")
        assert endpoint.settled(500) == (good, bad)
        # One that was with the model when what asked, or the server, was killed may be asked again.
        assert sum(endpoint.asked(text) - 1 for text in good) <= 12
        assert all(endpoint.asked(text) >= 1 for text in good | bad)
        assert settled(client) == "InService"
