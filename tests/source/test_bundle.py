"""What a bundle holds, that it serves on its own, and what is said of one that is damaged."""

import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from fastmaker import bundle, networks

INFO = bundle.ModelInfo(
    task="classification",
    architecture="convnet",
    labels=("cat", "Zürich", "東京"),
    image_mode="RGB",
    image_size=(20, 30),
    resize_method="pad",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    metrics={"accuracy": 0.75},
)


def network(n_out=3, n_in=3):
    return networks.classifier("convnet", n_out, n_in)


@pytest.fixture
def folder(digits_bundle, tmp_path):
    """A bundle of one's own to damage."""
    return shutil.copytree(digits_bundle, tmp_path / "model")


def edit(folder, **changes):
    """Put `changes` into model.json; None takes a key away."""
    path = folder / "model.json"
    values = json.loads(path.read_text("utf-8")) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}), "utf-8")


def replace_weights(folder, data):
    """Give the bundle other weights, with the checksum that belongs to them."""
    (folder / "model.pth").write_bytes(data)
    edit(folder, state_sha256=hashlib.sha256(data).hexdigest())


def saved(value):
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def assert_refused(folder, *expected, load=bundle.load):
    with pytest.raises(bundle.BundleError) as error:
        load(folder)
    for text in expected:
        assert text in str(error.value)
    assert len(str(error.value).splitlines()) == 1


# What is saved


def test_what_is_saved_is_what_is_loaded(tmp_path):
    original = network()
    written = bundle.save(tmp_path, original, INFO)
    loaded, info = bundle.load(tmp_path)
    assert info == written
    assert dataclasses.replace(info, versions={}, state_sha256="") == INFO
    assert not loaded.training
    assert list(loaded.state_dict()) == list(original.state_dict())
    for key, tensor in original.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor)


def test_the_versions_that_made_a_bundle_are_kept(digits_bundle):
    import fastai
    import torchvision

    versions = bundle.load_info(digits_bundle).versions
    assert versions["torch"] == torch.__version__
    assert versions["torchvision"] == torchvision.__version__
    assert versions["fastai"] == fastai.__version__
    assert {"fastmaker", "python"} <= versions.keys()


def test_labels_are_readable_in_the_file(tmp_path):
    bundle.save(tmp_path, network(), INFO)
    assert "Zürich" in (tmp_path / "model.json").read_text("utf-8")


def test_a_bundle_holds_weights_facts_and_code_and_nothing_else(digits_bundle):
    assert sorted(os.listdir(digits_bundle)) == ["code", "config.yaml", "model.json", "model.pth"]
    assert sorted(os.listdir(digits_bundle / "code")) == ["entry_point.py", "fastmaker"]
    package = digits_bundle / "code" / "fastmaker"
    files = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}
    assert {"bundle.py", "networks.py", "serving/models.py"} <= files
    assert all(name.endswith(".py") for name in files)


def test_the_file_of_ray_serve_names_an_application_that_the_code_has(digits_bundle):
    """AWS's Ray image has code/ on its path, and asks the application at /."""
    text = (digits_bundle / "config.yaml").read_text("utf-8")
    [(module, name)] = re.findall(r"^    import_path: ([\w.]+):(\w+)$", text, re.MULTILINE)
    source = (digits_bundle / "code" / Path(*module.split("."))).with_suffix(".py").read_text("utf-8")
    assert f"\ndef {name}(" in source
    assert "    route_prefix: /\n" in text


def test_the_weights_are_plain_tensors(digits_bundle):
    state = torch.load(digits_bundle / "model.pth", weights_only=True)
    assert {type(tensor) for tensor in state.values()} == {torch.Tensor}
    assert not any(tensor.requires_grad for tensor in state.values())


def test_the_only_pickle_names_nothing_but_tensors(digits_bundle):
    import pickletools

    with zipfile.ZipFile(digits_bundle / "model.pth") as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        operations = list(pickletools.genops(archive.read(name)))
    assert not [argument for operation, argument, _ in operations if operation.name == "STACK_GLOBAL"]
    named = {argument for operation, argument, _ in operations if operation.name == "GLOBAL"}
    assert named <= {
        "collections OrderedDict",
        "torch FloatStorage",
        "torch LongStorage",
        "torch._utils _rebuild_tensor_v2",
    }


def test_saving_again_replaces_the_bundle(tmp_path):
    bundle.save(tmp_path, network(), INFO)
    (tmp_path / "code" / "fastmaker" / "old.py").touch()
    (tmp_path / "code" / "mine.py").touch()
    second = bundle.save(tmp_path, network(), dataclasses.replace(INFO, labels=("a", "b", "c")))
    assert bundle.load(tmp_path)[1] == second
    assert not (tmp_path / "code" / "fastmaker" / "old.py").exists()
    assert (tmp_path / "code" / "mine.py").exists()


