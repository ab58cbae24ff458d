"""Small images with labels for each task, and the words of short runs on them."""

import contextlib
import signal

import numpy as np
from fastai.vision.all import Callback, defaults
from PIL import Image, ImageDraw

from fastmaker import bundle
from fastmaker.training.arguments import parse_args
from fastmaker.training.data import Samples
from fastmaker.training.mask_data import MaskedSamples

N = 24
METRICS = {
    "classification": ["accuracy", "error_rate"],
    "multilabel": ["accuracy_multi", "f1"],
    "regression": ["mae", "rmse"],
    "points": ["point_error"],
    "segmentation": ["pixel_accuracy", "mean_iou"],
}


def samples(folder):
    """By task: images of one disc, dark or light, small or large, with its kind, kinds, size, place and mask."""
    random = np.random.default_rng(1)
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


def figures(folder):
    """What a run has left: the SHA-256 of its weights and its metrics."""
    info = bundle.load_info(folder / "model")
    return info.state_sha256, info.metrics, (folder / "history.csv").read_text()


@contextlib.contextmanager
def stopped_within_an_epoch(done, batches):
    """Let the runs within the block get SIGTERM after some epochs and `batches` batches of the next."""

    class Stop(Callback):
        order = 78  # after the Position, before SaveCheckpoints

        def after_batch(self):
            position = getattr(self.learn, "position", None)  # a search for the learning rate has none
            if self.training and position and (position.done, position.batch) == (done, batches):
                signal.raise_signal(signal.SIGTERM)

    before = defaults.callbacks
    defaults.callbacks = [*before, Stop]
    try:
        yield
    finally:
        defaults.callbacks = before


# Trains each run on one of two hosts.
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
