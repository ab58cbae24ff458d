"""The notebook of ONNX Runtime and Triton runs from top to bottom, on generated photos, with a server, on real ones."""

import re
import shlex
from pathlib import Path

import nbformat
import pytest
from helpers import triton_server
from helpers.kernels import (
    NOTEBOOKS,
    CellFailed,
    execute,
    execute_without_data,
    make_photos,
    pictures,
    printed,
    processes_of,
)

from fastmaker.jobs import verify
from fastmaker.jobs.verification.routes import NAMES
from fastmaker.local import ProcessSession

pytestmark = pytest.mark.slow  # the pets notebook runs in the suite
CELL_SECONDS = 900
ONNX_TRITON = NOTEBOOKS / "04_onnx_triton.ipynb"
WITHOUT_SERVERS = "fastai,torch,onnxruntime"
HELD_OUT = 12  # of the 60 photos
CLOSE = 1e-5  # another runtime adds up in another order


def run(environment, temporary: Path, **values):
    """The notebook after a run whose temporary files lie in `temporary`."""
    with environment.context() as patch:
        for name, value in {**values, "TMPDIR": temporary}.items():
            patch.setenv(name, str(value))
        notebook = nbformat.read(ONNX_TRITON, 4)
        execute(notebook, NOTEBOOKS, cell_seconds=CELL_SECONDS)
    return notebook


def agreement(line: str) -> tuple[int, int, float]:
    """How many labels agree with learn.predict's, of how many, and the largest difference of a probability."""
    found = re.fullmatch(r"(\d+) of (\d+) labels equal, largest difference of a probability: (\S+)", line)
    return int(found[1]), int(found[2]), float(found[3])


def assert_as_learn_predict(line: str, photos: int) -> None:
    same, of, difference = agreement(line)
    assert same == of == photos
    assert difference < CLOSE


def table(notebook) -> dict[str, list[str]]:
    """The cells of each path's row."""
    rows = [re.split(r"  +", line) for line in printed(notebook, "verify")]
    return {cells[0]: cells[1:] for cells in rows if cells[0] in NAMES}


def assert_nothing_is_left(notebook, home: Path, temporary: Path) -> None:
    client = ProcessSession(home=home).sagemaker_client
    assert client.list_endpoints()["Endpoints"] == []
    assert client.list_models()["Models"] == []
    assert [*processes_of(home), *processes_of(temporary)] == []
    assert list(temporary.iterdir()) == []
    assert printed(notebook, "left") == ["nothing is left"]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """What makes the notebook quick: 60 small photos, an epoch, and no servers."""
    photos = tmp_path_factory.mktemp("pets")
    make_photos(photos, 30)
    values = {"ARCH": "resnet18", "EPOCHS": 1, "IMAGE_SIZE": 32, "PRETRAINED": "false", "PATHS": WITHOUT_SERVERS}
    return {"PETS_DIR": photos, **values}


@pytest.fixture(scope="module")
def temporary(tmp_path_factory):
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def onnx_triton(environment, home, small, temporary):
    return run(environment, temporary, **small)


# First: the server is to be installed before `environment` cuts this module off from the network.
@pytest.mark.triton
def test_onnx_triton_asks_a_server_that_polls_its_repository(environment, home, small, server_files, tmp_path):
    temporary, repository = tmp_path / "temporary", tmp_path / "models"
    temporary.mkdir()
    repository.mkdir()
    options, url, _ = triton_server.addresses()
    options += [f"--model-repository={repository}", "--model-control-mode=poll", "--repository-poll-secs=1"]
    values = {"REPOSITORY": repository, "BACKEND": "python", "TRITON_URL": url, "PATHS": WITHOUT_SERVERS + ",triton"}
    with triton_server.running(server_files, tmp_path / "log", f"{url}/v2/health/ready", *options):
        notebook = run(environment, temporary, **{**small, **values})
    answer, compared = printed(notebook, "ask-triton")
    assert '"label"' in answer
    assert_as_learn_predict(compared, HELD_OUT)
    assert table(notebook)["triton"][-1] == "agrees"
    assert_nothing_is_left(notebook, home, temporary)


def test_onnx_triton_trains_on_all_photos_but_a_fifth(onnx_triton):
    assert printed(onnx_triton, "find-photos")[0].startswith("60 of 60 photos in ")
    assert printed(onnx_triton, "learner") == [f"48 photos to train, {HELD_OUT} held out"]
    last = printed(onnx_triton, "fit")[-1]
    assert re.fullmatch(r"[01]\.\d{3} of the held-out photos get the right label; 0\.\d{3} of them are dogs", last)


