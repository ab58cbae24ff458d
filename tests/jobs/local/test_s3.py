"""``fastmaker s3``: the S3 of this machine as a command."""

import os
import signal
import subprocess
import sys

import boto3
import pytest
from helpers import PATIENCE
from helpers.commands import IN_BACKGROUND


@pytest.mark.parametrize("prefix", [[], IN_BACKGROUND], ids=["foreground", "background"])
def test_the_server_answers_until_ctrl_c(prefix, tmp_path):
    command = [*prefix, sys.executable, "-m", "fastmaker.jobs", "s3", "--port", "0"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True) as server:
        try:
            told = dict(server.stdout.readline().removeprefix("export ").strip().split("=", 1) for _ in range(5))
            credentials = {"aws_access_key_id": "local", "aws_secret_access_key": "local", "region_name": "us-east-1"}
            s3 = boto3.client("s3", endpoint_url=told["AWS_ENDPOINT_URL_S3"], **credentials)
            s3.create_bucket(Bucket="bucket")
            assert [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]] == ["bucket"]
            server.send_signal(signal.SIGINT)
            assert server.wait(PATIENCE) == 0
        finally:
            server.kill()
