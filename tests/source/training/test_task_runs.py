"""The entry point trains each task, and what a run has does not depend on where it was interrupted."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from fastmaker import preprocess
from fastmaker.serving import models
from fastmaker.training import run
from fastmaker.training.arguments import parse_args
from fastmaker.training.data import Samples
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


def arguments(task, folder, more=""):
    small = "--arch resnet18 --pretrained false" if task == "segmentation" else "--arch convnet"
    words = f"--task {task} {small} --image-size 28 --image-mode RGB --epochs 2 --batch-size 4 --workers 0 --train t"
    return parse_args(
        [*words.split(), "--model-dir", f"{folder}/model", "--output-data-dir", str(folder), *more.split()]
    )


@pytest.mark.parametrize("task", METRICS)
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
