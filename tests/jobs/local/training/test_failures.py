"""Why a script failed, by the logs that toolkits leave, and by real ones for each way in which a script ends."""

import tarfile

import pytest
from helpers.local_mode import estimator
from sagemaker.exceptions import UnexpectedStatusException

from fastmaker.local.supervisor import MAX_REASON
from fastmaker.local.training.failures import explain

FAILED = 'ExecuteUserScriptError:\nExitCode 1\nErrorMessage "what the toolkit collects"\nCommand "python -- train.py"'
LOG = """\
2026-01-31 12:00:00,000 sagemaker-training-toolkit INFO     Invoking user script

Invoking script with the following command:

python -- train.py


2026-01-31 12:00:00,000 sagemaker-training-toolkit INFO     Exceptions not imported for SageMaker Debugger
{}
2026-01-31 12:00:01,000 sagemaker-training-toolkit INFO     Waiting for the process to finish and give a return code.
2026-01-31 12:00:01,000 sagemaker-training-toolkit ERROR    Reporting training FAILURE
2026-01-31 12:00:01,000 sagemaker-training-toolkit ERROR    Encountered exit_code 1
"""
OF_DRIVER = (
    'Traceback (most recent call last):\n  File "utils.py", line 3, in execute_commands\n'
    "subprocess.CalledProcessError: Command '['python3', 'train.py']' returned non-zero exit status {}.\n"
)
FRAMES = "".join(f'  File "deep.py", line {number}, in call\n    call(number)\n' for number in range(100))


def traceback(exception, frames='  File "train.py", line 3, in <module>\n    main()\n'):
    return f"Traceback (most recent call last):\n{frames}{exception}\n"


CAUSED = "\nThe above exception was the direct cause of the following exception:\n\n"
TORCHRUN = (
    "E0131 12:00:00.123 99 /site-packages/torch/distributed/elastic/multiprocessing/api.py:874] failed (exitcode: 1)\n"
    + traceback("torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n=====\ntrain.py FAILED\n=====")
)
OUTPUTS = {
    # What the script prints, how the reason begins, and how it ends.
    "argparse": (
        "epoch=1\nusage: train.py [-h]\ntrain.py: error: argument --depth: invalid int value: 'x'",
        "",
        "int value: 'x'",
    ),
    "sys.exit": ("no data in the channel", "", "\nno data in the channel"),
    "a shell": ("./train.sh: 3: python4: not found", "", "python4: not found"),
    "many lines": ("epoch=1\n" * 500 + "the last words", "", "epoch=1\nthe last words"),
    "an exception": (traceback("ValueError: a fish"), "", "main()\nValueError: a fish"),
    "a deep one": (
        traceback("ValueError: a fish", FRAMES),
        "ValueError: a fish\n...\n",
        "call(number)\nValueError: a fish",
    ),
    "a chain": (
        traceback("KeyError: 'red'", FRAMES) + CAUSED + traceback("RuntimeError: none"),
        "KeyError: 'red'\n",
        "Error: none",
    ),
    "an old traceback": (traceback("KeyError: 'red'") + "epoch=1\n" * 100 + "done for", "", "epoch=1\ndone for"),
    "a long message": (
        traceback("ValueError: from " + "x" * 3000 + " to the end"),
        "ValueError: from xxx",
        "xx to the end",
    ),
    "an own exception": (traceback("own.TooCold: 3 degrees\nbelow zero"), "", "own.TooCold: 3 degrees\nbelow zero"),
    "torchrun": ("[rank0]: " + traceback("RuntimeError: out of luck") + TORCHRUN, "", "RuntimeError: out of luck"),
    "a syntax error": (
        '  File "train.py", line 1\n    def (\n        ^\nSyntaxError: invalid syntax',
        "",
        "SyntaxError: invalid syntax",
    ),
}


@pytest.mark.parametrize(("output", "start", "end"), OUTPUTS.values(), ids=OUTPUTS)
def test_a_reason_ends_with_the_scripts_last_lines(output, start, end):
    reason = explain(FAILED, LOG.format(output), 1, 500)
    assert len(reason) <= 500
    assert reason.startswith(f"ExecuteUserScriptError: exit code 1\n{start}")
    assert reason.endswith(end)


