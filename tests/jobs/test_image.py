"""The Dockerfile, built by a real engine (`make test-docker`): containers that serve as endpoints of local mode do."""

import json
import os
import shutil
import subprocess
import time
import uuid
import zipfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import urllib3
from local_mode import REPOSITORY, wait_until
from test_abuse import Server, survives
from test_package import ask, asked_for

from fastmaker import preprocess, serving
from jobs import package
from jobs.local.container import free_ports

pytestmark = pytest.mark.docker

PUBLIC_BASE = "python:3.11-slim-bookworm"  # the Dockerfile's own
CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"
ONE_WORKER = ["--env", "SAGEMAKER_MODEL_SERVER_WORKERS=1"]
WORKERS = """
import json, urllib.request
workers = json.load(urllib.request.urlopen("http://127.0.0.1:8081/models/model"))[0]["workers"]
print(*(worker["pid"] for worker in workers if worker["status"] == "READY"))
"""


def docker(*words, check=True, **arguments) -> str:
    done = subprocess.run(["docker", *map(str, words)], capture_output=True, text=True, **arguments)
    assert done.returncode == 0 or not check, done.stderr[-3000:]
    return (done.stdout + done.stderr).strip()


@pytest.fixture(scope="module")
def base_image(tmp_path_factory) -> str:
    """FASTMAKER_BASE_IMAGE, else the Dockerfile's own, else one by debootstrap where no registry can be reached."""
    if named := os.environ.get("FASTMAKER_BASE_IMAGE"):
        return named
    for words in (["image", "inspect", PUBLIC_BASE], ["pull", "--quiet", PUBLIC_BASE]):
        if subprocess.run(["docker", *words], capture_output=True).returncode == 0:
            return PUBLIC_BASE
    own = "fastmaker-base:bookworm"
    if subprocess.run(["docker", "image", "inspect", own], capture_output=True).returncode == 0:
        return own
    root = tmp_path_factory.mktemp("base")
    packages = "--include=python3,python3-venv,ca-certificates"
    subprocess.run(["debootstrap", "--variant=minbase", packages, "bookworm", root], check=True, capture_output=True)
    # The engine builds in this machine's network, which may have certificates of its own.
    shutil.copy(os.environ.get("SSL_CERT_FILE", f"/{CERTIFICATES}"), root / CERTIFICATES)
    with subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE) as packed:
        docker("import", "--change", f"ENV PIP_CERT=/{CERTIFICATES}", "-", own, stdin=packed.stdout)
    shutil.rmtree(root)
    return own


@pytest.fixture(scope="module")
def image(base_image) -> str:
    docker("build", "--network=host", "--build-arg", f"BASE_IMAGE={base_image}", "-t", "fastmaker-test", REPOSITORY)
    return "fastmaker-test"


@pytest.fixture(scope="module")
def models(digits_bundle, scenes_bundle, tmp_path_factory) -> dict[str, Path]:
    """Model directories, which anybody may read: two bundles, an archive of each."""
    folder = tmp_path_factory.mktemp("models")
    folder.chmod(0o755)
    bundles = {"digits": digits_bundle, "scenes": scenes_bundle}
    for name, source in bundles.items():
        shutil.copytree(source, folder / name)
        package.make_archive(source, name, folder / f"{name}-archive" / f"{name}.mar", "minWorkers: 1\nmaxWorkers: 1\n")
    return {name: folder / name for name in (*bundles, *(f"{name}-archive" for name in bundles))}


@contextmanager
def started(image, model, *options):
    """The name of a container that serves the directory `model`, or tries to; it is gone afterwards."""
    name = f"fastmaker-test-{uuid.uuid4()}"
    docker("run", "--detach", "--name", name, "-v", f"{model}:/opt/ml/model:ro", *options, image, "serve")
    try:
        yield name
    finally:
        docker("rm", "--force", name)


@contextmanager
def serving_container(image, model, *options, port_inside=8080):
    """The container's name and the URL of its port on this machine, once it is healthy."""
    (port,) = free_ports(1)
    with started(image, model, "-p", f"127.0.0.1:{port}:{port_inside}", *options) as name:
        await_health(name)
        yield name, f"http://127.0.0.1:{port}"


def await_health(name) -> None:
    def healthy() -> bool:
        assert docker("inspect", "--format", "{{.State.Running}}", name) == "true", docker("logs", name)
        return subprocess.run(["docker", "exec", name, "python", "/opt/fastmaker/run.py", "healthy"]).returncode == 0

    wait_until(healthy, 60)


@pytest.mark.parametrize("model", ["digits", "digits-archive"])
def test_a_container_answers_with_the_bytes_of_the_entry_point(
    image, models, model, digits_bundle, pngs, by_the_entry_point
):
    with serving_container(image, models[model], *ONE_WORKER) as (_, url):
        assert urllib3.request("GET", f"{url}/ping").status == 200
        for request in asked_for(pngs, ["application/jsonlines", "text/csv", "application/x-npy"]):
            assert ask(f"{url}/invocations", *request) == (200, *by_the_entry_point(digits_bundle, *request))


