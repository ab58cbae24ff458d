"""Packages as a user makes and serves them: by the command line, on a real TorchServe, in ONNX Runtime."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from helpers import PATIENCE
from helpers.commands import ENVIRONMENT, IN_BACKGROUND, exit_status, next_command, one_line
from helpers.invocations import ask, asked_for
from helpers.local_mode import deployed, running_below, wait_until
from PIL import Image

from fastmaker.jobs import package as package_command
from fastmaker.jobs.packaging.torchserve import make_archive, running
from fastmaker.local.containers import ContainerError, free_ports, pack
from fastmaker.serving import models

BATCH = 8
COMMAND = [sys.executable, "-m", "fastmaker.jobs", "package"]


@pytest.fixture
def package(tmp_path):
    """package(*words) -> the finished process, run in a folder of its own."""

    def package(*words, kind="torchserve"):
        env = {**ENVIRONMENT, "FASTMAKER_HOME": str(tmp_path / "home")}
        return subprocess.run([*COMMAND, kind, *map(str, words)], cwd=tmp_path, env=env, capture_output=True)

    return package


@contextlib.contextmanager
def serving_process(bundle, folder, prefix=()):
    """The URL and the log of `--serve`, which Ctrl-C ends; its temporary files lie in `folder`."""
    (port,) = free_ports(1)
    words = [bundle, "--model-name", "it", "--workers", 1, "--batch-size", BATCH, "--max-batch-delay", 300]
    env = {**ENVIRONMENT, "FASTMAKER_HOME": str(folder / "home"), "TMPDIR": str(folder)}
    command = [*prefix, *COMMAND, "torchserve", *map(str, words), "--serve", "--port", str(port)]
    with open(folder / "printed", "w+") as printed:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=printed, stderr=printed)
        try:
            wait_until(lambda: "to end:" in Path(printed.name).read_text() or process.poll() is not None)
            lines = Path(printed.name).read_text()
            assert process.poll() is None, lines
            told = dict(line.split(maxsplit=1) for line in lines.splitlines())
            yield told["serving:"], Path(told["log:"])
        finally:
            process.send_signal(signal.SIGINT)
            status = process.wait(PATIENCE)
    assert status == 0
    assert Path(printed.name).read_text().splitlines()[-1] == "stopped"
    assert not running_below(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["it.mar", "printed"]


@pytest.fixture(scope="module")
def digits_server(digits_bundle, tmp_path_factory):
    with serving_process(digits_bundle, tmp_path_factory.mktemp("serve")) as served:
        yield served


@pytest.fixture(scope="module")
def scenes_server(scenes_bundle, tmp_path_factory):
    """As a shell starts it in the background; Ctrl-C ends it all the same."""
    with serving_process(scenes_bundle, tmp_path_factory.mktemp("serve"), IN_BACKGROUND) as served:
        yield served


@pytest.mark.server
def test_the_archive_answers_with_the_bytes_of_the_entry_point(digits_server, digits_bundle, pngs, by_the_entry_point):
    for request in asked_for(pngs, ["application/jsonlines", "text/csv", "application/x-npy"]):
        assert ask(digits_server[0], *request) == (200, *by_the_entry_point(digits_bundle, *request))


@pytest.mark.server
@pytest.mark.slow
def test_masks_have_the_bytes_of_the_entry_point(scenes_server, scenes_bundle, scenes, by_the_entry_point):
    images = [file.read_bytes() for file in sorted((scenes / "images").iterdir())[:2]]
    for request in asked_for(images, ["text/csv", "application/x-npy", "image/png"]):
        assert ask(scenes_server[0], *request) == (200, *by_the_entry_point(scenes_bundle, *request))


@pytest.mark.server
def test_requests_at_once_go_through_together_and_a_bad_one_among_them_fails_alone(
    digits_server, digits_bundle, pngs, by_the_entry_point
):
    url, log = digits_server
    bodies = [*pngs[: BATCH - 2], b"no image", pngs[0]]
    kinds = ["image/png"] * (BATCH - 1) + ["text/plain"]
    together = f"{BATCH} requests: {BATCH - 2} images in one batch"

    def asked_at_once():  # again, if they came too late for one batch
        with ThreadPoolExecutor(BATCH) as clients:
            answers = list(clients.map(lambda body, kind: ask(url, body, kind, "application/x-npy"), bodies, kinds))
        return together in log.read_text() and answers

    answers = wait_until(asked_at_once)
    assert [status for status, _, _ in answers] == [200] * (BATCH - 2) + [400, 415]
    assert answers[-2][1] == b"the 8 bytes are not an image that Pillow can read"
    for body, (_, answer, _) in zip(pngs, answers[: BATCH - 2], strict=False):
        expected, _ = by_the_entry_point(digits_bundle, body, "image/png", "application/x-npy")
        # A batch is added up in another order.
        assert np.allclose(np.load(io.BytesIO(answer)), np.load(io.BytesIO(expected)), rtol=0, atol=1e-6)


@pytest.mark.server
@pytest.mark.slow
def test_masks_of_a_batch_are_those_of_single_requests(scenes_server, scenes, by_the_entry_point, scenes_bundle):
    images = [file.read_bytes() for file in sorted((scenes / "images").iterdir())[:4]]
    url, log = scenes_server

    def asked_at_once():
        with ThreadPoolExecutor(4) as clients:
            answers = list(clients.map(lambda image: ask(url, image, "image/png", "image/png"), images))
        return "requests:" in log.read_text() and answers

    answers = wait_until(asked_at_once)
    for image, answer in zip(images, answers, strict=True):
        assert answer == (200, *by_the_entry_point(scenes_bundle, image, "image/png", "image/png"))


@pytest.mark.data
@pytest.mark.slow
def test_all_road_scenes_have_the_mask_of_fastai_in_an_endpoint_and_in_torchserve(session, test_data, tmp_path):
    from fastmaker import save_bundle
    from fastmaker.training import data, learner, mask_data
    from fastmaker.training.arguments import parse_args

    samples = mask_data.read(test_data / "camvid")
    dls = data.dataloaders(samples, "RGB", (96, 128), "squish", batch_size=8, augment=True, workers=0)
    args = parse_args(["--train", "camvid", "--task", "segmentation", "--arch", "resnet18"])
    learn = learner.create(dls, samples, args, pretrained=False)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(1, 0.003)
        save_bundle(learn, tmp_path / "model")
        expected = {file: learn.predict(file)[0].numpy() for file in sorted((test_data / "camvid/images").iterdir())}
    make_archive(tmp_path / "model", tmp_path / "camvid.mar", model_name="camvid", workers=1)
    pack(tmp_path / "model", tmp_path / "model.tar.gz")
    (port,) = free_ports(1)
    with (
        deployed(session, tmp_path / "model.tar.gz") as predictor,
        running(tmp_path / "camvid.mar", "camvid", port) as (_, url),
    ):
        (server,) = session.sagemaker_client.endpoints.read(predictor.endpoint_name)["servers"]
        for place in (url, f"http://127.0.0.1:{server['port']}/invocations"):
            for file, mask in expected.items():
                status, body, _ = ask(place, file.read_bytes(), "image/png", "application/x-npy")
                assert status == 200
                assert np.array_equal(np.load(io.BytesIO(body)), mask), (place, file.name)
    assert len(np.unique(list(expected.values()))) > 5


@pytest.mark.server
@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=b", "application/x-www-form-urlencoded", "text/csv"])
def test_content_types_that_torchserve_takes_apart_itself_are_refused_as_well(digits_server, kind):
    status, line, _ = ask(digits_server[0], b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\nx\r\n--b--', kind)
    assert status == 415
    assert b"accepted: image/*" in line


def test_an_archive_of_a_model_tar_gz_holds_the_bundle_and_its_settings(package, digits_archive, tmp_path):
    done = package(digits_archive, "--output", "deep/down/seven.mar", "--batch-size", 4, "--workers", 3)
    assert done.returncode == 0, done.stderr.decode()
    assert "--models seven=seven.mar" in done.stdout.decode()
    with zipfile.ZipFile(tmp_path / "deep" / "down" / "seven.mar") as mar:
        assert {"model.pth", "model.json", "torchserve_handler.py", "fastmaker/serving/models.py"} <= set(
            mar.namelist()
        )
        assert [name for name in mar.namelist() if "handler" in name] == ["torchserve_handler.py"]
        settings = mar.read("model-config.yaml").decode()
        assert json.loads(mar.read("MAR-INF/MANIFEST.json"))["model"]["modelName"] == "seven"
    assert settings.split("\n") == ["batchSize: 4", "maxBatchDelay: 20", "minWorkers: 3", "maxWorkers: 3", ""]
    assert b"seven.mar exists; --force replaces it" in package(digits_archive, "--output", "deep/down/seven.mar").stderr


@pytest.fixture
def graph_bundle(tmp_path):
    """A bundle whose network is kept as a graph, and the network."""
    import torch
    from torch import nn

    from fastmaker import bundle
    from fastmaker.training import capture

    network = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    info = bundle.ModelInfo(
        "classification", bundle.GRAPH, ("cat", "dog"), "RGB", (16, 20), "squish", (0.5,) * 3, (0.2,) * 3
    )
    bundle.save(tmp_path / "kept", capture.capture(network, torch.rand(2, 3, 16, 20)), info)
    return tmp_path / "kept"


def test_an_archive_of_a_graph_holds_the_graph(graph_bundle, tmp_path):
    make_archive(graph_bundle, tmp_path / "kept.mar", model_name="kept")
    with zipfile.ZipFile(tmp_path / "kept.mar") as mar:
        assert {"model.pth", "model.json", "network.json"} <= set(mar.namelist())
        mar.extractall(tmp_path / "unpacked")
    [image] = [Image.new("RGB", (30, 20), "red")]
    expected, found = (models.load(folder).predict([image]) for folder in (graph_bundle, tmp_path / "unpacked"))
    assert found[0].probabilities.tobytes() == expected[0].probabilities.tobytes()


def test_a_graph_with_its_onnx_file_is_served_by_both_engines(graph_bundle, tmp_path):
    from fastmaker.jobs.packaging import onnx

    onnx.make_model_directory(graph_bundle, tmp_path / "both")
    assert sorted(os.listdir(tmp_path / "both")) == [
        "code",
        "config.yaml",
        "model.json",
        "model.onnx",
        "model.pth",
        "network.json",
    ]
    image = Image.new("RGB", (30, 20), "red")
    [one], [other] = (
        models.load(tmp_path / "both", engine=engine).predict([image]) for engine in ("torch", "onnxruntime")
    )
    assert abs(one.probabilities - other.probabilities).max() < 1e-5


@pytest.mark.slow
def test_an_unpacked_archive_batches_in_a_container_of_the_serving_toolkit(
    package, session, digits_bundle, pngs, tmp_path
):
    (tmp_path / "digits.mar").write_bytes(b"what was there")
    done = package(digits_bundle, "--force", "--batch-size", BATCH, "--max-batch-delay", 300, "--workers", 1)
    assert done.returncode == 0, done.stderr.decode()
    with zipfile.ZipFile(tmp_path / "digits.mar") as mar:
        mar.extractall(tmp_path / "unpacked")
    pack(tmp_path / "unpacked", tmp_path / "model.tar.gz")
    with deployed(session, tmp_path / "model.tar.gz") as predictor:
        name = predictor.endpoint_name
        invoke = session.sagemaker_runtime_client.invoke_endpoint
        (log,) = session.sagemaker_client.endpoints.directory(name).rglob("container.log")

        def go_together():
            with ThreadPoolExecutor(BATCH) as clients:
                answers = clients.map(
                    lambda png: invoke(EndpointName=name, ContentType="image/png", Body=png)["Body"].read(),
                    pngs[:BATCH],
                )
                assert all("label" in json.loads(answer) for answer in answers)
            return "images in one batch" in log.read_text()

        wait_until(go_together)


@pytest.mark.server
def test_an_archive_without_model_json_is_not_served_and_says_so(digits_bundle, tmp_path):
    make_archive(digits_bundle, tmp_path / "whole.mar", model_name="whole", workers=1)
    with zipfile.ZipFile(tmp_path / "whole.mar") as whole, zipfile.ZipFile(tmp_path / "it.mar", "w") as lacking:
        for name in whole.namelist():
            if name != "model.json":
                lacking.writestr(name, whole.read(name))
    reason = r"^the model could not be loaded: .*/model\.json: missing; .* directory that fastmaker wrote\?$"
    with (
        pytest.raises(ContainerError, match=reason),
        running(tmp_path / "it.mar", "it", free_ports(1)[0]),
    ):
        pass


@pytest.fixture
def damaged(digits_bundle, tmp_path, monkeypatch):
    """What cannot be packaged, in the folder that the test runs in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTMAKER_HOME", str(tmp_path / "home"))
    shutil.copytree(digits_bundle, tmp_path / "damaged")
    (tmp_path / "damaged" / "model.pth").write_bytes(b"x")
    shutil.copytree(digits_bundle, tmp_path / "a name")
    (tmp_path / "folders" / "damaged.mar").mkdir(parents=True)
    (tmp_path / "folders" / "model.onnx").mkdir()
    (tmp_path / "bad.tar.gz").write_bytes(b"x")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("nothing", "nothing: no such training job, model directory or model.tar.gz"),
        (".", "is no bundle: it lacks model.json, model.pth, code/entry_point.py"),
        ("damaged", "its SHA-256 is not the state_sha256 of model.json"),
        ("bad.tar.gz", "cannot be unpacked"),
        ("a?name", "a name gives the model the name 'a name': expected letters, digits"),
        ("damaged --output my?model.mar", "my model.mar gives the model the name 'my model': expected letters"),
        ("a?name/", "give it another by --model-name NAME"),
        ("a?name --model-name b?name", "--model-name 'b name': expected letters, digits"),
        ("damaged --output folders --force", "folders/damaged.mar is a folder, where a file is to be made"),
        ("damaged --model-name ../up", "--model-name '../up': expected letters, digits"),
        ("damaged --batch-size 0", "argument --batch-size: 0: expected at least 1"),
        ("damaged --workers few", "argument --workers: invalid integer value"),
        ("damaged --serve --port 70000", "--port 70000 is not available"),
    ],
)
def test_bad_usage_gets_one_line_and_leaves_no_archive(damaged, tmp_path, capsys, words, reason):
    assert exit_status(package_command, "torchserve", *(word.replace("?", " ") for word in words.split())) == 2
    assert reason in one_line(capsys.readouterr().err)
    assert [path.name for path in tmp_path.rglob("*.mar*")] == ["damaged.mar"]
    assert not list((tmp_path / "folders" / "damaged.mar").iterdir())


