"""Training in several processes, each of them a real one, as hosts of a job or below torchrun."""

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from helpers import PATIENCE, REPOSITORY
from helpers.hosts import CLEAN, Hosts

from fastmaker import bundle
from fastmaker.training import callbacks, data, distributed, run
from fastmaker.training.arguments import parse_args

pytestmark = pytest.mark.training

ENTRY_POINT = REPOSITORY / "source" / "entry_point.py"


def command(folder, images, arguments=""):
    folder.mkdir(exist_ok=True)
    folders = ["--model-dir", folder / "model", "--output-data-dir", folder / "data"]
    return [sys.executable, str(ENTRY_POINT), *map(str, ["--train", images, *folders]), *arguments.split()]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"MASTER_ADDR": "algo-1", "MASTER_PORT": "7777"}, ("algo-1", "7777")),
        ({"SM_MASTER_ADDR": "algo-1", "SM_MASTER_PORT": "7777"}, ("algo-1", "7777")),
        ({"MASTER_ADDR": "a", "MASTER_PORT": "1", "SM_MASTER_ADDR": "b", "SM_MASTER_PORT": "2"}, ("a", "1")),
    ],
    ids=["the toolkit", "drivers", "both"],
)
def test_hosts_meet_where_whoever_has_started_them_says(variables, expected):
    assert distributed._meeting_place(variables) == expected


# The same losses, whatever the number of processes

# Trains a network without batch norms on one of the hosts, and writes down what its Recorder knows and saw.
RECORDED = """
import json, sys, threading
from fastai.vision.all import Callback, CrossEntropyLossFlat, Learner, accuracy, set_seed
from torch import nn
from fastmaker.training import callbacks, data, distributed
images, out, batch = sys.argv[1], sys.argv[2], int(sys.argv[3])
set_seed(3)
samples = data.read(images)
dls = data.dataloaders(samples, "L", (28, 28), "squish", batch_size=batch, augment=False, workers=0)
network = nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU(), nn.Flatten(),
                        nn.Linear(288, 10))
learn = Learner(dls, network, CrossEntropyLossFlat(), metrics=[accuracy])
group = distributed.join("gloo", 60)
seen = []
class See(Callback):
    order = 90
    def before_train(self):
        draw = self.dls.train.get_idxs
        self.dls.train.get_idxs = lambda: seen.append(draw()) or seen[-1]
    def after_train(self):
        self.dls.train.get_idxs = self.learn.position.get_idxs
never = threading.Event()
chosen = [callbacks.Position(3, rank=group.rank), See()]
if group.world_size > 1:
    chosen.append(distributed.DataParallel(group, never, never))
with learn.no_bar(), learn.no_logging(), learn.added_cbs(chosen), distributed.sharded(dls, group):
    learn.fit_one_cycle(3, 0.01)
recorder = learn.recorder
record = {"losses": list(map(float, recorder.losses)), "values": [list(map(float, row)) for row in recorder.values],
          "seen": seen, "digest": group.check_parameters(learn.model), "valid": len(dls.valid_ds)}
open(f"{out}/{group.world_size}-{group.rank}.json", "w").write(json.dumps(record))
group.leave()
"""


def records(images, folder, batch_sizes):
    script = [[sys.executable, "-c", RECORDED, str(images), str(folder), str(size)] for size in batch_sizes]
    hosts = Hosts(folder, *script)
    assert hosts.wait() == [0] * len(batch_sizes), hosts.output
    return [json.loads((folder / f"{len(script)}-{rank}.json").read_text()) for rank in range(len(script))]


