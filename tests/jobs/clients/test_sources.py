"""The lines that ask an endpoint without this package's page: they are run as they stand."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import boto3
import pytest
from helpers.front import client_of
from helpers.front_jobs import ROLE

from fastmaker.jobs import predict
from fastmaker.jobs.backends.asynchronous import AsyncRuntime
from fastmaker.jobs.clients import sources


@contextlib.contextmanager
def here(request):
    """The name of an endpoint of local mode, the variables of its clients, and the backend's option."""
    home = request.getfixturevalue("home")
    yield request.getfixturevalue("digits_predictor").endpoint_name, {"FASTMAKER_HOME": str(home)}, ()


@contextlib.contextmanager
def through_the_front(request):
    variables, archive = request.getfixturevalue("front"), request.getfixturevalue("digits_archive")
    words = f"--endpoint-name asked --instance-type ml.m5.xlarge --role {ROLE} --server torchserve".split()
    deploy = [sys.executable, "-m", "fastmaker.jobs", "deploy", "--model", archive, *words]
    run(deploy, variables, archive.parent)
    try:
        yield "asked", variables, ("--backend", "aws")
    finally:
        client_of(variables, "sagemaker").delete_endpoint(EndpointName="asked")


def run(command, variables, folder) -> bytes:
    """What a command prints that succeeds; `fastmaker` and `python` are those of this Python."""
    env = {**os.environ, **variables, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([*map(str, command)], cwd=folder, env=env, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.server
@pytest.mark.parametrize("place", [here, through_the_front], ids=["here", "fastmaker aws"])
def test_the_lines_get_the_answer_of_the_page(place, request, pngs, tmp_path, monkeypatch):
    (tmp_path / "image.jpg").write_bytes(pngs[0])
    with place(request) as (name, variables, options):
        for variable, value in variables.items():
            monkeypatch.setenv(variable, value)
        with sources.connect(predict.parse_args(["--endpoint", name, *options, "-"])) as source:
            expected, lines = source.ask(pngs[0]), source.requests
        assert run(["bash", "-c", lines["curl"]], variables, tmp_path) == expected
        # The SDK may say before it whose configuration it takes.
        assert run([sys.executable, "-c", lines["boto3"]], variables, tmp_path).splitlines()[-1] == expected
        answer = json.loads(run(["bash", "-c", lines["fastmaker"]], variables, tmp_path))
        assert answer == {"image": "image.jpg", **json.loads(expected)}


def endpoint_in(region, wrap=lambda runtime: runtime):
    runtime = wrap(boto3.client("sagemaker-runtime", region_name=region))
    return sources.Endpoint(SimpleNamespace(runtime=lambda name: runtime, session=None, region=region), "pets")


@pytest.mark.parametrize(
    ("region", "host"),
    [
        ("eu-west-1", "runtime.sagemaker.eu-west-1.amazonaws.com"),
        ("cn-north-1", "runtime.sagemaker.cn-north-1.amazonaws.com.cn"),
    ],
)
def test_curl_asks_the_host_of_the_region(region, host):
    lines = endpoint_in(region).requests
    assert f"curl https://{host}/endpoints/pets/invocations " in lines["curl"]
    assert f'"aws:amz:{region}:sagemaker"' in lines["curl"]


def test_an_asynchronous_endpoint_is_asked_by_the_command_alone():
    lines = endpoint_in("eu-west-1", lambda runtime: AsyncRuntime(runtime, None, "s3://b/folder")).requests
    assert lines == {"fastmaker": "fastmaker predict --endpoint pets image.jpg --json --backend aws"}
