"""Kills of every process of every kind of job, at every step: no name blocked, no process left, no state that stays.

`make test-kills` has more of each kind; every test prints what it saw.
"""

import functools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import psutil
import pytest
from helpers import PATIENCE
from helpers.engine_requests import ECHO, make_model, settled, training_request, transform_request
from helpers.kills import killed_at, steps_of
from helpers.waiting import nothing_runs_below, wait_until

from fastmaker.local.batch import transform_jobs
from fastmaker.local.client import SageMaker
from fastmaker.local.errors import ClientError
from fastmaker.local.runtime_client import SageMakerRuntime
from fastmaker.local.serving import instances, torchserve
from fastmaker.local.supervisor import FINAL

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("FASTMAKER_KILLS", "3"))  # of each kind


@pytest.fixture
def client(tmp_path):
    client = SageMaker("us-west-2", tmp_path / "home")
    yield client
    assert nothing_runs_below(tmp_path / "home")


@pytest.fixture
def runtime(tmp_path):
    return SageMakerRuntime(tmp_path / "home")


def ask(runtime, body=b"x", name="e"):
    return runtime.invoke_endpoint(EndpointName=name, Body=body, ContentType="text/x")["Body"].read()


def test_who_creates_an_endpoint_is_killed_at_any_step(client, runtime, model_archive, tmp_path):
    make_model(client, model_archive(ECHO.format(name="m")), "m")
    seen = Counter()

    def create():
        client.create_endpoint(EndpointName="e", EndpointConfigName="m")

    steps = steps_of(create)
    client.delete_endpoint(EndpointName="e")
    for step in random.Random(1).sample(range(1, steps), KILLS):
        killed = killed_at(step, create)
        status = settled(client)
        seen[status, killed] += 1
        if status == "InService":
            assert ask(runtime) == b"m:x"
        if status != "none":
            client.delete_endpoint(EndpointName="e")
        assert nothing_runs_below(tmp_path / "home")
        assert client.endpoints.names() == []
    print(f"{KILLS} kills in {steps} steps: {dict(seen)}")


def test_who_updates_or_describes_an_endpoint_is_killed_at_any_step(client, runtime, model_archive):
    for name in ("a", "b"):
        make_model(client, model_archive(ECHO.format(name=name), name), name)
    client.create_endpoint(EndpointName="e", EndpointConfigName="a")
    assert settled(client) == "InService"

    def update(name):
        client.update_endpoint(EndpointName="e", EndpointConfigName=name)
        settled(client)

    seen = Counter()
    steps = steps_of(lambda: client.update_endpoint(EndpointName="e", EndpointConfigName="b"))
    assert settled(client) == "InService"
    before = "b"
    for step in random.Random(2).sample(range(1, 2 * steps), KILLS):  # half of them while it is described
        asked = "ba"[before == "b"]
        killed = killed_at(step, functools.partial(update, asked))
        assert settled(client) == "InService"
        after = ask(runtime).decode().removesuffix(":x")
        assert after in ("a", "b")
        seen["updated" if after == asked else "as before", killed] += 1
        before = after
    client.delete_endpoint(EndpointName="e")
    print(f"{KILLS} kills in {2 * steps} steps: {dict(seen)}")


def test_who_deletes_an_endpoint_is_killed_at_any_step(client, model_archive, tmp_path):
    make_model(client, model_archive(ECHO.format(name="m")), "m")
    seen = Counter()

    def delete():
        client.delete_endpoint(EndpointName="e")

    client.create_endpoint(EndpointName="e", EndpointConfigName="m")
    steps = steps_of(delete)
    for step in random.Random(3).sample(range(1, steps), KILLS):
        client.create_endpoint(EndpointName="e", EndpointConfigName="m")
        killed = killed_at(step, delete)
        status = settled(client)
        seen[status, killed] += 1
        if status != "none":
            delete()
        assert nothing_runs_below(tmp_path / "home")
    print(f"{KILLS} kills in {steps} steps: {dict(seen)}")


