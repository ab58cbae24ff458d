import importlib.util
import json
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
import zipfile

import boto3
import pytest
from botocore.exceptions import ClientError
from helpers import PATIENCE, REPOSITORY
from helpers.local_mode import estimator, log_of, nothing_runs_below, start, wait_until
from helpers.shapes import assert_answers_as
from sagemaker.exceptions import UnexpectedStatusException
from sagemaker.inputs import TrainingInput
from sagemaker.pytorch import PyTorch

from fastmaker.local import ProcessSession

SLEEPS = "import time; print('asleep', flush=True); time.sleep(3600)"


def members(uri):
    with tarfile.open(uri.removeprefix("file://")) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar.getmembers() if m.isfile()}


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "words.txt").write_text("some words")
    return folder


@pytest.mark.containers
def test_fit_runs_anybodys_script_with_its_hyperparameters_channels_and_outputs(session, write_script, data, capsys):
    source = write_script(
        """
        import argparse, os, pathlib
        parser = argparse.ArgumentParser()
        parser.add_argument("--depth", type=int)
        words = pathlib.Path(os.environ["SM_CHANNEL_TRAIN"], "words.txt").read_text()
        pathlib.Path(os.environ["SM_MODEL_DIR"], "model.txt").write_text(f"{words} {parser.parse_args().depth}")
        pathlib.Path(os.environ["SM_OUTPUT_DATA_DIR"], "report.txt").write_text("a report")
        print("loss=0.5"); print("loss=0.25")
        """
    )
    definitions = [{"Name": "loss", "Regex": "loss=([0-9.]+)"}, {"Name": "word", "Regex": "los(s)="}]
    job = estimator(session, source, hyperparameters={"depth": 3}, metric_definitions=definitions)
    job.fit({"train": f"file://{data}"})
    assert members(job.model_data) == {"model.txt": b"some words 3"}
    assert members(job.model_data.replace("model.tar.gz", "output.tar.gz")) == {"report.txt": b"a report"}
    description = session.describe_training_job(job.latest_training_job.name)
    assert_answers_as("DescribeTrainingJob", description)
    assert description["TrainingJobStatus"] == "Completed"
    assert [m["Value"] for m in description["FinalMetricDataList"]] == [0.25]
    assert "loss=0.25" in capsys.readouterr().out


@pytest.mark.containers
def test_a_script_that_raises_fails_the_job_with_its_reason_and_leaves_no_model(session, write_script):
    source = write_script(
        """
        import os, pathlib
        pathlib.Path(os.environ["SM_MODEL_DIR"], "half.txt").write_text("half a model")
        raise ValueError("the learning rate is a fish")
        """
    )
    job = estimator(session, source)
    with pytest.raises(UnexpectedStatusException, match="the learning rate is a fish"):
        job.fit()
    description = session.describe_training_job(job.latest_training_job.name)
    assert_answers_as("DescribeTrainingJob", description)
    assert description["TrainingJobStatus"] == "Failed"
    assert not os.path.exists(job.model_data.removeprefix("file://"))


@pytest.mark.containers
def test_a_script_that_is_killed_fails_the_job(session, write_script):
    job = estimator(session, write_script("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"))
    with pytest.raises(UnexpectedStatusException, match="Failed"):
        job.fit()


@pytest.mark.containers
def test_a_job_sees_its_own_environment_and_not_the_callers(session, write_script, monkeypatch):
    monkeypatch.setenv("SECRET_OF_THE_CALLER", "1")
    source = write_script(
        """
        import os
        assert "SECRET_OF_THE_CALLER" not in os.environ
        assert os.environ["GIVEN"] == "yes"
        """
    )
    estimator(session, source, environment={"GIVEN": "yes"}).fit()


