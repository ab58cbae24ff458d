"""Data capture: the lines that an endpoint leaves, and that none is lost which a killed process had written."""

import base64
import json
import re
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from botocore.exceptions import ClientError
from helpers.engine_requests import IMAGE, client_of, settled
from helpers.waiting import wait_until

from fastmaker.local.containers import pack
from fastmaker.local.runtime_client import SageMakerRuntime
from fastmaker.local.serving import capture, delivery

pytestmark = pytest.mark.server
BOTH = [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}]
TYPES = {"CsvContentTypes": ["text/csv", "text/x"], "JsonContentTypes": ["application/json"]}
ECHO = """
def model_fn(model_dir): return b"m:"
def input_fn(body, content_type): return body.encode() if isinstance(body, str) else bytes(body)
def predict_fn(body, model): return model + body
def output_fn(answer, accept): return answer, accept
"""
PLACE = re.compile(r"e/v/\d{4}/\d\d/\d\d/\d\d/\d\d-\d\d-\d{3}-[0-9a-f-]{36}\.jsonl")


class Endpoint:
    """An endpoint `e` that answers with what it was sent, and the folder that captures go to."""

    def __init__(self, client, folder, archive):
        self.client, self.folder, self.home = client, folder, client.endpoints.folder.parent
        client.create_model(ModelName="m", PrimaryContainer={**IMAGE, "ModelDataUrl": f"file://{archive}"})
        self.configure("c", 100)
        client.create_endpoint(EndpointName="e", EndpointConfigName="c")
        assert settled(client) == "InService"

    def configure(self, name, percent, options=BOTH, **config):
        variant = {"VariantName": "v", "ModelName": "m", "InstanceType": "local", "InitialInstanceCount": 1}
        config = {"DestinationS3Uri": f"file://{self.folder}", "CaptureContentTypeHeader": TYPES, **config}
        config |= {"InitialSamplingPercentage": percent, "CaptureOptions": options}
        self.client.create_endpoint_config(
            EndpointConfigName=name, ProductionVariants=[variant], DataCaptureConfig=config
        )

    def runtime(self):
        return SageMakerRuntime(self.home)

    def lines(self):
        """The lines in the files of captures, which have the names that AWS gives them."""
        files = [file for file in sorted(self.folder.rglob("*")) if file.suffix == ".jsonl"]
        assert all(PLACE.fullmatch(str(file.relative_to(self.folder))) for file in files)
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    def bodies(self):
        return [base64.b64decode(line["captureData"]["endpointInput"]["data"]).decode() for line in self.lines()]


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    (folder / "code").mkdir()
    (folder / "code" / "inference.py").write_text(ECHO)
    pack(folder, folder.with_suffix(".tar.gz"))
    with client_of(tmp_path_factory.mktemp("home")) as client:
        yield Endpoint(client, tmp_path_factory.mktemp("captures"), folder.with_suffix(".tar.gz"))


@pytest.fixture
def captures(endpoint, tmp_path, monkeypatch):
    """captures(percent, options, ...): the endpoint, whose captures go to an empty folder from now on."""

    monkeypatch.setattr(capture, "SECONDS", 0.1)

    def configured(*given, **config):
        endpoint.folder = tmp_path
        name = uuid.uuid4().hex
        endpoint.configure(name, *given, **config)
        found = endpoint.client.describe_endpoint_config(EndpointConfigName=name)["DataCaptureConfig"]
        with endpoint.client.endpoints.changing("e") as content:  # as an update does, without its new servers
            for server in content["servers"]:
                server["capture"] = found
        return endpoint

    return configured


# What was sent, with its type; how the request and the answer are kept
ENCODINGS = {
    "an image": (b"\xff\xd8", "image/jpeg", "*/*", ("BASE64", "BASE64")),
    "csv": (b"1,2", "text/csv", "application/json", ("CSV", "JSON")),
    "a charset": (b"1,2", "text/CSV; charset=utf-8", "text/csv", ("CSV", "CSV")),
    "no text": (b"\xff", "text/x", "text/plain", ("BASE64", "BASE64")),
}


def test_a_line_has_what_the_documentation_says(captures):
    endpoint = captures(100)
    runtime = endpoint.runtime()
    for body, content_type, accept, _ in ENCODINGS.values():
        runtime.invoke_endpoint(
            EndpointName="e", Body=body, ContentType=content_type, Accept=accept, InferenceId="i", CustomAttributes="a"
        )
    lines = wait_until(lambda: len(found := endpoint.lines()) == len(ENCODINGS) and found)
    for line, (case, (body, content_type, _, encodings)) in zip(lines, ENCODINGS.items(), strict=True):
        sent, answer = line["captureData"]["endpointInput"], line["captureData"]["endpointOutput"]
        assert (sent["encoding"], answer["encoding"]) == encodings, case
        assert (sent["mode"], answer["mode"]) == ("INPUT", "OUTPUT")
        assert sent["observedContentType"] == content_type
        for side, content in ((sent, body), (answer, b"m:" + body)):
            data = side["data"]
            assert (base64.b64decode(data) if side["encoding"] == "BASE64" else data.encode()) == content, case
        metadata = line["eventMetadata"]
        assert metadata.keys() == {"eventId", "inferenceId", "customAttributes", "inferenceTime"}
        assert (metadata["inferenceId"], metadata["customAttributes"]) == ("i", ["a"])
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", metadata["inferenceTime"])
        assert line["eventVersion"] == "0"


