"""Clients of several kinds at once, while the server is killed and another takes its place: nothing is lost."""

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from botocore.config import Config
from helpers.front import client_of, kill_server
from helpers.front_jobs import HERE, IMAGE, ROLE, SERVE, SERVING_IMAGE, packed
from helpers.waiting import nothing_runs_below, wait_until

from fastmaker.local import aws

pytestmark = pytest.mark.server
BUCKET = "at-once"
RETRIES = {"mode": "standard", "max_attempts": 15}  # on a busy machine a server takes long to start
LINES = 40
TRAIN = f"""
import os, time
for number in range({LINES}):
    print("line", number, flush=True)
    time.sleep(0.5)
open(os.environ["SM_MODEL_DIR"] + "/weights.txt", "w").write("weights")
"""
SDK_FIT = f"""
import sagemaker
from sagemaker.pytorch import PyTorch
estimator = PyTorch(
    entry_point="train.py", source_dir="source", role="{ROLE}", framework_version="2.6.0", py_version="py312",
    instance_count=1, instance_type="ml.g4dn.xlarge",
)
estimator.fit()
print(estimator.latest_training_job.describe()["TrainingJobStatus"])
"""


class Rounds:
    """How often each client has gone round; `more` is what it goes on by."""

    def __init__(self):
        self.counts, self.stop = Counter(), threading.Event()

    def more(self, name):
        self.counts[name] += 1
        return not self.stop.is_set()

    def await_more(self, futures, count=3):
        """Returns once each client has gone round a few more times, or one has ended by an error."""
        before = dict(self.counts)
        raised = lambda: [future.result() for future in futures if future.done()]  # noqa: E731
        wait_until(lambda: raised() or all(self.counts[name] >= before[name] + count for name in before))


def puts(client, more, prefix):
    """What is put is read at once, and all of it at the end."""
    s3, bodies = client("s3"), {}
    while more():
        key = f"{prefix}/{len(bodies)}"
        bodies[key] = os.urandom(100 * (1 + len(bodies)))
        s3.put_object(Bucket=BUCKET, Key=key, Body=bodies[key])
        assert s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() == bodies[key]
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
    assert {item["Key"] for page in pages for item in page["Contents"]} == set(bodies)
    for key, body in bodies.items():
        assert s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() == body


def lists(client, more):
    """Nothing goes from a list that nobody deletes."""
    sagemaker, names = client("sagemaker"), set()
    while more():
        found = {model["ModelName"] for model in sagemaker.list_models()["Models"]}
        found |= {job["TrainingJobName"] for job in sagemaker.list_training_jobs()["TrainingJobSummaries"]}
        assert found >= names
        names = found


def tags(client, more):
    """Tags are kept, one a round."""
    sagemaker, kept = client("sagemaker"), {}
    arn = sagemaker.describe_model(ModelName="model")["ModelArn"]
    while more():
        kept[f"k{len(kept) % 40}"] = f"v{len(kept)}"
        sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": key, "Value": value} for key, value in kept.items()])
        assert {tag["Key"]: tag["Value"] for tag in sagemaker.list_tags(ResourceArn=arn)["Tags"]} == kept


def identities(client, more):
    """A service that is moto's answers too."""
    sts = client("sts")
    while more():
        assert sts.get_caller_identity()["Account"] == "000000000000"


def logs(client, more):
    """What a log has said, it says again; at the end it is whole."""
    cloudwatch, seen = client("logs"), []
    asked = {"logGroupName": "/aws/sagemaker/TrainingJobs", "filterPattern": "line"}
    going = True
    while going:
        going = more()  # it reads once more after the last round
        pages = cloudwatch.get_paginator("filter_log_events").paginate(**asked, logStreamNamePrefix="boto/")
        found = [event["message"] for page in pages for event in page["events"] if event["message"].startswith("line")]
        assert found[: len(seen)] == seen
        seen = found
    assert seen == [f"line {number}" for number in range(LINES)]


def invokes(client, more):
    """Each answer is the one to its request."""
    runtime, number = client("sagemaker-runtime"), 0
    while more():
        number += 1
        answer = runtime.invoke_endpoint(EndpointName="endpoint", Body=str(number))
        assert answer["Body"].read() == f"weights:{number}".encode()


def ended(client, operation, name):
    """A job's description once it has ended, each of which the server holds; every one before says InProgress."""
    while True:
        job = getattr(client("sagemaker"), f"describe_{operation}_job")(**{f"{operation.title()}JobName": name})
        status = job[f"{operation.title()}JobStatus"]
        if status != "InProgress":
            return status