@pytest.fixture(scope="module")
def recorded(few, tmp_path_factory):
    """What one process with batches of 24 images recorded, and two with 12."""
    folder = tmp_path_factory.mktemp("records")
    return [records(few, folder, [24 // size] * size) for size in (1, 2)]


def test_processes_with_smaller_batches_have_the_losses_of_one(recorded):
    [one], two = recorded
    for record in two:
        assert record["losses"] == pytest.approx(one["losses"], abs=1e-4)
        for values, expected in zip(record["values"], one["values"], strict=True):
            assert values == pytest.approx(expected, abs=1e-4)


def test_all_processes_end_with_the_same_parameters(recorded):
    for group in recorded:
        assert len({record["digest"] for record in group}) == 1


def test_each_image_is_seen_once_an_epoch_and_in_the_batch_of_one_process(recorded):
    [one], two = recorded
    for epoch, expected in enumerate(one["seen"]):
        shares = [record["seen"][epoch] for record in two]
        batches = zip(*([share[n : n + 12] for n in range(0, len(share), 12)] for share in shares), strict=True)
        together = [index for batch in batches for share in batch for index in share]
        assert together == expected[: len(together)]
        assert len(together) == len(expected) // 24 * 24


# The entry point on two hosts

TRAIN = "--arch convnet --epochs 2 --batch-size 16"


@pytest.fixture(scope="module")
def pair(few, tmp_path_factory):
    """A folder in which two hosts have trained, and what they printed."""
    folder = tmp_path_factory.mktemp("pair")
    hosts = Hosts(folder, *(command(folder / name, few, TRAIN) for name in ("first", "second")))
    assert hosts.wait() == [0, 0], hosts.output
    return folder, hosts.output


def test_the_first_host_writes_the_bundle_and_the_report(pair):
    folder, _ = pair
    assert bundle.load_info(folder / "first" / "model").architecture == "convnet"
    assert (folder / "first" / "data" / "confusion_matrix.png").exists()
    assert list((folder / "second").iterdir()) == []


def test_the_first_host_speaks_for_all_and_the_other_has_a_line_an_epoch(pair):
    _, (first, second) = pair
    assert "training convnet in float32, 2 epoch(s) on cpu in 2 processes\n" in first
    assert len(re.findall("^epoch=", first, re.MULTILINE)) == 2
    assert len(second.splitlines()) == 2
    for number, line in enumerate(second.splitlines(), 1):
        assert re.fullmatch(rf"epoch {number}/2: 64 images, [\d.]+ a second", line)


def test_the_parameters_are_compared_and_found_equal(pair):
    folder, (first, _) = pair
    digest = re.search(r"the parameters of all 2 processes are equal, SHA-256 (\w{64})\n", first)[1]
    network, _ = bundle.load(folder / "first" / "model")
    assert distributed.SINGLE.check_parameters(network) == digest


@pytest.mark.slow
def test_one_host_with_two_processes_does_the_same(pair, few, tmp_path):
    folder, _ = pair
    done = subprocess.run(
        command(tmp_path / "both", few, TRAIN + " --processes 2"),
        env=CLEAN,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    there, here = (bundle.load_info(path / "model") for path in (folder / "first", tmp_path / "both"))
    assert here.metrics == there.metrics
    assert here.state_sha256 == there.state_sha256


# Checkpoints of two hosts


@pytest.mark.slow
def test_processes_count_the_pixels_of_all_masks_together(scenes, tmp_path):
    arguments = "--task segmentation --arch resnet18 --pretrained false --epochs 1 --image-size 40x56 --batch-size 2"
    [status] = Hosts(tmp_path, command(tmp_path / "run", scenes, arguments + " --processes 2")).wait()
    assert status == 0
    metrics = json.loads((tmp_path / "run" / "data" / "metrics.json").read_text())
    each = [value for name, value in metrics.items() if name.startswith("iou_")]  # by one process, at the end
    assert sum(each) / len(each) == pytest.approx(metrics["mean_iou"], abs=1e-6)


@pytest.mark.slow
def test_two_hosts_stop_after_the_same_batch_and_go_on_as_if_they_had_not(few, tmp_path):
    long = "--arch convnet --epochs 3 --batch-size 4 --augment true"

    def hosts(folder):
        folder.mkdir(exist_ok=True)
        arguments = f"{long} --checkpoint-dir {folder}/checkpoints"
        return Hosts(folder, *(command(folder / name, few, arguments) for name in ("first", "second")))

    stopped = hosts(tmp_path / "stopped")
    end = time.monotonic() + PATIENCE
    while "epoch=1 " not in stopped.logs[0].read_text() and time.monotonic() < end:
        time.sleep(0.001)
    stopped.processes[1].send_signal(signal.SIGTERM)  # one is enough
    assert stopped.wait() == [callbacks.STOPPED, callbacks.STOPPED], stopped.output
    reached = re.search(r"stopped by SIGTERM; the next start resumes after (epoch \d of 3.*)\n", stopped.output[0])[1]
    resumed, straight = hosts(tmp_path / "stopped"), hosts(tmp_path / "straight")
    assert resumed.wait() == straight.wait() == [0, 0]
    assert f"resuming after {reached} from" in resumed.output[0]
    (there, info), (here, expected) = (bundle.load(tmp_path / x / "first" / "model") for x in ("stopped", "straight"))
    assert all(map(torch.equal, there.parameters(), here.parameters()))
    # The statistics of batch norms were averaged once more than without the stop: equal but for rounding.
    assert info.metrics == pytest.approx(expected.metrics, abs=1e-5)


# What goes wrong


def one_line(output):
    [line] = [line for line in output.splitlines() if line.startswith(("ValueError", "RuntimeError"))]
    assert "Traceback" not in output
    return line


def test_a_first_host_that_does_not_come_is_named(few, tmp_path):
    hosts = Hosts(tmp_path, None, command(tmp_path / "a", few, TRAIN + " --timeout 3"))
    assert hosts.wait() == [2]
    assert re.match(
        r"ValueError: host algo-1 could not be reached at port \d+ within 3 s \(--timeout\)", one_line(hosts.output[0])
    )


def test_when_one_is_killed_the_other_ends_too(few, tmp_path):
    hosts = Hosts(tmp_path, *(command(tmp_path / name, few, TRAIN + " --epochs 100000") for name in "ab"))
    limit = time.monotonic() + PATIENCE
    while "epoch=1 " not in hosts.logs[0].read_text() and time.monotonic() < limit:
        time.sleep(0.01)
    hosts.processes[1].kill()
    assert hosts.processes[0].wait(PATIENCE) != 0
    hosts.wait()


def test_hosts_with_different_images_are_refused(few, photos, tmp_path):
    hosts = Hosts(tmp_path, command(tmp_path / "a", few, TRAIN), command(tmp_path / "b", photos, TRAIN))
    assert hosts.wait() == [2, 2]
    for output in hosts.output:
        assert one_line(output) == (
            "ValueError: the hosts have different images; each needs all (FullyReplicated, not ShardedByS3Key)"
        )


@pytest.mark.parametrize(
    ("images", "processes", "message"),
    [
        (2, 3, "3 processes share 2 training images; each needs one in every batch"),
        (3, 2, r"3 training images for 2 process\(es\) make batches of one image, and batch norms need two"),
        (1, 1, r"1 training images for 1 process\(es\) make batches of one image"),
    ],
)
def test_too_few_training_images_for_the_processes_are_refused(few, images, processes, message):
    samples = replace(data.read(few), is_valid=[False] * images + [True] * (160 - images))
    group = distributed.ProcessGroup(distributed.Rank(0, processes))
    with pytest.raises(distributed.ProcessGroupError, match=message):
        run._check_group(parse_args(["--train", str(few), "--arch", "convnet"]), samples, group)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_backend_that_is_not_there_is_refused(few, tmp_path, capsys):
    assert run.main(parse_args(command(tmp_path, few, TRAIN + " --dist-backend nccl")[2:])) == 2
    assert capsys.readouterr().err == "ValueError: --dist-backend nccl needs a GPU, and this host has none; use gloo\n"


@pytest.mark.parametrize("argument", ["--processes 0", "--timeout 0", "--timeout nan", "--dist-backend mpi"])
def test_bad_arguments_are_refused(few, tmp_path, argument, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse_args(command(tmp_path, few, argument)[2:])
    assert argument.split()[0] in capsys.readouterr().err


def test_a_place_is_told_by_torchrun_or_by_the_training_toolkit():
    assert distributed.current_rank({}) == distributed.Rank()
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert distributed.current_rank(torchrun) == distributed.Rank(3, 4, 1, 2)
    toolkit = {"SM_HOSTS": '["algo-1", "algo-2"]', "SM_CURRENT_HOST": "algo-2"}
    assert distributed.current_rank(toolkit) == distributed.Rank(1, 2)


@pytest.mark.slow
def test_a_hundred_runs_on_two_hosts_all_end_well(few, tmp_path):
    """Gloo's threads have been known to abort a process that ends while its peers are still there."""
    for number in range(100):
        hosts = Hosts(tmp_path, *(command(tmp_path / name, few, TRAIN + " --epochs 1") for name in "ab"))
        assert hosts.wait() == [0, 0], (number, hosts.output)


@pytest.mark.slow
@pytest.mark.data
def test_mnist_on_two_hosts(test_data, tmp_path):
    arguments = "--arch convnet --epochs 3 --batch-size 32"
    hosts = Hosts(tmp_path, *(command(tmp_path / name, test_data / "mnist_idx", arguments) for name in "ab"))
    assert hosts.wait(1200) == [0, 0], hosts.output
    assert "the parameters of all 2 processes are equal" in hosts.output[0]
    assert bundle.load_info(tmp_path / "a" / "model").metrics["accuracy"] >= 0.985
