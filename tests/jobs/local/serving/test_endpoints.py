import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import psutil
import pytest
from botocore.exceptions import ClientError
from helpers import PATIENCE, REPOSITORY
from helpers.local_mode import bundle_model, deployed, running_below, script_mode, wait_until, workers_of
from helpers.shapes import assert_answers_as
from sagemaker.exceptions import UnexpectedStatusException
from sagemaker.model import Model
from sagemaker.predictor import Predictor

from fastmaker import preprocess
from fastmaker.local import ProcessSession
from fastmaker.local.containers import pack
from fastmaker.local.serving import instances, torchserve
from fastmaker.serving import models


def invoke(session, name, body, content_type="application/x-image", accept="application/json", **arguments):
    answer = session.sagemaker_runtime_client.invoke_endpoint(
        EndpointName=name, Body=body, ContentType=content_type, Accept=accept, **arguments
    )
    assert_answers_as("InvokeEndpoint", {**answer, "Body": answer["Body"].read()}, "sagemaker-runtime")
    answer["Body"] = answer["Body"]._raw_stream.getvalue()
    return answer


def containers_of(session, name):
    store = session.sagemaker_client.endpoints
    return [instances.container_of(store, name, server) for server in store.read(name)["servers"]]


@pytest.fixture(scope="session")
def digit(digits):
    return next(iter(sorted(digits.rglob("*.png")))).read_bytes()


ECHO = """
def model_fn(model_dir): return {name!r}
def input_fn(body, content_type): return bytes(body)
def predict_fn(body, model): return model.encode() + b":" + body
def output_fn(answer, accept): return answer, accept
"""


@pytest.mark.containers
def test_the_endpoint_gives_the_bits_that_the_bundle_gives(session, digits_predictor, digits_bundle, digits):
    model = models.load(digits_bundle)
    for file in sorted(digits.rglob("*.png"))[::90]:
        expected = model.predict([preprocess.decode(file.read_bytes())])[0].probabilities
        answer = invoke(session, digits_predictor.endpoint_name, file.read_bytes(), accept="application/x-npy")
        header = len(answer["Body"]) - expected.nbytes
        assert np.array_equal(np.frombuffer(answer["Body"][header:], np.float32), expected)


@pytest.mark.containers
def test_a_predictor_of_the_sdk_works_unchanged(session, digits_predictor, digit):
    from sagemaker.deserializers import JSONDeserializer
    from sagemaker.serializers import IdentitySerializer

    predictor = Predictor(digits_predictor.endpoint_name, session, IdentitySerializer("image/png"), JSONDeserializer())
    answer = predictor.predict(digit)
    assert answer["label"] in set("0123456789")
    assert answer["predictions"] == answer["index"]


def test_answers_about_endpoints_have_boto3s_shapes(session, digits_predictor):
    client = session.sagemaker_client
    description = client.describe_endpoint(EndpointName=digits_predictor.endpoint_name)
    assert_answers_as("DescribeEndpoint", description)
    config = client.describe_endpoint_config(EndpointConfigName=description["EndpointConfigName"])
    assert_answers_as("DescribeEndpointConfig", config)
    model = client.describe_model(ModelName=config["ProductionVariants"][0]["ModelName"])
    assert_answers_as("DescribeModel", model)
    assert_answers_as("ListEndpoints", client.list_endpoints())
    assert_answers_as("ListEndpointConfigs", client.list_endpoint_configs())
    assert_answers_as("ListModels", client.list_models())
    assert digits_predictor.endpoint_name in [e["EndpointName"] for e in client.list_endpoints()["Endpoints"]]


@pytest.mark.containers
@pytest.mark.parametrize(
    ("body", "content_type", "accept", "status", "reason"),
    [
        (b"no image", "application/x-image", "application/json", 400, "not an image"),
        (b"", "application/x-image", "application/json", 400, "empty"),
        (b"\xff\xfe{", "application/json", "application/json", 400, "not JSON"),
        (b"", "application/json", "application/json", 400, "empty"),
        (b"\x80" * 100, "text/csv", "application/json", 415, "text/csv"),
        (b"x", "application/pdf", "application/json", 415, "application/pdf"),
        (None, "application/x-image", "image/png", 406, "image/png"),
    ],
)
def test_a_bad_request_gets_its_status_and_a_first_line_that_says_why(
    session, digits_predictor, digit, body, content_type, accept, status, reason
):
    with pytest.raises(session.sagemaker_runtime_client.exceptions.ModelError) as caught:
        invoke(session, digits_predictor.endpoint_name, digit if body is None else body, content_type, accept)
    assert caught.value.response["OriginalStatusCode"] == status
    assert reason in caught.value.response["OriginalMessage"].splitlines()[0]


