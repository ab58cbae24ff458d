"""The Dockerfiles, built by a real engine (`make test-docker`): containers that serve as endpoints of local mode do."""

import io
import json
import shutil
import subprocess
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import urllib3
from helpers import PATIENCE, REPOSITORY
from helpers.abuse import Server, survives
from helpers.engine import ONE_WORKER, await_health, docker, serving_container, started
from helpers.invocations import ask, asked_for
from helpers.local_mode import wait_until
from helpers.servers import endpoint

from fastmaker import load_bundle, preprocess
from fastmaker.jobs import package
from fastmaker.jobs.packaging.torchserve import make_archive
from fastmaker.local.containers import pack

pytestmark = pytest.mark.docker

# Prints the pids of the processes that have a copy of the model, in a container.
WORKERS = {
    "torchserve": """
import json, urllib.request
workers = json.load(urllib.request.urlopen("http://127.0.0.1:8081/models/model"))[0]["workers"]
print(*(worker["pid"] for worker in workers if worker["status"] == "READY"))
""",
    "ray": """
import psutil
named = [(process.pid, "".join(process.cmdline())) for process in psutil.process_iter()]
print(*(pid for pid, name in named if name.startswith("ray::ServeReplica")))
""",
}
# Prints the ports at which a container is reached from outside.
REACHED = """
import psutil
found = {connection.laddr for connection in psutil.net_connections() if connection.status == psutil.CONN_LISTEN}
print(*sorted({port for ip, port in found if not ip.endswith("127.0.0.1") and ip != "::1"}))
"""
# How far an image's numbers may be from this machine's: Ray Serve's has a newer torch, which adds up in another order.
TOLERANCE = {"torchserve": 0, "ray": 2e-6}


def of_each_server(model: str):
    """Parameters of a test: a model for each server, and for TorchServe its archive as well."""
    served = [("torchserve", model), ("torchserve", f"{model}-archive"), ("ray", model)]
    return pytest.mark.parametrize(("server", "model"), served)


@pytest.fixture(params=["torchserve", "ray"])
def server(request) -> str:
    """What serves; `image` is its image."""
    return request.param


@pytest.fixture
def image(request, server) -> str:
    return request.getfixturevalue(f"{server}_image")


@pytest.fixture(scope="module")
def models(digits_bundle, scenes_bundle, tmp_path_factory) -> dict[str, Path]:
    """Model directories, which anybody may read: two bundles, an archive of each."""
    folder = tmp_path_factory.mktemp("models")
    folder.chmod(0o755)
    bundles = {"digits": digits_bundle, "scenes": scenes_bundle}
    for name, source in bundles.items():
        shutil.copytree(source, folder / name)
        make_archive(source, folder / f"{name}-archive" / f"{name}.mar", model_name=name, workers=1)
    return {name: folder / name for name in (*bundles, *(f"{name}-archive" for name in bundles))}


def with_charset(server: str, body: bytes, media_type: str) -> tuple[bytes, str]:
    """An answer as the server gives it: Ray Serve's adapter names the charset of text, as AWS's does."""
    return body, media_type + "; charset=utf-8" if server == "ray" and media_type.startswith("text/") else media_type


@of_each_server("digits")
def test_a_container_answers_with_the_bytes_of_the_entry_point(
    server, image, models, model, digits_bundle, pngs, by_the_entry_point
):
    with serving_container(image, models[model], *ONE_WORKER) as (_, url):
        assert urllib3.request("GET", f"{url}/ping").status == 200
        for request in asked_for(pngs, ["application/jsonlines", "text/csv", "application/x-npy"]):
            expected = by_the_entry_point(digits_bundle, *request)
            assert ask(f"{url}/invocations", *request) == (200, *with_charset(server, *expected))


def test_a_container_answers_by_onnx_runtime_if_it_is_told_to(image, digits_bundle, pngs, tmp_path):
    tmp_path.chmod(0o755)
    package.main(package.parse_args(["onnx", str(digits_bundle), "--bundle", str(tmp_path / "model")]))
    (tmp_path / "model").chmod(0o755)
    model = load_bundle(tmp_path / "model", engine="onnxruntime")
    with serving_container(image, tmp_path / "model", "--env", "FASTMAKER_ENGINE=onnxruntime") as (_, url):
        for png in pngs:
            status, answer, _ = ask(f"{url}/invocations", png, "image/png")
            assert status == 200
            [expected] = model.predict([preprocess.decode(png)])
            assert json.loads(answer)["label"] == expected.as_object()["label"]


