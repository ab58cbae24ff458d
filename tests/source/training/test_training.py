"""The arguments, and whole runs of the entry point as the training container starts it."""

import csv
import json
import math
import os
import re
import shutil
import socket
import struct
import subprocess
import sys

import numpy as np
import pytest
from helpers import REPOSITORY
from PIL import Image

from fastmaker import bundle, preprocess
from fastmaker.serving import models
from fastmaker.training import weights
from fastmaker.training.arguments import parse_args
from fastmaker.training.run import main

pytestmark = pytest.mark.training

ENTRY_POINT = REPOSITORY / "source" / "entry_point.py"


def entry_point(*arguments, cwd, **env):
    command = [sys.executable, str(ENTRY_POINT), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=os.environ | env, capture_output=True, text=True)


# A whole run


class Run:
    """A run of the entry point on digits, with the directories that a training container gives."""

    def __init__(self, data, folder, arguments):
        env = {
            "SM_CHANNEL_TRAINING": str(data),
            "SM_MODEL_DIR": str(folder / "model"),
            "SM_OUTPUT_DATA_DIR": str(folder / "data"),
        }
        self.process = entry_point(*arguments.split(), cwd=folder, **env)
        assert self.process.returncode == 0, self.process.stderr[-2000:]
        self.folder, self.model, self.output = folder, folder / "model", folder / "data"
        self.metrics = json.loads((self.output / "metrics.json").read_text())
        self.details = self.metrics.pop("details")


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory):
    return Run(digits, tmp_path_factory.mktemp("run"), "--arch convnet --epochs 2")


def test_a_run_writes_the_bundle_and_the_report_and_nothing_else(run):
    assert sorted(os.listdir(run.folder)) == ["data", "model"]
    assert sorted(os.listdir(run.model)) == ["baseline.npz", "code", "config.yaml", "model.json", "model.pth"]
    plots = ["calibration", "classes", "confusion_matrix", "curves", "learning_rate", "top_losses"]
    pictures = [f"{plot}.png" for plot in plots]
    assert sorted(os.listdir(run.output)) == sorted([*pictures, "history.csv", "metrics.json", "report.html"])


def test_a_run_learns_the_digits(run, digits):
    assert run.metrics["accuracy"] > 0.9
    model = models.load(run.model)
    files = sorted(digits.rglob("*.png"))[::60]
    predictions = model.predict([preprocess.decode(file.read_bytes()) for file in files])
    right = [prediction.label == file.parent.name for file, prediction in zip(files, predictions, strict=True)]
    assert np.mean(right) > 0.85


def test_the_bundle_says_how_it_was_trained(run):
    info = bundle.load_info(run.model)
    assert (info.architecture, info.image_mode, info.image_size) == ("convnet", "L", (28, 28))
    assert info.labels == tuple("0123456789")
    assert info.resize_method == "crop"
    assert info.metrics == run.metrics


def test_metrics_hold_the_last_epoch(run):
    assert list(run.metrics) == ["train_loss", "valid_loss", "accuracy", "error_rate"]
    assert run.metrics["error_rate"] == pytest.approx(1 - run.metrics["accuracy"], abs=1e-6)  # float32


@pytest.mark.parametrize("name", ["accuracy", "valid_loss", "train_loss", "error_rate"])
def test_metric_definitions_read_from_the_log_what_the_metrics_hold(run, name):
    found = re.findall(rf"{name}=([0-9.]+)", run.process.stdout)
    assert len(found) == 2
    assert float(found[-1]) == pytest.approx(run.metrics[name], abs=5e-7)


