"""Exports of a notebook whose functions are missing here: stand-ins where no answer depends on them, else a refusal."""

import importlib.util
import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.vision.all import (
    CastToTensor,
    DataBlock,
    ImageBlock,
    Learner,
    MSELossFlat,
    RegressionBlock,
    Resize,
    get_image_files,
)
from helpers import exports

from fastmaker import bundle, networks, preprocess
from fastmaker.serving import models
from fastmaker.training import exported, old_fastai, stand_ins, unpickling

# Code objects of Python 3.10 do not say of which class they are: fastai's own methods are not found again by them.
with_qualnames = pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10's code objects have no qualname")
pytestmark = pytest.mark.learner

NAMES = (
    "functions", "get_x", "transform", "only_trains", "loss", "callback", "network", "module", "by_value",
    "of_another_python", "network_of_another_python", "fp16", "parallel", "distributed",
)  # fmt: skip
with_dill = pytest.mark.skipif(not importlib.util.find_spec("dill"), reason="dill is not installed")
OF_FUNCTIONS = ["__main__.is_striped", "__main__.my_metric", "__main__.my_splitter"]


def number(file):
    return float(file.stem)


@pytest.fixture(scope="module")
def files(photos, tmp_path_factory):
    """The folder with the exports of NAMES."""
    names = (*NAMES, "dill") if importlib.util.find_spec("dill") else NAMES
    return exports.make(photos, tmp_path_factory.mktemp("exports") / "notebook", *names)


def converted(file, model_dir, **options):
    """The names that had stand-ins; the bundle is in `model_dir`."""
    loaded = exported.load(file, **options)
    loaded.save_bundle(model_dir)
    return loaded.stand_ins.names()


def assert_answers(model_dir, photos, file):
    """The bundle answers the first photo as the Learner did where it was made."""
    image = preprocess.decode(min(photos.rglob("*.jpg")).read_bytes())
    [found] = models.load(model_dir, precision="float32").predict([image])
    assert np.allclose(found.probabilities, np.load(file.with_suffix(".npy")), rtol=0, atol=1e-6)


def refusal(file, tmp_path, **options):
    with pytest.raises(bundle.BundleError) as raised:
        converted(file, tmp_path / "model", **options)
    assert not (tmp_path / "model").exists()
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("functions", OF_FUNCTIONS),
        ("only_trains", ["__main__.OnlyTrains", "__main__.get_y"]),
        ("by_value", []),
        pytest.param("of_another_python", ["__main__.get_y"], marks=with_qualnames),
    ],
)
def test_what_no_answer_depends_on_has_a_stand_in_and_is_named(files, photos, tmp_path, name, missing):
    file = files / f"{name}.pkl"
    assert sorted(converted(file, tmp_path / "model")) == sorted(missing)
    assert_answers(tmp_path / "model", photos, file)


@pytest.mark.parametrize(
    ("name", "missing", "reason"),
    [
        ("get_x", "__main__.darker", "--import FILE.py"),
        ("transform", "__main__.Halved", "--import FILE.py"),
        ("loss", "__main__.my_loss", "--import FILE.py"),
        ("callback", "__main__.Doubled", "--ignore __main__.Doubled leaves it out"),
        ("network", "__main__.Net", "--import FILE.py"),
        ("module", "my_models.Net", "whose package my_models is not installed here"),
        pytest.param(
            "network_of_another_python", "__main__.forward", "bytecode of another Python", marks=with_qualnames
        ),
    ],
)
def test_what_an_answer_depends_on_is_refused_by_name(files, tmp_path, name, missing, reason):
    said = refusal(files / f"{name}.pkl", tmp_path)
    assert missing in said
    assert reason in said


@pytest.mark.parametrize("name", ["network", pytest.param("network_of_another_python", marks=with_qualnames)])
def test_a_file_that_defines_the_missing_class_takes_its_place(files, photos, tmp_path, name):
    file = files / f"{name}.pkl"
    assert converted(file, tmp_path / "model", imports=[str(exports.NOTEBOOK)]) == []
    assert_answers(tmp_path / "model", photos, file)


