"""The entry point trains each task, and what a run has does not depend on where it was interrupted."""

import json
import pickle
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import PATIENCE, discs, task_bundles
from helpers.discs import METRICS, ON_HOSTS, arguments, figures, words_of
from helpers.hosts import Hosts, free_port

from fastmaker import bundle, preprocess
from fastmaker.serving import models
from fastmaker.training import checkpoint, earlier, run, weights
from fastmaker.training.distributed import SINGLE

pytestmark = pytest.mark.training

NEW = ("multilabel", "regression", "points")
SLOW = [pytest.param(task, marks=pytest.mark.slow) for task in METRICS if task not in NEW]  # tried elsewhere, too


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return discs.samples(tmp_path_factory.mktemp("discs"))


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


def test_the_names_of_numbers_reach_the_answers_and_an_earlier_model_must_have_them(samples, tmp_path):
    named = replace(samples["regression"], names=("radius", "x"))
    args = arguments("regression", tmp_path, "--epochs 1")
    assert run._train(args, named) == 0
    model = models.load(tmp_path / "model")
    [answer] = model.predict([preprocess.decode(named.images[0].read_bytes())])
    assert list(answer.as_object()["named_values"].items()) == list(zip(("radius", "x"), answer.values, strict=True))
    again = arguments("regression", tmp_path, f"--resume-from {tmp_path / 'model'}")
    run._learner(again, named, SINGLE, None)
    run._learner(again, samples["regression"], SINGLE, None)  # of a table without names, say
    with pytest.raises(weights.WeightsError, match="its labels are not those of the data: they have another order"):
        run._learner(again, replace(named, names=("x", "radius")), SINGLE, None)


# Checkpoints


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


@pytest.mark.slow
def test_two_hosts_train_each_task_and_have_the_metrics_of_one(samples, tmp_path):
    words = {task: words_of(task, tmp_path / task, "--batch-size 2") for task in METRICS}
    (tmp_path / "runs").write_bytes(pickle.dumps([(words[task], samples[task]) for task in METRICS]))
    ports = [str(free_port()) for _ in METRICS]
    hosts = Hosts(tmp_path, *[[sys.executable, "-c", ON_HOSTS, str(tmp_path / "runs"), *ports] for _ in range(2)])
    assert hosts.wait(PATIENCE * len(METRICS) / 2) == [0, 0], hosts.output
    assert hosts.output[0].count("the parameters of all 2 processes are equal") == len(METRICS)
    for task in METRICS:
        args, learn = learner_of(samples, task, tmp_path / "one")
        earlier.load(learn, tmp_path / task / "model", task, samples[task].classes, args.image_mode)
        with learn.no_bar(), learn.no_logging():
            found = dict(zip(METRICS[task], map(float, learn.validate()[1:]), strict=True))
        metrics = bundle.load_info(tmp_path / task / "model").metrics
        assert {name: metrics[name] for name in found} == pytest.approx(found, rel=1e-5), task
