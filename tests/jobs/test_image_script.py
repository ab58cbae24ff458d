"""``fastmaker image``: it pushes to a registry that asks for ECR's password. test_image.py tests what it builds."""

import base64
import os
import runpy
import shlex
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import bcrypt
import boto3
import pytest
from helpers import REPOSITORY
from helpers.commands import one_line
from helpers.engine import docker, own_engine, tiny_image
from helpers.local_mode import wait_until

from fastmaker.jobs import image as image_script
from fastmaker.jobs.cli import redaction

# An engine asks a registry on loopback by HTTP as well, without certificates.
REGISTRY = """
version: 0.1
storage: {{filesystem: {{rootdirectory: {folder}/storage}}}}
http: {{addr: "127.0.0.1:80"}}
auth: {{htpasswd: {{realm: test, path: {folder}/passwords}}}}
"""


def image(*words, **environment):
    lacking = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    env = {**lacking, "PYTHONPATH": str(REPOSITORY), "AWS_EC2_METADATA_DISABLED": "true", **environment}
    return subprocess.run(
        [sys.executable, "-m", "fastmaker.jobs", "image", *words], env=env, capture_output=True, text=True
    )


@pytest.fixture
def here(front, credentials):
    """The environment of a user of AWS on this machine, whose ECR is moto's."""
    return {**credentials, "AWS_ENDPOINT_URL": front["AWS_ENDPOINT_URL"]}


@pytest.fixture
def ecr(here, monkeypatch):
    """A client of that ECR."""
    for name, value in here.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("ecr")
    yield client
    for repository in client.describe_repositories()["repositories"]:
        client.delete_repository(repositoryName=repository["repositoryName"], force=True)


@contextmanager
def registry(folder: Path, engine: int, user: str, password: str):
    """A registry in the network of the engine, for whoever has the password."""
    folder.mkdir()
    hashed = bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()
    (folder / "passwords").write_text(f"{user}:{hashed}\n")
    (folder / "config.yml").write_text(REGISTRY.format(folder=folder))
    command = ["nsenter", "--target", str(engine), "--net", "docker-registry", "serve", str(folder / "config.yml")]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until(lambda: "listening on" in (folder / "log").read_text() or process.poll() is not None)
        yield
    finally:
        process.terminate()
        process.wait()


@pytest.mark.docker
@pytest.mark.skipif(shutil.which("docker-registry") is None, reason="there is no docker-registry")
def test_an_image_is_pushed_to_a_repository_that_is_made_for_it(ecr, here, tmp_path):
    authorization = ecr.get_authorization_token()["authorizationData"][0]
    user, _, password = base64.b64decode(authorization["authorizationToken"]).decode().partition(":")
    host = authorization["proxyEndpoint"].removeprefix("https://")
    with (
        own_engine(hosts=f"127.0.0.1 localhost {host}\n") as (environment, engine),
        registry(tmp_path / "registry", engine, user, password),
    ):
        tiny_image("fastmaker-training", environment)
        here = {**here, "DOCKER_HOST": environment["DOCKER_HOST"], "HOME": str(tmp_path)}
        first = image("push", "--training", **here)
        assert first.returncode == 0, first.stderr
        second = image("push", "--training", "--repository", "fastmaker:again", **here)
        assert second.returncode == 0, second.stderr
    told = dict(line.split(maxsplit=1) for line in first.stdout.splitlines()[-3:])
    assert told["image:"] == f"{redaction.redact(host)}/fastmaker:training"
    assert told["next:"].startswith("fastmaker train --data FOLDER --instance-type ml.")
    assert told["next:"].endswith("--image-uri fastmaker:training")
    assert host not in first.stdout + first.stderr + second.stdout + second.stderr
    tags = tmp_path / "registry/storage/docker/registry/v2/repositories/fastmaker/_manifests/tags"
    for tag in ("training", "again"):
        assert (tags / tag / "current" / "link").read_text() == told["digest:"]
    (repository,) = ecr.describe_repositories()["repositories"]
    assert repository["imageScanningConfiguration"] == {"scanOnPush": True}
    assert ecr.list_tags_for_resource(resourceArn=repository["repositoryArn"])["tags"][0]["Key"] == "fastmaker"
    assert "created the repository" in first.stdout
    assert "created the repository" not in second.stdout
    assert password not in first.stdout + first.stderr
    assert not (tmp_path / ".docker").exists()  # where a login of the user's would be kept


@pytest.mark.docker
@pytest.mark.skipif(shutil.which("docker-registry") is None, reason="there is no docker-registry")
def test_a_registry_that_refuses_the_password_ends_the_push_with_one_line(ecr, here, tmp_path):
    host = ecr.get_authorization_token()["authorizationData"][0]["proxyEndpoint"].removeprefix("https://")
    with (
        own_engine(hosts=f"127.0.0.1 localhost {host}\n") as (environment, engine),
        registry(tmp_path / "registry", engine, "AWS", "another password"),
    ):
        tiny_image("fastmaker", environment)
        done = image("push", **here, DOCKER_HOST=environment["DOCKER_HOST"])
    assert "docker login failed" in done.stderr.splitlines()[-1]
    assert "401 Unauthorized" in done.stderr.splitlines()[-1]