def test_an_archive_that_cannot_be_put_in_place_leaves_no_partial_one(digits_bundle, tmp_path):
    (tmp_path / "it.mar").mkdir()
    with pytest.raises(IsADirectoryError):
        make_archive(digits_bundle, tmp_path / "it.mar", model_name="it")
    assert os.listdir(tmp_path) == ["it.mar"]


# ONNX


def opened(pngs):
    return [Image.open(io.BytesIO(png)) for png in pngs]


def label_in_onnx(file, bundle, png):
    """The label that the file alone gives."""
    model = models.load(bundle)
    image = model.to_tensor(Image.open(io.BytesIO(png))).numpy()[None]
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(None, {"image": image})
    return model.info.labels[probabilities.argmax()]


@pytest.mark.slow
def test_an_onnx_file_of_a_model_tar_gz_gives_the_bundles_labels(
    package, digits_archive, digits_bundle, pngs, tmp_path
):
    done = package(digits_archive, kind="onnx")
    assert done.returncode == 0, done.stderr.decode()
    assert sorted(os.listdir(tmp_path)) == ["model.onnx"]
    for png, expected in zip(pngs, models.load(digits_bundle).predict(opened(pngs)), strict=True):
        assert label_in_onnx(tmp_path / "model.onnx", digits_bundle, png) == expected.label
    assert "model.onnx exists; --force replaces it" in one_line(package(digits_archive, kind="onnx").stderr.decode())
    assert package(digits_archive, "--force", "--input", "float", kind="onnx").returncode == 0
    (given,) = onnxruntime.InferenceSession(tmp_path / "model.onnx").get_inputs()
    assert given.type == "tensor(float)"