@pytest.mark.parametrize(
    ("failure", "status", "expected"),
    [
        ("written by the script " + "x" * 600, 1, "written by the script " + "x" * 478),
        ("", -9, "killed by signal 9 (SIGKILL)\nlast"),
        (
            FAILED.replace("ExitCode 1", "ExitCode -11"),
            1,
            "ExecuteUserScriptError: killed by signal 11 (SIGSEGV)\nlast",
        ),
        (OF_DRIVER.format("7"), 1, "exit code 7\nlast"),
        ("Training Execution failed. For more details, see", 1, "exit code 1\nlast"),
        ("Framework Error: \n" + traceback("OSError: no host") + "no host", 1, "OSError: no host\nno host"),
    ],
    ids=["the script's own", "no file", "a signal", "of a driver", "of another driver", "of the toolkit"],
)
def test_a_failure_file_and_a_signal_are_reasons_too(failure, status, expected):
    assert explain(failure, LOG.format("last"), status, 500).endswith(expected)


def test_a_reason_of_a_driver_has_what_lies_between_its_own_lines():
    before = "++ set +x\nExecuting command: python3 train.py\n"
    script = traceback("ValueError: a fish")
    log = f"{before}epoch=1\n{script}Command failed with exit code 1. Traceback: {OF_DRIVER.format(1)}+++ exit 1\n"
    assert explain(OF_DRIVER.format(1).strip(), log, 1, 500) == f"exit code 1\n{script.strip()}"
    words = f"{before}no data\n+++ handle_error\n+++ exit 1\n"
    assert explain("Training Execution failed", words, 1, 500) == "exit code 1\nno data"


# How the script ends, and how the job's reason does.
ENDINGS = [
    ("parser.parse_args()", "error: the following arguments are required: --depth"),
    ("sys.exit('no images in the channel')", "ExecuteUserScriptError: exit code 1\nstarted\nno images in the channel"),
    ("try: {}['red']\nexcept KeyError as e: raise RuntimeError('y' * 3000 + ' the end') from e", "yyy the end"),
    ("os.kill(os.getpid(), 9)", "killed by signal 9 (SIGKILL)\nstarted"),
]


START = """
import argparse, os, sys
parser = argparse.ArgumentParser()
parser.add_argument("--depth", required=True)
open(os.environ["SM_OUTPUT_DATA_DIR"] + "/partial.txt", "w").write("x")
open(os.environ["SM_MODEL_DIR"] + "/half.txt", "w").write("x")
print("started", flush=True)
"""


@pytest.fixture(scope="module")
def jobs(session, tmp_path_factory):
    """A job for each way to end, all at once."""
    jobs = []
    for ending, _ in ENDINGS:
        source = tmp_path_factory.mktemp("source")
        (source / "train.py").write_text(START + ending)
        jobs.append(estimator(session, source))
        jobs[-1].fit(wait=False)
    return jobs


@pytest.mark.parametrize("number", range(len(ENDINGS)), ids=["argparse", "sys.exit", "a chain", "a signal"])
def test_a_failed_job_gives_the_scripts_last_words_and_its_output(session, jobs, number):
    job, (ending, expected) = jobs[number], ENDINGS[number]
    with pytest.raises(UnexpectedStatusException):
        session.wait_for_job(job.latest_training_job.name)
    description = job.latest_training_job.describe()
    assert description["FailureReason"].startswith("AlgorithmError: ")
    assert description["FailureReason"].endswith(expected)
    assert len(description["FailureReason"]) <= MAX_REASON
    if "red" in ending:
        assert "KeyError: 'red'\n...\n" in description["FailureReason"]
    folder = session.sagemaker_client.training_jobs.directory(description["TrainingJobName"]) / "output"
    assert [path.name for path in folder.iterdir()] == ["output.tar.gz"]
    with tarfile.open(folder / "output.tar.gz") as tar:
        assert sorted(tar.getnames()) == ["failure", "partial.txt"]
        assert tar.extractfile("failure").read().startswith(b"ExecuteUserScriptError:")