def test_the_history_has_a_line_an_epoch(run):
    with open(run.output / "history.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["epoch", *run.metrics]
    assert [row[0] for row in rows] == ["1", "2"]
    assert list(map(float, rows[-1][1:])) == list(run.metrics.values())
    assert rows[0][1:] != rows[1][1:]


@pytest.mark.parametrize("name", ["curves.png", "confusion_matrix.png", "top_losses.png"])
def test_the_pictures_are_pictures(run, name):
    with Image.open(run.output / name) as picture:
        assert min(picture.size) > 300
        assert len(set(picture.convert("L").resize((60, 60)).tobytes())) > 10


def test_a_run_says_what_it_found_and_what_it_does(run):
    lines = run.process.stdout.splitlines()
    assert lines[0].startswith("found class folders: 1438 images to train, 359 to validate, 10 classes")
    assert re.match(r"training convnet in float32, 2 epoch\(s\) on (cpu|cuda)", lines[1])
    assert json.loads(lines[-1].removeprefix("finished ")) == run.metrics


def test_the_same_seed_gives_the_same_metrics_and_the_same_weights(run, digits, tmp_path):
    again = Run(digits, tmp_path, "--arch convnet --epochs 2")
    assert again.metrics == run.metrics
    assert bundle.load_info(again.model).state_sha256 == bundle.load_info(run.model).state_sha256


def test_a_resnet_trains_on_photos_with_augmentation_and_worker_processes(photos, tmp_path):
    arguments = "--arch resnet18 --pretrained false --epochs 1 --batch-size 8 --image-size 32x40 --workers 2"
    result = Run(photos, tmp_path, arguments)
    info = bundle.load_info(result.model)
    assert (info.architecture, info.image_mode, info.image_size) == ("resnet18", "RGB", (32, 40))
    [file, *_] = sorted(photos.rglob("*.jpg"))
    [prediction] = models.load(result.model).predict([preprocess.decode(file.read_bytes())])
    assert prediction.label in ("checks", "rings", "stripes")


# Segmentation


@pytest.fixture(scope="module")
def segmentation_run(scenes, tmp_path_factory):
    arguments = "--task segmentation --arch resnet18 --pretrained false --epochs 2 --lr 0.003 --batch-size 4"
    return Run(scenes, tmp_path_factory.mktemp("run"), f"{arguments} --image-size 40x56 --mask-size original")


def test_the_defaults_of_segmentation_suit_masks():
    args = parse_args(["--train", "scenes", "--task", "segmentation"])
    assert (args.arch, args.image_mode, args.batch_size, args.resize_method) == ("resnet34", "RGB", 8, "squish")
    assert (args.void_code, args.self_attention, args.mask_size) == (None, False, "model")


def test_a_segmentation_run_writes_a_bundle_that_masks(segmentation_run, scenes):
    info = bundle.load_info(segmentation_run.model)
    assert (info.task, info.architecture, info.image_size) == ("segmentation", "resnet18", (40, 56))
    assert (info.labels, info.void_code, info.mask_size) == (("ground", "box", "disc", "Void"), 3, "original")
    assert info.metrics == segmentation_run.metrics
    [answer] = models.load(segmentation_run.model).predict([Image.open(scenes / "images" / "00.png").resize((99, 50))])
    assert answer.array.shape == (50, 99)


def test_a_segmentation_run_reports_the_pixels_and_each_class(segmentation_run):
    figures = ["train_loss", "valid_loss", "pixel_accuracy", "mean_iou"]
    assert list(segmentation_run.metrics)[:4] == figures
    assert set(segmentation_run.metrics) - set(figures) <= {"iou_ground", "iou_box", "iou_disc"}
    assert segmentation_run.metrics["pixel_accuracy"] > 0.6
    assert re.search(
        r"^epoch=2 .* pixel_accuracy=0\.\d+ mean_iou=0\.\d+ ", segmentation_run.process.stdout, re.MULTILINE
    )


def test_a_segmentation_run_shows_images_beside_their_masks(segmentation_run):
    pictures = ["curves.png", "iou.png", "learning_rate.png", "masks.png"]
    files = [*pictures, "history.csv", "metrics.json", "report.html"]
    assert sorted(os.listdir(segmentation_run.output)) == sorted(files)
    with Image.open(segmentation_run.output / "masks.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    photos, *drawn = np.array_split(pixels, 3, axis=1)
    assert len(np.unique(photos.reshape(-1, 3), axis=0)) > 1000  # the noise in them
    assert all(len(np.unique(part.reshape(-1, 3), axis=0)) > 3 for part in drawn)


def test_bad_masks_end_the_run_with_one_line_before_training(scenes, tmp_path):
    folder = shutil.copytree(scenes, tmp_path / "scenes")
    (folder / "labels" / "05_P.png").unlink()
    process = entry_point("--task", "segmentation", "--train", folder, "--arch", "resnet18", cwd=tmp_path)
    assert process.returncode == 2
    assert process.stdout == ""
    assert re.fullmatch(
        r"ValueError: .*05\.png has no mask: .*05_P\.png is missing, and so is 05\.png beside it\n", process.stderr
    )


@pytest.mark.data
@pytest.mark.slow
def test_twenty_epochs_from_scratch_get_eight_of_ten_pixels_of_the_road_scenes_right(test_data, tmp_path):
    arguments = "--task segmentation --arch resnet18 --pretrained false --epochs 20 --image-size 96x128"
    result = Run(test_data / "camvid", tmp_path, arguments)
    assert result.metrics["pixel_accuracy"] >= 0.80


def test_what_a_crop_cuts_off_needs_a_void_class_for_masks_of_the_original_size(scenes, capsys):
    arguments = ["--train", str(scenes), "--task", "segmentation", "--arch", "resnet18", "--void-code", "none"]
    original = ["--mask-size", "original", "--check-only", "true"]
    assert main(parse_args([*arguments, *original])) == 0
    assert main(parse_args([*arguments, *original, "--resize-method", "crop"])) == 2
    assert "give a --void-code or another --resize-method" in capsys.readouterr().err


# Data that is small, or of another kind than the network


def trained(folder, data, *arguments):
    """Train a convnet for one epoch here, without a process of its own; returns its metrics."""
    args = ["--train", str(data), "--model-dir", str(folder / "model"), "--output-data-dir", str(folder / "output")]
    assert main(parse_args([*args, "--arch", "convnet", "--epochs", "1", *arguments])) == 0
    return bundle.load(folder / "model")[1].metrics


def few_images(folder, n, labels="ab"):
    random = np.random.default_rng(n)
    for label in labels:
        (folder / label).mkdir(parents=True)
        for i in range(n):
            Image.fromarray(random.integers(0, 256, (9, 9), dtype=np.uint8)).save(folder / label / f"{i}.png")
    return folder


def test_fewer_images_than_a_batch_are_trained_on(tmp_path):
    metrics = trained(tmp_path, few_images(tmp_path / "data", 25), "--batch-size", "64")
    assert math.isfinite(metrics["train_loss"])


def test_fewer_validation_images_than_top_losses_shows_still_give_a_report(tmp_path):
    trained(tmp_path, few_images(tmp_path / "data", 10), "--batch-size", "4")
    assert (tmp_path / "output" / "top_losses.png").is_file()


def test_class_names_are_no_formulas(tmp_path):
    trained(tmp_path, few_images(tmp_path / "data", 10, (r"$\alpha{$", "$_")), "--batch-size", "4")
    assert (tmp_path / "output" / "top_losses.png").is_file()


def test_a_training_that_diverges_fails_and_still_gives_a_report(tmp_path, capsys):
    arguments = ["--arch", "convnet", "--epochs", "1", "--batch-size", "8", "--lr", "1e30"]
    places = ["--model-dir", str(tmp_path / "model"), "--output-data-dir", str(tmp_path / "output")]
    images = few_images(tmp_path / "data", 25)
    assert main(parse_args(["--train", str(images), *places, *arguments])) == 2
    assert capsys.readouterr().err.startswith("ValueError: the training diverged: ")
    metrics = json.loads((tmp_path / "output" / "metrics.json").read_text())
    assert "train_loss" not in metrics  # JSON knows no NaN
    assert all(map(math.isfinite, metrics.values()))
    assert metrics["images_without_finite_answers"] == 10
    assert (tmp_path / "output" / "curves.png").is_file()
    assert "left out" in (tmp_path / "output" / "report.html").read_text()
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_idx_files_train_a_network_of_either_image_mode(tmp_path, mode):
    (tmp_path / "data").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (100, 28, 28), dtype=np.uint8)
    for name, magic, array in (("images-idx3", 3, pixels), ("labels-idx1", 1, np.arange(100, dtype=np.uint8) % 2)):
        header = bytes((0, 0, 8, magic)) + struct.pack(f">{array.ndim}I", *array.shape)
        (tmp_path / "data" / f"train-{name}-ubyte").write_bytes(header + array.tobytes())
    trained(tmp_path, tmp_path / "data", "--image-mode", mode, "--batch-size", "16")
    assert bundle.load_info(tmp_path / "model").image_mode == mode


# Runs that train nothing


def test_check_only_says_what_it_found_and_trains_nothing(digits, tmp_path):
    process = entry_point("--train", digits, "--arch", "convnet", "--check-only", "true", cwd=tmp_path)
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.startswith("found class folders: 1438 images to train")
    assert os.listdir(tmp_path) == []


def test_a_data_error_ends_with_status_2_and_one_line(tmp_path):
    (tmp_path / "cats").mkdir()
    process = entry_point("--train", tmp_path, "--arch", "convnet", cwd=tmp_path)
    assert process.returncode == 2
    assert process.stdout == ""
    assert process.stderr == f"ValueError: class 'cats' is empty: {tmp_path / 'cats'} holds no image file\n"
    assert os.listdir(tmp_path) == ["cats"]


def test_skipped_images_are_named_on_the_log(tmp_path, capsys):
    few_images(tmp_path / "data", 20)
    (tmp_path / "data" / "a" / "3.png").write_bytes(b"no image")
    arguments = ["--train", str(tmp_path / "data"), "--arch", "convnet", "--check-only", "true"]
    assert main(parse_args(arguments)) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"skipped {tmp_path / 'data' / 'a' / '3.png'}: the 8 bytes are not an image")
    assert second.endswith("1 unreadable images skipped")


@pytest.mark.parametrize("arch", ["resnet18", "convnext_atto"], ids=["torchvision", "timm"])
@pytest.mark.parametrize("silent", [False, True], ids=["no server", "a server that does not answer"])
def test_weights_that_cannot_be_downloaded_come_with_a_way_out(tmp_path, monkeypatch, capsys, arch, silent):
    few_images(tmp_path / "data", 4)
    monkeypatch.setattr(weights, "SECONDS", 0.5)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        for name in ("https_proxy", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{server.getsockname()[1] if silent else 9}")
        folders = ["--train", str(tmp_path / "data"), "--model-dir", str(tmp_path / "model")]
        assert main(parse_args([*folders, "--arch", arch, "--image-size", "64", "--workers", "0"])) == 2
    reason = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(
        rf"ValueError: the pretrained weights of {arch} cannot be downloaded \(.*\); give the file of https://\S+{arch}\S+"
        " as --pretrained FILE or in the channel pretrained, or use --pretrained false",
        reason,
    )
    assert not (tmp_path / "model").exists()