def test_an_unknown_endpoint_or_variant_is_a_validation_error(session, digits_predictor, digit):
    with pytest.raises(ClientError, match="not found") as caught:
        invoke(session, "nobody-made-this", digit)
    assert caught.value.response["Error"]["Code"] == "ValidationError"
    with pytest.raises(ClientError, match="no variant"):
        invoke(session, digits_predictor.endpoint_name, digit, TargetVariant="Other")


def test_servers_listen_on_loopback_only(session, digits_predictor):
    processes = containers_of(session, digits_predictor.endpoint_name)[0].processes()
    listening = [c for p in processes for c in p.net_connections() if c.status == psutil.CONN_LISTEN]
    assert listening
    # gRPC, which cannot be turned off, listens where nobody can connect.
    places = {"127.0.0.1"} if sys.platform != "linux" else {"127.0.0.1", torchserve.UNREACHABLE}
    assert {connection.laddr.ip.removeprefix("::ffff:") for connection in listening} == places


def test_a_killed_worker_comes_back(session, digits_predictor, digit):
    name = digits_predictor.endpoint_name
    (before,) = workers_of(session, name)
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: (pids := workers_of(session, name)) and pids != [before])
    assert json.loads(invoke(session, name, digit)["Body"])["label"]


@pytest.mark.containers
def test_two_endpoints_at_once_answer_from_their_own_models(session, model_archive):
    first, second = (model_archive(ECHO.format(name=name), name) for name in ("first", "second"))
    with (
        deployed(session, first, env={"SAGEMAKER_PROGRAM": "inference.py"}) as one,
        deployed(session, second, env={"SAGEMAKER_PROGRAM": "inference.py"}) as two,
    ):
        assert invoke(session, one.endpoint_name, b"x")["Body"] == b"first:x"
        assert invoke(session, two.endpoint_name, b"x")["Body"] == b"second:x"


@pytest.mark.containers
def test_an_endpoint_is_used_and_deleted_from_another_process(home, session, digits_archive, digit, tmp_path):
    (tmp_path / "digit.png").write_bytes(digit)
    predictor = bundle_model(session, digits_archive).deploy(1, "local", endpoint_name="shared")

    def script(*words):
        env = {**os.environ, "FASTMAKER_HOME": str(home)}
        return subprocess.run(
            [sys.executable, "-m", "fastmaker.jobs", *words], env=env, cwd=REPOSITORY, capture_output=True, text=True
        )

    asked = script("predict", "--endpoint", "shared", "--json", str(tmp_path / "digit.png"))
    assert json.loads(asked.stdout)["label"] in set("0123456789"), asked.stderr
    deleted = script("cleanup", "--endpoint", "shared")
    assert deleted.returncode == 0, deleted.stderr
    with pytest.raises(ClientError, match="Could not find"):
        session.sagemaker_client.describe_endpoint(EndpointName=predictor.endpoint_name)
    assert not running_below(home / "endpoints" / "shared")


@pytest.mark.containers
def test_several_instances_all_answer_and_all_go(home, session, model_archive):
    pid = "import os, socket\n" + textwrap.dedent(ECHO.format(name="pid")).replace(
        'model.encode() + b":" + body', 'f"{socket.gethostname()} {os.getpid()}".encode()'
    )
    with deployed(session, model_archive(pid), 2, env={"SAGEMAKER_PROGRAM": "inference.py"}) as predictor:
        name = predictor.endpoint_name
        assert len({invoke(session, name, b"x")["Body"] for _ in range(40)}) == 2
        variant = session.sagemaker_client.describe_endpoint(EndpointName=name)["ProductionVariants"][0]
        assert variant["CurrentInstanceCount"] == 2
    assert not running_below(home / "endpoints" / name)


@pytest.mark.containers
def test_a_model_that_cannot_load_fails_the_endpoint_with_its_reason(home, session, model_archive):
    archive = model_archive("def model_fn(model_dir): raise OSError('the weights are a fish')")
    model = script_mode(session, archive, SAGEMAKER_MODEL_SERVER_WORKERS="2")
    with pytest.raises(UnexpectedStatusException, match="the weights are a fish"):
        model.deploy(1, "local", endpoint_name="fish")
    description = session.sagemaker_client.describe_endpoint(EndpointName="fish")
    assert_answers_as("DescribeEndpoint", description)
    assert description["EndpointStatus"] == "Failed"
    assert not running_below(home / "endpoints" / "fish")
    session.sagemaker_client.delete_endpoint(EndpointName="fish")


