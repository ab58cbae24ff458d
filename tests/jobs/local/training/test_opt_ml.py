"""/opt/ml by its name, in a mount namespace of each container, and what else a script sees as on AWS."""

import json
import os
import subprocess
import sys
import tarfile
import textwrap

import pytest
from helpers import PATIENCE, REPOSITORY
from helpers.local_mode import estimator, log_of, without_opt_ml
from sagemaker.inputs import TrainingInput

pytestmark = pytest.mark.skipif(without_opt_ml(), reason="this machine allows no mount namespace to this user")
# Leaves what it sees as JSON in its model.
SEES = """
import importlib.util, json, os, pathlib, socket
def imports(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
def read(name):
    return json.loads(pathlib.Path("/opt/ml/input/config", name).read_text())
seen = {
    "entries": sorted(os.listdir("/opt/ml")),
    "opt": sorted(os.listdir("/opt")),
    "model_dir": os.environ["SM_MODEL_DIR"],
    "base_dir": os.environ.get("SAGEMAKER_BASE_DIR"),
    "channel": pathlib.Path("/opt/ml/input/data/train/words.txt").read_text(),
    "channels": read("inputdataconfig.json"),
    "hosts": {name: socket.gethostbyname(name) for name in read("resourceconfig.json")["hosts"]},
    "host": os.environ["SM_CURRENT_HOST"],
    "intermediate": os.path.isdir(os.environ["SM_OUTPUT_INTERMEDIATE_DIR"]),
    "imports": [name for name in NAMES if imports(name)],
}
if seen["host"] == "algo-1":
    pathlib.Path("/opt/ml/model/seen.json").write_text(json.dumps(seen))
    pathlib.Path("/opt/ml/output/intermediate/step.txt").write_text("1")
"""
HIDDEN = [
    "sagemaker_inference",
    "sagemaker_pytorch_serving_container",
    "ts",
    "moto",
    "fastmaker.jobs",
    "fastmaker.local",
]
# What a script sees, by a name in `seen`.
EXPECTED = {
    "model_dir": "/opt/ml/model",
    "base_dir": None,
    "channel": "some words",
    "hosts": {"algo-1": "127.0.0.1", "algo-2": "127.0.0.2"},
    "host": "algo-1",
    "intermediate": True,
    "imports": ["torch", "sagemaker_training"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "words.txt").write_text("some words")
    return folder


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("output")


@pytest.fixture(scope="module")
def job(session, data, output, tmp_path_factory):
    source = tmp_path_factory.mktemp("source")
    (source / "train.py").write_text(SEES.replace("NAMES", repr([*HIDDEN, "torch", "sagemaker_training"])))
    before = os.path.exists("/opt/ml"), sorted(os.listdir("/opt"))
    job = estimator(session, source, instance_count=2, output_path=f"file://{output}")
    train = TrainingInput(f"file://{data}", content_type="text/plain", input_mode="FastFile")
    job.fit({"train": train}, logs=False)
    assert (os.path.exists("/opt/ml"), sorted(os.listdir("/opt"))) == before
    return job


@pytest.fixture(scope="module")
def seen(job):
    with tarfile.open(job.model_data.removeprefix("file://")) as tar:
        return json.load(tar.extractfile("seen.json"))


@pytest.mark.parametrize("name", EXPECTED)
def test_a_script_sees_what_it_does_on_aws(seen, name):
    assert seen[name] == EXPECTED[name]


def test_a_script_sees_the_tree_and_the_rest_of_opt(seen):
    assert {"code", "input", "model", "output", "shared"} <= set(seen["entries"])
    assert set(os.listdir("/opt")) <= set(seen["opt"])


def test_a_channel_has_its_content_type_and_mode(seen):
    channel = seen["channels"]["train"]
    assert (channel["ContentType"], channel["TrainingInputMode"]) == ("text/plain", "FastFile")


def test_an_output_path_has_awss_layout_and_a_link_where_local_mode_puts_the_model(job, output):
    name = job.latest_training_job.name
    assert job.model_data == f"file://{output}/{name}/output/model.tar.gz"
    assert os.readlink(output / "model.tar.gz") == f"{name}/output/model.tar.gz"
    assert (output / name / "output" / "intermediate" / "step.txt").read_text() == "1"


def test_an_empty_model_is_said_and_a_users_own_file_is_not_replaced_by_a_link(session, write_script, tmp_path, capsys):
    (tmp_path / "model.tar.gz").write_text("the user's")
    job = estimator(session, write_script("print('trained')"), output_path=f"file://{tmp_path}")
    job.fit(logs=False)
    warning = "warning: the model is empty, no file was written to SM_MODEL_DIR"
    assert capsys.readouterr().out.splitlines()[-1] == warning
    assert log_of(session, job.latest_training_job.name).splitlines()[-1] == warning
    assert (tmp_path / "model.tar.gz").read_text() == "the user's"


# Trains by a script that names /opt/ml in full, as another user or on a machine without mount namespaces.
PROGRAM = """
import sys
sys.path[:0] = [{tests!r}]
from helpers.local_mode import estimator
from fastmaker.local import ProcessSession
job = estimator(ProcessSession(home={home!r}), {source!r})
job.fit()
print("model_data", job.model_data)
"""
NO_NAMESPACES = "echo 0 > /proc/sys/user/max_mnt_namespaces; exec "


@pytest.fixture
def train_elsewhere(write_script, tmp_path):
    def train(script, words, before="exec "):
        source = write_script(script)
        values = {"tests": str(REPOSITORY / "tests"), "home": str(tmp_path / "home"), "source": str(source)}
        (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM).format(**values))
        command = ["unshare", *words, "sh", "-c", f'{before} "$@"', "sh", sys.executable, tmp_path / "program.py"]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, cwd=REPOSITORY)

    return train


def test_a_user_who_is_not_root_has_it_too(train_elsewhere, tmp_path):
    os.chmod(tmp_path, 0o777)
    done = train_elsewhere("open('/opt/ml/model/m', 'w').close()", ["--user", "--map-user=1000", "--map-group=1000"])
    (archive,) = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("model_data")]
    with tarfile.open(archive.removeprefix("file://")) as tar:
        assert tar.getnames() == ["m"]


WITHOUT = (
    "/opt/ml cannot be had on this machine (No space left on device): the script finds its folders in SM_MODEL_DIR"
)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("import os; os.environ.get('SM_MODEL_DIR', '/opt/ml/model')", "is empty: /opt/ml, which the script names"),
        pytest.param(
            "import os; open(os.environ['SM_MODEL_DIR'] + '/m', 'w').close()",
            "model_data file://",
            marks=pytest.mark.slow,
        ),
        pytest.param("print('no model')", "warning: the model is empty", marks=pytest.mark.slow),
    ],
    ids=["names it", "by its variable", "no model"],
)
def test_where_it_cannot_be_had_a_job_says_so_and_never_completes_for_its_lack(train_elsewhere, script, expected):
    done = train_elsewhere(script, ["--user", "--map-root-user"], NO_NAMESPACES)
    assert WITHOUT in done.stdout
    assert expected in " ".join((done.stdout + done.stderr).replace("│", " ").split())