@of_each_server("scenes")
def test_a_container_answers_with_the_masks_of_the_entry_point(
    server, image, models, model, scenes_bundle, scenes, by_the_entry_point
):
    images = [file.read_bytes() for file in sorted((scenes / "images").iterdir())[:2]]
    with serving_container(image, models[model], *ONE_WORKER) as (_, url):
        for request in asked_for(images, ["text/csv", "application/x-npy", "image/png"]):
            expected = by_the_entry_point(scenes_bundle, *request)
            assert ask(f"{url}/invocations", *request) == (200, *with_charset(server, *expected))


@pytest.mark.parametrize("name", ["digits", "scenes"])
def test_one_archive_is_answered_with_the_same_json_by_both_images_and_local_mode(
    name, request, session, torchserve_image, ray_image, tmp_path
):
    pack(request.getfixturevalue(f"{name}_bundle"), tmp_path / "model.tar.gz")
    shutil.unpack_archive(tmp_path / "model.tar.gz", tmp_path / "model")
    images = [file.read_bytes() for file in sorted(request.getfixturevalue(name).rglob("*.png"))[:12]]
    with endpoint(session, tmp_path / "model.tar.gz") as server:
        expected = [ask(server.url, body, "image/png", "application/json") for body in images]
    assert {status for status, _, _ in expected} == {200}
    for image in (torchserve_image, ray_image):
        with serving_container(image, tmp_path / "model") as (_, url):
            answers = [ask(f"{url}/invocations", body, "image/png", "application/json") for body in images]
            assert answers == expected


@of_each_server("digits")
def test_a_container_survives_bad_requests(server, image, models, model, good):
    def workers() -> list[str]:
        return docker("exec", name, "python", "-c", WORKERS[server]).split()

    with serving_container(image, models[model]) as (name, url):
        survives(Server(f"{url}/invocations", workers, TOLERANCE[server]), good, 400)


@of_each_server("digits")
def test_a_container_serves_as_an_ordinary_user_and_lets_nobody_load_models(image, models, model, pngs):
    options = ["--read-only", "--tmpfs", "/tmp:exec"]
    with serving_container(image, models[model], *options) as (name, url):
        processes = [line.split() for line in docker("top", name, "-eo", "pid,uid").splitlines()[1:]]
        assert {user for _, user in processes} == {"1000"}
        assert docker("exec", name, "python", "-c", REACHED) == "8080"
        assert ask(f"{url}/invocations", pngs[0], "image/png")[0] == 200
        for method, path in {"GET": "/models", "POST": "/models?url=http://127.0.0.1/x.mar"}.items():
            assert urllib3.request(method, url + path).status in (404, 405)


def test_a_model_that_only_root_may_read_is_served_by_root(image, digits_bundle, pngs, tmp_path):
    shutil.copytree(digits_bundle, tmp_path / "model")
    (tmp_path / "model" / "model.pth").chmod(0o600)
    with serving_container(image, tmp_path / "model") as (name, url):
        assert ask(f"{url}/invocations", pngs[0], "image/png")[0] == 200
        assert "may not read /opt/ml/model" in docker("logs", name)


@of_each_server("digits")
def test_a_container_that_is_stopped_ends_at_once_and_starts_again(image, models, model, pngs):
    with serving_container(image, models[model]) as (name, url):
        start = time.monotonic()
        docker("stop", "--time", 3600, name)
        assert time.monotonic() - start < PATIENCE
        docker("start", name)
        await_health(name)
        assert ask(f"{url}/invocations", pngs[0], "image/png")[0] == 200


def test_the_port_that_sagemaker_names_is_served_on(image, models, pngs):
    options = ["--env", "SAGEMAKER_BIND_TO_PORT=9000"]
    with serving_container(image, models["digits"], *options, port_inside=9000) as (_, url):
        assert ask(f"{url}/invocations", pngs[0], "image/png")[0] == 200


