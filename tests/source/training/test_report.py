"""The report of a run: its figures against fastai's and scikit-learn's own, and pages of odd data."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from fastai.vision.all import (
    CategoryBlock,
    ClassificationInterpretation,
    DataBlock,
    Flip,
    ImageBlock,
    IndexSplitter,
    ItemGetter,
    Learner,
    MultiCategoryBlock,
    PILImageBW,
    PointBlock,
    RegressionBlock,
    TensorPoint,
    accuracy,
    accuracy_multi,
    mae,
    rmse,
    set_seed,
)
from PIL import Image
from sklearn import metrics as skm

from fastmaker.training import report
from fastmaker.training.report import calibration, plots, predictions

pytestmark = pytest.mark.learner

LONG = "a class with a long name " * 8
NAMES = ["$x_1$", '<b>bold</b> & "quoted"', "\N{CAT FACE} \u732b", LONG, "two\nlines", r"\alpha{$"]


def learner(block, labels, n_out, *, n_valid=12, metrics=(), image=ImageBlock, batch_tfms=None, size=(12, 16)):
    """A linear network that saw generated images for an epoch; `labels` are those of all images, validation last."""
    set_seed(3, reproducible=True)
    pixels = np.random.default_rng(5).integers(0, 256, (len(labels), *size), dtype=np.uint8)
    items = list(zip(pixels if image is not ImageBlock else np.stack([pixels] * 3, -1), labels, strict=True))
    data = DataBlock(
        (image, block),
        get_x=ItemGetter(0),
        get_y=ItemGetter(1),
        splitter=IndexSplitter(range(len(items) - n_valid, len(items))),
        batch_tfms=batch_tfms,
    )
    dls = data.dataloaders(items, bs=8, num_workers=0)
    channels = 3 if image is ImageBlock else 1
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(channels * size[0] * size[1], n_out))
    learn = Learner(dls, network, metrics=list(metrics))
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)
    return learn


def classifier(names, n_valid=12, **options):
    labels = [names[i % len(names)] for i in range(max(2 * len(names), 24) + n_valid)]
    return learner(CategoryBlock(vocab=names), labels, len(names), n_valid=n_valid, metrics=[accuracy], **options)


@pytest.fixture(scope="module")
def several():
    """A Learner of three labels an image, of which the last is of no validation image."""
    random = np.random.default_rng(1)
    labels = [[name for name in "ab" if random.random() < 0.5] for _ in range(60)]
    labels[0] = ["c", "a"]
    block = MultiCategoryBlock(vocab=["a", "b", "c"])
    return learner(block, labels, 3, n_valid=40, metrics=[accuracy_multi])


@pytest.fixture(scope="module")
def numbers():
    values = np.random.default_rng(2).normal(size=(40, 2)).tolist()
    return learner(RegressionBlock(n_out=2), values, 2, metrics=[mae, rmse])


@pytest.fixture(scope="module")
def points():
    places = [TensorPoint(torch.rand(2, 2) * torch.tensor([16.0, 12.0])) for _ in range(40)]
    return learner(PointBlock, places, 4)


def written(learn, folder, **options):
    """The report of a Learner in a folder: what metrics.json holds, and the page."""
    figures = dict(zip(learn.recorder.metric_names[1:-1], map(float, learn.recorder.values[-1]), strict=False))
    files = report.write(learn, folder, figures, run=report.Run(options) if options else None)
    assert sorted(folder.iterdir()) == sorted(files)
    return json.loads((folder / "metrics.json").read_text()), (folder / "report.html").read_text("utf-8")


class Page(HTMLParser):
    """What a page holds: its text, its pictures, and what it would load."""

    def __init__(self, text):
        super().__init__()
        self.text, self.pictures, self.loaded, self.open = "", [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)
        if tag == "img":
            self.pictures.append(attributes)
        self.loaded += [attributes[name] for name in ("src", "href") if name in attributes]
        assert tag != "script"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


# The page


ODD = {
    "odd names": lambda: classifier(NAMES),
    "one validation image": lambda: classifier(["a", "b"], n_valid=1),
    "300 classes": lambda: classifier([f"class {i}" for i in range(300)], n_valid=40, size=(4, 4)),
    "gray images": lambda: classifier(["a", "b"], image=ImageBlock(PILImageBW)),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_data_have_a_page_of_their_own(case, tmp_path):
    learn = ODD[case]()
    metrics, text = written(learn, tmp_path, task="classification", arch="linear", epochs=1)
    page = Page(text)
    assert page.open == []
    assert all(address.startswith("data:") for address in page.loaded)
    assert len(page.pictures) == len(list(tmp_path.glob("*.png"))) == 6
    assert all(picture["alt"] and int(picture["width"]) > 100 for picture in page.pictures)
    for picture in tmp_path.glob("*.png"):
        Image.open(picture).verify()
    labels = list(map(str, learn.dls.vocab))
    assert list(metrics["details"]["classes"]) == labels
    assert all(" ".join(label.split()) in " ".join(page.text.split()) for label in labels)
    seen = {label for label, row in metrics["details"]["classes"].items() if row["support"]}
    assert all((row["recall"] is None) == (label not in seen) for label, row in metrics["details"]["classes"].items())


def test_the_page_says_what_ran(points, tmp_path):
    points.kept = {"lr_finder": {"lrs": [1e-5, 1e-3, 1e-1], "losses": [2, 1, float("nan")], "lr": 1e-3}}
    options = {"arch": "linear", "image_size": (12, 16), "augment": False, "valid": None}
    run = report.Run(options, "found points: 28 images to train", 3723.0, best_epoch=1)
    report.write(points, tmp_path, {}, run=run)
    text = Page((tmp_path / "report.html").read_text("utf-8")).text
    assert "Points, linear: 12 validation images" in text
    assert "1 epoch in 1 h 2 min, images of 12x16 pixels. The weights are those of epoch 1, the best one." in text
    assert "Found points: 28 images to train" in text
    assert re.search(r"--augment\s*false", text)
    assert f"torch {torch.__version__}" in text
    assert (tmp_path / "lr_finder.png").is_file()


def test_answers_that_are_no_numbers_are_counted_and_left_out(tmp_path):
    learn = classifier(["a", "b"])
    forward = learn.model.forward
    learn.model.forward = lambda x: torch.where(x.mean((1, 2, 3), keepdim=True)[..., 0, 0] > 0.5, torch.nan, forward(x))
    found = report.measure(learn)
    assert 0 < found.lost < 12
    metrics, text = written(learn, tmp_path)
    assert metrics["images_without_finite_answers"] == found.lost
    assert sum(row["support"] for row in metrics["details"]["classes"].values()) == 12 - found.lost
    assert f"{found.lost} images, whose answers are not finite numbers" in text


@pytest.mark.parametrize(
    ("name", "shown"),
    [("short", "short"), ("a\tb", "a b"), (LONG, "a class with a\N{HORIZONTAL ELLIPSIS} a long name ")],
)
def test_a_name_on_a_plot_is_one_short_line(name, shown):
    assert plots.short(name) == shown


# Figures


def test_the_classes_are_those_of_fastai_and_scikit_learn(digits_learner):
    found = report.measure(digits_learner).gathered
    with digits_learner.no_bar(), digits_learner.no_logging():
        probabilities, true = digits_learner.get_preds()
        matrix = ClassificationInterpretation.from_learner(digits_learner).confusion_matrix()
    expected = skm.classification_report(true, probabilities.argmax(1), target_names=found.labels, output_dict=True)
    classes = found.details()["classes"]
    for label in found.labels:
        row = expected[label]
        assert [classes[label][name] for name in ("precision", "recall", "f1", "support")] == pytest.approx(
            [row[name] for name in ("precision", "recall", "f1-score", "support")]
        )
    assert found.key_figures()["accuracy"] == pytest.approx(expected["accuracy"])
    first = found.details()["most_confused"][0]
    off = matrix - np.diag(matrix.diagonal())
    assert (
        first["images"] == off.max() == off[found.labels.index(first["true"]), found.labels.index(first["predicted"])]
    )


def test_one_pass_answers_all(digits_learner):
    calls = []
    handle = digits_learner.model.register_forward_hook(lambda *_: calls.append(1))
    report.measure(digits_learner)
    handle.remove()
    assert len(calls) == len(digits_learner.dls.valid)


def test_the_calibration_error_is_the_mean_distance_from_the_diagonal():
    found = calibration.Calibration("p", "q")
    found.add(np.array([0.9, 0.95, 0.97, 0.1, 0.0, 1.0]), np.array([True, True, False, False, False, True]))
    # Bins (13/15, 14/15], (14/15, 1], (1/15, 2/15] and [0, 1/15].
    assert found.ece == pytest.approx((abs(0.9 - 1) + abs(0.95 + 0.97 + 1 - 2) + 0.1 + 0) / 6)
    assert [(bin_["count"], round(bin_["right"], 3)) for bin_ in found.details()["bins"]] == [
        (1, 0),
        (1, 0),
        (1, 1),
        (3, 0.667),
    ]


def test_the_thresholds_have_the_best_f1_of_all(several, tmp_path):
    metrics, text = written(several, tmp_path)
    with several.no_bar(), several.no_logging():
        probabilities, true = several.get_preds()
    for i, label in enumerate("ab"):
        row = metrics["details"]["labels"][label]
        over = probabilities[:, i].numpy() > np.linspace(0, 1, 1001).astype(np.float32)[:, None]
        best = max(2 * (over & (true[:, i].numpy() == 1)).sum(1) / (over.sum(1) + float(true[:, i].sum())))
        assert row["best_f1"] == pytest.approx(best)
        assert skm.f1_score(true[:, i], probabilities[:, i] > row["best_threshold"]) == pytest.approx(best)
        assert row["f1"] == pytest.approx(skm.f1_score(true[:, i], probabilities[:, i] > 0.5, zero_division=0))
        assert (row["threshold"], row["images"]) == (0.5, int(true[:, i].sum()))
    assert metrics["details"]["labels"]["c"]["best_threshold"] is None
    assert metrics["details"]["accuracy_multi"] == pytest.approx(metrics["accuracy_multi"])
    assert len(Page(text).pictures) == 6


def test_numbers_have_the_errors_of_fastai(numbers, tmp_path):
    metrics, text = written(numbers, tmp_path)
    assert metrics["details"]["mae"] == pytest.approx(metrics["mae"], rel=1e-5)
    assert metrics["details"]["rmse"] == pytest.approx(metrics["_rmse"], rel=1e-5)
    with numbers.no_bar(), numbers.no_logging():
        predicted, true = numbers.get_preds()
    r2 = [row["r2"] for row in metrics["details"]["columns"].values()]
    assert r2 == pytest.approx(skm.r2_score(true, predicted, multioutput="raw_values").tolist(), rel=1e-4)
    assert list(metrics["details"]["columns"]) == ["value 1", "value 2"]
    assert len(Page(text).pictures) == 5
    assert report.measure(numbers, ("width", "height")).gathered.names == ["width", "height"]


def test_points_have_their_errors_in_pixels(points, tmp_path):
    metrics, _ = written(points, tmp_path)
    with points.no_bar(), points.no_logging():
        predicted, true = points.get_preds()
    of_pixels = torch.tensor([16.0, 12.0]) / 2
    errors = ((predicted.view(-1, 2, 2) - true) * of_pixels).norm(dim=2)
    assert metrics["details"]["mean_error_pixels"] == pytest.approx(float(errors.mean()), rel=1e-5)
    assert metrics["details"]["points"][1]["median_error_pixels"] == pytest.approx(np.median(errors[:, 1]), rel=1e-5)


def test_the_classes_of_masks_have_the_mean_of_the_metric(scenes_learner, tmp_path):
    found = report.measure(scenes_learner)
    known = dict(zip(scenes_learner.recorder.metric_names[1:], scenes_learner.recorder.values[-1], strict=False))
    assert np.mean(list(found.metrics.values())) == pytest.approx(known["mean_iou"], abs=1e-6)
    assert set(found.metrics) <= {"iou_ground", "iou_box", "iou_disc"}
    row = found.gathered.details()["classes"]["ground"]
    assert 1 / row["iou"] == pytest.approx(1 / row["precision"] + 1 / row["recall"] - 1)
    assert found.gathered.details()["classes"]["Void"]["iou"] is None


# Test-time augmentation


class Answers:
    def __init__(self):
        self.numbers = []

    def add(self, indexes, numbers, decoded, true):
        self.numbers.append(numbers)


def averaged(learn, passes, seed=0):
    answers = Answers()
    predictions.gather(learn, answers, passes, seed)
    return torch.cat(answers.numbers)


def test_averaged_answers_are_those_of_fastai():
    learn = classifier(["a", "b", "c"], batch_tfms=[Flip(p=1.0)])
    with learn.no_bar(), learn.no_logging():
        expected, _ = learn.tta(n=2)
    torch.testing.assert_close(averaged(learn, 2), torch.Tensor(expected))
    assert not torch.allclose(averaged(learn, 2), averaged(learn, 0))


def test_averaging_draws_by_its_seed_and_leaves_all_as_it_was(tmp_path):
    learn = classifier(["a", "b", "c"], batch_tfms=[Flip(p=0.5)])
    before = torch.get_rng_state(), [parameter.clone() for parameter in learn.model.parameters()]
    first, history = averaged(learn, 3, 7), list(learn.recorder.values)
    assert torch.equal(first, averaged(learn, 3, 7))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert not torch.equal(first, averaged(learn, 3, 8))
    assert torch.equal(averaged(learn, 0), averaged(learn, 0))
    assert list(learn.recorder.values) == history
    assert all(map(torch.equal, learn.model.parameters(), before[1]))
    metrics, text = written(learn, tmp_path, tta=2, seed=7)
    found = metrics["details"]["tta"]
    assert found["passes"] == 2
    assert found["without"]["accuracy"] == pytest.approx(metrics["accuracy"])
    assert found["with"].keys() == found["without"].keys()
    assert "averaged over 2 passes" in text