def test_an_interrupted_save_leaves_no_bundle(folder):
    (folder / "model.pth").unlink()
    (folder / "model.pth").mkdir()  # the weights cannot be written
    with pytest.raises((OSError, RuntimeError)):
        bundle.save(folder, network(), INFO)
    assert not (folder / "model.json").exists()
    assert_refused(folder, "model.json: missing")


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    with pytest.raises(bundle.BundleError, match=r"'image_size'.*expected"):
        bundle.save(tmp_path / "model", network(), dataclasses.replace(INFO, image_size=(0, 9)))
    assert not (tmp_path / "model").exists()


def test_a_network_of_another_architecture_is_not_saved(tmp_path):
    with pytest.raises(bundle.BundleError, match="the weights do not fit the architecture"):
        bundle.save(tmp_path / "model", network(n_out=4), INFO)
    assert not (tmp_path / "model").exists()


# What is refused


@pytest.mark.parametrize("name", ["model.pth", "model.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert_refused(folder, f"{name}: missing")


def test_a_folder_that_is_not_there_is_named(tmp_path):
    assert_refused(tmp_path / "nowhere", "nowhere", "missing")


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "model.tar.gz").write_bytes(b"an archive")
    assert_refused(tmp_path / "model.tar.gz", "model.tar.gz")


def test_one_altered_byte_in_the_weights_is_noticed(folder):
    data = bytearray((folder / "model.pth").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.pth").write_bytes(data)
    assert_refused(folder, "model.pth", "state_sha256")


@pytest.mark.parametrize("share", [0, 0.5, 0.999])
def test_weights_cut_short_are_noticed(folder, share):
    data = (folder / "model.pth").read_bytes()
    (folder / "model.pth").write_bytes(data[: int(share * len(data))])
    assert_refused(folder, "model.pth", "cut short")


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"1" * 5000])
def test_a_model_json_that_is_not_json_is_refused(folder, text):
    (folder / "model.json").write_bytes(text)
    assert_refused(folder, "model.json", "not JSON")


@pytest.mark.parametrize(("text", "kind"), [("[]", "list"), ("null", "NoneType"), ('"text"', "str"), ("5", "int")])
def test_a_model_json_that_is_no_object_is_refused(folder, text, kind):
    (folder / "model.json").write_text(text)
    assert_refused(folder, "model.json: expected one JSON object, found " + kind)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", "1"),
        ("format", 1.5),
        ("task", "detection"),
        ("task", 7),
        ("architecture", "resnet19"),
        ("architecture", ["resnet18"]),
        ("labels", []),
        ("labels", ["one"]),
        ("labels", ["a", 2]),
        ("labels", "cats"),
        ("image_mode", "BGR"),
        ("image_size", [0, 28]),
        ("image_size", [28, -1]),
        ("image_size", [28.0, 28]),
        ("image_size", [28]),
        ("image_size", 28),
        ("image_size", [True, True]),
        ("resize_method", "stretch"),
        ("mean", [0.1, 0.2, 0.3]),
        ("mean", []),
        ("mean", ["0.1"]),
        ("mean", [float("nan")]),
        ("std", [0.1, 0.2]),
        ("std", [0]),
        ("std", [0.0]),
        ("std", [-0.3]),
        ("std", [float("nan")]),
        ("std", [float("inf")]),
        ("state_sha256", 5),
        ("activation", "relu"),
        ("activation", ["softmax"]),
        ("threshold", 0.5),
        ("output_shape", [10]),
    ],
)
def test_a_wrong_value_in_model_json_is_named_with_what_was_expected(folder, key, value):
    edit(folder, **{key: value})
    assert_refused(folder, "model.json: ", repr(key), "expected", load=bundle.load_info)


MULTILABEL = {"task": "multilabel", "activation": "sigmoid", "threshold": 0.5, "format": 2}
WITHOUT_LABELS = {"labels": [], "activation": "none", "format": 2}
REGRESSION = WITHOUT_LABELS | {"task": "regression", "output_shape": [3]}
POINTS = WITHOUT_LABELS | {"task": "points", "output_shape": [4]}


@pytest.mark.parametrize("values", [MULTILABEL, REGRESSION, POINTS], ids=lambda values: values["task"])
def test_a_task_has_the_keys_that_it_needs(folder, values):
    edit(folder, **values)
    info = bundle.load_info(folder)
    assert (info.task, info.activation, info.threshold) == (
        values["task"],
        values["activation"],
        values.get("threshold"),
    )
    assert info.shape == tuple(values.get("output_shape", [10]))


@pytest.mark.parametrize(
    ("values", "key", "value"),
    [
        (MULTILABEL, "labels", ["a", "b", "b"]),
        (MULTILABEL, "labels", []),
        (MULTILABEL, "labels", [["a"]]),
        (MULTILABEL, "threshold", "0.5"),
        (MULTILABEL, "threshold", float("nan")),
        (MULTILABEL, "threshold", [0.5, 0.5]),
        (MULTILABEL, "threshold", True),
        (MULTILABEL, "output_shape", [10]),
        (REGRESSION, "labels", ["a", "b", "c"]),
        (REGRESSION, "output_shape", None),
        (REGRESSION, "output_shape", [3, 2]),
        (REGRESSION, "output_shape", [0]),
        (REGRESSION, "names", ["a", "b"]),
        (REGRESSION, "names", ["a", "b", "a"]),
        (REGRESSION, "names", ["a", "b", 3]),
        (REGRESSION, "names", "abc"),
        (POINTS, "names", ["a", "b", "c", "d"]),
        (REGRESSION, "output_shape", 3),
        (POINTS, "output_shape", [3]),
        (POINTS, "output_shape", [2, 3]),
        (POINTS, "output_shape", []),
        (POINTS, "threshold", 0.5),
    ],
)
def test_a_wrong_value_for_a_task_is_named_with_what_was_expected(folder, values, key, value):
    edit(folder, **values | {key: value})
    assert_refused(folder, "model.json: ", repr(key), "expected", load=bundle.load_info)