ON_DEVICES = [("functions", b"cuda:0"), ("distributed", None)]
SLOW_ON_DEVICES = [("functions", b"mps:0"), ("parallel", None), ("parallel", b"cuda:7"), ("distributed", b"cuda:1")]
SLOW_ON_DEVICES += [("fp16", None), ("fp16", b"cuda:0")]


@pytest.mark.parametrize(
    ("name", "device"), [*ON_DEVICES, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW_ON_DEVICES)]
)
def test_an_export_of_a_gpu_of_half_precision_or_of_several_processes_is_converted(
    files, photos, tmp_path, name, device
):
    file = files / f"{name}.pkl"
    if device:  # torch notes the device of each tensor
        cpu, other = b"X\x03\x00\x00\x00cpu", b"X" + len(device).to_bytes(4, "little") + device
        file = exports.changed(file, tmp_path / "export.pkl", (cpu, other))
        np.save(file.with_suffix(".npy"), np.load(files / f"{name}.npy"))
    converted(file, tmp_path / "model")
    assert_answers(tmp_path / "model", photos, file)


@with_dill
def test_an_export_by_dill_holds_the_notebooks_code(files, photos, tmp_path):
    assert converted(files / "dill.pkl", tmp_path / "model") == []
    assert_answers(tmp_path / "model", photos, files / "dill.pkl")


@with_dill
def test_an_export_by_dill_needs_dill(files, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "dill"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "dill", None)
    said = refusal(files / "dill.pkl", tmp_path)
    assert said.endswith("dill.pkl cannot be loaded without the package dill: install it")


def test_an_imported_transform_that_changes_pixels_is_refused_as_any_other(files, tmp_path):
    said = refusal(files / "transform.pkl", tmp_path, imports=[str(exports.NOTEBOOK)])
    assert said.startswith("the Learner's Halved changes validation images")


def test_an_imported_callback_that_changes_answers_is_refused(files, tmp_path):
    said = refusal(files / "callback.pkl", tmp_path, imports=[str(exports.NOTEBOOK)])
    assert "callback Doubled also runs when the Learner predicts (after_pred)" in said


@pytest.mark.parametrize("imports", [[], [str(exports.NOTEBOOK)]], ids=["missing", "imported"])
def test_a_callback_can_be_ignored_by_name(files, tmp_path, imports):
    missing = converted(files / "callback.pkl", tmp_path / "model", ignored=["__main__.Doubled"], imports=imports)
    assert ("__main__.Doubled" in missing) == (not imports)


PATH_HERE = f"c{type(Path()).__module__}\nPosixPath\n".encode()  # how this Python's pickles name the class


@pytest.mark.parametrize(
    ("here", "there"),
    [
        (PATH_HERE, b"cpathlib\nWindowsPath\n"),
        (PATH_HERE, b"cpathlib\nPosixPath\n"),
        (PATH_HERE, b"cpathlib._local\nPosixPath\n"),  # of Python 3.13
        (b"cfasttransform.transform\n", b"cfastcore.transform\n"),  # of fastai before 2.8
    ],
)
def test_what_other_systems_and_versions_name_otherwise_is_found(files, photos, tmp_path, here, there):
    file = exports.changed(files / "functions.pkl", tmp_path / "export.pkl", (here, there))
    np.save(file.with_suffix(".npy"), np.load(files / "functions.npy"))
    assert sorted(converted(file, tmp_path / "model")) == OF_FUNCTIONS
    assert_answers(tmp_path / "model", photos, file)


def test_a_transform_of_an_older_fastcore_dispatches_as_it_did():
    """Its functions by the types of two arguments; the more special types come first."""

    def upper(value) -> str:
        return value.upper()

    def none(value: int) -> None:
        return None

    def of_second(function):
        return type_dict({object: function})

    def type_dict(functions):
        made = old_fastai.find("fastcore.dispatch", "_TypeDict")()
        made.d = functions
        return made

    dispatch = old_fastai.find("fastcore.dispatch", "TypeDispatch")()
    dispatch.funcs = type_dict({bool: of_second(none), str: of_second(upper), int: of_second(abs)})
    dispatch.bases = []
    transform = old_fastai.find("fastcore.transform", "Transform")()
    transform.encodes = transform.decodes = dispatch
    assert [transform(value) for value in ("a", -3, 2.5, True)] == ["A", 3, 2.5, None]
    assert transform.decode(("b", -1)) == ("B", 1)
    assert dispatch(2.5) == 2.5


