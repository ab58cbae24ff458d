"""docs/aws-here.md: its programs run as they stand there."""

import os
import shutil
import subprocess
import sys

import pytest
from helpers import REPOSITORY, environments
from helpers.network import cut_off
from helpers.pages import blocks, lay_out

pytestmark = [pytest.mark.server, pytest.mark.slow]
PAGE = (REPOSITORY / "docs" / "aws-here.md").read_text("utf-8")
FASTMAKER = [sys.executable, "-m", "fastmaker.jobs", "aws", "--"]


@pytest.fixture(scope="module")
def cli(tmp_path_factory):
    """The folder of the AWS CLI, which is installed in an environment of its own."""
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
    (program,) = [block for block in blocks(PAGE, "python") if "ml.g4dn.xlarge" in block]
    (tmp_path / "train_on_sagemaker.py").write_text(program)

    def _run(command, **variables):
        env = {**os.environ, "FASTMAKER_HOME": str(tmp_path / "home"), **variables}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        assert not list((tmp_path / "home" / "endpoints").iterdir())
        return done.stdout

    return _run


def check_program(printed, few):
    assert "train_loss" in printed or "epoch" in printed
    assert printed.endswith(f"{len(list((few / '7').iterdir())) + 3} answers\n")


def check_script(printed, few):
    assert "train_loss=" in printed
    listed = [line for line in printed.splitlines() if line.endswith(".png.out")]
    assert len(listed) == len(list((few / "7").iterdir()))
    assert printed.rpartition("\n")[2].startswith('{"label": ')


def test_the_program_runs_as_it_stands(few, run):
    check_program(run([*FASTMAKER, sys.executable, "train_on_sagemaker.py"]), few)


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
