"""Training jobs on several hosts, and checkpoints that are brought back and taken away."""

import json
import re
import shutil
import tarfile
import time

import pytest
from helpers import PATIENCE, REPOSITORY
from helpers.local_mode import estimator, nothing_runs_below, running_below, wait_until
from sagemaker.exceptions import UnexpectedStatusException
from sagemaker.inputs import TrainingInput

# Each host adds its number to those of the others, and leaves what it has seen.
MEET = """
import json, os, pathlib
import torch, torch.distributed as dist
hosts, host = json.loads(os.environ["SM_HOSTS"]), os.environ["SM_CURRENT_HOST"]
dist.init_process_group("gloo", rank=hosts.index(host), world_size=len(hosts))
number = torch.tensor(dist.get_rank() + 1.0)
dist.all_reduce(number)
model = pathlib.Path(os.environ["SM_MODEL_DIR"])
seen = sorted(os.listdir(os.environ["SM_CHANNEL_TRAIN"])) if "SM_CHANNEL_TRAIN" in os.environ else []
(model / f"rank-{dist.get_rank()}.json").write_text(json.dumps({"sum": number.item(), "seen": seen}))
(model / "of-all.txt").write_text(host)
print(f"score={number.item()}")
dist.barrier()
dist.destroy_process_group()
"""
# The first host sleeps, the last one does what is given.
ONE_HOST = """
import json, os, time
if os.environ["SM_CURRENT_HOST"] == json.loads(os.environ["SM_HOSTS"])[-1]:
    {}
else:
    time.sleep({})
"""


def files_of(job) -> dict[str, bytes]:
    with tarfile.open(job.model_data.removeprefix("file://")) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}


NAMES = [f"{n}.txt" for n in range(5)]


def directory_of(session, job):
    return session.sagemaker_client.training_jobs.directory(job.latest_training_job.name)


@pytest.fixture(params=["disk", "s3"])
def channel(request, tmp_path):
    """Five objects, by their URI."""
    if request.param == "s3":
        s3, bucket = request.getfixturevalue("s3"), request.getfixturevalue("bucket")
        for name in NAMES:
            s3.put_object(Bucket=bucket, Key=f"data/{name}", Body=b"x")
        return f"s3://{bucket}/data"
    (tmp_path / "data").mkdir()
    for name in NAMES:
        (tmp_path / "data" / name).write_text("x")
    return f"file://{tmp_path}/data"


# The channel is before the session, whose client of S3 needs credentials.
@pytest.mark.containers
def test_hosts_meet_have_their_shards_and_leave_one_model(channel, session, write_script):
    definitions = [{"Name": "score", "Regex": "score=([0-9.]+)"}]
    job = estimator(session, write_script(MEET), instance_count=2, metric_definitions=definitions)
    job.fit({"train": TrainingInput(channel, distribution="ShardedByS3Key")}, logs=False)
    files = files_of(job)
    assert json.loads(files["rank-0.json"]) == {"sum": 3, "seen": NAMES[::2]}
    assert json.loads(files["rank-1.json"]) == {"sum": 3, "seen": NAMES[1::2]}
    assert files["of-all.txt"] in (b"algo-1", b"127.0.0.1")  # where names cannot be had
    (metric,) = job.latest_training_job.describe()["FinalMetricDataList"]
    assert (metric["MetricName"], metric["Value"]) == ("score", 3)


def test_each_line_of_a_log_says_which_host_it_is_from(session, write_script, capsys):
    estimator(session, write_script("print('here')"), instance_count=2).fit()
    lines = capsys.readouterr().out.splitlines()
    assert {"algo-1 | here", "algo-2 | here"} <= set(lines)


@pytest.mark.containers
def test_two_jobs_of_two_hosts_at_once_do_not_meet_each_other(session, write_script):
    source = write_script(MEET)
    jobs = [estimator(session, source, instance_count=2) for _ in range(2)]
    for job in jobs:
        job.fit(wait=False)
    for job in jobs:
        session.wait_for_job(job.latest_training_job.name)
        assert json.loads(files_of(job)["rank-1.json"])["sum"] == 3


def test_a_slow_host_is_waited_for(session, write_script):
    slow = ONE_HOST.format("time.sleep(4); open(os.environ['SM_MODEL_DIR'] + '/late', 'w').close()", 0)
    job = estimator(session, write_script(slow), instance_count=2)
    job.fit(logs=False)
    assert "late" in files_of(job)


@pytest.mark.containers
@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("raise ValueError('no such class')", "host algo-3: "),
        ("os.kill(os.getpid(), 9)", "host algo-3: "),
    ],
)
def test_a_host_that_fails_ends_the_job_and_is_named(session, write_script, what, reason):
    job = estimator(session, write_script(ONE_HOST.format(what, 3600)), instance_count=3)
    started = time.monotonic()
    with pytest.raises(UnexpectedStatusException, match=f"(?s){reason}"):
        job.fit(logs=False)
    assert time.monotonic() - started < PATIENCE
    assert nothing_runs_below(directory_of(session, job))


@pytest.mark.parametrize("distribution", [None, {"torch_distributed": {"enabled": True}}])
def test_the_cause_is_named_and_not_those_who_lost_their_peer(session, write_script, distribution):
    script = MEET.replace("dist.barrier()", "if host != hosts[0]: raise RuntimeError('out of luck')\ndist.barrier()")
    job = estimator(session, write_script(script), instance_count=2, distribution=distribution)
    with pytest.raises(UnexpectedStatusException, match=r"(?s)host algo-2: .*RuntimeError: out of luck"):
        job.fit(logs=False)


