"""What a run trains when: learning rates, sizes, the best epoch. It resumes anywhere, and holds on two hosts."""

import json
import math
import re
import sys

import numpy as np
import pytest
import torch
from helpers import discs
from helpers.hosts import Hosts
from PIL import Image

from fastmaker import bundle, networks
from fastmaker.training import architectures, callbacks, checkpoint, data, run, schedule
from fastmaker.training.arguments import optimisation, parse_args
from fastmaker.training.distributed import SINGLE

pytestmark = pytest.mark.training

OPTIONS = [
    "--lr find",
    pytest.param("--weight-decay 0.3", marks=pytest.mark.slow),
    "--keep-best true --monitor accuracy",
    "--early-stopping 1 --monitor train_loss --lr 0.5",
    "--progressive-sizes 20,24 --schedule flat-cos --clip-gradients 0.5",
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(1)
    for number in range(24):
        path = folder / ("light" if number % 2 else "dark") / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 200, (28, 28), np.uint8) + np.uint8(40 * (number % 2))).save(path)
    return folder


def words_of(pictures, folder, more):
    words = f"--arch convnet --epochs 3 --batch-size 4 --workers 0 --augment true {more}"
    directories = ["--train", str(pictures), "--model-dir", f"{folder}/model", "--output-data-dir", str(folder)]
    return [*words.split(), *directories]


def arguments(pictures, folder, more=""):
    return parse_args(words_of(pictures, folder, more))


def train(args):
    return run._train(args, data.read(args.train))


def figures(folder):
    info = bundle.load_info(folder / "model")
    return info.state_sha256, info.metrics, (folder / "history.csv").read_text()


@pytest.mark.parametrize("more", OPTIONS)
def test_a_run_that_resumes_between_epochs_or_within_one_has_the_same_result(pictures, tmp_path, more):
    kept = tmp_path / "kept"

    def run_of(name, checkpoints=True):
        args = arguments(pictures, tmp_path / name, f"{more} --checkpoint-dir {kept}" if checkpoints else more)
        return train(args)

    with discs.stopped_within_an_epoch(done=1, batches=2):
        assert run_of("stopped") == callbacks.STOPPED
    names = ("at once", "from within an epoch", "from its end")
    assert [run_of(name, checkpoints=name != "at once") for name in names] == [0, 0, 0]
    first, *others = [figures(tmp_path / name) for name in names]
    assert others == [first, first]