@pytest.mark.docker
def test_daemon_json_configures_a_real_engine():
    with own_engine("--config-file", REPOSITORY / "daemon.json") as (environment, _):
        assert docker("info", "--format", "{{.DefaultRuntime}}", env=environment) == "nvidia"
        tiny_image("tiny", environment)
        container = docker("create", "tiny", "command", env=environment)
        size = docker("inspect", "--format", "{{.HostConfig.ShmSize}}", container, env=environment)
        assert int(size) == 2 * 2**30


@pytest.mark.parametrize("command", ["build", "push"])
def test_without_docker_both_commands_end_with_one_line(command):
    done = image(command, PATH="/nowhere")
    assert done.returncode == 2
    assert "there is no `docker` command" in one_line(done.stderr)


@pytest.mark.docker
@pytest.mark.parametrize("command", ["build", "push"])
def test_without_an_engine_both_commands_end_with_one_line(command):
    done = image(command, DOCKER_HOST="unix:///nowhere")
    assert done.returncode == 2
    assert "the Docker engine does not answer: Cannot connect" in one_line(done.stderr)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["build", "--build-arg", "TORCH_VERSION"], "--build-arg 'TORCH_VERSION': expected NAME=VALUE"),
        (["push", "--network", "host"], "unrecognized arguments: --network host"),
        (["build", "--training", "--server", "ray"], "the image that trains serves by torchserve"),
        ([], "the following arguments are required: command"),
    ],
)
def test_wrong_usage_ends_with_one_line(words, reason):
    done = image(*words)
    assert done.returncode == 2
    assert reason in one_line(done.stderr)


@pytest.mark.parametrize(
    ("words", "built"),
    [
        ([], ["--target", "serving", "--tag", "fastmaker"]),
        (["--server", "torchserve"], ["--target", "serving", "--tag", "fastmaker"]),
        (["--training"], ["--target", "training", "--tag", "fastmaker-training"]),
        (["--server", "ray"], ["--file", str(REPOSITORY / "docker" / "ray.Dockerfile"), "--tag", "fastmaker-ray"]),
        (["--training", "--tag", "mine"], ["--target", "training", "--tag", "mine"]),
    ],
)
def test_a_dry_run_prints_the_command_that_builds(words, built, capsys):
    options = ["--build-arg", "BASE_IMAGE=a b", "--network", "host"]
    image_script.main(image_script.parse_args(["build", *words, *options, "--dry-run"]))
    assert shlex.split(capsys.readouterr().out) == ["docker", "build", *built, *options, str(REPOSITORY)]


def test_what_the_image_serves_is_the_archive_that_is_not_hidden(tmp_path, monkeypatch):
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(tmp_path))
    (tmp_path / "model").mkdir()
    for name in ("._a.mar", "a.mar"):
        (tmp_path / "model" / name).touch()
    find_archive = runpy.run_path(str(REPOSITORY / "docker" / "run.py"))["find_archive"]
    assert find_archive() == tmp_path / "model" / "a.mar"
    (tmp_path / "model" / "a.mar").unlink()
    with pytest.raises(SystemExit, match=r"one .mar, found: \._a\.mar"):
        find_archive()


@pytest.fixture
def tiny():
    """An image of this machine's engine."""
    tiny_image(name := "fastmaker-test-tiny", os.environ)
    yield name
    docker("image", "rm", name)


@pytest.mark.docker
@pytest.mark.parametrize(
    ("lacking", "reason"),
    [
        ("AWS_DEFAULT_REGION", "no AWS region"),
        ("AWS_ACCESS_KEY_ID", "no AWS credentials: set AWS_PROFILE"),
        (None, "would push"),
    ],
)
def test_region_and_credentials_are_asked_for_before_anything_is_done(tiny, here, tmp_path, lacking, reason):
    environment = {name: value for name, value in here.items() if name != lacking}
    done = image("push", "--tag", tiny, "--dry-run", HOME=str(tmp_path), **environment)
    assert reason in (one_line(done.stderr) if lacking else done.stdout)
    assert bool(done.returncode) == bool(lacking)


@pytest.mark.docker
def test_who_may_not_push_is_told_in_one_line(tiny, here):
    done = image("push", "--tag", tiny, **{**here, "AWS_SECRET_ACCESS_KEY": "another"})
    assert done.returncode == 1
    assert "GetCallerIdentity operation" in one_line(done.stderr)


@pytest.mark.docker
def test_an_image_that_is_not_there_is_not_pushed():
    assert "no image nobody-made-this on this machine" in one_line(image("push", "--tag", "nobody-made-this").stderr)


@pytest.mark.docker
def test_a_build_that_fails_ends_with_one_line():
    done = image("build", "--build-arg", "BASE_IMAGE=nobody-made-this:1", "--tag", "fastmaker-test-failed")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: docker build ended with status 1"
    assert not docker("images", "--quiet", "fastmaker-test-failed")