@pytest.mark.parametrize(
    ("percent", "options", "config", "sides"),
    [
        (100, [{"CaptureMode": "Input"}], {}, {"endpointInput"}),
        (100, [{"CaptureMode": "InputAndOutput"}], {}, {"endpointInput", "endpointOutput"}),
        (0, BOTH, {}, None),
        (100, BOTH, {"EnableCapture": False}, None),
    ],
)
def test_what_the_configuration_asks_for_is_captured(captures, percent, options, config, sides):
    endpoint = captures(percent, options, **config)
    runtime = endpoint.runtime()
    runtime.invoke_endpoint(EndpointName="e", Body=b"x")
    if sides:
        wait_until(endpoint.lines)
    assert [line["captureData"].keys() for line in endpoint.lines()] == ([sides] if sides else [])


def test_an_endpoint_says_that_it_captures(endpoint):
    found = endpoint.client.describe_endpoint(EndpointName="e")["DataCaptureConfig"]
    assert found["CaptureStatus"] == "Started"
    assert found["CurrentSamplingPercentage"] == 100
    assert found["EnableCapture"] is True


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"DestinationS3Uri": "https://host/path"}, "DestinationS3Uri: 'https://host/path': expected a URI"),
        ({"DestinationS3Uri": "file:///tmp/c", "KmsKeyId": "key"}, "KmsKeyId encrypts objects in S3; leave it out"),
        ({"DestinationS3Uri": "s3://sagemaker-us-west-2-000000000000/c"}, "no place outside of AWS"),
    ],
)
def test_a_configuration_without_a_place_for_captures_is_refused(endpoint, config, reason):
    with pytest.raises(ClientError, match=re.escape(reason)):
        endpoint.configure("bad", 100, **config)


KILLED = """
import sys, time
from pathlib import Path
from fastmaker.local.runtime_client import SageMakerRuntime
runtime = SageMakerRuntime(Path(sys.argv[1]))
for number in range(5):
    runtime.invoke_endpoint(EndpointName="e", Body=f"{number}")
print("asked", flush=True)
time.sleep(600)
"""


def test_lines_of_a_process_that_is_killed_are_put_in_their_place_whole(captures):
    endpoint = captures(100)
    command = [sys.executable, "-c", KILLED, str(endpoint.home)]
    spool = endpoint.client.endpoints.directory("e") / delivery.FOLDER

    def written():
        return [file for file in spool.glob("*.jsonl") if file.read_bytes().count(b"\n") == 5]

    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"asked\n"
        file = wait_until(written)[0]
        process.kill()
    with open(file, "ab") as stream:
        stream.write(b'{"captureData": {"end')  # as if it had been killed in the middle of a line
    endpoint.client.describe_endpoint(EndpointName="e")
    assert endpoint.bodies() == [str(number) for number in range(5)]
    assert not list(spool.iterdir())


def test_a_place_that_is_missing_for_a_while_gets_all_lines(captures, monkeypatch, caplog):
    monkeypatch.setattr(capture, "RETRY_SECONDS", 0.1)
    endpoint = captures(100)
    endpoint.folder.rmdir()
    endpoint.folder.write_text("a file in the place of a folder")
    runtime = endpoint.runtime()
    runtime.invoke_endpoint(EndpointName="e", Body=b"first")
    wait_until(lambda: "data capture: file://" in caplog.text)
    endpoint.folder.unlink()
    wait_until(endpoint.folder.is_dir)
    assert endpoint.bodies() == ["first"]


def test_more_than_can_be_written_is_left_out_and_told(captures, monkeypatch):
    monkeypatch.setattr(capture, "BODY_BYTES", 10)
    endpoint = captures(100)
    runtime = endpoint.runtime()
    for body in (b"x", b"x" * 11):
        runtime.invoke_endpoint(EndpointName="e", Body=body)
    assert wait_until(endpoint.bodies) == ["x"]
    folder = endpoint.client.endpoints.directory("e") / endpoint.client.endpoints.read("e")["servers"][0]["folder"]
    told = "data capture left out 1 requests: they or their answers have more than 10 bytes"
    wait_until(lambda: told in (folder / "container.log").read_text())


@pytest.mark.slow
def test_a_tenth_of_10000_requests_is_captured(captures, monkeypatch):
    monkeypatch.setattr(capture, "SECONDS", 5.0)
    endpoint = captures(10)
    runtime = endpoint.runtime()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: runtime.invoke_endpoint(EndpointName="e", Body=b"x" * 50_000), range(10_000)))
    wait_until(lambda: not list((endpoint.client.endpoints.directory("e") / delivery.FOLDER).iterdir()))
    captured = len(endpoint.lines())
    print(f"captured {captured} of 10,000")
    assert 850 <= captured <= 1150