def test_a_host_is_called_by_its_name_in_the_job_wherever_a_script_gives_its_address(session, write_script):
    job = estimator(session, write_script("import os\nraise ValueError(os.environ['SM_HOSTS'])"), instance_count=2)
    with pytest.raises(UnexpectedStatusException, match=r'\["algo-1", *"algo-2"\]'):
        job.fit(logs=False)


HANGING = """
import json, os, sys, time
if os.environ["SM_CURRENT_HOST"] == json.loads(os.environ["SM_HOSTS"])[1]:
    time.sleep(3600)
import entry_point
sys.exit(entry_point.main())
"""


def test_a_host_that_hangs_at_its_start_is_named_after_the_timeout(session, digits, tmp_path):
    source = shutil.copytree(REPOSITORY / "source", tmp_path / "source")
    (source / "train.py").write_text(HANGING)
    job = estimator(session, source, instance_count=2, hyperparameters={"arch": "convnet", "timeout": 5})
    started = time.monotonic()
    with pytest.raises(UnexpectedStatusException, match=r"(?s)host algo-1: .*host algo-2 did not join within 5 s"):
        job.fit({"train": f"file://{digits}"}, logs=False)
    assert time.monotonic() - started < PATIENCE
    assert nothing_runs_below(directory_of(session, job))


def test_all_hosts_of_a_job_that_is_stopped_end(session, write_script):
    job = estimator(session, write_script(ONE_HOST.format("time.sleep(3600)", 3600)), instance_count=3)
    job.fit(wait=False)
    wait_until(lambda: len(running_below(directory_of(session, job), "train.py")) == 3)
    session.stop_training_job(job.latest_training_job.name)
    session.wait_for_job(job.latest_training_job.name)
    assert job.latest_training_job.describe()["TrainingJobStatus"] == "Stopped"
    assert nothing_runs_below(directory_of(session, job))


COUNTING = """
import os, pathlib, time
folder = pathlib.Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"), "checkpoints")
found = sorted(folder.rglob("*.txt"))
print(f"found {len(found)}", flush=True)
(folder / "run").mkdir(exist_ok=True)
(folder / "run" / f"{len(found)}.txt").write_text("x" * 1000)
pathlib.Path(os.environ["SM_MODEL_DIR"], "found.txt").write_text(str(len(found)))
if not found: time.sleep(3600)
"""


@pytest.mark.containers
def test_checkpoints_are_taken_away_while_a_job_runs_and_brought_to_the_next(session, write_script, place):
    source, checkpoints = write_script(COUNTING), place.uri + "/checkpoints"
    first = estimator(session, source, checkpoint_s3_uri=checkpoints, use_spot_instances=True, max_wait=90000)
    first.fit(wait=False)
    wait_until(lambda: "checkpoints/run/0.txt" in place.names())
    session.stop_training_job(first.latest_training_job.name)
    session.wait_for_job(first.latest_training_job.name)
    second = estimator(session, source, checkpoint_s3_uri=checkpoints, instance_count=2)
    second.fit(logs=False)
    assert files_of(second)["found.txt"] == b"1"
    assert place.names() == {"checkpoints/run/0.txt", "checkpoints/run/1.txt"}


def test_checkpoints_lie_where_the_job_says(session, write_script, place):
    place.put("checkpoints/given.txt", b"x")
    script = COUNTING.replace('"checkpoints")', '"elsewhere", "below")')
    job = estimator(
        session,
        write_script(script),
        checkpoint_s3_uri=place.uri + "/checkpoints",
        checkpoint_local_path="/opt/ml/elsewhere/below",
    )
    job.fit(logs=False)
    assert files_of(job)["found.txt"] == b"1"
    assert place.names() == {"checkpoints/given.txt", "checkpoints/run/1.txt"}


@pytest.mark.slow
def test_a_run_of_the_entry_point_that_is_stopped_goes_on_where_it_was(session, digits, tmp_path):
    hyperparameters = {"arch": "convnet", "epochs": 6, "batch-size": 16}

    def job(checkpoints):
        arguments = {"checkpoint_s3_uri": f"file://{tmp_path}/{checkpoints}", "hyperparameters": hyperparameters}
        return estimator(session, REPOSITORY / "source", entry_point="entry_point.py", **arguments)

    def epochs(training):
        log = (directory_of(session, training) / "algo-1" / "container.log").read_text()
        return re.findall(r"epoch=\d .*(?= images_per_second)", log)

    data = {"train": f"file://{digits}"}
    stopped = job("interrupted")
    stopped.fit(data, wait=False)
    host = directory_of(session, stopped) / "algo-1"
    wait_until(lambda: next(host.rglob("epoch-0001.pt"), None))  # the job takes it away some seconds later
    session.stop_training_job(stopped.latest_training_job.name)
    session.wait_for_job(stopped.latest_training_job.name)
    resumed, straight = job("interrupted"), job("other")
    resumed.fit(data, logs=False)
    straight.fit(data, logs=False)
    assert 1 <= len(epochs(stopped)) < 6
    assert "resuming after epoch" in (directory_of(session, resumed) / "algo-1" / "container.log").read_text()
    assert epochs(resumed) == epochs(straight)
    assert len(epochs(straight)) == 6
