"""Every notebook is kept without outputs; the pets notebook runs from top to bottom, on photos that are made here."""

import nbformat
import pytest
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

from fastmaker.local import ProcessSession

PETS = NOTEBOOKS / "01_pets_local_mode.ipynb"
LABELS = {"cats_dogs": {"cat", "dog"}, "breeds": {"Bombay", "beagle"}}


@pytest.fixture(scope="module", params=[pytest.param(name, marks=pytest.mark.slow) for name in LABELS])
def task(request):
    return request.param


@pytest.fixture(scope="module")
def pets(environment, home, tmp_path_factory, task):
    """The pets notebook after a run on 60 small photos."""
    photos = tmp_path_factory.mktemp("pets")
    make_photos(photos, 30)
    values = {"TASK": task, "EPOCHS": "1", "IMAGE_SIZE": "32", "ARCH": "resnet18", "PRETRAINED": "false"}
    for name, value in {"PETS_DIR": str(photos), **values}.items():
        environment.setenv(name, value)
    notebook = nbformat.read(PETS, 4)
    execute(notebook, NOTEBOOKS)
    return notebook


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_its_outputs(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert notebook.metadata.kernelspec.name == "python3"


def test_pets_trains_on_all_photos_but_eight(pets, task):
    assert printed(pets, "find-photos")[0].startswith("60 photos")
    assert printed(pets, "arrange-photos") == ["52 photos to train and validate, 2 classes"]
    layout = {"cats_dogs": "class folders", "breeds": "label regex"}[task]
    assert any(f"found {layout}: 42 images to train, 10 to validate" in line for line in printed(pets, "fit"))


def test_pets_prints_each_metric_that_it_defines(pets):
    metrics = dict(line.split() for line in printed(pets, "metrics"))
    assert metrics.keys() == {"train:loss", "valid:loss", "valid:accuracy"}
    assert 0 <= float(metrics["valid:accuracy"]) <= 1


def test_pets_shows_the_pictures_of_the_report(pets):
    assert pictures(pets, "report") == 3


def test_pets_gets_a_known_label_for_each_photo_that_was_kept_away(pets, task):
    answers = [line.split() for line in printed(pets, "predict")]
    assert len({photo for photo, _, _ in answers}) == 8
    assert {label for _, label, _ in answers} <= LABELS[task]
    assert all(0.5 <= float(probability) <= 1 for _, _, probability in answers)
    assert pictures(pets, "predict") == 1


def test_pets_shows_why_a_bad_request_is_refused(pets):
    status, reason = printed(pets, "bad-request")
    assert status == "status 400"
    assert "image" in reason


def test_pets_leaves_nothing_but_its_training_job(pets, home):
    client = ProcessSession(home=home).sagemaker_client
    assert client.list_endpoints()["Endpoints"] == []
    assert client.list_endpoint_configs()["EndpointConfigs"] == []
    assert client.list_models()["Models"] == []
    assert processes_of(home) == []
    assert any("training-job" in line and "Completed" in line for line in printed(pets, "left"))


@pytest.mark.server
def test_pets_says_what_to_do_when_the_photos_cannot_be_downloaded(environment, tmp_path):
    with pytest.raises(CellFailed, match=r"cannot be downloaded .*refused.*set PETS_DIR"):
        execute_without_data(environment, PETS, "find-photos", "PETS_DIR", tmp_path)
