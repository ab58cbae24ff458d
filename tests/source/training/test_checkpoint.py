"""Runs that are interrupted and resumed: they give the same result as uninterrupted ones."""

import contextlib
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from helpers import PATIENCE, REPOSITORY

from fastmaker import bundle
from fastmaker.training import callbacks, checkpoint, run
from fastmaker.training.arguments import parse_args

pytestmark = pytest.mark.training

ENTRY_POINT = REPOSITORY / "source" / "entry_point.py"


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# The entry point in this process; a run that was killed after an epoch is one whose later checkpoints are missing


class Run:
    """Where a run of the entry point on `images` puts its things, and what it left there."""

    def __init__(self, images, folder, arguments):
        self.folder, self.checkpoints, self.output = folder, folder / "checkpoints", folder / "data"
        folders = ["--model-dir", folder / "model", "--output-data-dir", self.output]
        self.arguments = [*map(str, ["--train", images, *folders]), *arguments.split()]
        self.with_checkpoints = [*self.arguments, "--checkpoint-dir", str(self.checkpoints)]

    def train(self, *arguments):
        return run.main(parse_args([*self.with_checkpoints, *arguments]))

    def lose(self, epoch):
        (self.checkpoints / f"epoch-{epoch:04}.pt").unlink()

    @property
    def result(self):
        """The history, the metrics and the digest of the weights."""
        history, metrics = ((self.output / name).read_text() for name in ("history.csv", "metrics.json"))
        return history, json.loads(metrics), bundle.load_info(self.folder / "model").state_sha256