def test_an_endpoint_of_a_bundle_with_onnx_answers_by_it(package, session, digits_bundle, pngs, tmp_path):
    done = package(digits_bundle, "--bundle", "deep/digits", kind="onnx")
    assert done.returncode == 0, done.stderr.decode()
    folder = tmp_path / "deep" / "digits"
    assert next_command(done)[:3] == ["deploy", "--model", "deep/digits"]
    assert sorted(os.listdir(folder)) == ["code", "config.yaml", "model.json", "model.onnx", "model.pth"]
    assert os.listdir(folder.parent) == ["digits"]
    (folder / "model.pth").write_bytes(b"")  # what torch would fail at
    pack(folder, tmp_path / "model.tar.gz")
    expected = models.load(digits_bundle).predict(opened(pngs))
    with deployed(session, tmp_path / "model.tar.gz", env={"FASTMAKER_ENGINE": "onnxruntime"}) as predictor:
        invoke = session.sagemaker_runtime_client.invoke_endpoint
        for png, prediction in zip(pngs, expected, strict=True):
            answer = invoke(EndpointName=predictor.endpoint_name, ContentType="image/png", Body=png)["Body"].read()
            assert json.loads(answer)["label"] == prediction.label


def test_int8_says_how_often_it_agrees_and_how_large_it_is(package, digits_bundle, digits, tmp_path):
    done = package(digits_bundle, "--int8", "--calibrate", digits / "3", kind="onnx")
    assert done.returncode == 0, done.stderr.decode()
    assert os.listdir(tmp_path) == ["model.int8.onnx"]
    size = (tmp_path / "model.int8.onnx").stat().st_size / 1e6
    n = len(list((digits / "3").iterdir()))
    said = re.search(r"int8: +([0-9.]+) MB, ([0-9]+) of ([0-9]+) labels as in float32", done.stdout.decode())
    assert said[1] == f"{size:.1f}"
    assert 0.9 * n < int(said[2]) <= int(said[3]) == n


