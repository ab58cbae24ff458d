"""The MNIST notebook runs from top to bottom, on scikit-learn's digits in MNIST's form, and on MNIST itself."""

import gzip
import re
import shlex
from pathlib import Path

import nbformat
import numpy as np
import pytest
from helpers.kernels import (
    NO_NETWORK,
    NOTEBOOKS,
    CellFailed,
    execute,
    execute_without_data,
    pictures,
    printed,
    processes_of,
    up_to,
)
from PIL import Image

from fastmaker.jobs import transform
from fastmaker.local import ProcessSession

CELL_SECONDS = 900
MNIST = NOTEBOOKS / "02_mnist_batch_transform.ipynb"
TEST_IMAGES = 297
DIGITS = 60


pytestmark = pytest.mark.slow  # the pets notebook runs in the suite


@pytest.fixture(scope="module")
def idx_files(tmp_path_factory):
    """1,500 of scikit-learn's digits to train and the other 297 to test, 28x28, in MNIST's four files."""
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("idx")
    source = load_digits()
    images = np.stack([np.asarray(Image.fromarray((i * 15).astype("uint8")).resize((28, 28))) for i in source.images])
    for part, chosen in (("train", slice(-TEST_IMAGES)), ("t10k", slice(-TEST_IMAGES, None))):
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images[chosen])
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", source.target[chosen].astype("uint8"))
    return folder


def write_idx(file: Path, values: np.ndarray) -> None:
    header = bytes((0, 0, 8, values.ndim)) + np.array(values.shape, ">u4").tobytes()
    file.write_bytes(gzip.compress(header + values.tobytes()))


def run(environment, **values):
    for name, value in values.items():
        environment.setenv(name, str(value))
    notebook = nbformat.read(MNIST, 4)
    execute(notebook, NOTEBOOKS, cell_seconds=CELL_SECONDS)
    return notebook


@pytest.fixture(scope="module")
def mnist(environment, home, idx_files):
    """The notebook after a run on small files."""
    return run(environment, MNIST_DIR=idx_files, EPOCHS=2, BATCH_SIZE=32, DIGITS=DIGITS)


def accuracy(notebook) -> float:
    return float(re.search(r"^accuracy ([0-9.]+) on", "\n".join(printed(notebook, "collect")), re.MULTILINE)[1])


def test_mnist_puts_digits_from_all_over_the_test_images_into_s3(mnist):
    assert printed(mnist, "read-digits") == [f"{DIGITS} of {TEST_IMAGES} test images, 00000.png to 00236.png"]
    assert re.fullmatch(rf"{DIGITS} objects in s3://\S+/digits/", printed(mnist, "upload")[0])


def test_mnist_trains_on_the_idx_files_and_answers_most_digits_right(mnist):
    expected = "found idx: 1500 images to train, 297 to validate, 10 classes"
    assert any(expected in line for line in printed(mnist, "fit"))
    assert accuracy(mnist) > 0.8


def test_mnist_prints_answers_with_index_label_and_probability(mnist):
    rows = [line.split() for line in printed(mnist, "show-answers")[2:]]
    assert [name for name, *_ in rows][:3] == ["00000.png", "00004.png", "00008.png"]
    assert len(rows) == 10
    for _, predictions, label, probability in rows:
        assert predictions == label
        assert 0 < float(probability) <= 1


def test_mnist_writes_a_manifest_of_every_third_digit(mnist):
    lines = printed(mnist, "manifest")
    assert '"prefix"' in "".join(lines[:3])
    assert ["keys", str(DIGITS // 3)] in [line.split() for line in lines]


@pytest.mark.parametrize(
    ("cell", "count"), [("by-manifest", DIGITS // 3), ("two-instances", DIGITS), ("retry", DIGITS)]
)
def test_mnist_gets_the_same_answers_again_by_manifest_on_two_instances_and_after_a_retry(mnist, cell, count):
    assert printed(mnist, cell)[-1] == f"{count} answers, {count} the same as by prefix"


def test_mnist_names_the_object_that_fails_and_retries_it_alone(mnist):
    lines = printed(mnist, "break")
    assert f"1 of {DIGITS} objects failed, the first is s3://" in lines[0]
    assert "/digits/00004.png: 400: the 12 bytes are not an image" in lines[0]
    assert lines[-1] == f"{DIGITS - 1} of {DIGITS} objects have answers; without: 00004.png"
    assert f"transforming 1 of {DIGITS} objects" in "\n".join(printed(mnist, "retry"))


def test_mnist_shows_its_digits_its_confusion_matrix_and_what_it_got_wrong(mnist):
    assert [pictures(mnist, cell) for cell in ("read-digits", "show-answers", "confusion", "wrong")] == [1, 1, 1, 1]


def test_mnist_leaves_nothing(mnist, home):
    client = ProcessSession(home=home).sagemaker_client
    assert client.list_models()["Models"] == []
    assert client.list_training_jobs()["TrainingJobSummaries"] == []
    assert client.list_transform_jobs()["TransformJobSummaries"] == []
    assert processes_of(home) == []
    assert printed(mnist, "left") == ["nothing is left"]


def test_mnist_gives_commands_that_jobs_transform_takes():
    text = "\n".join(cell.source for cell in nbformat.read(MNIST, 4).cells if cell.cell_type == "markdown")
    commands = re.findall(r"^fastmaker transform (.*)$", text, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        transform.parse_args(shlex.split(command))


def test_mnist_says_which_files_are_missing(environment, tmp_path):
    with environment.context() as patch:
        patch.setenv("MNIST_DIR", str(tmp_path))
        with pytest.raises(CellFailed, match=r"lacks train-images-idx3-ubyte\.gz, .*t10k-labels-idx1-ubyte\.gz"):
            execute(up_to(nbformat.read(MNIST, 4), "find-mnist"), NOTEBOOKS)


def test_mnist_says_what_to_do_when_the_files_cannot_be_downloaded(environment, tmp_path):
    with pytest.raises(CellFailed, match=r"(?s)cannot be downloaded .*refused.*set MNIST_DIR"):
        # One of torchvision's mirrors has no TLS.
        execute_without_data(environment, MNIST, "find-mnist", "MNIST_DIR", tmp_path, http_proxy=NO_NETWORK)


@pytest.mark.data
def test_mnist_answers_98_of_100_real_digits_right(environment, home, test_data):
    notebook = run(environment, MNIST_DIR=test_data / "mnist_idx", EPOCHS=3, BATCH_SIZE=64, DIGITS=1000)
    assert printed(notebook, "collect")[-1].endswith("on 1000 digits")
    assert accuracy(notebook) >= 0.98
    assert printed(notebook, "retry")[-1] == "1000 answers, 1000 the same as by prefix"
    assert printed(notebook, "left") == ["nothing is left"]
    assert processes_of(home) == []
