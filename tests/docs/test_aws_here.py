"""docs/aws-here.md: its programs run as they stand there."""

import json
import os
import shutil
import subprocess
import sys
import warnings

import pytest
from helpers import REPOSITORY, environments
from helpers.front import client_of
from helpers.network import cut_off
from helpers.pages import blocks, lay_out
from PIL import Image

from fastmaker.local import archives, aws
from fastmaker.serving import models

pytestmark = [pytest.mark.server, pytest.mark.slow]
PAGE = (REPOSITORY / "docs" / "aws-here.md").read_text("utf-8")
FASTMAKER = [sys.executable, "-m", "fastmaker.jobs", "aws", "--"]


@pytest.fixture(scope="module")
def cli(tmp_path_factory):
    """The folder of the AWS CLI: FASTMAKER_AWS_CLI, as one of version 2, or version 1 in an environment of its own."""
    if named := os.environ.get("FASTMAKER_AWS_CLI"):
        yield named
        return
    folder = tmp_path_factory.mktemp("cli")
    python = environments.create(folder)
    environments.install(python, "awscli")
    yield python.parent
    shutil.rmtree(folder)


@pytest.fixture
def run(few, tmp_path):
    """run(command, **variables) -> what it printed, in a folder as the page expects it; it must succeed."""
    lay_out(few, tmp_path)
    (tmp_path / "source").symlink_to(REPOSITORY / "source")
    (script,) = blocks(PAGE, "bash")
    (tmp_path / "train_on_sagemaker.sh").write_text(script)
    (tmp_path / "train_on_sagemaker.py").write_text(program("sagemaker.pytorch"))

    def _run(command, **variables):
        env = {**environments.variables(), "FASTMAKER_HOME": str(tmp_path / "home"), **variables}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        assert not list((tmp_path / "home" / "endpoints").iterdir())
        return done.stdout, done.stderr

    return _run


def program(sign):
    """The one program of the page that holds the sign."""
    (found,) = [block for block in blocks(PAGE, "python") if sign in block]
    return found


def check_program(printed, few):
    printed, said = printed
    assert "train_loss" in printed + said
    assert printed.endswith(f"{len(list((few / '7').iterdir())) + 3} answers\n")


def check_script(printed, few):
    printed, _ = printed
    assert "train_loss=" in printed
    listed = [line for line in printed.splitlines() if line.endswith(".png.out")]
    assert len(listed) == len(list((few / "7").iterdir()))
    assert printed.rpartition("\n")[2].startswith('{"label": ')


def check_answers(folder):
    """The answers of the transform job of a prefix are those of the bundle that was trained."""
    with aws.running(folder / "home") as environment:
        s3 = client_of(environment, "s3")
        bucket = s3.list_buckets()["Buckets"][0]["Name"]
        keys = [item["Key"] for item in s3.list_objects_v2(Bucket=bucket)["Contents"]]
        [archive] = [key for key in keys if key.endswith("/output/model.tar.gz")]
        s3.download_file(bucket, archive, str(folder / "model.tar.gz"))
        files = list((folder / "digits" / "held-out" / "7").iterdir())
        answers = {
            file: json.load(s3.get_object(Bucket=bucket, Key=f"answers/S3Prefix/{file.name}.out")["Body"])
            for file in files
        }
    archives.unpack(folder / "model.tar.gz", folder / "model")
    model = models.load(folder / "model")
    for file, found in answers.items():
        expected = model.predict([Image.open(file)])[0].as_object()
        assert found["label"] == expected["label"]
        assert [each["probability"] for each in found["top"]] == pytest.approx(
            [each["probability"] for each in expected["top"]], abs=1e-6
        )


def test_the_program_runs_as_it_stands(few, run, tmp_path):
    check_program(run([*FASTMAKER, sys.executable, "train_on_sagemaker.py"]), few)
    check_answers(tmp_path)


# Of the SDK's version 3, which is a package of packages that have numbers of their own.
V3 = "sagemaker==3.{0} sagemaker-core==2.{0} sagemaker-train==1.{0} sagemaker-serve==1.{0} sagemaker-mlops==1.{0}"