def test_a_model_may_be_in_the_image(image, digits_bundle, pngs, tmp_path):
    shutil.copytree(digits_bundle, tmp_path / "model")
    (tmp_path / "Dockerfile").write_text(f"FROM {image}\nCOPY model /opt/ml/model\n")
    docker("build", "--tag", "fastmaker-test-baked", tmp_path)
    with serving_container("fastmaker-test-baked", None) as (_, url):
        assert ask(f"{url}/invocations", pngs[0], "image/png")[0] == 200
    docker("image", "rm", "fastmaker-test-baked")


@pytest.mark.parametrize(
    ("server", "files", "reason"),
    [
        ("torchserve", [], "in /opt/ml/model a bundle (model.json, model.pth, code) or one .mar, found: nothing"),
        ("torchserve", ["model.pth"], "one .mar, found: model.pth"),
        ("torchserve", ["a.mar", "b.mar"], "one .mar, found: a.mar, b.mar"),
        ("ray", [], "in /opt/ml/model a model with a config.yaml, as bundles have, found: nothing"),
        ("ray", ["a.mar"], "as bundles have, found: a.mar"),
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
    assert docker("run", "--rm", image, "fly", check=False) == "error: expected one of serve, healthy, train, not fly"
    assert docker("run", "--rm", image, "train", check=False).startswith("error: this image serves alone")


def test_an_archive_without_model_json_says_so_in_the_log(torchserve_image, models, tmp_path):
    tmp_path.chmod(0o755)
    with (
        zipfile.ZipFile(models["digits-archive"] / "digits.mar") as whole,
        zipfile.ZipFile(tmp_path / "lacking.mar", "w") as lacking,
    ):
        for name in whole.namelist():
            if name != "model.json":
                lacking.writestr(name, whole.read(name))
    with started(torchserve_image, tmp_path) as name:
        wait_until(lambda: "model.json: missing; is" in docker("logs", name))


def test_ray_serve_ends_with_one_line_about_a_bundle_without_model_json(ray_image, digits_bundle, tmp_path):
    shutil.copytree(digits_bundle, tmp_path / "model")
    (tmp_path / "model" / "model.json").unlink()
    tmp_path.chmod(0o755)
    done = docker("run", "--rm", "-v", f"{tmp_path}/model:/opt/ml/model:ro", ray_image, "serve", check=False)
    assert "Ray Serve could not start: " in done.splitlines()[-1]
    assert "model.json: missing" in done.splitlines()[-1]


# What a container is not to need: packages from an index, and pickles. Who imports no torch is not made to: Ray allows
# its first processes 15 s.
FORBID = """
import sys
from importlib.machinery import PathFinder


class Forbidding:
    def find_spec(self, name, path, target=None):
        if name != "torch.serialization":
            return None
        spec = PathFinder.find_spec(name, path)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            load = module.load

            def weights(*arguments, **options):
                if not options.get("weights_only"):
                    raise RuntimeError("torch.load may unpickle anything here")
                return load(*arguments, **options)

            module.load = weights

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Forbidding())
"""
ASK = """
import sys, urllib.request
headers = {"Content-Type": "image/png", "Accept": "application/x-npy"}
request = urllib.request.Request("http://127.0.0.1:8080/invocations", sys.stdin.buffer.read(), headers)
sys.stdout.buffer.write(urllib.request.urlopen(request).read())
"""


@pytest.fixture
def bare(tmp_path, image):
    """Options of a container that has neither root, nor pip, nor a network, nor unpickles what torch.load reads."""
    (tmp_path / "forbid").mkdir()
    (tmp_path / "forbid" / "sitecustomize.py").write_text(FORBID)
    tmp_path.chmod(0o755)
    pip = docker("run", "--rm", "--entrypoint", "python", image, "-c", "import pip; print(*pip.__path__)")
    options = ["--user", "4321:4321", "--network", "none", "--tmpfs", pip, "--no-healthcheck"]
    return [*options, "--volume", f"{tmp_path}/forbid:/opt/forbid:ro", "--env", "PYTHONPATH=/opt/forbid"]


def test_what_a_bare_container_lacks_it_lacks(image, bare):
    for words in (["-m", "pip", "--version"], ["-c", "import torch; torch.load('x')"]):
        command = ["run", "--rm", *bare, "--entrypoint", "python", image, *words]
        said = docker(*command, check=False)
        assert "No module named pip" in said or "may unpickle anything" in said
    assert docker("run", "--rm", *bare, "--entrypoint", "id", image, "-u") == "4321"


@of_each_server("digits")
def test_serving_needs_neither_root_nor_pip_nor_a_network_nor_pickles(image, models, model, bare, digits_bundle, pngs):
    with started(image, models[model], *bare, *ONE_WORKER) as name:
        await_health(name)
        command = ["docker", "exec", "--interactive", name, "python", "-c", ASK]
        answer = subprocess.run(command, input=pngs[0], check=True, capture_output=True).stdout
    expected = load_bundle(digits_bundle).predict([preprocess.decode(pngs[0])])[0].probabilities
    assert np.array_equal(np.load(io.BytesIO(answer)), expected)


def train(image, opt_ml, *options, **hyperparameters) -> str:
    """The log of a training job of one host on /opt/ml/code and /opt/ml/input/data, which anybody may read."""
    configuration = {
        "hyperparameters": {name: str(value) for name, value in hyperparameters.items()},
        "inputdataconfig": {"train": {"TrainingInputMode": "File"}},
        "resourceconfig": {"current_host": "localhost", "hosts": ["localhost"], "network_interface_name": "lo"},
    }
    for folder in ("input/config", "input/data/train", "model", "output"):
        (opt_ml / folder).mkdir(parents=True, exist_ok=True)
    for name, content in configuration.items():
        (opt_ml / "input" / "config" / f"{name}.json").write_text(json.dumps(content))
    for path in (opt_ml, *opt_ml.rglob("*")):
        path.chmod(0o777)
    return docker("run", "--rm", *options, "--volume", f"{opt_ml}:/opt/ml", image, "train", check=False)


@pytest.mark.parametrize("server", ["torchserve"])
def test_training_needs_neither_root_nor_pip_nor_a_network_nor_pickles(training_image, few, bare, tmp_path, pngs):
    shutil.copytree(few, tmp_path / "ml" / "input" / "data" / "train")
    shutil.copytree(REPOSITORY / "source", tmp_path / "ml" / "code")
    assert (tmp_path / "ml" / "code" / "requirements.txt").is_file()
    options = [*bare, "--env", "HOME=/tmp"]
    log = train(training_image, tmp_path / "ml", *options, sagemaker_program="entry_point.py", arch="convnet", epochs=1)
    assert "Reporting training SUCCESS" in log, log
    assert "pip" not in log
    model = tmp_path / "ml" / "model"
    assert load_bundle(model).predict([preprocess.decode(pngs[0])])
    assert {path.stat().st_uid for path in model.rglob("*")} == {4321}


def test_requirements_that_the_image_lacks_are_asked_of_pip(training_image, tmp_path):
    code = tmp_path / "ml" / "code"
    code.mkdir(parents=True)
    (code / "train.py").write_text("print('ran')")
    (code / "requirements.txt").write_text("--no-index\nnobody-wrote-this==1.0\n")
    log = train(training_image, tmp_path / "ml", sagemaker_program="train.py")
    assert "No matching distribution found for nobody-wrote-this" in log
    assert "ran" not in log.splitlines()


def test_a_script_sees_no_module_of_the_image(training_image, tmp_path):
    code = tmp_path / "ml" / "code"
    code.mkdir(parents=True)
    (code / "train.py").write_text("import sys; print([path for path in sys.path if 'fastmaker' in path])")
    assert "[]" in train(training_image, tmp_path / "ml", sagemaker_program="train.py").splitlines()


@pytest.mark.parametrize(
    ("name", "programs"),
    [("torchserve_image", "gcc cc"), ("training_image", "gcc cc"), ("ray_image", "gcc cc java torchserve")],
)
def test_no_compiler_is_left_in_an_image_nor_a_java_beside_ray_serve(request, name, programs):
    command = f"command -v {programs} || echo none"
    assert docker("run", "--rm", "--entrypoint", "sh", request.getfixturevalue(name), "-c", command) == "none"
