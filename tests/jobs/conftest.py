"""Sessions with a home of their own, an endpoint, and scripts to run."""

import functools
import os
import shutil
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest
import torch
from helpers import REPOSITORY
from helpers.engine import docker, docker_session
from helpers.local_mode import deployed, running_below
from helpers.waiting import nothing_runs_below

from fastmaker import preprocess
from fastmaker.jobs import image as image_script
from fastmaker.local import ProcessSession, aws
from fastmaker.local.containers import pack
from fastmaker.serving import models

# Of the Dockerfiles: the base that each names, and the Debian that has the same Python.
BASES = {"torchserve": ("python:3.11-slim-bookworm", "bookworm"), "ray": ("python:3.13-slim-trixie", "trixie")}
CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A FASTMAKER_HOME; whatever still runs below it when the tests end is ended, and counts as an error."""
    home = tmp_path_factory.mktemp("home")
    yield home
    left = running_below(home)
    for process in left:
        process.kill()
    assert not left


def pytest_generate_tests(metafunc):
    """A test marked `containers` runs in both kinds of session; in Docker's it carries the marker `docker` as well."""
    if metafunc.definition.get_closest_marker("containers"):
        kinds = ["processes", pytest.param("docker", marks=pytest.mark.docker)]
        metafunc.parametrize("session", kinds, indirect=True)


@pytest.fixture(scope="session")
def session(home, request):
    """A ProcessSession; a DockerSession where a test asks for "docker"."""
    if getattr(request, "param", "processes") == "processes":
        yield ProcessSession(home=home)
        return
    with docker_session(home, request.getfixturevalue("training_image")) as session:
        yield session


@pytest.fixture(scope="session")
def digits_archive(digits_bundle, tmp_path_factory):
    archive = tmp_path_factory.mktemp("archive") / "model.tar.gz"
    pack(digits_bundle, archive)
    return archive


@pytest.fixture(scope="session")
def digits_predictor(session, digits_archive):
    with deployed(session, digits_archive) as predictor:
        yield predictor


@pytest.fixture(scope="session")
def pngs(digits):
    return [file.read_bytes() for file in sorted(digits.rglob("*.png"))[::200]]


@pytest.fixture(scope="session")
def good(digits_bundle, digits):
    """Digits with their right probabilities."""
    model = models.load(digits_bundle)
    files = [file.read_bytes() for file in sorted(digits.rglob("*.png"))[::20]]
    return [(data, model.predict([preprocess.decode(data)])[0].probabilities) for data in files]


@pytest.fixture
def by_the_entry_point(entry_point):
    """by_the_entry_point(bundle, body, type, accept) -> (answer, media type), with a worker's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(models.threads_per_worker(1))
    load = functools.cache(models.load)

    def answered(bundle, body, kind, accept):
        answer = entry_point.predict_fn(entry_point.input_fn(body, kind), load(bundle))
        return entry_point.output_fn(answer, accept)

    yield answered
    torch.set_num_threads(threads)


@pytest.fixture
def run(tmp_path):
    """run(*words) -> the finished `fastmaker` command, in a folder and with a home of its own."""

    def run(*words, stdin=None):
        env = {**os.environ, "FASTMAKER_HOME": str(tmp_path / "home"), "PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, "-m", "fastmaker.jobs", *words]
        return subprocess.run(command, cwd=tmp_path, env=env, input=stdin, capture_output=True)

    yield run
    assert not running_below(tmp_path / "home")


@pytest.fixture
def write_script(tmp_path):
    """Write a source directory with a train.py; returns the directory."""

    def write(text: str, **files: str) -> Path:
        source = tmp_path / "source"
        source.mkdir(exist_ok=True)
        for name, content in {"train.py": text, **files}.items():
            (source / name).write_text(textwrap.dedent(content))
        return source

    return write


@pytest.fixture
def model_archive(tmp_path):
    """A model.tar.gz whose code/inference.py is the text given."""

    def archive(text, name="model"):
        folder = tmp_path / name
        (folder / "code").mkdir(parents=True)
        (folder / "code" / "inference.py").write_text(textwrap.dedent(text))
        pack(folder, tmp_path / f"{name}.tar.gz")
        return tmp_path / f"{name}.tar.gz"

    return archive


@pytest.fixture(scope="session")
def front_home(tmp_path_factory):
    """The FASTMAKER_HOME of AWS on this machine; nothing may run below it when the tests end."""
    home = tmp_path_factory.mktemp("aws-home")
    yield home
    assert nothing_runs_below(home)
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def front(front_home):
    """The variables by which clients find AWS on this machine, which is one server for all tests."""
    with aws.running(front_home, proxy=True):
        yield aws.environment(front_home)


@pytest.fixture(scope="session")
def credentials(front):
    """The variables of a user of that server, in the region where a bucket is created without naming it."""
    key = {name: front[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    return {**key, "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture
def s3(front, credentials, monkeypatch):
    """A client of that server's S3, which every other client of S3 uses as well while the test runs."""
    for name, value in {**credentials, "AWS_ENDPOINT_URL_S3": front["AWS_ENDPOINT_URL"]}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it keeps the key that it has found first
    return boto3.client("s3")


