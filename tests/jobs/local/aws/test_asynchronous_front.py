"""Asynchronous endpoints by the SDK, of AWS on this machine, which is killed while requests wait."""

import os

import pytest
import sagemaker
from helpers.front import client_of, kill_server
from helpers.front_jobs import HERE, ROLE, SERVING_IMAGE, packed
from helpers.waiting import nothing_runs_below, wait_until
from sagemaker.async_inference import AsyncInferenceConfig, WaiterConfig
from sagemaker.exceptions import AsyncInferenceModelError
from sagemaker.model import Model
from sagemaker.predictor import Predictor

from fastmaker.local import aws
from fastmaker.local.serving import queues

# Threads of the SDK go on looking at S3 after the test has ended.
IGNORED = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
pytestmark = [pytest.mark.server, pytest.mark.slow, IGNORED]
WAITS = WaiterConfig(max_attempts=120, delay=1)
SERVE = """
import os, time
def model_fn(model_dir): return model_dir
def input_fn(body, content_type): return bytes(body) if body != b"type" else content_type.encode()
def predict_fn(body, model):
    while body == b"slow" and not os.path.exists({go!r}): time.sleep(0.02)
    return b"answer to " + body if body != b"bad" else 1 / 0
def output_fn(answer, accept): return answer, accept
"""


@pytest.fixture
def environment_of(monkeypatch):
    """environment_of(variables): the SDK finds AWS on this machine as a program does that `fastmaker aws` starts."""

    def enter(variables):
        for name in aws.without_others(dict(os.environ)).keys() ^ os.environ.keys():
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return enter


def deployed(go):
    """An AsyncPredictor of the SDK, of an unmodified program's session."""
    session = sagemaker.Session()
    s3 = session.boto_session.client("s3")
    s3.create_bucket(Bucket="models", CreateBucketConfiguration=HERE)
    archive = packed(weights__txt="weights", code___inference__py=SERVE.format(go=str(go)))
    s3.put_object(Bucket="models", Key="model.tar.gz", Body=archive)
    env = {"SAGEMAKER_PROGRAM": "inference.py", "SAGEMAKER_MODEL_SERVER_WORKERS": "1"}
    model = Model(SERVING_IMAGE, "s3://models/model.tar.gz", ROLE, Predictor, env=env, sagemaker_session=session)
    config = AsyncInferenceConfig(max_concurrent_invocations_per_instance=1)
    return model.deploy(1, "ml.m5.xlarge", endpoint_name="e", async_inference_config=config)


def test_the_sdk_waits_for_answers_and_a_killed_server_loses_no_request(tmp_path, environment_of):
    go, home = tmp_path / "go", tmp_path / "home"
    with aws.running(home) as environment:
        environment_of(environment)
        predictor = deployed(go)
        assert predictor.predict(b"one", waiter_config=WAITS) == b"answer to one"
        with pytest.raises(AsyncInferenceModelError, match="division by zero"):
            predictor.predict(b"bad", waiter_config=WAITS)
        typed = {"Bucket": "models", "Key": "typed", "Body": b"type"}
        for given, expected in (("text/x", b"text/x"), ("binary/octet-stream", b"application/octet-stream")):
            client_of(environment, "s3").put_object(**typed, ContentType=given)
            answer = predictor.predict(input_path="s3://models/typed", waiter_config=WAITS)
            assert answer == b"answer to " + expected
        waiting = [predictor.predict_async(data) for data in (b"slow", b"two", b"three")]
        kill_server()
    go.touch()
    folder = home / "endpoints" / "e" / queues.FOLDER
    assert queues.waiting(folder), "their inputs and answers are in S3, which is gone"
    with aws.running(home) as environment:
        found = [response.get_result(WAITS) for response in waiting]
        assert found == [b"answer to slow", b"answer to two", b"answer to three"]
        wait_until(lambda: not queues.waiting(folder))
        client_of(environment, "sagemaker").delete_endpoint(EndpointName="e")
    assert nothing_runs_below(home)