def test_an_export_as_fastai_before_2_7_made_it_answers_with_numbers(photos, tmp_path):
    """It had no CastToTensor, without which numbers are decoded as pixels; each transform held its own before_call."""
    blocks = DataBlock((ImageBlock, RegressionBlock), get_items=get_image_files, get_y=number, item_tfms=Resize(32))
    dls = blocks.dataloaders(photos, bs=4, num_workers=0)
    learn = Learner(dls, networks.convnet(1, 3), loss_func=MSELossFlat())
    file = min(photos.rglob("*.jpg"))
    with learn.no_bar(), learn.no_logging():
        expected = learn.predict(file)[2].numpy()
    learn.remove_cb(CastToTensor)
    [resize] = [transform for transform in dls.valid.after_item.fs if isinstance(transform, Resize)]
    resize.before_call = resize.before_call
    learn.export(tmp_path / "export.pkl")
    converted(tmp_path / "export.pkl", tmp_path / "model")
    [found] = models.load(tmp_path / "model", precision="float32").predict([preprocess.decode(file.read_bytes())])
    assert np.allclose(found.array, expected, rtol=0, atol=1e-6)


def test_a_name_that_another_version_of_fastai_had_is_told_by_the_versions(files, tmp_path):
    old = (b"cfastai.losses\nCrossEntropyLossFlat\n", b"cfastai.losses\nOldCrossEntropy\n")
    file = exports.changed(files / "functions.pkl", tmp_path / "old.pkl", old)
    said = refusal(file, tmp_path)
    assert re.search(r"fastai.losses.OldCrossEntropy, which fastai \d[\d.]+ does not have: .* another version", said)


def test_a_swallowed_error_does_not_hide_that_a_stand_in_was_used():
    missing = stand_ins.StandIns()
    get_y = missing.make("__main__", "get_y", "why")
    missing.loading = False
    assert missing.error() is None
    with pytest.raises(stand_ins.MissingError):
        get_y("image.jpg")
    assert str(missing.error()) == "the answer depends on __main__.get_y, why"


@pytest.mark.parametrize("use", [len, list, lambda one: one[0], lambda one: one.name, lambda one: one(1)])
def test_an_object_of_a_missing_class_cannot_be_used(use):
    missing = stand_ins.StandIns()
    instance = missing.make("__main__", "Net", "why")()
    instance.__setstate__({"name": 1})
    missing.loading = False
    with pytest.raises(stand_ins.MissingError, match=re.escape("__main__.Net")):
        use(instance)


def test_bytecode_of_another_python_is_told_by_its_form():
    def function(value):
        return max(value.items[0], 3)

    operations = function.__code__.co_code
    assert unpickling._is_of_this_python(operations)
    assert not unpickling._is_of_this_python(bytes([*operations[:4], 255, 0, *operations[6:]]))


def saved(kind, files, folder):
    """A file that is no export."""
    path = folder / "export.pkl"
    whole = (files / "functions.pkl").read_bytes()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("<html>not found</html>")
    elif kind == "cut short":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "archive":
        import zipfile

        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("cat.jpg", b"no")
    elif kind == "learn.save":
        torch.save({"model": {"0.weight": torch.ones(2)}, "opt": {}}, path)
    elif kind == "state_dict":
        torch.save({"0.weight": torch.ones(2)}, path)
    elif kind == "network":
        torch.save(torch.nn.Linear(2, 2), path)
    elif kind == "list":
        path.write_bytes(pickle.dumps([1, 2]))
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("empty", "is empty"),
        ("text", "is no file of learn.export, or is cut short"),
        ("cut short", "is cut short: copy it again"),
        ("archive", "is an archive that learn.export did not write"),
        ("learn.save", "made by learn.save or torch.save, not by learn.export"),
        ("state_dict", "made by learn.save or torch.save, not by learn.export"),
        ("network", "it holds a network alone, Linear; expected a file of learn.export"),
        ("list", "is no file of learn.export, or is cut short"),
    ],
)
def test_a_file_that_is_no_export_gets_one_line(files, tmp_path, kind, reason):
    assert reason in refusal(saved(kind, files, tmp_path), tmp_path)