def test_a_container_answers_by_onnx_runtime_if_it_is_told_to(image, digits_bundle, pngs, tmp_path):
    tmp_path.chmod(0o755)
    package.main(package.parse_args(["onnx", str(digits_bundle), "--bundle", str(tmp_path / "model")]))
    (tmp_path / "model").chmod(0o755)
    model = serving.load(tmp_path / "model", engine="onnxruntime")
    with serving_container(image, tmp_path / "model", "--env", "FASTMAKER_ENGINE=onnxruntime") as (_, url):
        for png in pngs:
            status, answer, _ = ask(f"{url}/invocations", png, "image/png")
            assert status == 200
            [expected] = model.predict([preprocess.decode(png)])
            assert json.loads(answer)["label"] == expected.as_object()["label"]


@pytest.mark.parametrize("model", ["scenes", "scenes-archive"])
def test_a_container_answers_with_the_masks_of_the_entry_point(
    image, models, model, scenes_bundle, scenes, by_the_entry_point
):
    images = [file.read_bytes() for file in sorted((scenes / "images").iterdir())[:2]]
    with serving_container(image, models[model], *ONE_WORKER) as (_, url):
        for request in asked_for(images, ["text/csv", "application/x-npy", "image/png"]):
            assert ask(f"{url}/invocations", *request) == (200, *by_the_entry_point(scenes_bundle, *request))


@pytest.mark.parametrize("model", ["digits", "digits-archive"])
def test_a_container_survives_bad_requests(image, models, model, good):
    with serving_container(image, models[model]) as (name, url):
        server = Server(f"{url}/invocations", lambda: docker("exec", name, "python", "-c", WORKERS).split())
        survives(server, good, 400)


@pytest.mark.parametrize("model", ["digits", "digits-archive"])
def test_a_container_serves_as_an_ordinary_user_and_lets_nobody_load_models(image, models, model, pngs):
    options = ["--read-only", "--tmpfs", "/tmp:exec"]
    with serving_container(image, models[model], *options) as (name, url):
        processes = [line.split() for line in docker("top", name, "-eo", "pid,uid").splitlines()[1:]]
        assert {user for _, user in processes} == {"1000"}
        assert ask(f"{url}/invocations", pngs[0], "image/png")[0] == 200
        for method, path in {"GET": "/models", "POST": "/models?url=http://127.0.0.1/x.mar"}.items():
            assert urllib3.request(method, url + path).status in (404, 405)


def test_a_model_that_only_root_may_read_is_served_by_root(image, digits_bundle, pngs, tmp_path):
    shutil.copytree(digits_bundle, tmp_path / "model")
    (tmp_path / "model" / "model.pth").chmod(0o600)
    with serving_container(image, tmp_path / "model") as (name, url):
        assert ask(f"{url}/invocations", pngs[0], "image/png")[0] == 200
        assert "may not read /opt/ml/model" in docker("logs", name)


@pytest.mark.parametrize("model", ["digits", "digits-archive"])
def test_a_container_that_is_stopped_ends_at_once_and_starts_again(image, models, model, pngs):
    with serving_container(image, models[model]) as (name, url):
        start = time.monotonic()
        docker("stop", "--time", 30, name)
        assert time.monotonic() - start < 15
        docker("start", name)
        await_health(name)
        assert ask(f"{url}/invocations", pngs[0], "image/png")[0] == 200


def test_the_port_that_sagemaker_names_is_served_on(image, models, pngs):
    options = ["--env", "SAGEMAKER_BIND_TO_PORT=9000"]
    with serving_container(image, models["digits"], *options, port_inside=9000) as (_, url):
        assert ask(f"{url}/invocations", pngs[0], "image/png")[0] == 200


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ([], "expected in /opt/ml/model a bundle (model.json, model.pth, code) or one .mar, found: nothing"),
        (["model.pth"], "one .mar, found: model.pth"),
        (["a.mar", "b.mar"], "one .mar, found: a.mar, b.mar"),
    ],
)
def test_a_directory_that_holds_no_model_ends_with_one_line(image, tmp_path, files, reason):
    tmp_path.chmod(0o755)
    for name in files:
        (tmp_path / name).touch()
    done = docker("run", "--rm", "-v", f"{tmp_path}:/opt/ml/model:ro", image, "serve", check=False)
    assert done.splitlines()[-1].startswith("error: ")
    assert reason in done


def test_a_command_that_the_image_lacks_ends_with_one_line(image):
    assert docker("run", "--rm", image, "fly", check=False) == "error: expected one of serve, healthy, not fly"


def test_an_archive_without_model_json_says_so_in_the_log(image, models, tmp_path):
    tmp_path.chmod(0o755)
    with (
        zipfile.ZipFile(models["digits-archive"] / "digits.mar") as whole,
        zipfile.ZipFile(tmp_path / "lacking.mar", "w") as lacking,
    ):
        for name in whole.namelist():
            if name != "model.json":
                lacking.writestr(name, whole.read(name))
    with started(image, tmp_path) as name:
        wait_until(lambda: "model.json: missing; is" in docker("logs", name), 60)