@pytest.mark.containers
def test_an_altered_bundle_fails_the_endpoint_naming_the_file(session, digits_bundle, tmp_path):
    folder = shutil.copytree(digits_bundle, tmp_path / "bundle")
    data = bytearray((folder / "model.pth").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.pth").write_bytes(data)
    pack(folder, tmp_path / "model.tar.gz")
    with pytest.raises(UnexpectedStatusException, match=r"BundleError.*model\.pth.*altered"):
        bundle_model(session, tmp_path / "model.tar.gz").deploy(1, "local", endpoint_name="altered")
    session.sagemaker_client.delete_endpoint(EndpointName="altered")


@pytest.mark.containers
def test_an_archive_that_is_none_fails_the_endpoint(session, tmp_path):
    (tmp_path / "model.tar.gz").write_bytes(b"no archive")
    with pytest.raises(UnexpectedStatusException, match="cannot be unpacked"):
        bundle_model(session, tmp_path / "model.tar.gz").deploy(1, "local", endpoint_name="no-archive")
    session.sagemaker_client.delete_endpoint(EndpointName="no-archive")


@pytest.mark.containers
def test_a_server_that_died_is_started_again_and_the_endpoint_fails_where_it_cannot_be(session, model_archive):
    archive = model_archive(ECHO.format(name="mortal"))
    client = session.sagemaker_client
    with deployed(session, archive, env={"SAGEMAKER_PROGRAM": "inference.py"}) as predictor:
        name = predictor.endpoint_name
        (container,) = containers_of(session, name)
        for process in container.processes():
            process.kill()
        wait_until(lambda: not container.alive())
        assert client.describe_endpoint(EndpointName=name)["EndpointStatus"] == "InService"
        assert invoke(session, name, b"x")["Body"] == b"mortal:x"
        with client.endpoints.changing(name) as record:
            record["servers"][0]["restarts"] = [time.time()] * instances.RESTARTS
        for process in container.processes():
            process.kill()
        wait_until(lambda: not container.alive())
        description = client.describe_endpoint(EndpointName=name)
        assert description["EndpointStatus"] == "Failed"
        assert "has died" in description["FailureReason"]
        with pytest.raises(ClientError, match="not in service"):
            invoke(session, name, b"x")


@pytest.mark.containers
def test_an_update_brings_the_new_model_and_a_failing_one_keeps_the_old(home, session, model_archive):
    old, new = (model_archive(ECHO.format(name=name), name) for name in ("old", "new"))
    bad = model_archive("def model_fn(model_dir): raise OSError('no')", "bad")
    client = session.sagemaker_client
    with deployed(session, old, env={"SAGEMAKER_PROGRAM": "inference.py"}) as predictor:
        for archive, answer in ((new, b"new:x"), (bad, b"new:x")):
            model = script_mode(session, archive)
            model._create_sagemaker_model("local")
            predictor.update_endpoint(initial_instance_count=1, instance_type="local", model_name=model.name)
            assert invoke(session, predictor.endpoint_name, b"x")["Body"] == answer
        description = client.describe_endpoint(EndpointName=predictor.endpoint_name)
        assert "rolled back" in description["FailureReason"]
        (container,) = containers_of(session, predictor.endpoint_name)
        below = running_below(home / "endpoints" / predictor.endpoint_name)
        assert below
        assert {process.pid for process in below} <= {process.pid for process in container.processes()}


@pytest.mark.containers
def test_a_timeout_that_is_set_holds(session, model_archive):
    slow = "import time\n" + textwrap.dedent(ECHO.format(name="slow")).replace(
        "return model.enc", "time.sleep(3600); model.enc"
    )
    env = {"SAGEMAKER_PROGRAM": "inference.py", "SAGEMAKER_MODEL_SERVER_TIMEOUT": "2"}
    with deployed(session, model_archive(slow), env=env) as predictor:
        (container,) = containers_of(session, predictor.endpoint_name)
        (server,) = session.sagemaker_client.endpoints.read(predictor.endpoint_name)["servers"]
        assert torchserve.describe(container, server["port"])["responseTimeout"] == 2
        with pytest.raises(session.sagemaker_runtime_client.exceptions.ModelError) as caught:
            invoke(session, predictor.endpoint_name, b"x")
        assert caught.value.response["OriginalStatusCode"] >= 500


@pytest.mark.containers
def test_an_entry_point_of_ones_own_is_repacked_and_a_worker_imports_no_fastai(session, digits_archive, tmp_path):
    (tmp_path / "probe.py").write_text(
        "import sys\nfrom entry_point import *\n"
        "def output_fn(answer, accept): return ' '.join(sorted(sys.modules)).encode(), 'text/plain'\n"
    )
    archive = shutil.copy(digits_archive, tmp_path / "model.tar.gz")
    arguments = {"entry_point": str(tmp_path / "probe.py"), "env": {}}
    with deployed(session, archive, **arguments) as predictor:
        image = np.zeros((28, 28), np.uint8)
        from sagemaker.serializers import NumpySerializer

        body = NumpySerializer(np.uint8).serialize(image)
        modules = invoke(session, predictor.endpoint_name, body, "application/x-npy")["Body"].decode().split()
    assert "torch" in modules
    assert not {"fastai", "spacy", "pandas", "matplotlib", "sagemaker", "boto3"} & set(modules)


@pytest.mark.server
def test_ctrl_c_during_deploy_leaves_no_process(tmp_path, model_archive):
    archive = model_archive("import time\ndef model_fn(model_dir): print('loading', flush=True); time.sleep(3600)")
    program = f"""
        import signal, sys
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job of a shell's background ignores
        sys.path[:0] = [{str(REPOSITORY / "tests")!r}]
        from helpers.local_mode import bundle_model
        from fastmaker.local import ProcessSession
        session = ProcessSession(home={str(tmp_path / "home")!r})
        model = bundle_model(session, {str(archive)!r}, env={{"SAGEMAKER_PROGRAM": "inference.py"}})
        model.deploy(1, "local", endpoint_name="interrupted")
    """
    deploy = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], cwd=REPOSITORY)

    def loading():
        logs = (tmp_path / "home").glob("endpoints/interrupted/*/*/container.log")
        return any("MODEL_LOG - loading" in log.read_text() for log in logs)

    wait_until(loading)
    deploy.send_signal(signal.SIGINT)
    deploy.communicate(timeout=PATIENCE)
    assert deploy.returncode != 0
    assert not running_below(tmp_path / "home")
    description = ProcessSession(home=tmp_path / "home").sagemaker_client.describe_endpoint(EndpointName="interrupted")
    assert description["EndpointStatus"] == "Failed"


