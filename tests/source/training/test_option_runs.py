"""Runs with options of augmentation, loss and balance: each resumes bit for bit, and its bundle is the Learner's."""

import pickle
import sys
from dataclasses import replace

import pytest
from helpers import PATIENCE, discs
from helpers.discs import ON_HOSTS, arguments, figures, words_of
from helpers.hosts import Hosts, free_port

from fastmaker.training import augmentation, callbacks, checkpoint, run
from fastmaker.training.arguments import parse_args
from fastmaker.training.distributed import SINGLE

pytestmark = pytest.mark.training

ALL_KNOBS = (
    "--augment true --flip true --flip-vert true --max-rotate 20 --min-zoom 0.9 --max-zoom 1.2 --max-lighting 0.4"
    " --max-warp 0.1 --p-affine 0.9 --p-lighting 0.6 --pad-mode border --erase 0.5"
)
RUNS = [
    ("classification", f"{ALL_KNOBS} --mixup 0.4 --label-smoothing 0.1 --weighted-sampling true"),
    (
        "classification",
        "--augment true --item-size 36x40 --min-scale 0.5 --cutmix 1 --focal 2 --class-weights balanced",
    ),
    ("multilabel", "--resize-method random-crop --min-scale 0.35 --ratio 0.8,1.2 --mixup 0.3 --class-weights balanced"),
]
SLOW = [
    ("segmentation", f"{ALL_KNOBS} --item-size 36"),
    ("classification", "--mixup 0.4 --focal 2 --class-weights balanced --resize-method pad --pad-mode zeros"),
    ("classification", "--cutmix 1 --label-smoothing 0.2 --class-weights balanced --resize-method random-crop"),
    ("classification", "--cutmix 0.5 --weighted-sampling true --resize-method squish"),
    ("classification", "--augment true --item-size 40 --flip false --max-rotate 0 --max-warp 0 --max-zoom 1.3"),
    ("multilabel", "--cutmix 1 --augment true --item-size 40 --min-scale 0.75"),
    ("regression", "--mixup 0.4 --augment true --item-size 40"),
    ("points", f"{ALL_KNOBS} --item-size 40"),
    ("segmentation", "--resize-method random-crop --min-scale 0.5"),
    ("classification", "--precision bf16 --mixup 0.4"),
    ("segmentation", "--precision bf16"),
]
TRIED = [*RUNS, *(pytest.param(*row, marks=pytest.mark.slow) for row in SLOW)]


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return discs.samples(tmp_path_factory.mktemp("discs"))


@pytest.mark.parametrize(("task", "options"), TRIED)
def test_a_run_that_stops_within_an_epoch_resumes_to_the_same_result(samples, tmp_path, task, options):
    def train(name, more=""):
        words = words_of(task, tmp_path / name, f"--epochs 1 {options} {more}")
        return run._train(parse_args(words), samples[task])

    kept = tmp_path / "kept"
    with discs.stopped_within_an_epoch(done=0, batches=2):
        assert train("stopped", f"--checkpoint-dir {kept}") == callbacks.STOPPED
    assert [file.name for file in kept.iterdir()] == ["epoch-0000-batch-000002.pt"]
    assert train("resumed", f"--checkpoint-dir {kept}") == train("at once") == 0
    assert figures(tmp_path / "resumed") == figures(tmp_path / "at once")


@pytest.mark.parametrize("options", ["--mixup 0.4", pytest.param("--cutmix 1 --focal 2", marks=pytest.mark.slow)])
def test_a_run_that_mixes_and_has_stopped_early_is_over_when_it_starts_again(samples, tmp_path, capsys, options):
    stopping = "--epochs 3 --early-stopping 1 --monitor accuracy --lr 1e-8"
    words = words_of("classification", tmp_path, f"--checkpoint-dir {tmp_path / 'kept'} {stopping} {options}")
    found = []
    for _ in "12":
        assert run._train(parse_args(words), samples["classification"]) == 0
        found.append(figures(tmp_path))
    assert found[0] == found[1]
    assert "nothing is left to train after epoch 2 of 3" in capsys.readouterr().out