@pytest.fixture
def unet_folder(scenes_bundle, tmp_path):
    """A U-Net's bundle with a model.json of one's own; the weights are large and stay where they are."""
    shutil.copy(scenes_bundle / "model.json", tmp_path)
    (tmp_path / "model.pth").symlink_to(scenes_bundle / "model.pth")
    return tmp_path


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("architecture", "convnet"),
        ("labels", list(map(str, range(257)))),
        ("labels", ["a", "b", "b", "c"]),
        ("options", None),
        ("options", {}),
        ("options", {"blur": False, "blur_final": True, "self_attention": False, "last_cross": 1}),
        ("options", {"blur": False, "blur_final": True, "self_attention": False, "last_cross": True, "bottle": True}),
        ("void_code", 4),
        ("void_code", -1),
        ("void_code", True),
        ("void_code", "Void"),
        ("mask_size", "huge"),
    ],
)
def test_a_wrong_value_for_a_unet_is_named_with_what_was_expected(unet_folder, key, value):
    edit(unet_folder, **{key: value})
    assert_refused(unet_folder, "model.json: ", repr(key), "expected", load=bundle.load_info)


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": "resnet34"},
        {"labels": ["a", "b", "c", "d", "e"]},
        {"options": {"blur": False, "blur_final": True, "self_attention": True, "last_cross": True}},
        {"options": {"blur": False, "blur_final": True, "self_attention": False, "last_cross": False}},
    ],
)
def test_weights_that_do_not_fit_the_unet_of_model_json_are_refused(unet_folder, changes):
    edit(unet_folder, **changes)
    assert_refused(unet_folder, "model.pth: the weights do not fit the architecture in model.json")


NO_DEFAULT = [
    field.name
    for field in dataclasses.fields(bundle.ModelInfo)
    if (field.default, field.default_factory) == (dataclasses.MISSING, dataclasses.MISSING)
]


@pytest.mark.parametrize("key", [*NO_DEFAULT, "format", "state_sha256"])
def test_a_missing_key_in_model_json_is_named(folder, key):
    edit(folder, **{key: None})
    assert_refused(folder, "model.json: ", repr(key), "expected", load=bundle.load_info)


def test_the_right_names_are_listed_for_a_wrong_one(folder):
    edit(folder, architecture="resnet19")
    assert_refused(folder, "'architecture' is \"resnet19\"", *networks.ARCHITECTURES)


def test_a_newer_format_is_refused_with_what_to_do(folder):
    edit(folder, format=bundle.FORMAT + 1)
    assert_refused(folder, "'format' is 3, newer than 2", "use a newer fastmaker")


def test_a_key_of_tomorrow_is_ignored(folder):
    before = bundle.load_info(folder)
    edit(folder, colour="blue")
    assert bundle.load_info(folder) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": ["a", "b"]},
        {"architecture": "resnet18"},
        {"image_mode": "RGB", "mean": [0.5] * 3, "std": [0.5] * 3},
    ],
)
def test_weights_that_do_not_fit_model_json_are_refused(folder, changes):
    edit(folder, **changes)
    assert_refused(folder, "model.pth: the weights do not fit the architecture in model.json")


@pytest.mark.parametrize(
    "value", [[1, 2], {"0.0.weight": 5}, {}, torch.zeros(3)], ids=["list", "number", "empty", "one"]
)
def test_weights_that_are_no_state_dict_are_refused(folder, value):
    replace_weights(folder, saved(value))
    assert_refused(folder, "model.pth")


@pytest.mark.parametrize("data", [b"", b"junk", b"PK\x03\x04 an archive of sorts"])
def test_weights_that_are_no_file_of_torch_are_refused(folder, data):
    replace_weights(folder, data)
    assert_refused(folder, "model.pth")


def test_weights_that_carry_code_are_refused_and_the_code_never_runs(folder, tmp_path):
    class Trap:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'sprung')!r}, 'w')",)

    replace_weights(folder, saved({"0.0.weight": Trap()}))
    torch.load(folder / "model.pth", weights_only=False)  # the trap works
    (tmp_path / "sprung").unlink()
    with pytest.raises(Exception, match="weights"):
        bundle.load(folder)
    assert not (tmp_path / "sprung").exists()
    assert_refused(folder, "model.pth")


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_channels_follow_from_the_image_mode(mode):
    assert dataclasses.replace(INFO, image_mode=mode).channels == len(Image.new(mode, (1, 1)).getbands())
