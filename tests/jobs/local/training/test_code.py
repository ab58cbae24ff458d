"""Code goes to a container as on AWS: packed by the SDK, only what was named; what the user has stays as it is."""

import importlib.util
import json
import os
import socket
import tarfile

import pytest
from helpers.local_mode import estimator, without_opt_ml
from sagemaker.pytorch import PyTorch, PyTorchModel

from fastmaker.local import ProcessSession
from fastmaker.local.containers import pack

# Leaves the names of the files beside it, and its own, in its model.
SCRIPT = """
import json, os, sys
files = sorted(os.path.relpath(os.path.join(folder, name)) for folder, _, names in os.walk(".") for name in names)
files = [name for name in files if "__pycache__" not in name]
with open(os.environ["SM_MODEL_DIR"] + "/seen.json", "w") as file:
    json.dump({"script": sys.argv[0], "files": files}, file)
"""
INFERENCE = """
def model_fn(model_dir): return open("/opt/ml/model/by-name").read()
def input_fn(body, content_type): return bytes(body).decode()
def predict_fn(body, model): return f"{body} {model}"
def output_fn(answer, accept): return answer, accept
"""
# What the estimator is given, with {folder}, and the files in the container.
CASES = {
    "a script alone": ({"entry_point": "{folder}/code/train.py"}, ["train.py"]),
    "a folder": (
        {"entry_point": "train.py", "source_dir": "{folder}/code"},
        ["data.csv", "scripts/run.py", "secret", "train.py"],
    ),
    "a script in a folder": (
        {"entry_point": "scripts/run.py", "source_dir": "{folder}/code"},
        ["data.csv", "scripts/run.py", "secret", "train.py"],
    ),
    "dependencies": (
        {"entry_point": "{folder}/code/train.py", "dependencies": ["{folder}/library"]},
        ["library/__init__.py", "train.py"],
    ),
    "a socket": ({"entry_point": "train.py", "source_dir": "{folder}/socket"}, ["train.py"]),
}


def filled(arguments, folder):
    def fill(value):
        return [fill(item) for item in value] if isinstance(value, list) else value.format(folder=folder)

    return {name: fill(value) for name, value in arguments.items()}


def pytorch(session, **arguments):
    versions = {"framework_version": "2.6.0", "py_version": "py312"}
    return PyTorch(
        role="local", instance_count=1, instance_type="local", sagemaker_session=session, **versions, **arguments
    )