def metric_lines(output):
    return [line.split(" images_per_second")[0] for line in output.splitlines() if line.startswith("epoch=")]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A TORCH_HOME with a file of weights for ResNet-18, which stands for the download."""
    import torchvision

    folder = tmp_path_factory.mktemp("torch")
    name = torchvision.models.ResNet18_Weights.DEFAULT.url.rsplit("/", 1)[1]
    (folder / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(torchvision.models.resnet18().state_dict(), folder / "hub" / "checkpoints" / name)
    return folder


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_pretrained_network_goes_on_without_the_pretrained_weights(
    photos, pretrained, tmp_path, monkeypatch, capsys, workers
):
    monkeypatch.setenv("TORCH_HOME", str(pretrained))
    run = Run(photos, tmp_path, f"--arch resnet18 --epochs 2 --batch-size 8 --image-size 32 --workers {workers}")
    assert run.train() == 0
    before, lines = run.result, metric_lines(capsys.readouterr().out)
    assert len(lines) == 3
    run.lose(3)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # where nothing answers
    assert run.train() == 0
    output = capsys.readouterr().out
    assert f"resuming after epoch 2 of 3 from {run.checkpoints / 'epoch-0002.pt'}\n" in output
    assert metric_lines(output) == lines
    assert run.result == before


@pytest.fixture
def complete(few, tmp_path, capsys):
    run = Run(few, tmp_path, "--arch convnet --epochs 2 --batch-size 32")
    assert run.train() == 0
    run.output_of_training = capsys.readouterr().out
    return run


def test_a_complete_run_trains_nothing_and_writes_its_results_again(complete, tmp_path, capsys):
    before = complete.result
    (tmp_path / "model").rename(tmp_path / "old-model")
    (tmp_path / "data").rename(tmp_path / "old-data")
    assert complete.train() == 0
    output = capsys.readouterr().out
    assert f"nothing is left to train after epoch 2 of 2 from {complete.checkpoints / 'epoch-0002.pt'}\n" in output
    assert "training convnet" not in output
    assert metric_lines(output) == metric_lines(complete.output_of_training)
    assert complete.result == before
    assert names(tmp_path / "data") == names(tmp_path / "old-data")


def test_a_run_passes_over_a_damaged_checkpoint_and_says_so(complete, capsys):
    before = complete.result
    flip(complete.checkpoints / "epoch-0002.pt")
    assert complete.train() == 0
    output = capsys.readouterr().out
    assert "epoch-0002.pt is skipped: its SHA-256 does not match; it was altered or cut short\n" in output
    assert "resuming after epoch 1 of 2 from" in output
    assert complete.result == before


@pytest.mark.parametrize(
    ("arguments", "name", "there", "here"),
    [
        ("--arch resnet18 --pretrained false --image-size 28", "arch", "'convnet'", "'resnet18'"),
        ("--image-size 20", "image_size", "[28, 28]", "[20, 20]"),
        ("--epochs 3", "epochs", "2", "3"),
        ("--batch-size 16", "batch_size", "32", "16"),
        ("--seed 7", "seed", "42", "7"),
    ],
)
def test_a_checkpoint_of_other_arguments_is_refused_in_one_line(complete, capsys, arguments, name, there, here):
    assert complete.train(*arguments.split()) == 2
    path = complete.checkpoints / "epoch-0002.pt"
    reason = f"{path} is of another run, with {name} {there}, not {here}; give the arguments and data of that run, or"
    captured = capsys.readouterr()
    assert captured.err == f"ValueError: {reason} another --checkpoint-dir\n"
    assert "training convnet" not in captured.out


def test_a_checkpoint_of_other_images_is_refused(complete, few, tmp_path, capsys):
    other = shutil.copytree(few, tmp_path / "other")
    shutil.move(next((other / "7").iterdir()), other / "7" / "other.png")
    assert complete.train("--train", str(other)) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "is of another run, with fingerprint of the images '" in line


def test_a_checkpoint_of_other_labels_is_refused(complete, photos, capsys):
    assert complete.train("--train", str(photos)) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert re.search(r"with labels \['0', '1', .*\], not \['checks', 'rings', 'stripes'\];", line)


def test_a_file_in_the_place_of_the_directory_is_refused_in_one_line(few, tmp_path, capsys):
    run = Run(few, tmp_path, "--arch convnet")
    run.checkpoints.touch()
    assert run.train() == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"ValueError: no checkpoint can be written into {run.checkpoints}: ")


# Processes that are killed


LONGER = "--arch convnet --epochs 5 --batch-size 8 --augment true"


@pytest.fixture(scope="module")
def uninterrupted(few, tmp_path_factory):
    """The result of a process that nothing interrupted, and that wrote no checkpoints; its metric lines."""
    run = Run(few, tmp_path_factory.mktemp("uninterrupted"), LONGER)
    command = [sys.executable, str(ENTRY_POINT), *run.arguments]
    process = subprocess.run(command, cwd=run.folder, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-2000:]
    assert names(run.folder) == ["data", "model"]
    return run.result, metric_lines(process.stdout)


def start(run, log):
    command = [sys.executable, str(ENTRY_POINT), *run.with_checkpoints]
    with open(log, "w") as output:
        return subprocess.Popen(command, cwd=run.folder, stdout=output, stderr=subprocess.STDOUT)


def wait_until(happened, process, seconds=PATIENCE):
    """Look again and again, without a pause worth mentioning; whether it happened before the process ended."""
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        if happened():
            return True
        time.sleep(0.0002)
    return False


def finish(run, log):
    process = start(run, log)
    assert process.wait(PATIENCE) == 0, log.read_text()[-2000:]
    return log.read_text()


def being_written(run, epoch):
    """Whether this checkpoint is there, which is seen while it is not yet whole unless this process got no turn."""
    name = f"epoch-{epoch:04}.pt"
    return lambda: any(run.checkpoints.glob(f"{name}*"))


@pytest.mark.slow
def test_killed_while_checkpoints_are_written_a_run_ends_with_the_same_figures(few, tmp_path, uninterrupted):
    run, log = Run(few, tmp_path, LONGER), tmp_path / "log"
    for epoch in (1, 3):
        process = start(run, log)
        assert wait_until(being_written(run, epoch), process), log.read_text()[-2000:]
        process.kill()
        process.wait()
    output = finish(run, log)
    assert re.search(r" after epoch [345] of 5 from ", output)
    assert (run.result, metric_lines(output)) == uninterrupted
    assert names(run.checkpoints) == ["epoch-0004.pt", "epoch-0005.pt"]


@pytest.mark.slow
def test_killed_within_an_epoch_a_run_goes_on_there_if_checkpoints_are_written_that_often(few, tmp_path, uninterrupted):
    run, log = Run(few, tmp_path, LONGER + " --checkpoint-minutes 0.001"), tmp_path / "log"
    process = start(run, log)
    assert wait_until(lambda: len(list(run.checkpoints.glob("epoch-0002-batch-*.pt"))) > 1, process)
    process.kill()
    process.wait()
    output = finish(run, log)
    assert re.search(r"resuming after epoch [2-5] of 5 and \d+ batches from ", output)
    assert (run.result, metric_lines(output)) == uninterrupted


@pytest.mark.slow
@pytest.mark.parametrize("run_seed", range(20))
def test_killed_once_at_any_moment_a_run_ends_with_the_same_figures(few, tmp_path, uninterrupted, run_seed):
    run, log = Run(few, tmp_path, LONGER), tmp_path / "log"
    process = start(run, log)
    with contextlib.suppress(subprocess.TimeoutExpired):  # or it was done before
        process.wait(random.Random(run_seed).uniform(0, 15))
    process.kill()
    process.wait()
    output = finish(run, log)
    assert (run.result, metric_lines(output)) == uninterrupted


STOPPED = r"stopped by SIGTERM; the next start resumes after (epoch (\d) of 5(?: and (\d+) batches)?)"


@pytest.mark.slow
def test_after_sigterm_the_next_start_goes_on(few, tmp_path, uninterrupted):
    run, log = Run(few, tmp_path, LONGER), tmp_path / "log"
    process = start(run, log)
    assert wait_until(lambda: "\nepoch=2 " in log.read_text(), process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == callbacks.STOPPED
    reached, done, _ = re.fullmatch(STOPPED, log.read_text().splitlines()[-1]).groups()
    assert int(done) >= 2
    assert not (tmp_path / "model").exists()
    output = finish(run, log)
    assert f"resuming after {reached} from " in output
    assert (run.result, metric_lines(output)) == uninterrupted


@pytest.mark.slow
def test_sigterm_to_each_process_of_a_run_leaves_a_checkpoint_of_the_batch(few, tmp_path):
    run, log = Run(few, tmp_path, LONGER + " --workers 2"), tmp_path / "log"
    process = start(run, log)
    assert wait_until(lambda: "\nepoch=2 " in log.read_text(), process)
    assert wait_until(lambda: len(psutil.Process(process.pid).children()) == 2, process)
    for each in (*psutil.Process(process.pid).children(), process):
        each.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == callbacks.STOPPED, log.read_text()
    reached, done, batch = re.fullmatch(STOPPED, log.read_text().splitlines()[-1]).groups()
    newest = checkpoint.newest(run.checkpoints)[1]
    assert (newest["epoch"], newest["batch"]) == (int(done), int(batch or 0))
    assert f"resuming after {reached} from " in finish(run, log)
