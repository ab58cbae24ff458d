"""Load for as long as one likes, and its figures: `make test-load REQUESTS=1000000 OBJECTS=200000 MINUTES=5`.

Clients are processes of their own. A request in twenty is bad, a worker is killed every 30 seconds, batch jobs are
killed and resumed; no request may be lost, none answered wrong, and nothing may grow.
"""

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise

import psutil
import pytest
from helpers import PATIENCE, REPOSITORY
from helpers.engine_requests import ECHO, client_of, make_model, settled, training_request, transform_request
from helpers.measuring import Clock, Samples
from helpers.waiting import running_below, wait_until

from fastmaker.local.serving import instances, torchserve
from fastmaker.local.supervisor import FINAL

pytestmark = pytest.mark.slow
REQUESTS = int(os.environ.get("FASTMAKER_REQUESTS", "4000"))
OBJECTS = int(os.environ.get("FASTMAKER_OBJECTS", "2000"))
MINUTES = float(os.environ.get("FASTMAKER_MINUTES", "0.5"))
CLIENTS, KILLS_OF_A_JOB = 8, 5
KILL_SECONDS = 30 if REQUESTS > 100_000 else 4
SLACK = {"MB": 200, "descriptors": 60, "processes": 8, "disk MB": 30}  # a worker that is just killed, logs that turn
NUMBERS = """
import json
from sagemaker_inference.errors import BaseInferenceToolkitError
def refuse(status, text): raise BaseInferenceToolkitError(status, text, text)
def model_fn(model_dir): return 1
def input_fn(body, content_type):
    if content_type != "application/json": refuse(415, "no such type")
    try: return json.loads(body)["n"]
    except (ValueError, KeyError, TypeError): refuse(400, "not a number")
def predict_fn(number, model): return number + model
def output_fn(number, accept):
    if accept != "application/json": refuse(406, "no such type")
    return json.dumps(number), accept
"""
BAD = [
    {"Body": "", "status": 400},
    {"Body": "{", "status": 400},
    {"Body": "[]", "status": 400},
    {"Body": '{"n": "' + "x" * 100_000, "status": 400},
    {"Body": '{"n": 1}', "ContentType": "text/csv", "status": 415},
    {"Body": '{"n": 1}', "Accept": "image/png", "status": 406},
]
# Sends its share of the requests; prints how many came to which end, and its memory halfway and at the end.
CLIENT = """
import collections, json, os, sys
from pathlib import Path
import psutil
from botocore.exceptions import ClientError
from fastmaker.local.runtime_client import SageMakerRuntime
home, first, last, bad = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
runtime, seen, memory = SageMakerRuntime(home), collections.Counter(), []
json_ = {"EndpointName": "e", "ContentType": "application/json", "Accept": "application/json"}
for number in range(first, last):
    if number in (first + (last - first) // 2, last - 1):
        memory.append(psutil.Process().memory_info().rss / 2**20)
    try:
        if number % 20:
            answer = runtime.invoke_endpoint(**json_, Body=json.dumps({"n": number}))["Body"].read()
            seen["right" if answer == b"%d" % (number + 1) else f"wrong: {answer[:50]}"] += 1
        else:
            request = dict(bad[number // 20 % len(bad)])
            status = request.pop("status")
            runtime.invoke_endpoint(**{**json_, **request})
            seen["a bad one was answered"] += 1
    except ClientError as error:
        found = error.response.get("OriginalStatusCode")
        seen["refused" if not number % 20 and found == status else f"{number % 20 and 'good'} {error}"[:200]] += 1
    except Exception as error:
        seen[repr(error)[:200]] += 1
print(json.dumps([seen, memory]))
"""


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def client(home):
    with client_of(home) as client:
        yield client


def assert_flat(samples):
    growth = samples.growth()
    print(f"second and last quarter: {growth}")
    assert all(last - second <= max(SLACK[name], second / 5) for name, (second, last) in growth.items()), growth


