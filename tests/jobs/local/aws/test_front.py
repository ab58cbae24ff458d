"""``fastmaker aws``: the server as its clients see it, and what it refuses."""

import subprocess
import sys

import pytest
from botocore.exceptions import ClientError

pytestmark = pytest.mark.server


def test_what_this_machine_has_not_is_refused_by_its_name(clients):
    with pytest.raises(ClientError, match=r"^.*ValidationException.*CreatePipeline needs AWS"):
        clients("sagemaker").create_pipeline(
            PipelineName="p", ClientRequestToken="t" * 32, RoleArn="arn:aws:iam::000000000000:role/r"
        )


def test_a_command_runs_in_the_environment_and_its_status_is_returned(front_home, environ, front):
    script = "import boto3, sys; sys.exit(len(boto3.client('s3').list_buckets()['Buckets']) + 40)"
    command = [sys.executable, "-m", "fastmaker.jobs", "aws", "--", sys.executable, "-c", script]
    done = subprocess.run(command, env={**environ, "FASTMAKER_HOME": str(front_home)}, capture_output=True, text=True)
    assert done.returncode > 40, done.stderr