@pytest.fixture
def bucket(s3) -> str:
    """The name of a bucket of the test's own."""
    name = f"bucket-{uuid.uuid4()}"
    s3.create_bucket(Bucket=name)
    return name


@dataclass
class Place:
    """A folder on this machine or in S3; `uri` has no slash at its end."""

    uri: str
    put: Callable[[str, bytes], None]
    names: Callable[[], set[str]]


@pytest.fixture(params=["file", "s3"])
def place(request, tmp_path) -> Place:
    if request.param == "s3":
        s3, bucket = request.getfixturevalue("s3"), request.getfixturevalue("bucket")

        def names() -> set[str]:
            found = s3.list_objects_v2(Bucket=bucket).get("Contents", ())
            return {item["Key"].removeprefix("a place/") for item in found}

        def put(name: str, data: bytes) -> None:
            s3.put_object(Bucket=bucket, Key=f"a place/{name}", Body=data)

        return Place(f"s3://{bucket}/a place", put, names)

    folder = tmp_path / "a place"
    folder.mkdir()

    def write(name: str, data: bytes) -> None:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)

    return Place(
        f"file://{folder}", write, lambda: {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
    )


@pytest.fixture(scope="session")
def base_image(tmp_path_factory) -> Callable[[str], str]:
    """base_image(server) -> FASTMAKER_BASE_IMAGE, else the base that its Dockerfile names, else one by debootstrap.

    The last is for machines that reach no registry. FASTMAKER_RAY_BASE_IMAGE is the base of Ray Serve's image.
    """

    def base(server: str) -> str:
        public, debian = BASES[server]
        if named := os.environ.get(f"FASTMAKER_{'RAY_' if server == 'ray' else ''}BASE_IMAGE"):
            return named
        for words in (["image", "inspect", public], ["pull", "--quiet", public]):
            if subprocess.run(["docker", *words], capture_output=True).returncode == 0:
                return public
        own = f"fastmaker-base:{debian}"
        if subprocess.run(["docker", "image", "inspect", own], capture_output=True).returncode != 0:
            bootstrap(debian, own, tmp_path_factory.mktemp("base"))
        return own

    return base


def bootstrap(debian: str, name: str, root: Path) -> None:
    """Make an image of a Debian with Python, in the folder `root`, which is removed afterwards."""
    packages = "--include=python3,python3-venv,ca-certificates"
    subprocess.run(["debootstrap", "--variant=minbase", packages, debian, root], check=True, capture_output=True)
    # The engine builds in this machine's network, which may have certificates of its own.
    shutil.copy(os.environ.get("SSL_CERT_FILE", f"/{CERTIFICATES}"), root / CERTIFICATES)
    with subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE) as packed:
        docker("import", "--change", f"ENV PIP_CERT=/{CERTIFICATES}", "-", name, stdin=packed.stdout)
    shutil.rmtree(root)


@pytest.fixture(scope="session")
def torchserve_image(base_image) -> str:
    """The image that serves by TorchServe."""
    return build_image(base_image("torchserve"), "fastmaker-test")


@pytest.fixture(scope="session")
def training_image(base_image) -> str:
    """The image that trains as well."""
    return build_image(base_image("torchserve"), "fastmaker-test-training", "--training")


@pytest.fixture(scope="session")
def ray_image(base_image) -> str:
    """The image that serves by Ray Serve."""
    return build_image(base_image("ray"), "fastmaker-test-ray", "--server", "ray")


def build_image(base_image, name, *words) -> str:
    words = ["build", "--tag", name, "--network", "host", "--build-arg", f"BASE_IMAGE={base_image}", *words]
    assert image_script.main(image_script.parse_args(words)) == 0
    return name