def test_requests_of_eight_clients_while_workers_are_killed(client, model_archive, home):
    make_model(client, model_archive(NUMBERS), "m", 2)
    client.create_endpoint(EndpointName="e", EndpointConfigName="m")
    assert settled(client) == "InService"
    cuts = [REQUESTS * number // CLIENTS for number in range(CLIENTS + 1)]
    clock, kills, next_kill = Clock(), 0, KILL_SECONDS
    with Samples(lambda: running_below(home / "endpoints"), home, KILL_SECONDS / 4) as samples:
        commands = [
            [sys.executable, "-c", CLIENT, str(home), *map(str, cut), json.dumps(BAD)] for cut in pairwise(cuts)
        ]
        clients = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
        while any(process.poll() is None for process in clients):
            time.sleep(0.2)
            if clock() > next_kill:
                kills += kill_a_worker(client)
                next_kill += KILL_SECONDS
    seconds, ends = clock(), [json.loads(process.stdout.read()) for process in clients]
    seen = sum((Counter(counts) for counts, _ in ends), Counter())
    print(f"\n{REQUESTS} requests in {seconds:.0f} s, {REQUESTS / seconds:.0f} a second, {kills} kills: {dict(seen)}")
    print(f"MB of clients halfway and at the end: {[[round(part) for part in memory] for _, memory in ends]}")
    assert set(seen) == {"right", "refused"}
    assert seen.total() == REQUESTS
    assert all(last - half < 20 for _, (half, *_, last) in ends)
    assert_flat(samples)


def kill_a_worker(client) -> int:
    """Kill one worker of an instance chosen at random; return how many were killed."""
    server = random.choice(client.endpoints.read("e")["servers"])
    container = instances.container_of(client.endpoints, "e", server)
    workers = torchserve.ready_workers(container, server["port"])
    if workers:
        psutil.Process(random.choice(workers)).kill()
    return min(1, len(workers))


def test_a_batch_job_of_many_objects_is_killed_and_resumed(client, model_archive, home, tmp_path):
    make_model(client, model_archive(ECHO.format(name="m")), "m")
    source, output = tmp_path / "in", tmp_path / "out"
    for number in range(OBJECTS):
        if number < 100:
            (source / f"{number}").mkdir(parents=True)
        (source / f"{number % 100}" / f"{number}").write_text(f"{number}")
    request = transform_request("job", "m", source, output)
    request |= {"MaxConcurrentTransforms": 4}
    client.create_transform_job(**request)
    clock, name, written, memory, rates = Clock(), "job", {}, [], []
    for kill in range(KILLS_OF_A_JOB + 1):
        goal = OBJECTS * (kill + 1) // (KILLS_OF_A_JOB + 1) if kill < KILLS_OF_A_JOB else OBJECTS + 1
        begun, before = clock(), len(written)
        status = kill_at(client, name, goal - before, memory)
        now = {path: path.stat().st_mtime_ns for path in output.rglob("*.out")}
        assert {path: now[path] for path in written} == written  # each answer once
        written = now
        rates.append(round((len(written) - before) / (clock() - begun)))
        if status == "Completed":
            break
        name = resume(client, home, name, kill)
    print(f"\n{OBJECTS} objects in {clock():.0f} s, {kill} kills, objects a second: {rates}, most MB: {memory}")
    assert status == "Completed"
    assert len(written) == OBJECTS
    assert all(path.read_text() == f"m:{path.stem}" for path in written)
    assert max(memory) - min(memory) < 60


def kill_at(client, name, answers, memory) -> str:
    """Kill the process that runs a job once it has so many answers, if it does not end before; return its status."""
    most = 0.0
    while (found := client.describe_transform_job(TransformJobName=name)["TransformJobStatus"]) not in FINAL:
        supervisor = client.transform_jobs.read(name).get("supervisor")
        try:
            process = psutil.Process(supervisor["pid"]) if supervisor else None
            most = max(most, process.memory_info().rss / 2**20 if process else 0)
            done = json.loads((client.transform_jobs.directory(name) / "progress.json").read_text())["answers"]
            if process and done >= answers:
                process.kill()
        except (psutil.Error, OSError):
            pass
        time.sleep(0.1)
    memory.append(round(most))
    return found


def resume(client, home, name, kill) -> str:
    """Start `fastmaker transform --retry-failed`, and return the name of the job that it has begun."""
    again = f"again-{kill}"
    words = ["transform", "--retry-failed", name, "--job-name", again]
    log = open(home / f"{again}.log", "w")  # noqa: SIM115  the command goes on
    subprocess.Popen(
        [sys.executable, "-m", "fastmaker.jobs", *words],
        env={**os.environ, "FASTMAKER_HOME": str(home), "PYTHONPATH": str(REPOSITORY)},
        stdout=log,
        stderr=log,
    )
    wait_until(lambda: again in client.transform_jobs.names(), PATIENCE * 10)
    return again


# What each of the processes does, by chance, and how often: the same names and others, all kinds of resources.
USER = """
import random, sys, time, json
from collections import Counter
from pathlib import Path
from botocore.exceptions import ClientError
from fastmaker.local.client import SageMaker
home, seed, minutes = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
training, transform = map(json.loads, sys.argv[4:])
client, seen = SageMaker("us-west-2", home), Counter()
end, random = time.monotonic() + minutes * 60, random.Random(seed)
config, arn = {"EndpointConfigName": "m"}, "arn:aws:sagemaker:us-west-2:000000000000:model"
variant = {"VariantName": "v", "ModelName": "m", "InstanceType": "local", "InitialInstanceCount": 1}
variants = {"ProductionVariants": [variant]}
tags = {"Tags": [{"Key": "k", "Value": str(seed)}]}
def calls(name):
    return {
        "create_endpoint": (1, lambda: client.create_endpoint(EndpointName=name, **config)),
        "update_endpoint": (1, lambda: client.update_endpoint(EndpointName=name, **config)),
        "delete_endpoint": (1, lambda: client.delete_endpoint(EndpointName=name)),
        "describe_endpoint": (8, lambda: client.describe_endpoint(EndpointName=name)),
        "list_endpoints": (8, client.list_endpoints),
        "create_model": (8, lambda: client.create_model(ModelName=name, PrimaryContainer={"Image": "x"})),
        "describe_model": (8, lambda: client.describe_model(ModelName=name)),
        "delete_model": (8, lambda: client.delete_model(ModelName=name)),
        "list_models": (8, client.list_models),
        "create_config": (8, lambda: client.create_endpoint_config(EndpointConfigName=name, **variants)),
        "delete_config": (8, lambda: client.delete_endpoint_config(EndpointConfigName=name)),
        "create_training": (1, lambda: client.create_training_job(**{**training, "TrainingJobName": name})),
        "describe_training": (8, lambda: client.describe_training_job(TrainingJobName=name)),
        "stop_training": (1, lambda: client.stop_training_job(TrainingJobName=name)),
        "delete_training": (3, lambda: client.delete_training_job(TrainingJobName=name)),
        "list_training": (8, client.list_training_jobs),
        "create_transform": (1, lambda: client.create_transform_job(**{**transform, "TransformJobName": name})),
        "describe_transform": (8, lambda: client.describe_transform_job(TransformJobName=name)),
        "stop_transform": (1, lambda: client.stop_transform_job(TransformJobName=name)),
        "delete_transform": (3, lambda: client.delete_transform_job(TransformJobName=name)),
        "list_transform": (8, client.list_transform_jobs),
        "add_tags": (3, lambda: client.add_tags(ResourceArn=f"{arn}/{name}", **tags)),
    }
while time.monotonic() < end:
    table = calls(random.choice(("e", "f", f"own-{seed}")))
    [name] = random.choices(list(table), [weight for weight, _ in table.values()])
    try:
        table[name][1]()
        seen[name] += 1
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("ValidationException", "ResourceInUse"):
            raise
        seen["refused"] += 1
print(json.dumps(seen))
"""


def test_processes_that_use_the_same_names_at_once_see_no_unexpected_error(
    client, model_archive, write_script, home, tmp_path
):
    make_model(client, model_archive(ECHO.format(name="m")), "m")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x").write_text("x")
    training = training_request("t", write_script("import time; time.sleep(0.5)"), tmp_path / "output")
    transform = transform_request("t", "m", tmp_path / "in", tmp_path / "output")
    given = [str(MINUTES), json.dumps(training), json.dumps(transform)]
    commands = [[sys.executable, "-c", USER, str(home), str(number), *given] for number in range(CLIENTS)]
    users = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for command in commands
    ]
    results = [user.communicate(timeout=MINUTES * 60 + PATIENCE * 10) for user in users]
    errors = [error for _, error in results if error]
    assert [user.returncode for user in users] == [0] * CLIENTS, errors
    seen = sum((Counter(json.loads(found)) for found, _ in results), Counter())
    print(f"\n{CLIENTS} processes for {MINUTES} minutes, {seen.total()} calls: {dict(seen)}")
    for kind, store in (("training", client.training_jobs), ("transform", client.transform_jobs)):
        for name in store.names():
            end_and_delete(client, kind, name)
    for name in client.endpoints.names():
        assert settled(client, name) in ("InService", "Failed")
        client.delete_endpoint(EndpointName=name)
    for store in (client.endpoints, client.training_jobs, client.transform_jobs):
        assert [name for name in os.listdir(store.folder) if not name.startswith(".fastmaker")] == []


def end_and_delete(client, kind, name):
    """Stop a job, wait for its end and delete it."""
    argument = {f"{kind.capitalize()}JobName": name}
    getattr(client, f"stop_{kind}_job")(**argument)

    def over():
        return getattr(client, f"describe_{kind}_job")(**argument)[f"{kind.capitalize()}JobStatus"] in FINAL

    wait_until(over)
    getattr(client, f"delete_{kind}_job")(**argument)
