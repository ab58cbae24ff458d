"""Images whose header is whole and whose pixels are not: a few are left out and counted, many end the run."""

import json
import re
import sys

import numpy as np
import pytest
from helpers import REPOSITORY, discs
from helpers.discs import figures
from helpers.hosts import Hosts
from PIL import Image

from fastmaker.training import callbacks, run
from fastmaker.training.arguments import parse_args

pytestmark = pytest.mark.training

ENTRY_POINT = REPOSITORY / "source" / "entry_point.py"
OPTIONS = "--arch convnet --image-size 16 --epochs 2 --batch-size 4 --workers 0"


def pictures(folder, damaged=(), validating=()):
    """Write 40 images to train and 8 to validate, some of each cut off behind their headers; return the folder."""
    random = np.random.default_rng(1)
    for part, count, bad in (("train", 40, damaged), ("valid", 8, validating)):
        for number in range(count):
            file = folder / part / "ab"[number % 2] / f"{number:02}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 128, (20, 20), np.uint8) + np.uint8(120 * (number % 2))).save(file)
            if number in bad:
                file.write_bytes(file.read_bytes()[:-200])
    return folder


def words(folder, images, more=""):
    folders = ["--train", images, "--model-dir", folder / "model", "--output-data-dir", folder]
    return [*map(str, folders), *OPTIONS.split(), *more.split()]


def skipped(output):
    return re.findall(r"skipped \S+/(\d+)\.png: .*; the next image trains in its place\n", output)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_few_are_named_once_and_counted(tmp_path, capsys, workers):
    images = pictures(tmp_path / "images", damaged=(4, 21), validating=(3,))
    assert run.main(parse_args(words(tmp_path, images, f"--workers {workers}"))) == 0
    printed = capsys.readouterr().out
    assert "40 images to train, 7 to validate" in printed
    assert sorted(skipped(printed)) == ["04", "21"]
    assert "\n2 training images could not be read; others trained in their place\n" in printed


def test_more_than_a_tenth_end_the_run_in_one_line(tmp_path, capsys):
    images = pictures(tmp_path / "images", damaged=range(3, 23, 4))
    assert run.main(parse_args(words(tmp_path, images))) == run.BAD_USAGE
    error = capsys.readouterr().err.splitlines()
    assert re.fullmatch(rf"ValueError: 5 of 40 images in {images} cannot be read \(more than a tenth\): .*", error[-1])
    assert not (tmp_path / "model").exists()


def test_a_run_that_stops_within_an_epoch_resumes_to_the_same_result(tmp_path):
    images, kept = pictures(tmp_path / "images", damaged=(4, 5, 21)), tmp_path / "kept"

    def train(name, more=""):
        return run.main(parse_args(words(tmp_path / name, images, more)))

    with discs.stopped_within_an_epoch(done=1, batches=3):
        assert train("stopped", f"--checkpoint-dir {kept}") == callbacks.STOPPED
    assert train("resumed", f"--checkpoint-dir {kept}") == train("at once") == 0
    assert figures(tmp_path / "resumed") == figures(tmp_path / "at once")


def on_two_hosts(folder, images, more=""):
    """Train on two hosts, each with a folder of images; return their statuses and what they print."""
    command = [sys.executable, str(ENTRY_POINT)]
    hosts = Hosts(folder, *([*command, *words(folder / str(n), images[n], more)] for n in range(2)))
    return hosts.wait(), hosts.output


@pytest.mark.slow
def test_two_hosts_leave_out_the_same_and_end_with_the_same_parameters(tmp_path):
    images = pictures(tmp_path / "images", damaged=(0, 7, 21), validating=(3,))  # the first: fastai opens it by itself
    statuses, outputs = on_two_hosts(tmp_path, [images, images], "--epochs 3")
    assert statuses == [0, 0], outputs
    assert "39 images to train, 7 to validate" in outputs[0]
    assert {*skipped(outputs[0]), *skipped(outputs[1])} == {"07", "21"}
    assert "\n2 training images could not be read; others trained in their place\n" in outputs[0]
    assert "the parameters of all 2 processes are equal" in outputs[0]
    assert json.loads((tmp_path / "0" / "metrics.json").read_text())


@pytest.mark.slow
def test_two_hosts_end_together_when_more_than_a_tenth_are_damaged(tmp_path):
    images = pictures(tmp_path / "images", damaged=range(3, 23, 4))
    statuses, outputs = on_two_hosts(tmp_path, [images, images])
    assert statuses == [2, 2], outputs
    lines = [[line for line in output.splitlines() if line.startswith("ValueError")] for output in outputs]
    assert lines[0] == lines[1]
    assert re.fullmatch(r"ValueError: 5 of 40 images in .* \(more than a tenth\): .*", *lines[0])
    assert not any("Traceback" in output for output in outputs)


@pytest.mark.slow
@pytest.mark.parametrize(("damage", "status"), [({"damaged": (7,)}, 0), ({"validating": (3,)}, 2)])
def test_hosts_of_which_one_has_a_damaged_copy_do_not_wait_for_each_other(tmp_path, damage, status):
    images = [pictures(tmp_path / "whole" / "images"), pictures(tmp_path / "damaged" / "images", **damage)]
    statuses, outputs = on_two_hosts(tmp_path, images, "--epochs 3")
    assert statuses == [status, status], outputs
    assert all("the hosts have different images" in output for output in outputs) == bool(status)