def test_an_endpoint_that_is_deleted_while_it_is_deployed_leaves_nothing(client, model_archive, tmp_path):
    make_model(client, model_archive(ECHO.format(name="m")), "m", 2)
    for number in range(KILLS):
        program = (
            "import sys; from pathlib import Path; from fastmaker.local.client import SageMaker;"
            f"client = SageMaker('us-west-2', Path({str(tmp_path / 'home')!r}));"
            "client.create_endpoint(EndpointName='e', EndpointConfigName='m')"
        )
        deploy = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE)
        wait_until(lambda: "e" in client.endpoints.names())
        time.sleep(number / KILLS)
        client.delete_endpoint(EndpointName="e")
        assert deploy.communicate(timeout=PATIENCE)[1] == b""
        assert nothing_runs_below(tmp_path / "home")
        assert os.listdir(tmp_path / "home" / "endpoints") == []


def test_looks_do_not_fail_a_deployment(client, runtime, model_archive, tmp_path):
    make_model(client, model_archive(ECHO.format(name="m")), "m", 2)
    program = (
        "import time; from pathlib import Path; from fastmaker.local.client import SageMaker\n"
        f"client = SageMaker('us-west-2', Path({str(tmp_path / 'home')!r}))\n"
        "while True: client.list_endpoints(); time.sleep(0.01)"
    )
    looking = subprocess.Popen([sys.executable, "-c", program])
    try:
        for _ in range(KILLS // 2):
            client.create_endpoint(EndpointName="e", EndpointConfigName="m")
            assert settled(client) == "InService"
            assert ask(runtime) == b"m:x"
            client.delete_endpoint(EndpointName="e")
        assert looking.poll() is None
    finally:
        looking.kill()
        looking.wait()


@pytest.mark.parametrize("whose", ["creator", "supervisor", "host"])
def test_a_process_of_a_training_job_is_killed_at_any_moment(client, write_script, tmp_path, whose):
    source = write_script("import time; time.sleep(1)")
    seen = Counter()
    first = training_request("first", source, tmp_path / "output")
    steps = steps_of(lambda: client.create_training_job(**first))
    assert _end_of(client, "TrainingJob", "first") == "Completed"
    for number in range(KILLS):
        request = training_request(f"job-{number}", source, tmp_path / "output")
        if whose == "creator":
            killed_at(random.randint(1, steps), lambda request=request: client.create_training_job(**request))
        else:
            client.create_training_job(**request)
            time.sleep(random.random() * 4)
            _kill_one(client.training_jobs, f"job-{number}", whose)
        seen[_end_of(client, "TrainingJob", f"job-{number}")] += 1
    assert nothing_runs_below(tmp_path / "home")
    print(f"{KILLS} kills of the {whose}: {dict(seen)}")


@pytest.mark.parametrize("whose", ["creator", "supervisor", "server"])
def test_a_process_of_a_batch_job_is_killed_at_any_moment(client, model_archive, tmp_path, whose):
    make_model(client, model_archive(ECHO.format(name="m")), "m")
    source, output = tmp_path / "source", tmp_path / "output"
    source.mkdir()
    for number in range(30):
        (source / f"{number}").write_text(f"{number}")
    seen = Counter()
    first = transform_request("first", "m", source, output / "first")
    steps = steps_of(lambda: client.create_transform_job(**first))
    assert _end_of(client, "TransformJob", "first") == "Completed"
    for number in range(KILLS):
        request = transform_request(f"job-{number}", "m", source, output / f"{number}")
        if whose == "creator":
            killed_at(random.randint(1, steps), lambda request=request: client.create_transform_job(**request))
        else:
            client.create_transform_job(**request)
            time.sleep(random.random() * 6)
            _kill_one(client.transform_jobs, f"job-{number}", whose)
        status = _end_of(client, "TransformJob", f"job-{number}")
        seen[status] += 1
        answers = {path.name: path.read_text() for path in (output / f"{number}").glob("*.out")}
        assert all(text == f"m:{name.removesuffix('.out')}" for name, text in answers.items())
        if status == "Completed" or (whose == "server" and status != "none"):
            assert (status, len(answers)) == ("Completed", 30)
    assert nothing_runs_below(tmp_path / "home")
    print(f"{KILLS} kills of the {whose}: {dict(seen)}")


def _kill_one(store, name, whose):
    """Kill the process that runs a job, or one of those that it has started, if there is any yet."""
    if whose == "supervisor":
        if supervisor := store.read(name).get("supervisor"):
            os.kill(supervisor["pid"], signal.SIGKILL)
        return
    found = [process for container in _containers(store, name) for process in container.processes()]
    if found:
        random.choice(found).send_signal(signal.SIGKILL)


def _containers(store, name):
    return transform_jobs.containers(store, name) if store.kind == transform_jobs.KIND else _hosts(store, name)


def _hosts(store, name):
    from fastmaker.local.training import training_jobs

    return training_jobs.containers(store, name)


def _end_of(client, kind, name):
    """The final status of a job, "none" if it was never recorded."""
    snake = {"TrainingJob": "training_job", "TransformJob": "transform_job"}[kind]

    def status():
        try:
            found = getattr(client, f"describe_{snake}")(**{f"{kind}Name": name})[f"{kind}Status"]
        except ClientError:
            return "none"
        return found if found in FINAL else None

    return wait_until(status)


def test_a_training_job_whose_supervisor_is_killed_ends_though_nobody_looks(client, write_script, tmp_path):
    source = write_script("import time; print('asleep', flush=True); time.sleep(3600)")
    client.create_training_job(**training_request("job", source, tmp_path / "output"))
    log = client.training_jobs.directory("job") / "algo-1" / "container.log"
    wait_until(lambda: log.exists() and "asleep" in log.read_text())
    os.kill(client.training_jobs.read("job")["supervisor"]["pid"], signal.SIGKILL)
    assert nothing_runs_below(tmp_path / "home")
    assert client.training_jobs.read("job")["description"]["TrainingJobStatus"] == "Failed"


class Load:
    """Requests of eight threads while the context lasts; none may be lost, and each gets an answer of its own."""

    def __init__(self, runtime):
        self.runtime, self.answers, self.stopped = runtime, Counter(), threading.Event()
        self.threads = [threading.Thread(target=self._run, args=(number,)) for number in range(8)]

    def _run(self, thread):
        number = 0
        while not self.stopped.is_set():
            body, number = f"{thread}-{number}".encode(), number + 1
            try:
                name, _, answered = ask(self.runtime, body).partition(b":")
                self.answers[name if answered == body else b"another's"] += 1
            except Exception as error:
                self.answers[repr(error)] += 1

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        for thread in self.threads:
            thread.join()


def test_one_of_two_instances_is_killed_under_load_and_no_request_is_lost(client, runtime, model_archive):
    make_model(client, model_archive(ECHO.format(name="m")), "m", 2)
    client.create_endpoint(EndpointName="e", EndpointConfigName="m")
    assert settled(client) == "InService"
    with Load(runtime) as load:
        for number in range(3):
            server = client.endpoints.read("e")["servers"][number % 2]
            for process in instances.container_of(client.endpoints, "e", server).processes():
                process.kill()
            wait_until(lambda: len([s for s in client.endpoints.read("e")["servers"] if s["ready"]]) == 2)
            time.sleep(1)
            wait_until(lambda: all(s["ready"] for s in client.endpoints.read("e")["servers"]))
    assert set(load.answers) == {b"m"}
    client.delete_endpoint(EndpointName="e")
    print(load.answers)


def test_workers_are_killed_under_load_and_no_request_is_lost(client, runtime, model_archive):
    make_model(client, model_archive(ECHO.format(name="m")), "m", 2)
    client.create_endpoint(EndpointName="e", EndpointConfigName="m")
    assert settled(client) == "InService"
    with Load(runtime) as load:
        for number in range(KILLS):
            server = client.endpoints.read("e")["servers"][number % 2]
            container = instances.container_of(client.endpoints, "e", server)
            for pid in torchserve.ready_workers(container, server["port"]):
                psutil.Process(pid).kill()
            time.sleep(5)
    assert set(load.answers) == {b"m"}
    client.delete_endpoint(EndpointName="e")
    print(load.answers)


def test_updates_under_load_lose_no_request(client, runtime, model_archive):
    for name in ("a", "b"):
        make_model(client, model_archive(ECHO.format(name=name), name), name)
    client.create_endpoint(EndpointName="e", EndpointConfigName="a")
    assert settled(client) == "InService"
    with Load(runtime) as load:
        for number in range(KILLS):
            client.update_endpoint(EndpointName="e", EndpointConfigName="ba"[number % 2])
            assert settled(client) == "InService"
    assert set(load.answers) <= {b"a", b"b"}
    client.delete_endpoint(EndpointName="e")
    print(load.answers)
