"""Batch jobs on a Ray cluster: by the worker alone, and on a cluster of several raylets (`make test-ray`)."""

import contextlib
import gzip
import importlib.util
import json
import os
import re
import signal
import socket
import socketserver
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import numpy as np
import psutil
import pytest
from helpers import REPOSITORY
from helpers.commands import exit_status
from helpers.local_mode import wait_until
from moto.server import ThreadedMotoServer

from fastmaker.jobs import storage, transform
from fastmaker.jobs.backends import TransformRequest, cluster
from fastmaker.jobs.cluster import driver, worker
from fastmaker.local.containers import pack

OBJECTS = 400


def request(source, output, **settings):
    return TransformRequest("job", "", f"file://{source}", output=f"file://{output}", **settings)


def worker_of(bundle, source, output, batch_size=1, **settings):
    """A worker as a cluster has it, of a job over a folder."""
    description = cluster.describe(request(source, output, **settings))
    own = cluster.worker_settings(description, f"file://{source}/", driver.Plan(1, 1, batch_size=batch_size))
    return worker.Worker(own, lambda: driver.read_model(archive_of(bundle, output)))


def archive_of(bundle, output):
    archive = output.parent / "model.tar.gz"
    archive.exists() or pack(bundle, archive)
    return archive


def write(folder, **objects):
    for name, data in objects.items():
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    return {"name": np.array(list(objects))}


def answers(folder):
    return {str(file.relative_to(folder)).removesuffix(".out"): file.read_bytes() for file in folder.rglob("*.out")}


def lines(images) -> bytes:
    from base64 import b64encode

    return b"".join(b'{"b64": "%s"}\n' % b64encode(image) for image in images)


JSON_LINES = {"content_type": "application/jsonlines", "accept": "application/jsonlines"}


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize(
    ("settings", "made", "sent"),
    [
        ({}, lambda images: images[0], lambda images: [images[0]]),
        ({"accept": "text/csv"}, lambda images: images[0], lambda images: [images[0]]),
        ({"compression_type": "Gzip"}, lambda images: gzip.compress(images[0]), lambda images: [images[0]]),
        ({**JSON_LINES, "split_type": "Line"}, lines, lambda images: [lines(images).removesuffix(b"\n")]),
        (
            {**JSON_LINES, "split_type": "Line", "strategy": "SingleRecord"},
            lines,
            lambda images: [lines([image])[:-1] for image in images],
        ),
        (
            {"accept": "text/csv", "split_type": "None", "assemble_with": "Line"},
            lambda images: images[1],
            lambda images: [images[1]],
        ),
    ],
)
def test_objects_have_the_answers_of_the_entry_point(
    digits_bundle, pngs, by_the_entry_point, tmp_path, settings, made, sent, batch_size
):
    own = [pngs[:3], pngs[3:6], pngs[6:9], pngs[:2], pngs[2:4]]
    chunk = write(tmp_path / "in", **{f"{number}": made(images) for number, images in enumerate(own)})
    done = worker_of(digits_bundle, tmp_path / "in", tmp_path / "out", batch_size, **settings)(chunk)
    assert set(done["error"]) == {""}
    kind, accept = settings.get("content_type", "application/x-image"), settings.get("accept", "application/json")
    for number, images in enumerate(own):
        bodies = sent(images)
        expected = b"".join(by_the_entry_point(digits_bundle, body, kind, accept)[0] for body in bodies)
        found = answers(tmp_path / "out")[f"{number}"]
        if batch_size == 1:
            assert found == expected
        assert labels(found) == labels(expected)


def labels(answer: bytes):
    text = answer.decode()
    if text.startswith("{"):
        return [json.loads(line)["label"] for line in text.splitlines()]
    return [line.split(",")[0] for line in text.splitlines()]


