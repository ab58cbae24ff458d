"""The entry point trains each task, and what a run has does not depend on where it was interrupted."""

import json
import pickle
import sys

import numpy as np
import pytest
import torch
from helpers import task_bundles
from helpers.hosts import Hosts, free_port
from PIL import Image, ImageDraw

from fastmaker import bundle, preprocess
from fastmaker.serving import models
from fastmaker.training import checkpoint, earlier, run
from fastmaker.training.arguments import parse_args
from fastmaker.training.data import Samples
from fastmaker.training.distributed import SINGLE
from fastmaker.training.mask_data import MaskedSamples

pytestmark = pytest.mark.training

N = 24
METRICS = {
    "classification": ["accuracy", "error_rate"],
    "multilabel": ["accuracy_multi", "f1"],
    "regression": ["mae", "rmse"],
    "points": ["point_error"],
    "segmentation": ["pixel_accuracy", "mean_iou"],
}
NEW = ("multilabel", "regression", "points")
SLOW = [pytest.param(task, marks=pytest.mark.slow) for task in METRICS if task not in NEW]  # tried elsewhere, too


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """By task: images of one disc, dark or light, small or large, with its kind, kinds, size, place and mask."""
    folder, random = tmp_path_factory.mktemp("discs"), np.random.default_rng(1)
    labels = {task: [] for task in METRICS}
    images = []
    for number in range(N):
        x, y, radius = random.uniform(10, 30), random.uniform(10, 22), random.uniform(3, 9)
        light = number % 2
        box = (x - radius, y - radius, x + radius, y + radius)
        image, mask = Image.new("RGB", (40, 32), (90, 90, 90)), Image.new("L", (40, 32))
        ImageDraw.Draw(image).ellipse(box, fill=(220, 200, 180) if light else (20, 30, 40))
        ImageDraw.Draw(mask).ellipse(box, fill=1)
        images.append(folder / f"{number}.png")
        image.save(images[-1])
        mask.save(folder / f"{number}_P.png")
        labels["classification"].append("light" if light else "dark")
        labels["multilabel"].append(tuple(["light"] * light + ["large"] * (radius > 6)))
        labels["regression"].append((radius, x))
        labels["points"].append(((x - radius, y), (x + radius, y)))
        labels["segmentation"].append(folder / f"{number}_P.png")
    is_valid = [number % 4 == 3 or number == 0 for number in range(N)]
    found = {task: Samples("discs", images, labels[task], is_valid, task=task) for task in METRICS}
    masks = MaskedSamples("discs", images, labels["segmentation"], is_valid, codes=("ground", "disc"))
    return found | {"segmentation": masks}


def words_of(task, folder, more=""):
    small = "--arch resnet18 --pretrained false" if task == "segmentation" else "--arch convnet"
    words = f"--task {task} {small} --image-size 28 --image-mode RGB --epochs 2 --batch-size 4 --workers 0 --train t"
    return [*words.split(), "--model-dir", f"{folder}/model", "--output-data-dir", str(folder), *more.split()]


def arguments(task, folder, more=""):
    return parse_args(words_of(task, folder, more))


@pytest.mark.parametrize("task", [*NEW, *SLOW])
def test_a_run_of_each_task_writes_a_bundle_that_answers(samples, tmp_path, task):
    assert run._train(arguments(task, tmp_path), samples[task]) == 0
    model = models.load(tmp_path / "model")
    assert model.info.task == task
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert [name for name in METRICS[task] if name in metrics] == METRICS[task]
    [answer] = model.predict([preprocess.decode(samples[task].images[0].read_bytes())])
    expected = {"multilabel": ("large", "light"), "regression": (), "points": (), "segmentation": ("ground", "disc")}
    assert model.info.labels == expected.get(task, ("dark", "light"))
    assert answer is not None


# Checkpoints


def figures(folder):
    """What a run has left: the SHA-256 of its weights and its metrics."""
    info = bundle.load_info(folder / "model")
    return info.state_sha256, info.metrics, (folder / "history.csv").read_text()


@pytest.mark.parametrize("task", [*NEW, *SLOW])
def test_a_run_of_each_task_that_resumes_has_the_same_result(samples, tmp_path, task):
    kept = tmp_path / "kept"
    found = []
    for name in ("first", "second"):
        args = arguments(task, tmp_path / name, f"--checkpoint-dir {kept} --augment true")
        assert run._train(args, samples[task]) == 0
        found.append(figures(tmp_path / name))
        (newest,) = kept.glob("epoch-0002*")
        newest.unlink()  # the second run resumes from the first epoch
    assert found[0] == found[1]


