"""A full disk, as store of the engine and as output of jobs: nothing half made, and all works once there is space.

The tests run in a mount namespace of their own, in which two small file systems are mounted.
"""

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from helpers import PATIENCE, REPOSITORY
from helpers.engine_requests import ECHO, client_of, make_model, settled, training_request, transform_request
from helpers.waiting import wait_until

from fastmaker.local.runtime_client import SageMakerRuntime
from fastmaker.local.supervisor import FINAL

pytestmark = pytest.mark.slow
VARIABLE = "FASTMAKER_SMALL_DISKS"  # the folder that holds both
MOUNT = 'for name in home output; do mount -t tmpfs -o size=24m tmpfs "$0/$name" || exit 77; done; exec "$@"'
SCRIPT = """
import os, sys, time
from pathlib import Path
go, size = Path(os.environ["GO"]), int(os.environ["SIZE"])
print("started", flush=True)
while not go.exists(): time.sleep(0.05)
Path(os.environ["SM_MODEL_DIR"], "weights").write_bytes(os.urandom(size))
"""
inside = pytest.mark.skipif(VARIABLE not in os.environ, reason="runs where small file systems are mounted")


@pytest.mark.skipif(VARIABLE in os.environ, reason="this is that run")
def test_on_small_disks(tmp_path):
    for name in ("home", "output"):
        (tmp_path / name).mkdir()
    user = [] if os.getuid() == 0 else ["--map-root-user"]
    tests = [sys.executable, "-m", "pytest", "-q", "-n0", "-s", "-p", "no:cacheprovider", "-m", "slow", __file__]
    command = ["unshare", "--mount", *user, "sh", "-c", MOUNT, str(tmp_path), *tests]
    env = {**os.environ, VARIABLE: str(tmp_path)}
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=20 * PATIENCE)
    if "passed" not in done.stdout and re.search("unshare|mount:", done.stderr):
        pytest.skip(f"no file system can be mounted here: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    print(done.stdout)


@pytest.fixture
def home():
    return Path(os.environ[VARIABLE], "home")


@pytest.fixture
def output():
    return Path(os.environ[VARIABLE], "output")


@pytest.fixture
def client(home):
    with client_of(home) as client:
        yield client
    for store in (client.training_jobs, client.transform_jobs, client.endpoint_configs, client.models):
        for name in store.names():
            store.delete(name)
    assert [str(path) for path in home.rglob("*") if path.is_file()] == []


@contextlib.contextmanager
def full(folder):
    """Have no space on the disk of a folder while the context lasts."""
    filler = folder / ".filler"
    with open(filler, "wb", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
    with pytest.raises(OSError, match="No space left on device"):
        (folder / ".one-more").write_bytes(b"x" * 5000)
    (folder / ".one-more").unlink(missing_ok=True)
    try:
        yield
    finally:
        filler.unlink()


def ended(client, kind, name):
    """The description of a job once it is over."""
    words = {"TrainingJob": "training_job", "TransformJob": "transform_job"}

    def look():
        found = getattr(client, f"describe_{words[kind]}")(**{f"{kind}Name": name})
        return found if found[f"{kind}Status"] in FINAL else None

    return wait_until(look)


@pytest.fixture
def archive(model_archive):
    return model_archive(ECHO.format(name="m"))


@pytest.fixture
def inputs(tmp_path):
    folder = tmp_path / "inputs"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number}").write_text(f"{number}" * 1000)
    return folder


def creations(archive, source, inputs, output):
    container = {"Image": "x", "ModelDataUrl": f"file://{archive}"}
    variant = {"VariantName": "v", "ModelName": "m", "InstanceType": "local", "InitialInstanceCount": 1}
    return {
        "create_model": {"ModelName": "n", "PrimaryContainer": container},
        "create_endpoint_config": {"EndpointConfigName": "n", "ProductionVariants": [variant]},
        "create_endpoint": {"EndpointName": "n", "EndpointConfigName": "m"},
        "create_training_job": training_request("n", source, output),
        "create_transform_job": transform_request("n", "m", inputs, output),
        "add_tags": {
            "ResourceArn": "arn:aws:sagemaker:us-west-2:000000000000:model/m",
            "Tags": [{"Key": "k", "Value": "v"}],
        },
    }


@inside
def test_what_is_created_on_a_full_disk_is_refused_in_one_line_and_leaves_nothing(
    client, archive, write_script, inputs, output, home
):
    make_model(client, archive, "m")
    before = {store.kind: store.names() for store in stores(client)}
    for operation, request in creations(archive, write_script(""), inputs, output).items():
        with full(home):
            with pytest.raises(ClientError, match=r"no space is left on the disk of .*home") as caught:
                getattr(client, operation)(**request)
            assert caught.value.response["Error"]["Code"] == "ResourceLimitExceeded"
            assert len(str(caught.value).splitlines()) == 1
            assert {store.kind: store.names() for store in stores(client)} == before, operation
            assert list(home.rglob(".new-*")) == []
        assert client.describe_model(ModelName="m")["ModelName"] == "m"
    for operation, request in creations(archive, write_script(""), inputs, output).items():
        getattr(client, operation)(**request)
    assert settled(client, "n") == "InService"
    assert ended(client, "TrainingJob", "n")["TrainingJobStatus"] == "Completed"
    assert ended(client, "TransformJob", "n")["TransformJobStatus"] == "Completed"


def stores(client):
    return (client.models, client.endpoint_configs, client.endpoints, client.training_jobs, client.transform_jobs)


@inside
def test_an_endpoint_answers_and_is_deleted_on_a_full_disk(client, archive, home):
    make_model(client, archive, "m")
    client.create_endpoint(EndpointName="e", EndpointConfigName="m")
    assert settled(client) == "InService"
    runtime = SageMakerRuntime(home)
    with full(home):
        for number in range(20):
            answer = runtime.invoke_endpoint(EndpointName="e", Body=f"{number}", ContentType="text/x")
            assert answer["Body"].read() == f"m:{number}".encode()
        assert [found["EndpointName"] for found in client.list_endpoints()["Endpoints"]] == ["e"]
        with pytest.raises(ClientError, match="no space is left"):
            client.update_endpoint(EndpointName="e", EndpointConfigName="m")
        assert client.describe_endpoint(EndpointName="e")["EndpointStatus"] == "InService"
        client.delete_endpoint(EndpointName="e")
        client.delete_endpoint_config(EndpointConfigName="m")
        client.delete_model(ModelName="m")
        assert all(store.names() == [] for store in stores(client))


@inside
@pytest.mark.parametrize("where", ["home", "output"])
def test_a_training_job_whose_disk_fills_is_failed_and_says_so(client, write_script, tmp_path, home, output, where):
    request = training_request("job", write_script(SCRIPT), output)
    request["Environment"] = {"GO": str(tmp_path / "go"), "SIZE": str(2 * 2**20)}
    client.create_training_job(**request)
    log = client.training_jobs.directory("job") / "algo-1" / "container.log"
    wait_until(lambda: log.exists() and "started" in log.read_text())
    with full(home if where == "home" else output):
        (tmp_path / "go").touch()
        found = ended(client, "TrainingJob", "job")
        print(found["FailureReason"])
        assert found["TrainingJobStatus"] == "Failed"
        assert re.search("no space (is )?left on (the disk|device)", found["FailureReason"], re.IGNORECASE)
        assert client.list_training_jobs()["TrainingJobSummaries"][0]["TrainingJobStatus"] == "Failed"
        assert not (output / "job" / "output" / "model.tar.gz").exists()
    assert client.describe_training_job(TrainingJobName="job")["FailureReason"] == found["FailureReason"]
    client.delete_training_job(TrainingJobName="job")
    client.create_training_job(**{**request, "TrainingJobName": "again"})
    assert ended(client, "TrainingJob", "again")["TrainingJobStatus"] == "Completed"


@inside
@pytest.mark.parametrize("where", ["home", "output"])
def test_a_batch_job_whose_disk_fills_is_failed_or_has_every_answer(
    client, archive, inputs, tmp_path, home, output, where
):
    slow = archive.with_name("slow.tar.gz")
    archive.rename(slow)
    make_model(client, slow, "m")
    folder = output / "batch"
    client.create_transform_job(**transform_request("job", "m", inputs, folder))
    wait_until(lambda: list(client.transform_jobs.directory("job").glob("instance-*/process.json")))
    with full(home if where == "home" else output):
        found = ended(client, "TransformJob", "job")
        print(found["TransformJobStatus"], found.get("FailureReason"))
        answers = {path.name: path.read_text() for path in folder.glob("*.out")}
        assert all(text == "m:" + name.removesuffix(".out") * 1000 for name, text in answers.items())
        if where == "output":
            assert found["TransformJobStatus"] == "Failed"
            assert "No space left on device" in found["FailureReason"]
        elif found["TransformJobStatus"] == "Completed":
            assert len(answers) == 20
        else:
            assert "space" in found["FailureReason"]
        assert not list(folder.glob(".*"))
    assert client.describe_transform_job(TransformJobName="job") | {"ResponseMetadata": None} == found | {
        "ResponseMetadata": None
    }
    client.create_transform_job(**transform_request("again", "m", inputs, folder))
    assert ended(client, "TransformJob", "again")["TransformJobStatus"] == "Completed"
    assert len(list(folder.glob("*.out"))) == 20
