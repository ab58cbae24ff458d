"""`fastmaker monitor` on photos of pets and on digits that a quickly trained network was not shown."""

import copy
import io
import shutil
from datetime import datetime, timezone

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from fastmaker import baseline
from fastmaker.jobs.monitoring import captures, drift, window
from fastmaker.serving import models
from fastmaker.training import arguments, run

pytestmark = [pytest.mark.slow, pytest.mark.training]
SEEDS = 20
DRAWS = 1000


def label(file):
    return file.stem.rpartition("_")[0] or file.parent.name


def split(files):
    """Files of which some are new to a network that is trained on others."""
    parts = {part: [] for part in ("train", "valid", "new")}
    for number, file in enumerate(files):
        parts[("train", "valid", "new", "valid", "new")[number % 5]].append(file)
    return parts


class Trained:
    """A model, its baseline, and the images of each part."""

    def __init__(self, folder, parts, *words):
        self.files = parts
        for part in ("train", "valid"):
            for file in parts[part]:
                target = folder / part / label(file) / file.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, target)
        places = {"--train": "train", "--valid": "valid", "--model-dir": "model", "--output-data-dir": "report"}
        words = [*words, *(str(word) for option, name in places.items() for word in (option, folder / name))]
        assert run.main(arguments.parse_args([*words, "--workers", "0"])) == 0
        self.known, self.model = baseline.load(folder / "model"), models.load(folder / "model")

    def window(self, images):
        """The window of encoded images."""
        now = datetime.now(timezone.utc)
        sides = (captures.Side(image, "application/x-image") for image in images)
        records = [captures.Record(now, str(number), side, None) for number, side in enumerate(sides)]
        return window.measure(records, self.model, self.known, len(records))

    def alarms(self, found):
        return [change.cause for change in drift.compare(self.known, found) if change.alarm]


def drawn(found, seed):
    """DRAWS draws of a window's images, each of which counts once."""
    chosen = np.unique(np.random.default_rng(seed).integers(0, len(found.samples), DRAWS))
    part = copy.copy(found)
    part.values = {name: values[chosen] for name, values in found.values.items()}
    part.projected = found.projected[chosen]
    part.labels = dict.fromkeys(found.labels, 0)
    for number in chosen:
        part.labels[found.samples[number].label] += 1
    return part


def changed(file, change):
    stream = io.BytesIO()
    change(Image.open(file).convert("RGB")).save(stream, "JPEG", quality=90)
    return stream.getvalue()


@pytest.fixture(scope="module")
def pets(test_data, tmp_path_factory):
    files = sorted((test_data / "pets" / "images").glob("*.jpg"))
    words = "--arch resnet18 --pretrained false --image-size 96 --epochs 1 --batch-size 16"
    return Trained(tmp_path_factory.mktemp("pets"), split(files), *words.split())


@pytest.mark.data
@pytest.mark.parametrize("part", ["valid", "new"])
def test_draws_of_pets_are_no_alarm(pets, part):
    found = pets.window([file.read_bytes() for file in pets.files[part]])
    alarms = [pets.alarms(drawn(found, seed)) for seed in range(SEEDS)]
    assert sum(map(bool, alarms)) <= SEEDS // 20, alarms


CHANGES = {
    "darkened": (lambda image: ImageEnhance.Brightness(image).enhance(0.6), "brightness"),
    "rotated": (lambda image: image.rotate(90, expand=True), "orientation"),
    "upside down": (lambda image: image.rotate(180), "orientation"),
    "slanted": (lambda image: image.rotate(30), "orientation"),
    "blurred": (lambda image: image.filter(ImageFilter.GaussianBlur(3)), "sharpness"),
    "paler": (lambda image: ImageEnhance.Contrast(image).enhance(0.4), "contrast"),
}


@pytest.mark.data
@pytest.mark.parametrize("case", CHANGES)
def test_changed_pets_are_an_alarm_with_the_cause_first(pets, case):
    change, cause = CHANGES[case]
    assert pets.alarms(pets.window([changed(file, change) for file in pets.files["new"]]))[:1] == [cause]


@pytest.fixture(scope="module")
def experts(test_data, tmp_path_factory):
    """A network that tells the breeds apart, whose validation images have every second breed.

    It was trained on all photos: all are as well known to it, and saved again, since none may train and validate.
    """
    folder = tmp_path_factory.mktemp("experts")
    files = sorted((test_data / "pets" / "images").glob("*.jpg"))
    breeds = sorted({label(file) for file in files})[::2]
    parts = {part: [] for part in ("train", "valid", "new", "others")}
    for number, file in enumerate(files):
        again = folder / "again" / file.name
        again.parent.mkdir(exist_ok=True)
        again.write_bytes(changed(file, lambda image: image))
        parts["train"].append(file)
        parts["others" if label(file) not in breeds else ("valid", "new")[number % 2]].append(again)
    words = "--arch convnet --image-size 48 --epochs 20 --batch-size 16 --lr 0.005 --precision float32"
    return Trained(folder, parts, *words.split())


@pytest.mark.data
def test_other_breeds_are_an_alarm_of_labels_and_the_same_ones_none(experts):
    same, others = (experts.window([file.read_bytes() for file in experts.files[part]]) for part in ("new", "others"))
    alarms = [experts.alarms(drawn(same, seed)) for seed in range(SEEDS)]
    assert sum(map(bool, alarms)) <= SEEDS // 20, alarms
    firsts = [experts.alarms(drawn(others, seed))[:1] for seed in range(SEEDS)]
    assert firsts == [["labels"]] * SEEDS


def test_digits_that_the_network_was_not_trained_on_are_an_alarm_of_what_it_sees(digits, tmp_path):
    files = sorted(digits.rglob("*.png"))
    shown, others = ([file for file in files if (file.parent.name < "7") == below] for below in (True, False))
    trained = Trained(tmp_path, split(shown), *["--arch", "convnet", "--epochs", "4"])
    found = trained.window([file.read_bytes() for file in trained.files["new"]])
    assert not any(trained.alarms(drawn(found, seed)) for seed in range(SEEDS))
    assert trained.alarms(trained.window([file.read_bytes() for file in others]))[:1] == ["content"]