def prepare(client):
    client("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration=HERE)
    archive = packed(weights__txt="weights", inference__py=SERVE)
    client("s3").put_object(Bucket=BUCKET, Key="model.tar.gz", Body=archive)
    container = {
        "Image": SERVING_IMAGE,
        "ModelDataUrl": f"s3://{BUCKET}/model.tar.gz",
        "Environment": {
            "SAGEMAKER_PROGRAM": "inference.py",
            "SAGEMAKER_SUBMIT_DIRECTORY": f"s3://{BUCKET}/source.tar.gz",
            "SAGEMAKER_MODEL_SERVER_WORKERS": "1",
        },
    }
    client("s3").put_object(Bucket=BUCKET, Key="source.tar.gz", Body=packed(train__py=TRAIN, inference__py=SERVE))
    client("sagemaker").create_model(ModelName="model", PrimaryContainer=container, ExecutionRoleArn=ROLE)


def start_jobs(sagemaker):
    """An endpoint, a training job and a batch job, which begin together."""
    variant = {"VariantName": "v", "ModelName": "model", "InstanceType": "ml.m5.xlarge", "InitialInstanceCount": 1}
    sagemaker.create_endpoint_config(EndpointConfigName="config", ProductionVariants=[variant])
    sagemaker.create_endpoint(EndpointName="endpoint", EndpointConfigName="config")
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName="endpoint", WaiterConfig={"Delay": 1})
    sagemaker.create_training_job(
        TrainingJobName="boto",
        AlgorithmSpecification={"TrainingImage": IMAGE, "TrainingInputMode": "File"},
        RoleArn=ROLE,
        OutputDataConfig={"S3OutputPath": f"s3://{BUCKET}/out"},
        ResourceConfig={"InstanceType": "ml.g4dn.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 30},
        StoppingCondition={"MaxRuntimeInSeconds": 600},
        HyperParameters={
            "sagemaker_program": "train.py",
            "sagemaker_submit_directory": f"s3://{BUCKET}/source.tar.gz",
        },
    )
    source = {"S3DataType": "S3Prefix", "S3Uri": f"s3://{BUCKET}/batch/"}
    sagemaker.create_transform_job(
        TransformJobName="batch",
        ModelName="model",
        TransformInput={"DataSource": {"S3DataSource": source}},
        TransformOutput={"S3OutputPath": f"s3://{BUCKET}/answers"},
        TransformResources={"InstanceType": "ml.m5.xlarge", "InstanceCount": 1},
    )


def fit_by_the_sdk(environment, folder):
    (folder / "source").mkdir()
    (folder / "source" / "train.py").write_text(TRAIN)
    env = {**os.environ, **environment, "AWS_RETRY_MODE": RETRIES["mode"], "AWS_MAX_ATTEMPTS": "15"}
    done = subprocess.run([sys.executable, "-c", SDK_FIT], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_requests_of_eight_clients_go_on_while_the_server_is_killed(tmp_path):
    rounds = Rounds()
    with ThreadPoolExecutor(8) as pool:
        with aws.running(tmp_path) as environment:
            client = partial(client_of, environment, config=Config(retries=RETRIES))
            prepare(client)
            kinds = {f"puts-{number}": partial(puts, prefix=number) for number in range(4)}
            kinds |= {"lists": lists, "more lists": lists, "tags": tags, "identities": identities}
            futures = [pool.submit(kind, client, partial(rounds.more, name)) for name, kind in kinds.items()]
            wait_until(lambda: len(rounds.counts) == len(kinds))
            rounds.await_more(futures)
            kill_server()
        try:
            with aws.running(tmp_path):
                rounds.await_more(futures)
                rounds.stop.set()
                assert [future.result() for future in futures] == [None] * len(kinds)
        finally:
            rounds.stop.set()


@pytest.mark.slow
def test_jobs_endpoints_and_clients_of_eight_kinds_go_on_while_the_server_is_killed_twice(tmp_path):
    rounds, home = Rounds(), tmp_path / "home"
    with ThreadPoolExecutor(8) as pool:
        with aws.running(home) as environment:
            client = partial(client_of, environment, config=Config(retries=RETRIES))
            prepare(client)
            for number in range(50):
                client("s3").put_object(Bucket=BUCKET, Key=f"batch/{number}", Body=f"{number}")
            start_jobs(client("sagemaker"))
            once = [pool.submit(fit_by_the_sdk, environment, tmp_path)]
            once += [pool.submit(ended, client, *job) for job in (("training", "boto"), ("transform", "batch"))]
            kinds = {"puts": partial(puts, prefix="p"), "lists": lists, "tags": tags, "logs": logs, "invokes": invokes}
            futures = [pool.submit(kind, client, partial(rounds.more, name)) for name, kind in kinds.items()]
            wait_until(lambda: len(rounds.counts) == len(kinds))
            rounds.await_more(futures)
            kill_server()
        try:
            with aws.running(home):
                rounds.await_more(futures)
                kill_server()
            with aws.running(home):
                rounds.await_more(futures)
                assert [future.result().split()[-1] for future in once] == ["Completed"] * 3
                rounds.stop.set()
                assert [future.result() for future in futures] == [None] * len(kinds)
                assert_jobs_are_whole(client)
        finally:
            rounds.stop.set()
    assert nothing_runs_below(home)


def assert_jobs_are_whole(client):
    s3, sagemaker = client("s3"), client("sagemaker")
    answers = s3.list_objects_v2(Bucket=BUCKET, Prefix="answers/")["Contents"]
    bodies = {item["Key"]: s3.get_object(Bucket=BUCKET, Key=item["Key"])["Body"].read() for item in answers}
    assert bodies == {f"answers/{number}.out": f"weights:{number}".encode() for number in range(50)}
    jobs = sagemaker.list_training_jobs()["TrainingJobSummaries"]
    assert [job["TrainingJobStatus"] for job in jobs] == ["Completed"] * 2, json.dumps(jobs, default=str)
    artifacts = sagemaker.describe_training_job(TrainingJobName="boto")["ModelArtifacts"]["S3ModelArtifacts"]
    assert s3.head_object(Bucket=BUCKET, Key=artifacts.removeprefix(f"s3://{BUCKET}/"))["ContentLength"]
    sagemaker.delete_endpoint(EndpointName="endpoint")