def seen_by(job):
    with tarfile.open(job.model_data.removeprefix("file://")) as tar:
        return json.load(tar.extractfile("seen.json"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folder")
    setup = "from setuptools import setup; setup(name='of-a-test', version='1', py_modules=['package'])"
    texts = {
        "code/train.py": SCRIPT,
        "code/scripts/run.py": SCRIPT,
        "code/secret": "",
        "code/data.csv": "",
        "library/__init__.py": "",
        "socket/train.py": SCRIPT,
        "package/package.py": SCRIPT,
        "package/setup.py": setup,
        "dangling/train.py": SCRIPT,
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    before = os.getcwd()
    os.chdir(folder / "socket")  # the path of a socket is short
    socket.socket(socket.AF_UNIX).bind("socket")
    os.chdir(before)
    (folder / "dangling" / "link").symlink_to("nowhere")
    return folder


@pytest.fixture(scope="module")
def jobs(home, folder):
    """A job for each case, all at once, in a session whose configuration asks for the SDK's local_code mode."""
    session = ProcessSession(home=home)
    session.config = {"local": {"local_code": True}}
    jobs = {name: pytorch(session, **filled(arguments, folder)) for name, (arguments, _) in CASES.items()}
    for job in jobs.values():
        job.fit(wait=False)
    return jobs


@pytest.mark.parametrize("case", CASES)
def test_a_container_gets_what_was_named_and_no_more(session, jobs, folder, case):
    job, (arguments, files) = jobs[case], CASES[case]
    session.wait_for_job(job.latest_training_job.name)
    given = filled(arguments, folder)
    assert seen_by(job)["files"] == files
    assert seen_by(job)["script"] == (given["entry_point"] if "source_dir" in given else "train.py")
    assert {name: getattr(job, name) for name in given} == given  # the SDK's local_code changes them


@pytest.mark.slow
def test_a_package_is_installed_for_the_job_alone(session, folder):
    environment = {"PIP_NO_BUILD_ISOLATION": "0"}  # which means on: nothing is downloaded
    job = pytorch(session, entry_point="package.py", source_dir=str(folder / "package"), environment=environment)
    job.fit(logs=False)
    assert {"package.py", "setup.py"} <= set(seen_by(job)["files"])
    assert importlib.util.find_spec("package") is None


def test_a_link_that_leads_nowhere_is_named_before_anything_starts_as_on_aws(session, folder):
    before = session.sagemaker_client.training_jobs.names()
    with pytest.raises(FileNotFoundError, match="dangling/link"):
        estimator(session, folder / "dangling").fit()
    assert session.sagemaker_client.training_jobs.names() == before


def test_hyperparameters_may_be_text_that_is_no_json_as_the_toolkit_reads_them(session, folder):
    hyperparameters = {"sagemaker_program": "scripts/run.py", "sagemaker_submit_directory": f"file://{folder}/code"}
    session.sagemaker_client.create_training_job(
        TrainingJobName="of-boto3",
        RoleArn="arn:aws:iam::000000000000:role/local",
        AlgorithmSpecification={"TrainingImage": "image", "TrainingInputMode": "File"},
        HyperParameters=hyperparameters,
        OutputDataConfig={"S3OutputPath": f"file://{folder}/output"},
        ResourceConfig={"InstanceType": "local", "InstanceCount": 1, "VolumeSizeInGB": 1},
        StoppingCondition={"MaxRuntimeInSeconds": 60},
    )
    session.wait_for_job("of-boto3")
    with tarfile.open(folder / "output" / "model.tar.gz") as tar:  # by the link
        assert json.load(tar.extractfile("seen.json"))["script"] == "scripts/run.py"


def test_code_in_s3_is_used_as_it_is_for_training_and_for_a_model(s3, bucket, home, folder):
    session = ProcessSession(home=home)
    pack(folder / "code", folder / "sourcedir.tar.gz")
    s3.upload_file(str(folder / "sourcedir.tar.gz"), bucket, "code.tar.gz")
    job = pytorch(session, entry_point="scripts/run.py", source_dir=f"s3://{bucket}/code.tar.gz")
    job.fit(logs=False)
    assert seen_by(job)["script"] == "scripts/run.py"
    assert "code/data.csv" in created_from(job.create_model(), session)


def test_a_job_that_was_attached_to_is_run_again_and_deployed_with_its_code(session, jobs, folder, home):
    first = jobs["a script in a folder"].latest_training_job.name
    session.wait_for_job(first)
    (folder / "code" / "later.txt").touch()  # of which the job knows nothing
    attached = PyTorch.attach(first, sagemaker_session=ProcessSession(home=home))
    attached.fit(logs=False, job_name="attached")
    assert seen_by(attached) == seen_by(jobs["a script in a folder"])
    names = created_from(attached.create_model(), attached.sagemaker_session)
    assert {"seen.json", "code/scripts/run.py"} <= names
    assert "code/later.txt" not in names
    (folder / "code" / "later.txt").unlink()


def created_from(model, session):
    """Create a model; return the names in its archive, which is deleted with it."""
    model.create(instance_type="local")
    client = session.sagemaker_client
    archive = client.describe_model(ModelName=model.name)["PrimaryContainer"]["ModelDataUrl"].removeprefix("file://")
    with tarfile.open(archive) as tar:
        names = {name.lstrip("/") for name in tar.getnames()}
    client.delete_model(ModelName=model.name)
    assert not os.path.exists(archive)
    assert client.unused_archives() == []
    return names


@pytest.mark.skipif(without_opt_ml(), reason="this machine allows no mount namespace to this user")
def test_a_model_that_is_packed_with_code_leaves_the_users_archive_as_it_is(session, model_archive, tmp_path):
    archive = model_archive("raise ValueError('not this one')")
    (tmp_path / "model" / "by-name").write_text("read")
    pack(tmp_path / "model", archive)
    before = archive.read_bytes()
    (tmp_path / "inference.py").write_text(INFERENCE)
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "module.py").touch()
    model = PyTorchModel(
        model_data=str(archive),  # a path, which the SDK takes as well where it packs
        role="local",
        entry_point=str(tmp_path / "inference.py"),
        dependencies=[str(tmp_path / "library")],
        framework_version="2.6.0",
        py_version="py312",
        env={"SAGEMAKER_MODEL_SERVER_WORKERS": "1"},
        sagemaker_session=session,
    )
    predictor = model.deploy(1, "local")
    try:
        request = {"ContentType": "text/plain", "Accept": "text/plain", "Body": "asked"}
        answered = session.sagemaker_runtime_client.invoke_endpoint(EndpointName=predictor.endpoint_name, **request)
        answer = answered["Body"].read()
        assert answer == b"asked read"
    finally:
        predictor.delete_model()
        predictor.delete_endpoint()
    assert archive.read_bytes() == before
    assert {"code/inference.py", "code/lib/library/module.py"} <= created_from(model, session)
