"""Programs of others at a server's port: none of their answers passes as the model's, and none gets a body."""

import subprocess
import sys
import time
from contextlib import contextmanager

import psutil
import pytest
from helpers.waiting import nothing_runs_below, wait_until

from fastmaker.local.client import SageMaker
from fastmaker.local.runtime_client import SageMakerRuntime
from fastmaker.local.serving import instances

pytestmark = pytest.mark.slow
ECHO = """
def model_fn(model_dir): return "ours"
def input_fn(body, content_type): return bytes(body)
def predict_fn(body, model): return model.encode() + b":" + body
def output_fn(answer, accept): return answer, accept
"""
# Answers as a server does whose workers are ready, and writes down what it is sent.
STRANGER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self, body):
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.answer(b'[{"workers": [{"status": "READY", "pid": 1}]}]')
    def do_POST(self):
        print(self.rfile.read(int(self.headers["Content-Length"])), flush=True)
        self.answer(b"another's")
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@contextmanager
def stranger(port):
    """A program that listens at `port`; it must not have been sent anything."""
    process = subprocess.Popen([sys.executable, "-c", STRANGER, str(port)], stdout=subprocess.PIPE, text=True)
    try:
        yield process
        assert process.poll() is None, "the stranger came too late"
    finally:
        process.kill()
        sent = process.communicate()[0]
    assert sent == ""


@pytest.fixture
def client(tmp_path, model_archive):
    client = SageMaker("us-west-2", tmp_path / "home")
    environment = {"SAGEMAKER_PROGRAM": "inference.py", "SAGEMAKER_MODEL_SERVER_WORKERS": "1"}
    container = {"Image": "x", "ModelDataUrl": f"file://{model_archive(ECHO)}", "Environment": environment}
    client.create_model(ModelName="m", PrimaryContainer=container)
    variant = {"VariantName": "v", "ModelName": "m", "InstanceType": "local", "InitialInstanceCount": 1}
    client.create_endpoint_config(EndpointConfigName="m", ProductionVariants=[variant])
    yield client
    assert nothing_runs_below(tmp_path / "home")


def in_service(client):
    wait_until(lambda: client.describe_endpoint(EndpointName="e")["EndpointStatus"] == "InService")


def ask(tmp_path):
    runtime = SageMakerRuntime(tmp_path / "home")
    return runtime.invoke_endpoint(EndpointName="e", Body=b"private", ContentType="text/x")["Body"].read()


def test_an_endpoint_whose_port_is_taken_gets_another(client, tmp_path):
    client.create_endpoint(EndpointName="e", EndpointConfigName="m")
    (server,) = client.endpoints.read("e")["next_servers"]
    with stranger(server["port"]):
        in_service(client)
        assert client.endpoints.read("e")["servers"][0]["port"] != server["port"]
        assert ask(tmp_path) == b"ours:private"
    client.delete_endpoint(EndpointName="e")


def test_a_program_that_takes_the_port_of_a_dead_server_gets_no_body(client, tmp_path):
    client.create_endpoint(EndpointName="e", EndpointConfigName="m")
    in_service(client)
    assert ask(tmp_path) == b"ours:private"
    (server,) = client.endpoints.read("e")["servers"]
    for process in instances.container_of(client.endpoints, "e", server).processes():
        process.kill()
    with stranger(server["port"]):
        time.sleep(1)
        assert ask(tmp_path) == b"ours:private"
    client.delete_endpoint(EndpointName="e")


def test_after_a_reboot_an_endpoint_is_failed_and_nobody_gets_a_body(client, tmp_path):
    client.create_endpoint(EndpointName="e", EndpointConfigName="m")
    in_service(client)
    (server,) = client.endpoints.read("e")["servers"]
    container = instances.container_of(client.endpoints, "e", server)
    container.stop(0)
    with client.endpoints.changing("e") as record:
        record["servers"][0]["boot"] = "an earlier one"
    with stranger(server["port"]):
        time.sleep(1)
        with pytest.raises(SageMakerRuntime(tmp_path / "home").exceptions.ValidationError, match="not in service"):
            ask(tmp_path)
    client.delete_endpoint(EndpointName="e")


def test_a_batch_job_whose_port_is_taken_gets_another_and_every_answer_is_the_models(client, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for number in range(20):
        (source / f"{number}").write_text(f"{number}")
    request = {
        "TransformJobName": "job",
        "ModelName": "m",
        "TransformInput": {
            "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"file://{source}"}},
            "ContentType": "text/x",
        },
        "TransformOutput": {"S3OutputPath": f"file://{tmp_path / 'output'}"},
        "TransformResources": {"InstanceType": "local", "InstanceCount": 1},
    }
    client.create_transform_job(**request)
    with stranger(wait_until(lambda: _chosen_port(client.transform_jobs.directory("job")))):
        final = ("Completed", "Failed")
        wait_until(lambda: client.describe_transform_job(TransformJobName="job")["TransformJobStatus"] in final)
    assert client.describe_transform_job(TransformJobName="job")["TransformJobStatus"] == "Completed"
    answers = {path.name: path.read_text() for path in (tmp_path / "output").glob("*.out")}
    assert answers == {f"{number}.out": f"ours:{number}" for number in range(20)}


def _chosen_port(directory):
    """The port that a server of a job was told to listen at, as soon as its first process lives."""
    for process in psutil.process_iter():
        try:
            environment = process.environ()
        except psutil.Error:
            continue
        if environment.get("SAGEMAKER_BASE_DIR", "").startswith(str(directory)):
            return int(environment["SAGEMAKER_BIND_TO_PORT"])
    return None
