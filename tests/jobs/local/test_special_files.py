"""A pipe, a socket or a device where a user's files are: never waited for, never copied, named in one line."""

import os
import socket
import tarfile

import pytest
from helpers.waiting import wait_until

from fastmaker.jobs import storage
from fastmaker.jobs.storage.listings import Inputs
from fastmaker.local.client import SageMaker
from fastmaker.local.containers import Container, ContainerError, copy_tree, pack, unpack
from fastmaker.local.serving import torchserve
from fastmaker.local.training.host import Host


def make_socket(path):
    before = os.getcwd()
    os.chdir(path.parent)  # the path of a socket is short
    socket.socket(socket.AF_UNIX).bind(path.name)
    os.chdir(before)


SPECIAL = {
    "pipe": os.mkfifo,
    "socket": make_socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
}


def prepare(model):
    def read(folder, tmp_path):
        container = Container(tmp_path / "container")
        try:
            torchserve.prepare(container, model(folder))
        finally:
            container.close()

    return read


def prefix_of(folder):
    source = {"S3Uri": f"file://{folder}/", "S3DataType": "S3Prefix", "CompressionType": "None"}
    return {"ModelDataSource": {"S3DataSource": source}}


def code_of(folder):
    (folder.parent / "model").mkdir()
    environment = {"SAGEMAKER_SUBMIT_DIRECTORY": f"file://{folder}"}
    return {"ModelDataUrl": f"file://{folder.parent}/model", "Environment": environment}


READERS = {
    "channel": lambda folder, tmp_path: storage.link_or_download(f"file://{folder}", tmp_path / "channel"),
    "sharded channel": lambda folder, tmp_path: storage.link_or_download(f"file://{folder}", tmp_path / "x", 0, 2),
    "input of a batch job": lambda folder, tmp_path: Inputs(tmp_path / "x").read("S3Prefix", f"file://{folder}"),
    "checkpoints": lambda folder, tmp_path: list(storage.names_below(f"file://{folder}")),
    "source directory": lambda folder, tmp_path: copy_tree(folder, tmp_path / "copy"),
    "model folder": prepare(lambda folder: {"ModelDataUrl": f"file://{folder}"}),
    "model prefix": prepare(prefix_of),
    "code of a model": prepare(code_of),
}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "folder"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "file").write_text("text")
    return folder


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("where", READERS)
def test_what_is_no_file_is_named_in_one_line_wherever_it_lies(folder, tmp_path, where, kind):
    SPECIAL[kind](folder / "deep" / "er" / "it")
    with pytest.raises((storage.StorageError, ContainerError)) as caught:
        READERS[where](folder, tmp_path)
    line = str(caught.value)
    assert f"{folder}/deep/er/it" in line
    assert line.endswith("a pipe, a socket or a device")
    assert len(line.splitlines()) == 1


@pytest.mark.parametrize("kind", SPECIAL)
def test_an_object_that_has_become_one_is_refused_when_it_is_opened(folder, kind):
    SPECIAL[kind](folder / "it")
    with pytest.raises(storage.StorageError, match=r"it: (a pipe, a socket or a device|No such device or address)"):
        storage.open_object(f"file://{folder}/it")


@pytest.mark.parametrize("where", ["source directory", "model folder", "code of a model", "model prefix"])
def test_a_link_back_to_a_folder_that_it_lies_in_is_not_followed(folder, tmp_path, where):
    (folder / "deep" / "back").symlink_to(folder)
    with pytest.raises((storage.StorageError, ContainerError), match=r"back.*a link back to a folder that it lies"):
        READERS[where](folder, tmp_path)


def test_a_channel_may_hold_links_that_lead_back_or_nowhere(folder, tmp_path):
    (folder / "deep" / "back").symlink_to(folder)
    (folder / "nowhere").symlink_to("nothing")
    READERS["channel"](folder, tmp_path)
    assert (tmp_path / "channel" / "file").read_text() == "text"


@pytest.mark.parametrize("kind", SPECIAL)
def test_what_a_script_leaves_of_them_beside_its_model_stays_behind(folder, tmp_path, kind):
    SPECIAL[kind](folder / "deep" / "it")
    storage.put_folder(folder, f"file://{tmp_path}/uncompressed")
    assert sorted(storage.names_below(f"file://{tmp_path}/uncompressed")) == ["file"]
    if kind != "device":  # a link is kept as a link
        pack(folder, tmp_path / "model.tar.gz")
        with tarfile.open(tmp_path / "model.tar.gz") as tar:
            assert tar.getnames() == ["deep", "deep/er", "file"]
        unpack(tmp_path / "model.tar.gz", tmp_path / "unpacked")


@pytest.mark.parametrize("kind", SPECIAL)
def test_one_in_place_of_a_failure_file_is_not_read(tmp_path, kind):
    request = {"ResourceConfig": {"InstanceType": "local"}, "AlgorithmSpecification": {}}
    host = Host(tmp_path, 1, {"algo-1": "127.0.0.1"}, request)
    (host.container.root / "output").mkdir(parents=True)
    SPECIAL[kind](host.container.root / "output" / "failure")
    assert host.failure(100) == "exit code 0\n"


def test_a_job_whose_channel_has_a_pipe_fails_before_its_script_starts(folder, write_script, tmp_path):
    os.mkfifo(folder / "pipe")
    client = SageMaker("us-west-2", tmp_path / "home")
    client.create_training_job(
        TrainingJobName="job",
        AlgorithmSpecification={"TrainingImage": "x", "TrainingInputMode": "File"},
        RoleArn="arn:aws:iam::000000000000:role/r",
        InputDataConfig=[
            {
                "ChannelName": "train",
                "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"file://{folder}"}},
            }
        ],
        OutputDataConfig={"S3OutputPath": f"file://{tmp_path}/output"},
        ResourceConfig={"InstanceType": "local", "InstanceCount": 1, "VolumeSizeInGB": 1},
        HyperParameters={
            "sagemaker_program": "train.py",
            "sagemaker_submit_directory": f"file://{write_script('open(1 / 0)')}",
        },
        StoppingCondition={"MaxRuntimeInSeconds": 60},
    )

    def ended():
        job = client.describe_training_job(TrainingJobName="job")
        return job if job["TrainingJobStatus"] == "Failed" else None

    reason = wait_until(ended)["FailureReason"]
    assert reason == f"ClientError: file://{folder}/pipe: a pipe, a socket or a device"
