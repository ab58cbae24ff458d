"""`fastmaker train` brings the weights that a job starts from: a file or an earlier model, as channels."""

import os
import subprocess
import sys

import pytest

from fastmaker.jobs import train


@pytest.mark.parametrize(
    ("words", "hyperparameters", "pretrained"),
    [
        ("--pretrained false", {"pretrained": "false"}, None),
        ("--pretrained True", {"pretrained": "True"}, None),
        ("--pretrained weights.pth", {}, "weights.pth"),
        ("--pretrained s3://bucket/resnet18.pth --lr 0.1", {"lr": "0.1"}, "s3://bucket/resnet18.pth"),
    ],
)
def test_a_file_of_weights_is_a_channel_and_true_and_false_are_hyperparameters(words, hyperparameters, pretrained):
    args = train.parse_args(["--data", "digits", *words.split()])
    assert (args.hyperparameters, args.pretrained) == (hyperparameters, pretrained)


@pytest.mark.slow
@pytest.mark.server
def test_a_job_starts_from_the_model_of_another(few, home, tmp_path):
    def run(*words):
        command = [sys.executable, "-m", "fastmaker.jobs", "train", "--data", str(few), "--arch", "convnet", *words]
        env = os.environ | {"FASTMAKER_HOME": str(home)}
        return subprocess.run([*command, "--epochs", "1"], cwd=tmp_path, env=env, capture_output=True, text=True)

    first = run("--job-name", "first")
    assert first.returncode == 0, first.stderr[-2000:]
    assert run("--job-name", "second", "--resume-from", "first").returncode == 0
    refused = run("--resume-from", "first", "--image-mode", "RGB")
    assert refused.returncode == 2
    assert "its image mode is L; this run's is RGB" in refused.stderr
