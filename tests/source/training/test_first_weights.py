"""A run starts from the weights of a file or of an earlier model, or one line says why it cannot."""

import dataclasses
import json
import shutil
import tarfile

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from fastmaker import bundle, files
from fastmaker.training import architectures, data, earlier, learner, loaders, run, weights
from fastmaker.training.arguments import parse_args
from fastmaker.training.distributed import SINGLE

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(1)
    for number in range(12):
        path = folder / ("light" if number % 2 else "dark") / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 128, (40, 40, 3), np.uint8) + np.uint8(127 * (number % 2))).save(path)
    return folder


def arguments(pictures, folder, more):
    words = "--arch resnet18 --image-size 32 --epochs 1 --batch-size 4 --workers 0"
    directories = ["--train", str(pictures), "--model-dir", f"{folder}/model", "--output-data-dir", str(folder)]
    return parse_args([*words.split(), *directories, *more.split()])


def body_of(arch="resnet18", n_in=3):
    torch.manual_seed(9)
    body = architectures.body(arch, False, n_in, (32, 32))
    return body, nn.Sequential(body.module, nn.Linear(2, 2))


@pytest.fixture(scope="module")
def resnet():
    """A state_dict of torchvision's network, whose numbers are all 0.5."""
    state = torchvision.models.resnet18().state_dict()
    return {
        name: torch.full_like(tensor, 0.5) if tensor.is_floating_point() else tensor for name, tensor in state.items()
    }


def without(state, *names):
    return {name: tensor for name, tensor in state.items() if name not in names}


def of_body(state):
    """As a body of fastai's has the names: numbers in place of those of the children."""
    children = [name for name, _ in torchvision.models.resnet18().named_children()]
    parts = {name: name.partition(".") for name in state if not name.startswith("fc")}
    return {f"{children.index(first)}.{rest}": state[name] for name, (first, _, rest) in parts.items()}