OTHER_OPTIONS = {
    "multilabel": ["--threshold 0.4", "--pretrained {weights}", "--resume-from {model}", "--arch resnet18"],
    "regression": ["--y-range 0,30", "--task points"],
    "points": ["--y-range -1,1", "--image-mode L", "--resize-method squish"],
    "segmentation": ["--self-attention true", "--arch resnet34"],
}


@pytest.mark.parametrize(
    ("task", "more"), [(task, more) for task, options in OTHER_OPTIONS.items() for more in options]
)
def test_a_run_with_another_option_does_not_resume(samples, tmp_path, task, more):
    torch.save({"6.weight": torch.zeros(1)}, tmp_path / "weights.pth")
    model = task_bundles.save(tmp_path / "earlier", "multilabel")
    more = more.format(weights=tmp_path / "weights.pth", model=model)
    state = {"format": checkpoint.FORMAT, "run": run._run_config(arguments(task, tmp_path), samples[task], SINGLE)}
    checkpoint.check(tmp_path, state, state["run"])
    changed = arguments(task, tmp_path, more)
    with pytest.raises(checkpoint.CheckpointError, match=more.split()[0].lstrip("-").replace("-", "_")):
        checkpoint.check(tmp_path, state, run._run_config(changed, samples[task], SINGLE))


# Metrics


def learner_of(samples, task, folder, more=""):
    args = arguments(task, folder, more)
    learn = run._learner(args, samples[task], SINGLE, None)
    learn.remove_cb(learn.metric_log)
    return args, learn


@pytest.mark.parametrize("task", ["multilabel", "regression", "points"])
def test_metrics_are_those_of_all_images_together(samples, tmp_path, task):
    _, learn = learner_of(samples, task, tmp_path)
    assert len(learn.dls.valid_ds) % learn.dls.valid.bs  # the last batch is smaller
    with learn.no_bar(), learn.no_logging():
        _, *found = map(float, learn.validate())
        numbers, true = (np.asarray(array) for array in learn.get_preds())
    if task == "multilabel":
        given, chosen = true == 1, numbers > 0.5
        expected = [np.mean(given == chosen), 2 * np.sum(given & chosen) / (given.sum() + chosen.sum())]
    elif task == "regression":
        expected = [np.abs(numbers - true).mean(), np.sqrt(np.square(numbers - true).mean())]
    else:
        expected = [np.linalg.norm(numbers.reshape(true.shape) - true, axis=-1).mean() / 2]
    assert found == pytest.approx(expected, rel=1e-5)


# Trains each task on one of two hosts.
ON_HOSTS = """
import os, pickle, sys
from fastmaker.training import run
from fastmaker.training.arguments import parse_args
with open(sys.argv[1], "rb") as file:
    runs = pickle.load(file)
for port, (words, samples) in zip(sys.argv[2:], runs):
    os.environ["MASTER_PORT"] = port
    assert run._train(parse_args(words), samples) == 0
"""


@pytest.mark.slow
def test_two_hosts_train_each_task_and_have_the_metrics_of_one(samples, tmp_path):
    words = {task: words_of(task, tmp_path / task, "--batch-size 2 --timeout 60") for task in METRICS}
    (tmp_path / "runs").write_bytes(pickle.dumps([(words[task], samples[task]) for task in METRICS]))
    ports = [str(free_port()) for _ in METRICS]
    hosts = Hosts(tmp_path, *[[sys.executable, "-c", ON_HOSTS, str(tmp_path / "runs"), *ports] for _ in range(2)])
    assert hosts.wait() == [0, 0], hosts.output
    assert hosts.output[0].count("the parameters of all 2 processes are equal") == len(METRICS)
    for task in METRICS:
        args, learn = learner_of(samples, task, tmp_path / "one")
        earlier.load(learn, tmp_path / task / "model", task, samples[task].classes, args.image_mode)
        with learn.no_bar(), learn.no_logging():
            found = dict(zip(METRICS[task], map(float, learn.validate()[1:]), strict=True))
        metrics = bundle.load_info(tmp_path / task / "model").metrics
        assert {name: metrics[name] for name in found} == pytest.approx(found, rel=1e-5), task