def test_an_object_that_fails_has_no_answer_and_its_neighbours_have_theirs(digits_bundle, pngs, tmp_path):
    objects = {"a": pngs[0], "b": b"damaged", "c": pngs[1], "d": b"", "e": pngs[2]}
    chunk = write(tmp_path / "in", **objects)
    chunk["name"] = np.append(chunk["name"], ["missing", "../in/a"])
    for size in (1, 4):
        done = worker_of(digits_bundle, tmp_path / "in", tmp_path / f"out{size}", size)(chunk)
        reasons = dict(zip(done["name"], done["error"], strict=True))
        assert {name for name, reason in reasons.items() if not reason} == {"a", "c", "e"}
        assert reasons["b"].startswith("400: ")
        assert reasons["missing"].endswith("No such file or directory")
        assert reasons["../in/a"] == "its name leads out of the output location"
        assert answers(tmp_path / f"out{size}").keys() == {"a", "c", "e"}
        assert dict(zip(done["name"], done["status"], strict=True))["b"] == 400


def test_filters_and_joins_are_those_of_the_engine(digits_bundle, pngs, tmp_path):
    record = {"id": 7, **json.loads(lines(pngs[:1]))}
    write(tmp_path / "in", one=json.dumps(record).encode() + b"\n")
    settings = {"split_type": "Line", "input_filter": "$.b64", "join_source": "Input", "output_filter": "$.id"}
    own = worker_of(digits_bundle, tmp_path / "in", tmp_path / "out", **JSON_LINES, **settings)
    assert own({"name": ["one"]})["error"][0].startswith("400: ")  # $.b64 is a text, and no object any more
    joined = {"split_type": "Line", "join_source": "Input", "output_filter": "$['id', 'SageMakerOutput']"}
    own = worker_of(digits_bundle, tmp_path / "in", tmp_path / "out", **JSON_LINES, **joined)
    assert own({"name": ["one"]})["error"] == [""]
    found = json.loads(answers(tmp_path / "out")["one"])
    assert found["id"] == 7
    assert "label" in found["SageMakerOutput"]