FILES = {
    "of torchvision": lambda state: state,
    "without a head": lambda state: without(state, "fc.weight", "fc.bias"),
    "of a head of other classes": lambda state: state | {"fc.weight": torch.zeros(3, 512), "fc.bias": torch.zeros(3)},
    "of a training script": lambda state: {"model": {f"module.{name}": t for name, t in state.items()}, "epoch": 3},
    "of a body": of_body,
    "of a body and a head": lambda state: {f"0.{name}": tensor for name, tensor in of_body(state).items()},
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_weights_is_taken_whatever_its_head(resnet, tmp_path, name):
    torch.save(FILES[name](resnet), tmp_path / "weights.pth")
    body, model = body_of()
    line = weights.load(weights.find(tmp_path), [body.whole, body.module, model], body.module)
    assert all((parameter == 0.5).all() for parameter in body.module.parameters())
    assert line.startswith(f"{tmp_path / 'weights.pth'}: took 100 of the 100 tensors of the network's body")


def test_a_grey_network_takes_the_sum_of_the_colours(resnet, tmp_path):
    torch.save(resnet, tmp_path / "weights.pth")
    body, model = body_of(n_in=1)
    weights.load(tmp_path / "weights.pth", [body.whole, body.module, model], body.module)
    assert (body.module[0].weight == 1.5).all()


def test_what_is_missing_and_what_is_not_used_is_said(resnet, tmp_path):
    torch.save(without(resnet, "bn1.weight") | {"extra": torch.zeros(1)}, tmp_path / "weights.pth")
    body, model = body_of()
    line = weights.load(tmp_path / "weights.pth", [body.whole, body.module, model], body.module)
    assert line.endswith("took 99 of the 100 tensors of the network's body; not in it: bn1.weight; not used: extra")


class Code:
    def __reduce__(self):
        return (print, ("code ran",))


WRONG = {
    "a part of another network": (
        lambda state: {n: state[n] for n in state if "layer4" not in n},
        "it lacks 25 of",
    ),
    "another network": (
        lambda state: torchvision.models.squeezenet1_1().state_dict(),
        "it lacks 100 of the 100 tensors",
    ),
    "another shape": (lambda state: state | {"conv1.weight": torch.zeros(8, 3, 7, 7)}, "'conv1.weight' has the shape"),
    "no tensors": (lambda state: {"epoch": 3}, "it holds no tensors by name"),
    "a list": (lambda state: [1, 2], "it holds no tensors by name"),
    "code": (lambda state: {"weight": Code()}, "no tensors that load without running code"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_does_not_fit_is_refused_in_one_line(resnet, tmp_path, capsys, name):
    make, reason = WRONG[name]
    torch.save(make(resnet), tmp_path / "weights.pth")
    body, model = body_of()
    with pytest.raises(weights.WeightsError) as refused:
        weights.load(tmp_path / "weights.pth", [body.whole, body.module, model], body.module)
    assert reason in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    assert "code ran" not in capsys.readouterr().out


def test_a_channel_is_taken_by_its_name_and_by_default(resnet, pictures, tmp_path, monkeypatch):
    torch.save(resnet, tmp_path / "weights.pth")
    monkeypatch.setenv("SM_CHANNEL_BACKBONE", str(tmp_path))
    args = arguments(pictures, tmp_path, "--pretrained backbone")
    assert (args.pretrained, args.lr) == (str(tmp_path / "weights.pth"), 0.002)
    monkeypatch.setenv("SM_CHANNEL_PRETRAINED", str(tmp_path))
    assert arguments(pictures, tmp_path, "").pretrained == args.pretrained
    assert run._first_weights(args)["pretrained"] == files.sha256(tmp_path / "weights.pth")


def test_a_run_says_what_it_took_and_fine_tunes(resnet, pictures, tmp_path, capsys):
    torch.save(resnet, tmp_path / "weights.pth")
    more = f"--pretrained {tmp_path} --check-only true"
    assert run.main(arguments(pictures, tmp_path, more)) == 0
    assert "took 100 of the 100 tensors" in capsys.readouterr().out
    torch.save(torchvision.models.squeezenet1_1().state_dict(), tmp_path / "weights.pth")
    assert run.main(arguments(pictures, tmp_path, more)) == 2
    assert capsys.readouterr().err.startswith("ValueError: --pretrained ")


# Weights that are downloaded

DATA_ERRORS = {
    "no folder": (lambda folder: shutil.rmtree(folder), "", "is not a directory"),
    "a wrong table": (
        lambda folder: (folder / "labels.csv").write_text("name,label\n99.png,a\n"),
        "",
        "no file '99.png'",
    ),
    "a regex that matches nothing": (lambda folder: None, "--label-regex ^(zzz)_", "finds no label"),
    "headers": (lambda folder: [file.write_bytes(b"x") for file in folder.glob("dark/*")], "", "more than a tenth"),
    "no masks": (lambda folder: (folder / "codes.txt").write_text("a\nb\n"), "--task segmentation", "no folder images"),
}


@pytest.mark.parametrize("name", DATA_ERRORS)
def test_what_is_wrong_with_the_data_is_told_before_weights_are_asked_for(
    pictures, tmp_path, monkeypatch, capsys, name
):
    spoil, more, reason = DATA_ERRORS[name]
    folder = shutil.copytree(pictures, tmp_path / "data")
    spoil(folder)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert run.main(arguments(folder, tmp_path, f"--pretrained true {more}")) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert reason in line
    assert not (tmp_path / "torch").exists()


def test_a_run_reads_downloaded_weights_once(resnet, pictures, tmp_path, monkeypatch):
    url = torchvision.models.ResNet18_Weights.DEFAULT.url
    kept = tmp_path / "torch" / "hub" / "checkpoints" / url.rpartition("/")[2]
    kept.parent.mkdir(parents=True)
    torch.save(resnet, kept)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    read, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda file, *args, **more: read.append(str(file)) or load(file, *args, **more))
    args = arguments(pictures, tmp_path, "--pretrained true")
    learn = run._learner(args, data.read(pictures), SINGLE, None)
    assert (learn.model[0][0].weight == 0.5).all()
    assert read.count(str(kept)) == 1


# An earlier model


@pytest.fixture(scope="module")
def earlier_run(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("earlier")
    assert run.main(arguments(pictures, folder, "--pretrained false --arch convnet --image-mode RGB")) == 0
    with tarfile.open(folder / "model.tar.gz", "w:gz") as archive:
        archive.add(folder / "model", ".")
    return folder


def learn_for(pictures, args):
    samples = data.read(pictures)
    return samples, learner.create(loaders.create(args, samples), samples, args, pretrained=False)


@pytest.mark.parametrize("place", ["model", "model.tar.gz", ""])
def test_a_run_starts_from_the_weights_of_an_earlier_model(pictures, tmp_path, earlier_run, place):
    args = arguments(pictures, tmp_path, f"--arch convnet --image-mode RGB --resume-from {earlier_run / place}")
    samples, learn = learn_for(pictures, args)
    earlier.load(learn, earlier_run / place, args.task, samples.classes, args.image_mode)
    expected = bundle.load(earlier_run / "model")[0].state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in learn.model.state_dict().items())
    sha = json.loads((earlier_run / "model" / "model.json").read_text())["state_sha256"]
    assert run._first_weights(args) == {"pretrained": False, "resume_from": sha}


@pytest.mark.parametrize(
    ("changes", "more", "reason"),
    [
        ({"labels": ("light", "dark")}, "", "its labels are not those of the data: they have another order"),
        ({"labels": ("dark", "red")}, "", "it lacks 'light'; the data lacks 'red'"),
        ({}, "--image-mode L", "its image mode is RGB; this run's is L"),
        ({}, "--arch resnet18", "its network, convnet, has not the layers of this run's"),
        ({}, "--task multilabel", "its task is classification; this run's is multilabel"),
    ],
)
def test_an_earlier_model_that_does_not_fit_is_refused(pictures, tmp_path, earlier_run, changes, more, reason):
    shutil.copytree(earlier_run / "model", tmp_path / "model")
    info = dataclasses.replace(bundle.load_info(tmp_path / "model"), **changes)
    (tmp_path / "model" / "model.json").write_text(json.dumps(dataclasses.asdict(info)))
    args = arguments(pictures, tmp_path, f"--arch convnet --image-mode RGB --resume-from {tmp_path / 'model'} {more}")
    samples, learn = learn_for(pictures, args)
    with pytest.raises(weights.WeightsError) as refused:
        earlier.load(learn, tmp_path / "model", args.task, samples.classes, args.image_mode)
    assert reason in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("broken", ["model.json", "model.pth"])
def test_an_earlier_model_that_is_incomplete_is_refused(pictures, tmp_path, earlier_run, broken, capsys):
    shutil.copytree(earlier_run / "model", tmp_path / "earlier")
    (tmp_path / "earlier" / broken).unlink()
    more = f"--arch convnet --image-mode RGB --resume-from {tmp_path / 'earlier'} --check-only true"
    assert run.main(arguments(pictures, tmp_path, more)) == 2
    assert f"ValueError: --resume-from {tmp_path / 'earlier' / broken}: missing" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["mobilenet_v3_small", "vit_b_32", "resnet18"])
def test_a_graph_of_the_same_network_is_taken(pictures, tmp_path, arch, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    assert run.main(arguments(pictures, first, f"--arch {arch} --pretrained false")) == 0
    assert run.main(arguments(pictures, second, f"--arch {arch} --resume-from {first / 'model'}")) == 0
    other = arguments(pictures, second, f"--arch mnasnet0_5 --resume-from {first / 'model'} --check-only true")
    assert run.main(other) == 2
    assert "has not the layers of this run's" in capsys.readouterr().err


def test_a_run_that_goes_on_from_a_model_needs_no_image_size_of_weights_that_are_downloaded(pictures, tmp_path):
    assert arguments(pictures, tmp_path, f"--arch vit_b_32 --resume-from {tmp_path}").pretrained is False
    with pytest.raises(SystemExit):
        arguments(pictures, tmp_path, "--arch vit_b_32")