OF_THE_RUN = [
    *("--flip-vert true", "--flip false", "--max-rotate 5", "--min-zoom 0.9", "--max-zoom 1.3", "--max-lighting 0"),
    *("--max-warp 0", "--p-affine 0.5", "--p-lighting 1", "--pad-mode zeros", "--erase 0.1", "--item-size 40"),
    *("--resize-method random-crop", "--mixup 0.4", "--cutmix 1", "--label-smoothing 0.1", "--focal 2"),
    *("--class-weights balanced", "--weighted-sampling true"),
]


@pytest.mark.parametrize("option", OF_THE_RUN)
def test_a_run_does_not_resume_with_another_option(samples, tmp_path, option):
    of_task, augmented = samples["classification"], "--augment true"
    config = run._run_config(arguments("classification", tmp_path, augmented), of_task, SINGLE)
    changed = run._run_config(arguments("classification", tmp_path, f"{augmented} {option}"), of_task, SINGLE)
    name = option.split()[0].lstrip("-").replace("-", "_")
    with pytest.raises(checkpoint.CheckpointError, match=name if name != "item_size" else "item_size|min_scale"):
        checkpoint.check(tmp_path, {"format": checkpoint.FORMAT, "run": config}, changed)


def test_weighted_sampling_draws_each_class_as_often_and_the_same_images_again(samples, tmp_path):
    rare = [label if number % 8 == 1 else "dark" for number, label in enumerate(samples["classification"].labels)]
    few = replace(samples["classification"], labels=rare)
    args = arguments("classification", tmp_path, "--weighted-sampling true")
    drawn = []
    for _ in range(2):
        learn = run._learner(args, few, SINGLE, None)
        learn.remove_cb(learn.metric_log)
        with learn.no_bar(), learn.no_logging(), learn.added_cbs(callbacks.Position(3)):
            learn.position.before_epoch()
            drawn.append([learn.dls.train.get_idxs() for _ in range(100)])
    assert drawn[0] == drawn[1]
    names = [label for label, valid in zip(few.labels, few.is_valid, strict=True) if not valid]
    light = sum(names[index] == "light" for epoch in drawn[0] for index in epoch) / sum(map(len, drawn[0]))
    assert light == pytest.approx(0.5, abs=0.04)


def test_weights_of_classes_are_those_of_the_training_images(samples, tmp_path):
    sample = samples["classification"]
    names = [label for label, valid in zip(sample.labels, sample.is_valid, strict=True) if not valid]
    loss = augmentation.loss(arguments("classification", tmp_path, "--class-weights balanced"), sample, "cpu")
    expected = [len(names) / (2 * names.count(name)) for name in sample.classes]
    assert loss.func.weight.tolist() == pytest.approx(expected)


@pytest.mark.slow
def test_two_hosts_train_with_each_option_and_end_with_the_same_parameters(samples, tmp_path):
    rows = [*RUNS, *SLOW]
    words = [
        words_of(task, tmp_path / str(n), f"--batch-size 2 --epochs 1 {more}") for n, (task, more) in enumerate(rows)
    ]
    runs = [(line, samples[task]) for line, (task, _) in zip(words, rows, strict=True)]
    (tmp_path / "runs").write_bytes(pickle.dumps(runs))
    ports = [str(free_port()) for _ in rows]
    hosts = Hosts(tmp_path, *[[sys.executable, "-c", ON_HOSTS, str(tmp_path / "runs"), *ports] for _ in range(2)])
    assert hosts.wait(PATIENCE * len(rows) / 2) == [0, 0], hosts.output
    assert hosts.output[0].count("the parameters of all 2 processes are equal") == len(rows)
    with_options = sum(not more.startswith("--precision") or more.count("--") > 1 for _, more in rows)
    assert [output.count("options: ") for output in hosts.output] == [with_options, 0]