def test_unmet_requirements_are_installed_for_the_job_alone(session, write_script, tmp_path):
    with zipfile.ZipFile(tmp_path / "only_here-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("only_here.py", "answer = 42")
        wheel.writestr("only_here-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: only_here\nVersion: 1.0\n")
        wheel.writestr("only_here-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n")
        wheel.writestr("only_here-1.0.dist-info/RECORD", "")
    requirements = f"--no-index\n--find-links {tmp_path}\nonly_here==1.0\n"
    script = """
        import os, only_here, torch
        assert only_here.answer == 42
        assert os.environ["SM_DLC_TORCH_VERSION"] == torch.__version__  # of the toolkit, which imports torch for it
        """
    source = write_script(script, **{"requirements.txt": requirements})
    estimator(session, source).fit()
    assert importlib.util.find_spec("only_here") is None


def test_requirements_that_cannot_be_had_fail_the_job_before_the_script_runs(session, write_script):
    source = write_script("print('ran')", **{"requirements.txt": "--no-index\nnobody-wrote-this==1.0\n"})
    job = estimator(session, source)
    with pytest.raises(UnexpectedStatusException, match="pip could not install"):
        job.fit()
    assert "ran" not in log_of(session, job.latest_training_job.name)


@pytest.mark.parametrize(
    ("arguments", "channel", "reason"),
    [
        ({"instance_count": 21}, "file://{data}", "trains on 1 to 20 hosts"),
        (
            {"checkpoint_s3_uri": "file:///x", "checkpoint_local_path": "/tmp/checkpoints"},
            "file://{data}",
            "expected a path below /opt/ml/",
        ),
        ({"output_path": "s3x://models"}, "file://{data}", "output_path: 's3x://models': expected a URI that begins"),
        ({"output_path": "models"}, "file://{data}", "output_path: 'models': expected a URI that begins"),
        ({"checkpoint_s3_uri": "checkpoints"}, "file://{data}", "checkpoint_s3_uri: 'checkpoints': expected a URI"),
        ({"input_mode": "Pipe"}, "file://{data}", "Pipe"),
        ({"metric_definitions": [{"Name": "loss", "Regex": "loss=("}]}, "file://{data}", "no regular expression"),
        ({"distribution": {"mpi": {"enabled": True}}}, "file://{data}", "MPI needs AWS; use distribution="),
        (
            {"hyperparameters": {"sagemaker_distributed_dataparallel_enabled": True}},
            "file://{data}",
            "data parallel library needs AWS",
        ),
        ({"hyperparameters": {"sagemaker_pytorch_ddp_enabled": True}}, "file://{data}", "pytorchddp needs AWS"),
        (
            {"hyperparameters": {"mp_parameters": {"partitions": 2}}},
            "file://{data}",
            "model parallel library needs AWS",
        ),
        ({"source_dir": "file:///nowhere/sourcedir.tar.gz"}, "file://{data}", "source_dir: .* no such file"),
        ({}, "file://{data}/nowhere", "no such file"),
        ({"instance_type": "local_gpu"}, "file://{data}", "no NVIDIA GPU"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_starts(session, write_script, data, arguments, channel, reason):
    if arguments.get("instance_type") == "local_gpu" and os.path.exists("/proc/driver/nvidia/version"):
        pytest.skip("this machine has a GPU")
    before = session.sagemaker_client.training_jobs.names()
    job = estimator(session, write_script("print('ran')"), **arguments)
    with pytest.raises(ClientError, match=reason) as caught:
        job.fit({"train": channel.format(data=data)})
    assert caught.value.response["Error"]["Code"] == "ValidationException"
    assert session.sagemaker_client.training_jobs.names() == before


def test_fast_file_mode_is_served_as_files(session, write_script, data):
    source = write_script("import os; assert os.listdir(os.environ['SM_CHANNEL_TRAIN']) == ['words.txt']")
    estimator(session, source).fit({"train": TrainingInput(f"file://{data}", input_mode="FastFile")})


def test_a_name_is_used_once(session, write_script):
    source = write_script("pass")
    estimator(session, source).fit(job_name="used-once")
    with pytest.raises(session.sagemaker_client.exceptions.ResourceInUse):
        estimator(session, source).fit(job_name="used-once")


def test_another_process_describes_and_stops_a_job(session, home, write_script):
    name = start(session, write_script(SLEEPS))
    wait_until(lambda: "asleep" in log_of(session, name))
    elsewhere = ProcessSession(home=home)
    assert elsewhere.describe_training_job(name)["SecondaryStatus"] == "Training"
    elsewhere.stop_training_job(name)
    elsewhere.wait_for_job(name)
    assert session.describe_training_job(name)["TrainingJobStatus"] == "Stopped"
    assert nothing_runs_below(home / "training-jobs" / name)


@pytest.mark.containers
def test_a_job_that_is_stopped_at_once_is_stopped(session, home, write_script):
    source = write_script(SLEEPS)
    for pause in (0, 0.1, 0.3, 0.6):
        name = start(session, source)
        time.sleep(pause)
        session.stop_training_job(name)
        session.wait_for_job(name)
        assert session.describe_training_job(name)["TrainingJobStatus"] == "Stopped"
    assert nothing_runs_below(home / "training-jobs" / name)


@pytest.mark.containers
def test_a_job_longer_than_max_run_is_stopped(session, write_script):
    job = estimator(session, write_script(SLEEPS), max_run=4)
    job.fit()
    description = session.describe_training_job(job.latest_training_job.name)
    assert description["TrainingJobStatus"] == "Stopped"
    assert description["SecondaryStatus"] == "MaxRuntimeExceeded"


@pytest.mark.containers
def test_a_job_whose_own_process_is_killed_is_failed_and_leaves_nothing_running(session, home, write_script):
    name = start(session, write_script(SLEEPS))
    wait_until(lambda: "asleep" in log_of(session, name))
    os.kill(session.sagemaker_client.training_jobs.read(name)["supervisor"]["pid"], signal.SIGKILL)
    description = wait_until(lambda: (d := session.describe_training_job(name))["TrainingJobStatus"] == "Failed" and d)
    assert "died" in description["FailureReason"]
    assert nothing_runs_below(home / "training-jobs" / name)


@pytest.mark.server
def test_ctrl_c_during_fit_leaves_no_process(write_script, tmp_path):
    source = write_script(SLEEPS)
    program = f"""
        import signal, sys
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job of a shell's background ignores
        sys.path[:0] = [{str(REPOSITORY / "tests")!r}]
        from helpers.local_mode import estimator, nothing_runs_below
        from fastmaker.local import ProcessSession
        estimator(ProcessSession(home={str(tmp_path / "home")!r}), {str(source)!r}).fit()
    """
    fit = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, cwd=REPOSITORY)
    for line in fit.stdout:
        if b"asleep" in line:
            break
    fit.send_signal(signal.SIGINT)
    fit.communicate(timeout=PATIENCE)
    assert fit.returncode != 0
    assert nothing_runs_below(tmp_path / "home")


def test_data_code_and_artefacts_may_lie_in_s3(s3, front, bucket, home, write_script, monkeypatch):
    s3.put_object(Bucket=bucket, Key="data/deep/ünïcode words.txt", Body=b"from S3")
    source = write_script(
        """
        import os, pathlib, shutil
        words = pathlib.Path(os.environ["SM_CHANNEL_TRAIN"], "deep", "ünïcode words.txt")
        shutil.copy(words, os.environ["SM_MODEL_DIR"])
        """
    )
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    url = front["AWS_ENDPOINT_URL"]
    session = ProcessSession(home=home, s3_endpoint_url=url, default_bucket=bucket, disable_local_code=True)
    job = estimator(session, source)
    job.fit({"train": f"s3://{bucket}/data"})
    assert job.model_data.startswith(f"s3://{bucket}/")
    body = s3.get_object(Bucket=bucket, Key=job.model_data.removeprefix(f"s3://{bucket}/"))["Body"].read()
    (home / "model.tar.gz").write_bytes(body)
    assert members(str(home / "model.tar.gz")) == {"ünïcode words.txt": b"from S3"}


def test_an_output_that_cannot_be_written_fails_the_job_before_the_script_runs(s3, home, write_script, data):
    session = ProcessSession(home=home)
    source = write_script("print('ran')")
    for output in ("s3://no-such-bucket/models", f"file://{data}/words.txt"):
        job = estimator(session, source, output_path=output)
        with pytest.raises(UnexpectedStatusException, match=output):
            job.fit()
        assert "ran" not in log_of(session, job.latest_training_job.name)


def test_a_job_is_attached_to_from_anywhere_and_its_model_can_be_served(session, home, write_script, capfd):
    job = estimator(session, write_script("print('trained')"))
    job.fit(wait=False)
    attached = PyTorch.attach(job.latest_training_job.name, sagemaker_session=ProcessSession(home=home))
    assert attached.model_data == job.model_data
    attached.logs()
    assert "trained" in capfd.readouterr().out
    assert attached.create_model().model_data == job.model_data


def test_jobs_are_listed_oldest_first_with_boto3s_filters_and_pages(home, write_script):
    session = ProcessSession(home=home / "listed")
    source = write_script("pass")
    for name in ("first-job", "second-job", "third"):
        estimator(session, source).fit(job_name=name, wait=False)
    client = session.sagemaker_client
    wait_until(lambda: len(client.list_training_jobs(StatusEquals="Completed")["TrainingJobSummaries"]) == 3)
    page = client.list_training_jobs(NameContains="job", MaxResults=1)
    assert_answers_as("ListTrainingJobs", page)
    rest = client.list_training_jobs(NameContains="job", MaxResults=1, NextToken=page["NextToken"])
    names = [job["TrainingJobName"] for job in page["TrainingJobSummaries"] + rest["TrainingJobSummaries"]]
    assert names == ["first-job", "second-job"]
    assert client.list_training_jobs(StatusEquals="Failed")["TrainingJobSummaries"] == []


def test_what_needs_aws_says_so(session):
    with pytest.raises(ClientError, match="CreateProcessingJob needs AWS"):
        session.sagemaker_client.create_processing_job(ProcessingJobName="p")
    with pytest.raises(ClientError, match="Could not find training job"):
        session.describe_training_job("nobody-made-this")


def test_no_credentials_are_written_to_disk(home, write_script):
    keys = {"aws_access_key_id": "AKIA-of-this-test", "aws_secret_access_key": "s3cr3t-of-this-test"}
    boto_session = boto3.Session(**keys, region_name="eu-west-1")
    session = ProcessSession(boto_session, home=home)
    source = write_script("import os; assert os.environ['AWS_ACCESS_KEY_ID'].startswith('AKIA'), os.environ.keys()")
    job = estimator(session, source)
    job.fit()
    directory = session.sagemaker_client.training_jobs.directory(job.latest_training_job.name)
    texts = [path.read_bytes() for path in directory.rglob("*") if path.is_file()]
    assert texts
    assert not any(b"s3cr3t-of-this-test" in text for text in texts)


def test_the_record_is_readable_json(session, write_script):
    job = estimator(session, write_script("pass"))
    job.fit()
    directory = session.sagemaker_client.training_jobs.directory(job.latest_training_job.name)
    assert json.loads((directory / "record.json").read_text())["description"]["TrainingJobStatus"] == "Completed"