PINNED = {"3.27": V3.format("27.0"), "3.21": V3.format("21.0")}
NEWEST = "sagemaker>=3"


@pytest.fixture(scope="module")
def sdk_v3(request, tmp_path_factory):
    """The Python of an environment with a version of the SDK."""
    folder = tmp_path_factory.mktemp("sdk")
    python = environments.create(folder)
    # pip would look at a hundred versions of s3fs before it found one that fits.
    environments.install(python, *request.param.split(), "s3fs>=2026")
    yield python
    shutil.rmtree(folder)  # a gigabyte


@pytest.fixture
def run_v3(sdk_v3, few, run, tmp_path):
    """run_v3(wrapped) has the program for version 3 run, in the command that `wrapped` makes of it."""

    def _run(wrapped=list):
        (tmp_path / "train_on_sagemaker.py").write_text(program("ModelTrainer"))
        check_program(run(wrapped([*FASTMAKER, str(sdk_v3), "train_on_sagemaker.py"])), few)
        check_answers(tmp_path)

    return _run


@pytest.mark.parametrize("sdk_v3", PINNED.values(), indirect=True, ids=PINNED)
def test_the_program_for_version_3_of_the_sdk_runs_as_it_stands(run_v3):
    run_v3()


@pytest.mark.parametrize("sdk_v3", [PINNED["3.27"]], indirect=True, ids=["3.27"])
def test_the_program_for_version_3_runs_with_loopback_alone(run_v3):
    run_v3(cut_off)


@pytest.mark.parametrize("sdk_v3", [NEWEST], indirect=True, ids=["newest"])
def test_the_program_runs_with_the_newest_version_3_or_the_failure_names_it(sdk_v3, run_v3):
    asked = "import importlib.metadata; print(importlib.metadata.version('sagemaker'))"
    version = subprocess.run([sdk_v3, "-c", asked], capture_output=True, text=True, check=True).stdout.strip()
    if f"sagemaker=={version}" in " ".join(PINNED.values()).split():
        pytest.skip(f"the newest version of the SDK, {version}, is one that is pinned")
    try:
        run_v3()
    except AssertionError as error:
        warnings.warn(f"the program does not run with sagemaker {version}, the newest: {error}", stacklevel=1)
        pytest.xfail(f"sagemaker {version} is newer than the versions that are pinned")


def test_the_script_of_the_cli_runs_as_it_stands(few, run, cli):
    check_script(run([*FASTMAKER, "bash", "train_on_sagemaker.sh"], PATH=f"{cli}:{os.environ['PATH']}"), few)


def test_the_program_runs_with_loopback_alone(few, run):
    check_program(run(cut_off([*FASTMAKER, sys.executable, "train_on_sagemaker.py"])), few)


def test_the_script_of_the_cli_runs_with_loopback_alone(few, run, cli):
    command = cut_off([*FASTMAKER, "bash", "train_on_sagemaker.sh"])
    check_script(run(command, PATH=f"{cli}:{os.environ['PATH']}"), few)


# Clients that know AWS's own hosts alone, where no host but this machine could answer.
AT_AWSS_HOSTS = [
    *FASTMAKER[:-1],
    "--proxy",
    "--",
    "env",
    "-u",
    "AWS_ENDPOINT_URL",
    "-u",
    "SAGEMAKER_USER_CONFIG_OVERRIDE",
]


def test_the_program_runs_at_awss_own_hosts_with_loopback_alone(few, run):
    check_program(run(cut_off([*AT_AWSS_HOSTS, sys.executable, "train_on_sagemaker.py"])), few)


def test_the_script_of_the_cli_runs_at_awss_own_hosts_with_loopback_alone(few, run, cli):
    command = cut_off([*AT_AWSS_HOSTS, "bash", "train_on_sagemaker.sh"])
    check_script(run(command, PATH=f"{cli}:{os.environ['PATH']}"), few)