def test_a_plain_model_takes_its_code_from_a_directory(session, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "inference.py").write_text(textwrap.dedent(ECHO.format(name="plain")))
    model = Model(
        image_uri="pytorch-inference",
        entry_point="inference.py",
        source_dir=str(source),
        role="local",
        sagemaker_session=session,
        predictor_cls=Predictor,
    )
    predictor = model.deploy(1, "local")
    assert invoke(session, predictor.endpoint_name, b"x")["Body"] == b"plain:x"
    predictor.delete_model()
    predictor.delete_endpoint()


@pytest.mark.parametrize(
    ("variant", "reason"),
    [
        ({"InstanceType": "ml.m5.large"}, "serves on local"),
        ({"VariantName": "../elsewhere"}, "regular expression pattern"),
        ({"ServerlessConfig": {"MemorySizeInMB": 1024, "MaxConcurrency": 1}}, "ServerlessConfig needs AWS"),
    ],
)
def test_a_configuration_that_cannot_be_had_is_refused(session, variant, reason):
    variants = [{"VariantName": "v", "ModelName": "m", "InstanceType": "local", **variant}]
    with pytest.raises(ClientError, match=reason):
        session.sagemaker_client.create_endpoint_config(EndpointConfigName="c", ProductionVariants=variants)


def test_a_model_in_the_sessions_s3_is_deployed_from_there(s3, front, bucket, home, model_archive, monkeypatch):
    s3.upload_file(str(model_archive(ECHO.format(name="from S3"))), bucket, "models/model.tar.gz")
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    session = ProcessSession(home=home, s3_endpoint_url=front["AWS_ENDPOINT_URL"])
    model = script_mode(session, "")
    model.model_data = f"s3://{bucket}/models/model.tar.gz"
    predictor = model.deploy(1, "local")
    try:
        assert invoke(session, predictor.endpoint_name, b"x")["Body"] == b"from S3:x"
    finally:
        predictor.delete_model()
        predictor.delete_endpoint()
