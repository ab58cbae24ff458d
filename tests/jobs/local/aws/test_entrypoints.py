"""Training jobs with a ContainerEntrypoint, as the SDK's version 3 asks for: what the command sees, and how it ends."""

import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import textwrap
import threading
import time
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from helpers import PATIENCE
from helpers.local_mode import without_opt_ml
from helpers.waiting import wait_until

from fastmaker.jobs.runtime import mounts
from fastmaker.local import validation
from fastmaker.local.containers import ContainerError
from fastmaker.local.training import rendezvous

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(without_opt_ml(), reason="this machine allows no mount namespace to this user"),
]
IMAGE = "763104351884.dkr.ecr.us-west-2.amazonaws.com/pytorch-training:2.6.0-cpu-py312"
BUCKET = "entrypoints"
# Leaves what it sees in its model, beside a file for each host.
SEES = """
import importlib.util, json, os, pathlib, shutil, socket, subprocess, sys
config = {path.stem: json.loads(path.read_text()) for path in pathlib.Path("/opt/ml/input/config").iterdir()}
host = config["resourceconfig"]["current_host"]
pathlib.Path("/opt/ml/input/data/code", host).touch()
pip = subprocess.run(["pip", "--version"], capture_output=True, text=True, check=True).stdout
seen = {
    "arguments": sys.argv[1:],
    "folder": os.getcwd(),
    "hosts": {name: socket.gethostbyname(name) for name in config["resourceconfig"]["hosts"]},
    "group": config["resourceconfig"]["instance_groups"],
    "hyperparameters": config["hyperparameters"],
    "channels": sorted(config["inputdataconfig"]),
    "own": os.environ["OWN"],
    "job": os.environ["TRAINING_JOB_NAME"],
    "sm": [name for name in os.environ if name.startswith(("SM_", "SAGEMAKER_BASE", "FASTMAKER_HOSTS"))],
    "prefix": sys.prefix.endswith("overlay") and shutil.which("torchrun").startswith(sys.prefix),
    "imports": [name for name in ("torch", "ts", "moto") if importlib.util.find_spec(name)],
    "code": sorted(os.listdir("/opt/ml/input/data/code")),
}
pathlib.Path("/opt/ml/model", host + ".json").write_text(json.dumps(seen))
"""
HOSTS = ["algo-1", "algo-2"]
EXPECTED = {
    "arguments": ["one", "two words"],
    "folder": "/opt/ml",
    "hosts": {"algo-1": "127.0.0.1", "algo-2": "127.0.0.2"},
    "group": [{"instance_group_name": "homogeneousCluster", "instance_type": "ml.g4dn.xlarge", "hosts": HOSTS}],
    "hyperparameters": {},
    "channels": ["code"],
    "own": "value",
    "job": "sees",
    "sm": [],
    "prefix": True,
    "imports": ["torch"],
}
# The command of a job, and how its reason begins.
FAILING = {
    "a status": (["sh", "-c", "echo the last words; exit 3"], "AlgorithmError: exit code 3\nthe last words"),
    "no program": (["./nothing"], "AlgorithmError: exit code 127\nthe container's entrypoint './nothing' cannot be"),
    "a failure file": (["sh", "-c", "echo why > /opt/ml/output/failure; exit 1"], "AlgorithmError: why"),
    "MPI": (["true"], "ClientError: distributed=MPI() needs AWS; use distributed=Torchrun()"),
}


def channel(name):
    source = {"S3DataType": "S3Prefix", "S3Uri": f"s3://{BUCKET}/{name}", "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}, "CompressionType": "None"}


def request(name, entrypoint, arguments=(), channels=(), hosts=1):
    """What the SDK sends for a job: no more than is asked for."""
    algorithm = {"TrainingImage": IMAGE, "TrainingInputMode": "File", "ContainerEntrypoint": entrypoint}
    return {
        "TrainingJobName": name,
        "AlgorithmSpecification": {**algorithm, **({"ContainerArguments": arguments} if arguments else {})},
        "RoleArn": "arn:aws:iam::000000000000:role/r",
        "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/out", "CompressionType": "GZIP"},
        "ResourceConfig": {"InstanceType": "ml.g4dn.xlarge", "InstanceCount": hosts, "VolumeSizeInGB": 30},
        "StoppingCondition": {"MaxRuntimeInSeconds": 600},
        "Environment": {"OWN": "value"},
        **({"InputDataConfig": [channel(name) for name in channels]} if channels else {}),
    }


@pytest.fixture(scope="module")
def jobs(clients):
    """The descriptions of all jobs by their names, once they have ended; they run side by side."""
    s3, sagemaker = clients("s3"), clients("sagemaker")
    s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
    s3.put_object(Bucket=BUCKET, Key="code/sees.py", Body=SEES.encode())
    s3.put_object(Bucket=BUCKET, Key="sm_drivers/sm_train.sh", Body=b"python /drivers/mpi_driver.py")
    script = "exec python3 /opt/ml/input/data/code/sees.py one 'two words'"
    requests = [request("sees", ["/bin/bash"], ["-c", script], ["code"], hosts=2)]
    for label, (command, _) in FAILING.items():
        channels = ["sm_drivers"] if label == "MPI" else []
        requests.append(request(label.replace(" ", "-"), command, channels=channels))
    for asked in requests:
        sagemaker.create_training_job(**asked)
    names = [asked["TrainingJobName"] for asked in requests]
    return {name: sagemaker.describe_training_job(TrainingJobName=name) for name in names}