@pytest.mark.parametrize("frozen", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_freeze_epochs_train_the_head_alone_and_resume(pictures, tmp_path, frozen):
    weights, kept = tmp_path / "weights.pth", tmp_path / "kept"
    torch.save(architectures.body("resnet18", False, 3, (32, 32)).module.state_dict(), weights)
    more = f"--arch resnet18 --image-size 32 --epochs 1 --freeze-epochs {frozen} --pretrained {weights}"
    resuming = f"{more} --checkpoint-dir {kept}"
    assert schedule.total_epochs(arguments(pictures, tmp_path, more)) == 1 + frozen
    with discs.stopped_within_an_epoch(done=frozen, batches=2):
        assert train(arguments(pictures, tmp_path / "stopped", resuming)) == callbacks.STOPPED
    assert train(arguments(pictures, tmp_path / "first", more)) == 0
    assert train(arguments(pictures, tmp_path / "second", resuming)) == 0
    assert figures(tmp_path / "first") == figures(tmp_path / "second")
    trained, first = (torch.load(file, weights_only=True) for file in (tmp_path / "first/model/model.pth", weights))
    assert not torch.equal(trained["0.0.weight"], first["0.weight"]), "the last epoch trains the whole network"


@pytest.mark.parametrize("more", OPTIONS)
def test_a_run_with_another_schedule_does_not_resume(pictures, tmp_path, more):
    samples = data.read(pictures)
    state = {"format": checkpoint.FORMAT, "run": run._run_config(arguments(pictures, tmp_path), samples, SINGLE)}
    names = "|".join(word[2:].replace("-", "_") for word in more.split() if word.startswith("--"))
    with pytest.raises(checkpoint.CheckpointError, match=f"of another run, with ({names}) "):
        checkpoint.check(tmp_path, state, run._run_config(arguments(pictures, tmp_path, more), samples, SINGLE))


# Sizes and learning rates


def test_flat_cos_has_the_learning_rates_of_fastai(pictures, tmp_path):
    args = arguments(pictures, tmp_path, "--schedule flat-cos")
    samples, found = data.read(pictures), []
    for of_fastai in (True, False):
        learn = run._new_learner(args, samples, SINGLE)
        with learn.no_bar(), learn.no_logging():
            if of_fastai:
                learn.fit_flat_cos(args.epochs, 0.01)
            else:
                schedule.fit(learn, schedule.plan(args, 0.01))
        found.append(learn.recorder.lrs)
    assert found[0] == found[1]


def test_without_options_the_phases_are_those_of_fastai():
    [whole] = schedule.plan(parse_args(["--train", "t", "--arch", "convnet", "--epochs", "4"]), 0.005)
    assert (whole.start, whole.end, whole.frozen, whole.options) == (0, 4, False, {"lr_max": 0.005})
    head, whole = schedule.plan(parse_args(["--train", "t", "--epochs", "4"]), 0.002)
    assert (head.start, head.end, head.frozen, head.options["lr_max"]) == (0, 1, True, slice(0.002))
    assert (whole.start, whole.end, whole.frozen, whole.options["lr_max"]) == (1, 5, False, slice(0.00001, 0.001))


@pytest.mark.parametrize(("epochs", "shares"), [(3, [1, 1, 1]), (4, [1, 1, 2]), (8, [2, 3, 3])])
def test_the_epochs_are_shared_among_the_sizes(epochs, shares):
    words = f"--train t --arch convnet --epochs {epochs} --image-size 32 --progressive-sizes 16,20x24"
    phases = schedule.plan(parse_args(words.split()), 0.005)
    assert [phase.size for phase in phases] == [(16, 16), (20, 24), (32, 32)]
    assert [phase.epochs for phase in phases] == shares
    assert [phase.start for phase in phases] == [0, shares[0], shares[0] + shares[1]]


def test_images_have_the_size_of_the_phase(pictures, tmp_path):
    from fastai.vision.all import Callback

    seen = []

    class Sizes(Callback):
        def before_batch(self):
            seen.append(tuple(self.x.shape[-2:]))

    args = arguments(pictures, tmp_path, "--progressive-sizes 20,24 --precision float32")
    samples = data.read(pictures)
    learn = run._learner(args, samples, SINGLE, None)
    learn.add_cb(Sizes())
    with learn.no_bar(), learn.no_logging():
        assert not run._fit(learn, args, samples, {}, SINGLE, None)
    assert list(dict.fromkeys(seen)) == [(20, 20), (24, 24), (28, 28)]


def test_a_size_that_the_network_does_not_take_is_refused(pictures, tmp_path, capsys):
    more = "--arch vit_b_16 --image-size 224 --image-mode RGB --pretrained false --progressive-sizes 32 --augment false"
    assert train(arguments(pictures, tmp_path, more)) == run.BAD_USAGE
    assert "--progressive-sizes: the network does not take images of 32x32 pixels" in capsys.readouterr().err


def test_the_learning_rate_that_is_found_gives_the_run_that_it_gives_as_a_number(pictures, tmp_path, capsys):
    assert train(arguments(pictures, tmp_path / "find", f"--lr find --checkpoint-dir {tmp_path / 'kept'}")) == 0
    found = checkpoint.newest(tmp_path / "kept")[1]["kept"]["lr_finder"]
    assert f"found the learning rate {found['lr']:.3g}" in capsys.readouterr().out
    assert len(found["lrs"]) == len(found["losses"]) > 10
    assert train(arguments(pictures, tmp_path / "number", f"--lr {found['lr']!r}")) == 0
    assert figures(tmp_path / "find") == figures(tmp_path / "number")


# The best epoch


def test_the_bundle_and_its_metrics_are_of_the_best_epoch(pictures, tmp_path, capsys):
    args = arguments(pictures, tmp_path, "--keep-best true --epochs 5 --lr 0.3")
    assert train(args) == 0
    printed = capsys.readouterr().out
    losses = [float(line.split("valid_loss=")[1].split()[0]) for line in printed.splitlines() if "epoch=" in line]
    best = min(range(5), key=losses.__getitem__)
    assert f"kept the weights of epoch {best + 1}, with valid_loss {losses[best]:.6f}" in printed
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["valid_loss"] == pytest.approx(losses[best], abs=1e-6)
    learn = run._learner(args, data.read(pictures), SINGLE, None)
    learn.model.load_state_dict(torch.load(tmp_path / "model" / "model.pth", weights_only=True))
    learn.remove_cb(learn.metric_log)
    with learn.no_bar(), learn.no_logging():
        assert float(learn.validate()[0]) == pytest.approx(losses[best], rel=1e-4)


def test_a_run_ends_when_nothing_improves_and_then_nothing_is_left(pictures, tmp_path, capsys):
    more = f"--early-stopping 2 --monitor accuracy --epochs 40 --checkpoint-dir {tmp_path / 'kept'}"
    assert train(arguments(pictures, tmp_path / "first", more)) == 0
    epochs = capsys.readouterr().out.count("epoch=")
    assert 3 <= epochs < 40
    assert train(arguments(pictures, tmp_path / "second", more)) == 0
    assert f"nothing is left to train after epoch {epochs} of 40" in capsys.readouterr().out
    assert figures(tmp_path / "first") == figures(tmp_path / "second")


@pytest.mark.parametrize(
    ("metric", "value", "other", "better"),
    [
        ("valid_loss", 0.1, 0.2, True),
        ("valid_loss", 0.2, 0.2, False),
        ("accuracy", 0.1, 0.2, False),
        ("mean_iou", 0.3, 0.2, True),
        ("rmse", math.nan, 0.2, False),
        ("rmse", 0.2, math.nan, True),
        ("rmse", math.nan, math.nan, False),
    ],
)
def test_which_of_two_values_is_better(metric, value, other, better):
    assert optimisation.is_better(metric, value, other) is better


@pytest.mark.parametrize("task", optimisation.METRICS)
def test_the_metrics_that_may_be_named_are_those_of_the_task(task):
    from fastai.vision.all import mk_metric

    from fastmaker.training import task_parts
    from fastmaker.training.mask_data import MaskedSamples

    samples = MaskedSamples("", [], [], [], codes=("a", "b"))
    args = parse_args(["--train", "t", "--task", task, "--arch", "resnet18"])
    named = [mk_metric(metric).name for metric in task_parts.TASKS[task].metrics(samples, args)]
    assert named == list(optimisation.METRICS[task])


@pytest.mark.slow
def test_two_hosts_find_stop_and_keep_alike(pictures, tmp_path):
    """Of phases at one size, at another, and at the first again, a host sees half of the images in each."""
    torch.save(networks.convnet(2, 1).state_dict(), tmp_path / "weights.pth")
    more = f"--lr find --early-stopping 1 --progressive-sizes 28,20 --pretrained {tmp_path / 'weights.pth'}"
    command = "import sys; from fastmaker.training import arguments, run; sys.exit(run.main(arguments.parse_args()))"
    words = words_of(pictures, tmp_path, f"{more} --epochs 4 --batch-size 2 --timeout 60")
    hosts = Hosts(tmp_path, *[[sys.executable, "-c", command, *words] for _ in range(2)])
    assert hosts.wait() == [0, 0], hosts.output
    first, second = hosts.output
    assert "the parameters of all 2 processes are equal" in first
    assert first.count("found the learning rate") == first.count("kept the weights of epoch") == 1
    assert "learning rate" not in second
    assert set(re.findall(r"epoch \d/5: (\d+) images", second)) == {"10"}


# How hyperparameters are spelled


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--progressive_sizes", "[14, 20]"], {"progressive_sizes": ((14, 14), (20, 20))}),
        (["--progressive-sizes", "14,20x24"], {"progressive_sizes": ((14, 14), (20, 24))}),
        (["--progressive-sizes", '["14", "20x24"]'], {"progressive_sizes": ((14, 14), (20, 24))}),
        (["--image-size", "None", "--epochs", "", "--lr", "null"], {"image_size": (28, 28), "epochs": 5, "lr": 0.005}),
        (["--early_stopping=3", "--keep_best", "True"], {"early_stopping": 3, "keep_best": True}),
        (["--weight-decay", "1e-2", "--augment", "False"], {"weight_decay": 0.01, "augment": False}),
        (["--batch_size", "8", "--batch-size", "8"], {"batch_size": 8}),
        (["--lr", "find"], {"lr": "find"}),
        (["--image_size", "[20, 30]"], {"image_size": (20, 30)}),
        (["--label-regex", "^(.+)_=x"], {"label_regex": "^(.+)_=x"}),
    ],
)
def test_hyperparameters_are_read_as_the_sdk_sends_them(words, expected):
    args = vars(parse_args(["--train", "t", "--arch", "convnet", *words]))
    assert {name: args[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--batch_size 8 --batch-size 9", "--batch_size 8 and --batch-size 9: expected one of them"),
        ("--monitor mean_iou --keep-best true", "--monitor 'mean_iou': expected one of train_loss, valid_loss, acc"),
        ("--monitor accuracy", "--monitor is for --early-stopping and --keep-best true"),
        ("--early-stopping 2 --keep-best false", "--keep-best false: --early-stopping keeps the best epoch"),
        ("--freeze-epochs 2", "--freeze-epochs is for pretrained weights"),
        ("--progressive-sizes 14,20 --epochs 2", "--progressive-sizes: each size and --image-size need an epoch"),
        ("--progressive-sizes 14,0", "is neither a number of pixels nor HEIGHTxWIDTH"),
        ("--progressive-sizes []", "names no size"),
        ("--weight-decay -1", "-1 is not from 0"),
        ("--lr finds", "invalid float value: 'finds'"),
        ("--early-stopping 0", "0 is not above 0"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused_in_one_line(words, line, capsys):
    with pytest.raises(SystemExit):
        parse_args(["--train", "t", "--arch", "convnet", *words.split()])
    assert line in capsys.readouterr().err.splitlines()[-1]
