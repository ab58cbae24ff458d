"""The gate: every path on the same images."""

import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import PATIENCE, REPOSITORY, exports, task_bundles
from helpers.commands import one_line
from helpers.local_mode import nothing_runs_below, running_below, wait_until
from PIL import Image

from fastmaker import bundle
from fastmaker.jobs import verify
from fastmaker.jobs.cli import errors
from fastmaker.jobs.packaging import exported
from fastmaker.jobs.verification import routes
from fastmaker.jobs.verification.comparison import Answer, Route, answer
from fastmaker.jobs.verification.routes import NAMES


@pytest.fixture
def gate(tmp_path, monkeypatch, capsys):
    """gate(*words) -> the exit status, and what was printed and said on stderr; its servers are gone then."""
    monkeypatch.setenv("FASTMAKER_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def gate(*words) -> tuple[int, str, str]:
        try:
            with errors.errors_as_one_line():
                status = verify.main(verify.parse_args(list(map(str, words))))
        except SystemExit as ended:
            status = ended.code
        return status, *capsys.readouterr()

    yield gate
    assert not running_below(tmp_path)


# Of paths whose packages are extras, what each may end as.
EXTRAS = {
    "openvino": ("agrees", "not run: openvino is not installed here: pip install openvino"),
    "ray": ("agrees", "not run: Ray Serve is not installed: `pip install 'fastmaker[ray]'` brings it"),
}
EXTRAS["openvino bf16"] = (*EXTRAS["openvino"], "not run: OpenVINO has no units for bf16 on this processor")


def rows(printed: str) -> dict[str, list[str]]:
    """The cells of each path's row."""
    lines = [re.split(r"  +", line) for line in printed.splitlines()]
    return {cells[0]: cells[1:] for cells in lines if cells[0] in (*NAMES, "bf16", "openvino bf16", "int8")}


def test_every_path_of_a_classifier_agrees(gate, digits_bundle, digits, tmp_path):
    images = sorted(digits.rglob("*.png"))[::200]
    status, printed, _ = gate(digits_bundle, *images, "--bf16", 0.1, "--int8", 0.5)
    assert status == 0, printed
    found = rows(printed)
    assert list(found) == [*NAMES, "bf16", "openvino bf16", "int8"]
    assert found.pop("triton")[-1].startswith("not run: --triton names a server")
    for path, results in EXTRAS.items():
        assert found.pop(path)[-1] in results
    assert {cells[-1] for cells in found.values()} == {"agrees"}
    for path in ("fastai", "torch", "endpoint", "torchserve", "onnxruntime"):
        assert found[path][:2] == [str(len(images))] * 2
        assert float(found[path][2]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("task", ["multilabel", "points", "regression"])
def test_every_path_of_every_task_agrees(gate, tmp_path, photos, task):
    files = sorted(photos.rglob("*.jpg"))[::12]
    folder = task_bundles.save(tmp_path / "bundle", task)
    status, printed, _ = gate(folder, *files, "--bf16", 0.5, "--int8", 2)
    assert status == 0, printed
    found = rows(printed)
    assert found.pop("triton")[-1].startswith("not run: --triton names a server")
    for path, results in EXTRAS.items():
        assert found.pop(path)[-1] in results
    assert {cells[-1] for cells in found.values()} == {"agrees"}
    for path in ("fastai", "torch", "endpoint", "torchserve", "onnxruntime"):
        assert found[path][:2] == ([str(len(files) * 3)] * 2 if task == "multilabel" else ["-", "-"])
        assert float(found[path][2]) < 1e-5


@pytest.mark.slow
def test_every_path_of_a_unet_agrees(gate, scenes_bundle, scenes):
    images = sorted((scenes / "images").iterdir())[:3]
    status, printed, _ = gate(scenes_bundle, *images)
    assert status == 0, printed
    found = rows(printed)
    found.pop("triton")
    for path in ("openvino", "ray"):
        assert found.pop(path)[-1] in EXTRAS[path]
    pixels = str(3 * 40 * 56)
    assert [cells[:2] for cells in found.values()] == [[pixels, pixels]] * 5
    assert {cells[-1] for cells in found.values()} == {"agrees"}


def test_a_path_that_is_further_off_than_the_tolerance_fails_the_gate(gate, digits_bundle, digits):
    image = next(digits.rglob("*.png"))
    status, printed, _ = gate(digits_bundle, image, "--paths", "fastai,torch", "--bf16", 1e-9)
    assert status == 1
    found = rows(printed)
    assert list(found) == ["fastai", "torch", "bf16"]
    assert found["torch"][-1] == "agrees"
    assert re.fullmatch(rf"FAILED: {image}: off by \d\.\de-\d\d, more than 1e-09", found["bf16"][-1])


def test_another_answer_fails_the_gate_and_is_drawn(gate, digits_bundle, digits, tmp_path):
    import onnx

    from fastmaker.export import onnx_file

    shutil.copytree(digits_bundle, tmp_path / "model")
    onnx_file.to_onnx(tmp_path / "model", tmp_path / "model" / "model.onnx")
    altered = onnx.load(tmp_path / "model" / "model.onnx")
    weights = max(altered.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weights.raw_data = (-np.frombuffer(weights.raw_data, np.float32)).tobytes()
    onnx.save(altered, tmp_path / "model" / "model.onnx")
    images = sorted(digits.rglob("*.png"))[::300]
    words = ["--paths", "torch,onnxruntime", "--picture", "pictures/differing.png"]
    status, printed, _ = gate(tmp_path / "model", *images, *words)
    assert status == 1
    assert rows(printed)["onnxruntime"][-1].startswith(f"FAILED: {images[0]}: ")
    assert "picture: pictures/differing.png" in printed
    Image.open(tmp_path / "pictures" / "differing.png").verify()


@pytest.fixture(scope="module")
def export(photos, tmp_path_factory):
    """A notebook's export, and its bundle, which has steps."""
    folder = exports.make(photos, tmp_path_factory.mktemp("exports") / "notebook", "steps")
    exported.convert(folder / "steps.pkl", folder / "model")
    return folder / "steps.pkl", folder / "model"


@pytest.mark.slow
def test_an_exported_learner_is_fastais_side(gate, export, photos):
    file, model = export
    assert bundle.load_info(model).steps
    images = sorted(photos.rglob("*.jpg"))[::12]
    status, printed, said = gate(model, *images, "--paths", "fastai,torch", "--learner", file, "--trust")
    assert status == 0, printed + said
    assert rows(printed)["fastai"][-1] == rows(printed)["torch"][-1] == "agrees"
    assert float(rows(printed)["torch"][2]) < 1e-6


@pytest.mark.slow
def test_a_bundle_that_is_not_the_exported_learners_fails_the_gate(gate, export, digits_bundle, photos, tmp_path):
    file, model = export
    network, info = bundle.load(model)
    with torch.no_grad():
        next(network.parameters()).mul_(-1)
    bundle.save(tmp_path / "other", network, info)
    image = next(photos.rglob("*.jpg"))
    for other in (tmp_path / "other", digits_bundle):
        status, _, _ = gate(other, image, "--paths", "fastai,torch", "--learner", file, "--trust")
        assert status == 1


def test_an_exported_learners_own_labels_are_compared():
    """Not those that the bundle would give its numbers."""
    numbers = np.array([0.3, 0.9], np.float32)
    several = SimpleNamespace(task="multilabel", labels=("cat", "dog"), threshold=0.5)
    given = {"array": numbers, "classes": np.array([True, True]), "decoded": np.array(["cat", "dog"])}
    found = routes.of_export(given, several)
    assert found.classes.tolist() == [True, True]
    route = Route("torch", 1e-4, None)
    assert not route.compare("image.png", answer(numbers, several), found)
    assert route.failure == "image.png: another answer"
    one = SimpleNamespace(task="classification", labels=("cat", "dog"))
    given = {"array": numbers, "classes": np.array(1), "decoded": np.array("dog")}
    assert routes.of_export(given, one).classes == 1
    for changed in ({"decoded": np.array("cat")}, {"classes": np.array(0)}):
        with pytest.raises(ValueError, match="the Learner's label is"):
            routes.of_export(given | changed, one)


def test_paths_of_which_only_one_can_run_are_no_pass(gate, digits_bundle, digits):
    status, _, said = gate(digits_bundle, next(digits.rglob("*.png")), "--paths", "torch,triton")
    assert status == 1
    assert one_line(said) == "error: nothing is compared: fewer than two paths can run here"


@pytest.mark.ray
def test_ray_serve_agrees_and_a_bundle_that_it_cannot_serve_is_not_run(gate, digits_bundle, digits, tmp_path):
    image = next(digits.rglob("*.png"))
    status, printed, _ = gate(digits_bundle, image, "--paths", "torch,ray")
    assert status == 0
    assert rows(printed)["ray"][:2] == ["1", "1"]
    assert rows(printed)["ray"][-1] == "agrees"
    shutil.copytree(digits_bundle, tmp_path / "model")
    (tmp_path / "model" / bundle.RAY_FILE).unlink()
    _, printed, _ = gate(tmp_path / "model", image, "--paths", "torch,ray")
    reason = "the bundle has no config.yaml: an earlier version of fastmaker wrote it"
    assert rows(printed)["ray"][-1] == f"not run: {reason}"


def test_masks_without_probabilities_are_compared_by_their_pixels_alone():
    """As servers give them, where the reference is one of these."""
    mask = np.arange(12).reshape(3, 4) % 3
    other = np.where(mask == 2, 0, mask)
    probabilities = np.stack([other == k for k in range(3)]).astype(np.float32)
    expected = Answer(mask, None)
    for found in (Answer(other, None), Answer(other, probabilities)):
        route = Route("torchserve", 1e-4, None)
        assert route.compare("same.png", expected, expected)
        assert not route.failure
        assert not route.compare("other.png", found, expected)
        assert route.failure == "other.png: another answer"
        assert (route.equal, route.total, route.largest) == (20, 24, None)


def test_a_path_that_cannot_start_fails_the_gate_with_its_reason(gate, digits_bundle, digits, tmp_path):
    shutil.copytree(digits_bundle, tmp_path / "model")
    (tmp_path / "model" / "model.onnx").write_bytes(b"no model")
    status, printed, _ = gate(tmp_path / "model", next(digits.rglob("*.png")), "--paths", "torch,onnxruntime")
    assert status == 1
    assert "FAILED: BundleError" in rows(printed)["onnxruntime"][-1]
    assert rows(printed)["torch"][-1] == "agrees"


@pytest.mark.server
def test_a_gate_that_is_terminated_leaves_nothing_running(digits_bundle, digits, tmp_path):
    path = os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / "source")))
    env = {**os.environ, "FASTMAKER_HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path), "PYTHONPATH": path}
    command = [
        sys.executable,
        "-m",
        "fastmaker.jobs",
        "verify",
        digits_bundle,
        digits,
        "--paths",
        "torchserve,endpoint",
    ]
    process = subprocess.Popen(command, env=env, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: running_below(tmp_path, "ts.model_server"))
    finally:
        process.terminate()
        assert process.wait(PATIENCE) == 130
    assert process.stderr.read() == "error: interrupted\n"
    assert nothing_runs_below(tmp_path)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("{model} nothing.png", "nothing.png"),
        ("{model} {empty}", "the folder holds no image"),
        ("{model} {model}/model.json", "model.json: the "),
        ("{empty} {digit}", "is no bundle: it lacks"),
        ("{model} {digit} --tolerance 0", "argument --tolerance: 0: expected more than 0"),
        ("{model} {digit} --learner {digit}", "if you trust it, add --trust"),
        ("{model} {digit} --trust", "--trust, --import and --ignore go with --learner FILE"),
        ("{model} {digit} --learner {digit} --trust --paths torch", "--paths leaves out fastai"),
        ("{model} {digit} --paths torch,fast", "'fast': expected some of fastai,torch,endpoint"),
    ],
)
def test_bad_usage_gets_one_line(gate, digits_bundle, digits, tmp_path, words, reason):
    (tmp_path / "empty").mkdir()
    values = {"model": digits_bundle, "digit": next(digits.rglob("*.png")), "empty": tmp_path / "empty"}
    status, _, said = gate(*(word.format(**values) for word in words.split()))
    assert status == 2
    assert reason in one_line(said)