def test_onnx_triton_says_what_the_bundle_and_the_onnx_file_hold(onnx_triton):
    bundle = dict(line.split(maxsplit=1) for line in printed(onnx_triton, "save"))
    assert (bundle["labels"], bundle["image_size"], bundle["resize_method"]) == ("('cat', 'dog')", "(32, 32)", "crop")
    image, probabilities, *batches, _, labels, about = printed(onnx_triton, "graph")
    assert re.fullmatch(r"image +tensor\(uint8\) +\['\w+', 3, 32, 32\]", image)
    assert re.fullmatch(r"probabilities +tensor\(float\) +\['\w+', 2\]", probabilities)
    assert batches == [f"{n} images in, ({n}, 2) out" for n in (1, 3, 8)]
    assert re.match(r'model\.json +\{ "task": "classification", "architecture": "resnet18"', about)
    assert labels.split(maxsplit=1) == ["labels", '["cat", "dog"]']


def test_onnx_triton_gets_the_answers_of_learn_predict_without_torch(onnx_triton):
    assert printed(onnx_triton, "alone")[-1] == "torch imported: False"
    assert_as_learn_predict(printed(onnx_triton, "compare")[0], HELD_OUT)


def test_onnx_triton_quantises_to_a_third_of_the_size_or_less(onnx_triton):
    *_, sizes, compared, right = printed(onnx_triton, "int8")
    numbers = re.fullmatch(r"([\d,]+) bytes in float32, ([\d,]+) in int8", sizes).groups()
    float32, int8 = (int(number.replace(",", "")) for number in numbers)
    assert 0 < int8 < float32 / 3
    same, of, difference = agreement(compared)
    assert 0 <= same <= of == HELD_OUT
    assert CLOSE < difference <= 1  # it is another file
    assert re.fullmatch(rf"right: \d+ of {HELD_OUT} in float32, \d+ in int8", right)


def test_onnx_triton_shows_its_repository_and_how_to_serve_it(onnx_triton):
    files = [line.split("bytes  ")[1] for line in printed(onnx_triton, "tree")]
    assert {name.partition("/")[0] for name in files} == {"pets", "pets_network", "pets_preprocess"}
    assert "pets_network/1/model.onnx" in files
    assert any(line.startswith("to serve:   docker run") for line in printed(onnx_triton, "repository"))
    config = printed(onnx_triton, "config")
    assert 'platform: "ensemble"' in config
    assert 'platform: "onnxruntime_onnx"' in config


def test_onnx_triton_says_how_to_ask_a_server_that_it_has_not(onnx_triton):
    (line,) = printed(onnx_triton, "ask-triton")
    assert line.startswith("not asked: start Triton")


def test_onnx_triton_compares_the_paths_in_one_table(onnx_triton):
    rows = table(onnx_triton)
    assert list(rows) == WITHOUT_SERVERS.split(",")
    assert [cells[:2] for cells in rows.values()] == [[str(HELD_OUT)] * 2] * 3
    assert [cells[-1] for cells in rows.values()] == ["agrees"] * 3
    assert printed(onnx_triton, "verify")[-1] == "all that ran agree: True"


def test_onnx_triton_shows_its_photos(onnx_triton):
    assert [pictures(onnx_triton, cell) for cell in ("show-photos", "show-answers")] == [1, 1]


def test_onnx_triton_leaves_nothing(onnx_triton, home, temporary):
    assert_nothing_is_left(onnx_triton, home, temporary)


def test_onnx_triton_gives_a_command_that_jobs_verify_takes():
    text = "\n".join(cell.source for cell in nbformat.read(ONNX_TRITON, 4).cells if cell.cell_type == "markdown")
    (command,) = re.findall(r"^fastmaker verify (.*)$", text, re.MULTILINE)
    assert verify.parse_args(shlex.split(command)).triton == "grpc://127.0.0.1:8001"


def test_onnx_triton_compares_all_paths_by_default():
    (parameters,) = (cell.source for cell in nbformat.read(ONNX_TRITON, 4).cells if cell.id == "parameters")
    assert f'"PATHS", "{",".join(NAMES)}")' in parameters


@pytest.mark.slow
def test_onnx_triton_says_what_to_do_when_the_photos_cannot_be_downloaded(environment, tmp_path):
    with pytest.raises(CellFailed, match=r"cannot be downloaded .*refused.*set PETS_DIR"):
        execute_without_data(environment, ONNX_TRITON, "find-photos", "PETS_DIR", tmp_path)


@pytest.mark.data
@pytest.mark.slow
def test_onnx_triton_has_the_same_labels_on_every_path_for_real_photos(environment, home, test_data, tmp_path):
    values = {"ARCH": "resnet18", "PHOTOS": 200, "EPOCHS": 1, "IMAGE_SIZE": 128, "PRETRAINED": "false"}
    notebook = run(environment, tmp_path, PETS_DIR=test_data / "pets" / "images", **values)
    assert_as_learn_predict(printed(notebook, "compare")[0], 40)
    assert printed(notebook, "verify")[-1] == "all that ran agree: True"
    assert {path for path, cells in table(notebook).items() if cells[-1] == "agrees"} == {*NAMES} - {"triton"}
    assert_nothing_is_left(notebook, home, tmp_path)