@pytest.mark.slow
def test_an_archive_takes_the_onnx_file_along(package, digits_bundle, tmp_path):
    shutil.copytree(digits_bundle, tmp_path / "digits")
    assert package("digits", "--output", "digits", kind="onnx").returncode == 0
    assert package("digits").returncode == 0
    with zipfile.ZipFile(tmp_path / "digits.mar") as mar:
        assert mar.read("model.onnx") == (tmp_path / "digits" / "model.onnx").read_bytes()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("nothing", "nothing: no such training job, model directory or model.tar.gz"),
        ("damaged", "its SHA-256 is not the state_sha256 of model.json"),
        ("damaged --bundle new", "its SHA-256 is not the state_sha256 of model.json"),
        ("damaged --bundle damaged", "damaged exists; --bundle makes a new folder"),
        ("damaged --bundle new --output x.onnx", "not allowed with argument"),
        ("damaged --bundle new --input float", "--bundle: endpoints give the model uint8 images"),
        ("damaged --input int4", "argument --input: invalid choice: 'int4'"),
        ("damaged --int8", "--int8 and --calibrate FOLDER go together"),
        ("damaged --output folders --force", "folders/model.onnx is a folder, where a file is to be made"),
        ("damaged --calibrate .", "--int8 and --calibrate FOLDER go together"),
        ("damaged --int8 --calibrate damaged", "damaged holds no image"),
    ],
)
def test_bad_usage_of_onnx_gets_one_line_and_leaves_nothing(damaged, tmp_path, capsys, words, reason):
    before = sorted(os.listdir(tmp_path))
    assert exit_status(package_command, "onnx", *words.split()) == 2
    assert reason in one_line(capsys.readouterr().err)
    assert [name for name in sorted(os.listdir(tmp_path)) if name != "home"] == before