def test_a_node_that_does_not_see_a_place_or_cannot_load_the_model_says_so(digits_bundle, pngs, tmp_path, monkeypatch):
    assert "pyarrow" in worker_of(digits_bundle, tmp_path / "in", tmp_path / "out").settings.packages
    monkeypatch.setattr(worker.Settings, "packages", ["torch"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # where nobody answers
    write(tmp_path / "in", a=pngs[0])
    write(tmp_path / "out", token=b"")
    own = worker_of(digits_bundle, tmp_path / "in", tmp_path / "out").settings
    model = driver.read_model(archive_of(digits_bundle, tmp_path / "out"))
    in_s3 = replace(own, output="s3://amzn-s3-demo-bucket/out")
    for settings, bundle, name, token, reason in (
        (own, model, "a", "token", ""),
        (own, model, "b", "token", f"it does not see file://{tmp_path}/in/b"),
        (own, model, "a", "other", f"it does not see file://{tmp_path}/out/other"),
        (own, {**model, "model.json": b"{"}, "a", "token", "not JSON"),
        (in_s3, model, "a", "", "s3://amzn-s3-demo-bucket/out/: "),
    ):
        found = worker.why_not(settings, bundle, name, token)
        assert reason in found, found
        assert bool(reason) == bool(found)
    monkeypatch.setattr(worker.Settings, "packages", ["nowhere"])
    assert worker.why_not(own, model, "a", "token") == "it lacks nowhere"
    lost = worker.Worker(in_s3, lambda: model)({"name": ["a", "b"]})
    reasons = "Unable to locate credentials|Could not connect"  # another test may have left credentials with boto3
    assert [bool(re.search(reasons, error)) for error in lost["error"]] == [True, True]


def test_what_was_written_is_not_done_again(digits_bundle, pngs, tmp_path):
    chunk = write(tmp_path / "in", a=pngs[0], b=pngs[1])
    write(tmp_path / "out", **{"a.out": b"kept"})
    worker_of(digits_bundle, tmp_path / "in", tmp_path / "out")(chunk)
    assert answers(tmp_path / "out")["a"] == b"kept"
    assert answers(tmp_path / "out").keys() == {"a", "b"}


REFUSED = [
    (["--address", "local", "--backend", "process"], "--address goes with --backend ray"),
    (["--backend", "ray", "--instance-type", "ml.c5.large"], "--backend ray goes without --instance-type"),
    (["--backend", "ray", "--server", "ray"], "--backend ray goes without --server"),
    (["--backend", "ray", "--image-uri", "own:1"], "--backend ray goes without --image-uri"),
    (["--backend", "ray", "--role", "r"], "--backend ray goes without --role"),
    (["--backend", "ray", "--instance-count", "2"], "--instance-count: the cluster says"),
    (["--backend", "ray", "--timeout", "5"], "--timeout: the model is not asked through a server"),
    (["--backend", "ray", "--address", "ray://h:10001"], "does not run through Ray's client"),
    (["--backend", "ray", "--max-payload", "50"], "expected at most 100"),
    (["--backend", "ray", "--input-filter", "$.a"], "DataProcessing needs a ContentType"),
]


@pytest.mark.parametrize(("words", "says"), REFUSED)
def test_what_a_cluster_cannot_honour_is_refused(digits_bundle, digits, tmp_path, monkeypatch, words, says):
    monkeypatch.setattr(driver, "check_installed", lambda: None)  # Ray is not what refuses
    monkeypatch.chdir(tmp_path)
    args = transform.parse_args(["--model", str(digits_bundle), "--data", str(digits), *words])
    with pytest.raises(ValueError, match=says.replace("$", "[$]")):
        transform.main(args)


@pytest.mark.skipif(bool(importlib.util.find_spec("ray")), reason="Ray is installed")
def test_without_ray_it_says_how_to_install_it(digits_bundle, digits, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert exit_status(transform, "--backend", "ray", "--model", digits_bundle, "--data", digits) == 1
    assert capsys.readouterr().err == "error: Ray Data is not installed: pip install 'fastmaker[ray]'\n"


@pytest.fixture(scope="module")
def raylets(front, credentials):
    """A cluster of three raylets with a core each, which have the credentials of S3."""
    from ray.cluster_utils import Cluster

    options = {"num_cpus": 1, "object_store_memory": 150 * 2**20}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in credentials.items():
            patch.setenv(name, value)
        own = Cluster(initialize_head=True, head_node_args={**options, "include_dashboard": False})
        for _ in range(2):
            own.add_node(**options)
    yield own
    own.shutdown()


@pytest.fixture(scope="module")
def many(digits, tmp_path_factory):
    """A folder of digits, three of which are none."""
    folder = tmp_path_factory.mktemp("many") / "in"
    folder.mkdir()
    files = sorted(digits.rglob("*.png"))
    for number in range(OBJECTS):
        (folder / f"{number:04}.png").symlink_to(files[number])
    return folder


@contextlib.contextmanager
def command(folder, *words):
    env = {**os.environ, "FASTMAKER_HOME": str(folder / "home"), "PYTHONPATH": str(REPOSITORY)}
    arguments = [sys.executable, "-m", "fastmaker.jobs", "transform", "--backend", "ray", *map(str, words)]
    with open(folder / "printed", "w") as printed:
        process = subprocess.Popen(arguments, cwd=folder, env=env, stdout=printed, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def said(folder) -> str:
    return Path(folder, "printed").read_text()


def ended(process, folder) -> str:
    process.wait(600)
    return said(folder)


@pytest.mark.ray
def test_a_raylet_dies_and_each_object_is_answered_rightly(raylets, many, digits_bundle, by_the_entry_point, tmp_path):
    words = ["--address", raylets.address, "--model", digits_bundle, "--data", many, "--output", tmp_path / "out"]
    with command(tmp_path, *words, "--env", "SAGEMAKER_TS_BATCH_SIZE=1") as process:
        wait_until(lambda: len(answers(tmp_path / "out")) > 20 or process.poll() is not None)
        raylets.remove_node(raylets.worker_nodes.copy().pop(), allow_graceful=False)
        assert ended(process, tmp_path).count("failures                 0") == 1, said(tmp_path)
    found = answers(tmp_path / "out")
    assert len(found) == OBJECTS
    for name, answer in list(found.items())[::20]:
        body = (many / name).read_bytes()
        assert answer == by_the_entry_point(digits_bundle, body, "application/x-image", "application/json")[0]


@pytest.mark.ray
def test_a_driver_is_killed_and_the_same_command_resumes(raylets, many, digits_bundle, tmp_path):
    words = ["--address", raylets.address, "--model", digits_bundle, "--data", many, "--output", tmp_path / "out"]
    write(tmp_path / "out", **{"0399.png.out": b"of another job"})
    with command(tmp_path, *words) as process:
        wait_until(lambda: len(answers(tmp_path / "out")) > 20 or process.poll() is not None)
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = {file: os.stat(file).st_mtime_ns for file in (tmp_path / "out").rglob("*.out")}
    with command(tmp_path, *words) as process:
        assert "resuming fastmaker-" in ended(process, tmp_path), said(tmp_path)
    assert len(answers(tmp_path / "out")) == OBJECTS
    assert {file: os.stat(file).st_mtime_ns for file in before} == before
    assert b"of another job" not in answers(tmp_path / "out").values()


@pytest.mark.ray
def test_objects_in_s3_and_one_that_fails(raylets, many, digits_bundle, s3, bucket, tmp_path):
    for file in sorted(many.iterdir())[:20]:
        s3.upload_file(str(file), bucket, f"in/{file.name}")
    s3.put_object(Bucket=bucket, Key="in/bad.png", Body=b"damaged")
    words = ["--address", raylets.address, "--model", digits_bundle, "--data", f"s3://{bucket}/in/"]
    words += ["--output", f"s3://{bucket}/out", "--job-name", "of-s3", "--env", "SAGEMAKER_TS_BATCH_SIZE=8"]
    with command(tmp_path, *words) as process:
        assert f"1 of 21 objects failed, the first is s3://{bucket}/in/bad.png: 400: " in ended(process, tmp_path)
    assert process.returncode == 1
    assert len(list(storage.names_below(f"s3://{bucket}/out"))) == 20
    s3.upload_file(str(many / "0000.png"), bucket, "in/bad.png")
    retried = ["--address", raylets.address, "--retry-failed", "of-s3", "--collect", "answers.jsonl"]
    with command(tmp_path, *retried) as process:
        assert "failures                 0" in ended(process, tmp_path), said(tmp_path)
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 21


class Deadly(socketserver.ThreadingTCPServer):
    """S3 by another address, where each process that asks for one of the objects is killed."""

    daemon_threads, allow_reuse_address = True, True

    def __init__(self, url: str, name: bytes):
        super().__init__(("127.0.0.1", 0), _Forward)
        self.s3, self.name, self.killed = urlsplit(url), name, []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def kill(self, port: int) -> None:
        """Kill the process that has a connection from `port`."""
        for connection in psutil.net_connections("tcp"):
            if connection.laddr.port == port and connection.pid not in (None, os.getpid()):
                os.kill(connection.pid, signal.SIGKILL)
                self.killed.append(connection.pid)


class _Forward(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        with socket.create_connection((self.server.s3.hostname, self.server.s3.port)) as there:
            back = threading.Thread(target=self._copy, args=(there, self.request), daemon=True)
            back.start()
            self._copy(self.request, there)
            back.join()

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(2**16):
                if (
                    source is self.request
                    and data.startswith(b"GET ")
                    and self.server.name in data.partition(b"\r\n")[0]
                ):
                    self.server.kill(self.client_address[1])
                    return
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


@pytest.fixture
def deadly(credentials, monkeypatch):
    """S3 where whoever reads `in/0007.png` dies; every client uses it."""
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    with Deadly("http://{}:{}".format(*moto.get_host_and_port()), b"/in/0007.png") as server:
        for name, value in {**credentials, "AWS_ENDPOINT_URL_S3": server.url}.items():
            monkeypatch.setenv(name, value)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
    moto.stop()


@pytest.mark.ray
def test_an_object_that_ends_each_worker_fails_alone(raylets, many, digits_bundle, deadly, tmp_path):
    s3 = boto3.Session().client("s3")
    s3.create_bucket(Bucket="deadly")
    for file in sorted(many.iterdir())[:40]:
        s3.upload_file(str(file), "deadly", f"in/{file.name}")
    words = ["--address", raylets.address, "--model", digits_bundle, "--data", "s3://deadly/in/"]
    with command(tmp_path, *words, "--output", "s3://deadly/out") as process:
        printed = ended(process, tmp_path)
    assert f"1 of 40 objects failed, the first is s3://deadly/in/0007.png: {driver.LOST}" in printed
    assert process.returncode == 1
    assert len(list(storage.names_below("s3://deadly/out"))) == 39
    assert len(set(deadly.killed)) > driver.RETRIES