@pytest.fixture(scope="module")
def seen(jobs, clients):
    """What the command saw on the second host."""
    assert jobs["sees"]["TrainingJobStatus"] == "Completed", jobs["sees"].get("FailureReason")
    body = clients("s3").get_object(Bucket=BUCKET, Key="out/sees/output/model.tar.gz")["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(body)) as tar:
        assert tar.getnames() == ["algo-1.json", "algo-2.json"]
        return json.load(tar.extractfile("algo-2.json"))


@pytest.mark.parametrize("name", EXPECTED)
def test_a_command_sees_what_it_does_on_aws(seen, name):
    assert seen[name] == EXPECTED[name]


def test_each_host_has_code_of_its_own_to_write_beside(seen):
    assert seen["code"] == ["algo-2", "sees.py"]


def test_what_was_not_asked_for_is_not_described(jobs):
    assert {"HyperParameters", "InputDataConfig"}.isdisjoint(jobs["a-status"])
    asked = request("sees", ["/bin/bash"])["AlgorithmSpecification"]
    assert jobs["sees"]["AlgorithmSpecification"].items() >= asked.items()


@pytest.mark.parametrize("label", FAILING)
def test_a_command_that_fails_gives_the_reason(jobs, label):
    job = jobs[label.replace(" ", "-")]
    assert (job["TrainingJobStatus"], job["FailureReason"][: len(FAILING[label][1])]) == ("Failed", FAILING[label][1])


def test_a_command_is_stopped_with_what_it_has_started(jobs, clients):
    sagemaker = clients("sagemaker")
    sagemaker.create_training_job(**request("sleeps", ["sh", "-c", "echo begun; setsid sleep 600 & sleep 600"]))
    logs = {"logGroupName": "/aws/sagemaker/TrainingJobs", "logStreamNamePrefix": "sleeps/", "filterPattern": "begun"}
    wait_until(lambda: clients("logs").filter_log_events(**logs)["events"])
    sagemaker.stop_training_job(TrainingJobName="sleeps")
    assert sagemaker.describe_training_job(TrainingJobName="sleeps")["TrainingJobStatus"] == "Stopped"


def test_a_container_of_docker_has_the_command_of_its_image(tmp_path):
    with pytest.raises(ClientError, match="runs in processes of this machine; use a ProcessSession"):
        validation.check_entrypoint("CreateTrainingJob", request("docker", ["true"]), tmp_path, use_docker=True)


def test_arguments_of_an_image_are_refused(clients):
    asked = request("arguments", [], ["train"])
    del asked["AlgorithmSpecification"]["ContainerEntrypoint"]
    with pytest.raises(ClientError, match="ContainerArguments need a ContainerEntrypoint"):
        clients("sagemaker").create_training_job(**asked)


# Without mount namespaces: the check of a request, in a process of its own.
CHECK = """
import pathlib, sys
from botocore.exceptions import ClientError
from fastmaker.local import validation
request = {"AlgorithmSpecification": {"ContainerEntrypoint": ["true"]}}
try:
    validation.check_entrypoint("CreateTrainingJob", request, pathlib.Path(sys.argv[1]), False)
except ClientError as error:
    print(error.response["Error"]["Message"])
"""


def test_a_machine_without_mount_namespaces_refuses_it_by_one_line(tmp_path):
    none = 'echo 0 > /proc/sys/user/max_mnt_namespaces; exec "$@"'
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", none, "sh"]
    command += [sys.executable, "-c", textwrap.dedent(CHECK), tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout == (
        "a ContainerEntrypoint finds its files in /opt/ml, and /opt/ml cannot be had on this machine "
        "(No space left on device)\n"
    )


def test_opt_ml_cannot_lie_in_itself():
    assert mounts.unavailable(Path("/opt/ml/home")) == "/opt/ml/home lies in it"
    assert not os.path.exists("/opt/ml/home")


# The port at which hosts meet.


def test_jobs_of_several_hosts_take_turns():
    order: list[str] = []

    def second():
        with rendezvous.turn(lambda: None, order.append):
            order.append("second")

    with rendezvous.turn(lambda: None, order.append):
        thread = threading.Thread(target=second)
        thread.start()
        while not order:
            time.sleep(0.01)
        order.append("first")
    thread.join()
    waits = "this job waits for another of several hosts, which meet at port 7777"
    assert order == [waits, "first", "second"]


def test_a_program_that_has_the_port_is_the_reason(monkeypatch):
    monkeypatch.setattr(rendezvous, "FREE_SECONDS", 0.1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", rendezvous.PORT))
        taken.listen()
        with (
            pytest.raises(ContainerError, match="port 7777, at which the hosts meet, is taken by another program"),
            rendezvous.turn(lambda: None, print),
        ):
            raise AssertionError("the port is taken")
