"""The CamVid notebook runs from top to bottom, on generated scenes and on CamVid, with one mask at every stop."""

import re
import shlex
from pathlib import Path

import nbformat
import pytest
from helpers.kernels import NOTEBOOKS, CellFailed, execute, execute_without_data, pictures, printed, processes_of, up_to

from fastmaker.jobs import package
from fastmaker.local import ProcessSession

CELL_SECONDS = 1200
CAMVID = NOTEBOOKS / "03_camvid_unet_torchserve.ipynb"
STOPS = ["bundle", "TorchServe, JSON", "endpoint, JSON", "endpoint, PNG, enlarged"]


pytestmark = pytest.mark.slow  # the pets notebook runs in the suite


def run(environment, temporary: Path, **values):
    """The notebook after a run whose temporary files lie in `temporary`."""
    for name, value in {**values, "TMPDIR": temporary}.items():
        environment.setenv(name, str(value))
    notebook = nbformat.read(CAMVID, 4)
    execute(notebook, NOTEBOOKS, cell_seconds=CELL_SECONDS)
    return notebook


def assert_all_stops_agree(notebook, pixels: int, enlarged: int) -> None:
    """Each stop's row of the table says that all of so many pixels agree."""
    rows = [re.split(r"  +", line) for line in printed(notebook, "table")[2:]]
    counts = [f"{pixels}"] * 3 + [f"{enlarged}"]
    assert rows == [[stop, count, count, "100.00%"] for stop, count in zip(STOPS, counts, strict=True)]


def assert_nothing_is_left(notebook, home: Path, temporary: Path) -> None:
    client = ProcessSession(home=home).sagemaker_client
    assert client.list_endpoints()["Endpoints"] == []
    assert client.list_endpoint_configs()["EndpointConfigs"] == []
    assert client.list_models()["Models"] == []
    assert [*processes_of(home), *processes_of(temporary)] == []
    assert list(temporary.iterdir()) == []
    assert printed(notebook, "left") == ["nothing is left"]


@pytest.fixture(scope="module")
def temporary(tmp_path_factory):
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def camvid(environment, home, scenes, temporary):
    """The notebook after a run on the 15 generated scenes, at 32x48 pixels."""
    values = {"ARCH": "resnet18", "EPOCHS": 1, "IMAGE_SIZE": "32x48", "BATCH_SIZE": 4, "PRETRAINED": "false"}
    return run(environment, temporary, CAMVID_DIR=scenes, **values)


def test_camvid_trains_on_all_scenes_but_a_fifth(camvid):
    assert printed(camvid, "find-scenes") == ["15 of 15 scenes, 4 classes"]
    assert printed(camvid, "learner") == ["12 scenes to train, 3 held out"]
    assert re.fullmatch(r"[01]\.\d{3} of the pixels of the held-out scenes are right", printed(camvid, "fit")[-1])


def test_camvid_says_what_the_bundle_holds(camvid):
    lines = [line.split(maxsplit=1) for line in printed(camvid, "save")]
    told = {name: value for name, value in lines if not name[0].isdigit()}
    assert told["task"] == "segmentation"
    assert told["labels"] == "['ground', 'box', 'disc', 'Void']"
    assert (told["image_size"], told["resize_method"], told["void_code"]) == ("[32, 48]", "squish", "3")
    assert len(lines) - len(told) == 3


def test_camvid_fills_the_network_strictly_and_answers_without_fastai(camvid):
    assert printed(camvid, "strict")[0] == "<All keys matched successfully>"
    assert re.fullmatch(r"\d+ tensors, keys as in fastai: True", printed(camvid, "strict")[1])
    assert printed(camvid, "alone")[:2] == ["mask (32, 48) uint8", "fastai imported: False"]


def test_camvid_has_the_mask_and_the_probabilities_of_learn_predict_in_the_bundle(camvid):
    expected = ["4,608 of 4,608 pixels equal", "largest difference of a probability: 0.0"]
    assert printed(camvid, "compare") == expected


def test_camvid_gets_the_same_mask_at_every_stop(camvid):
    assert printed(camvid, "torchserve")[-2:] == ["mask (32, 48) uint8", "4,608 of 4,608 pixels equal"]
    assert printed(camvid, "invoke") == ["4,608 of 4,608 pixels equal"]
    assert printed(camvid, "original")[0].startswith("sent (192, 128), got (192, 128), ")
    assert_all_stops_agree(camvid, 3 * 32 * 48, 128 * 192)


def test_camvid_shows_its_scenes_and_masks(camvid):
    assert [pictures(camvid, cell) for cell in ("show-scene", "show-masks", "original")] == [1, 1, 1]


def test_camvid_leaves_nothing(camvid, home, temporary):
    assert_nothing_is_left(camvid, home, temporary)


def test_camvid_gives_a_command_that_jobs_package_takes():
    text = "\n".join(cell.source for cell in nbformat.read(CAMVID, 4).cells if cell.cell_type == "markdown")
    (command,) = re.findall(r"^fastmaker package (.*)$", text, re.MULTILINE)
    args = package.parse_args(shlex.split(command))
    assert f":{args.port}/predictions/{args.model_name}\n" in text


def test_camvid_says_what_is_missing(environment, tmp_path):
    (tmp_path / "images").mkdir()
    with environment.context() as patch:
        patch.setenv("CAMVID_DIR", str(tmp_path))
        with pytest.raises(CellFailed, match=r"lacks labels, codes\.txt; expected .* CAMVID_TINY"):
            execute(up_to(nbformat.read(CAMVID, 4), "find-scenes"), NOTEBOOKS)


def test_camvid_says_what_to_do_when_the_scenes_cannot_be_downloaded(environment, tmp_path):
    with pytest.raises(CellFailed, match=r"cannot be downloaded .*refused.*set CAMVID_DIR"):
        execute_without_data(environment, CAMVID, "find-scenes", "CAMVID_DIR", tmp_path)


@pytest.mark.data
def test_camvid_has_one_mask_at_every_stop_on_real_scenes(environment, home, test_data, tmp_path):
    values = {"ARCH": "resnet18", "SCENES": 60, "EPOCHS": 2, "IMAGE_SIZE": "96x128", "PRETRAINED": "false"}
    notebook = run(environment, tmp_path, CAMVID_DIR=test_data / "camvid", **values)
    assert printed(notebook, "learner") == ["48 scenes to train, 12 held out"]
    assert_all_stops_agree(notebook, 12 * 96 * 128, 16 * 96 * 128)
    assert_nothing_is_left(notebook, home, tmp_path)
