"""Any network becomes a graph with its own bits, or is refused with the layer that cannot."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import torch
from fastai.vision.all import (
    CrossEntropyLossFlat,
    ImageDataLoaders,
    Learner,
    Mish,
    Normalize,
    NormType,
    Resize,
    SegmentationDataLoaders,
    create_vision_model,
    imagenet_stats,
    models,
    set_seed,
    unet_learner,
    vision_learner,
    xresnet18,
)
from fastai.vision.models.unet import DynamicUnet
from torch import nn

from fastmaker import load_bundle, preprocess, save_bundle
from fastmaker.export import reference
from fastmaker.training import capture

pytestmark = pytest.mark.learner
needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")


def on_torchvision(name):
    return create_vision_model(getattr(models, name), 3, pretrained=False)


def on_timm(name):
    from fastai.vision.learner import create_timm_model

    return create_timm_model(name, 3, pretrained=False)[0]


NETWORKS = {
    "xresnet18": lambda: xresnet18(n_out=3),
    "mobilenet_v3_small": lambda: on_torchvision("mobilenet_v3_small"),
    "efficientnet_b0": lambda: on_torchvision("efficientnet_b0"),
    "convnext_tiny": lambda: on_torchvision("convnext_tiny"),
    "regnet_x_400mf": lambda: on_torchvision("regnet_x_400mf"),
}
TIMM_NETWORKS = ("resnet26d", "convnext_atto", "vit_tiny_patch16_224", "levit_128s")


def randomized(network):
    """The network in eval mode, with running statistics that are not 0 and 1."""
    torch.manual_seed(3)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.6, 1.5)
    return network.eval()


def assert_same_bits(network, size):
    captured = capture.capture(network, torch.rand(2, 3, size, size))
    for count in (1, 2, 8):
        images = torch.rand(count, 3, size, size) * 4 - 2
        with torch.no_grad():
            expected, found = network(images), captured(images)
        assert torch.equal(found, torch.Tensor(expected))
        assert expected.std() > 0


@pytest.mark.parametrize("name", NETWORKS)
def test_a_graph_has_the_bits_of_the_network(name):
    assert_same_bits(randomized(NETWORKS[name]()), 64)


@needs_timm
@pytest.mark.parametrize("name", TIMM_NETWORKS)
def test_a_graph_has_the_bits_of_timms_network(name):
    assert_same_bits(randomized(on_timm(name)), 224)


@pytest.mark.slow
def test_a_network_without_a_fixed_size_takes_others():
    network = randomized(xresnet18(n_out=3))
    captured = capture.capture(network, torch.rand(2, 3, 64, 64), any_size=True)
    for size in ((64, 64), (80, 48), (33, 97)):
        images = torch.rand(3, 3, *size)
        with torch.no_grad():
            assert torch.equal(captured(images), network(images))


def test_a_network_with_a_fixed_size_keeps_it():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 6, 2))
    captured = capture.capture(network, torch.rand(2, 3, 8, 8), any_size=True)
    assert captured.shape == (3, 8, 8)


def test_the_model_is_left_as_it_was():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).train()
    network[1].eval()  # a frozen layer
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    capture.capture(network, torch.rand(2, 3, 8, 8))
    assert (network.training, network[0].training, network[1].training) == (True, True, False)
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    assert not network[0]._forward_hooks


class OwnKernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.from_numpy(np.sin(x.numpy()))


class Called(nn.Module):
    """A layer that does what a function says."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        return self.function(self, x)


def count_calls(layer, x):
    layer.calls += 1
    return x + layer.calls


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda _, x: x[x[:, 0, 0, 0] > 0], "layer 1 (Called)"),
        (lambda _, x: x * 2 if x.sum() > 0 else x, "layer 1 (Called)"),
        (lambda _, x: OwnKernel.apply(x), "layer 1 (Called)"),
        (lambda _, x: x + torch.rand_like(x), "layer 1 (Called) calls aten.rand_like.default: it is random"),
        (count_calls, "layer 1 (Called)"),
        (lambda _, x: x.view(2, -1, 6, 6), "layer 1 (Called)"),
        (lambda _, x: {"out": x}, "returns 1 values; expected one tensor"),
        (lambda _, x: (x, x), "returns 2 values; expected one tensor"),
    ],
    ids=["mask", "branch", "own kernel", "random", "counts", "batch size", "dictionary", "tuple"],
)
def test_what_cannot_be_kept_is_refused_with_its_layer(function, reason):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), Called(function))
    with pytest.raises(capture.CaptureError) as error:
        capture.capture(network, torch.rand(2, 3, 8, 8))
    assert reason in str(error.value)
    assert len(str(error.value).splitlines()) == 1


# Learners


def loaders(photos, size=48):
    set_seed(4)
    batch = Normalize.from_stats(*imagenet_stats, cuda=False)
    return ImageDataLoaders.from_folder(
        photos, valid_pct=0.25, seed=1, item_tfms=Resize(size), batch_tfms=batch, bs=8, num_workers=0
    )


def assert_answers_as_in_fastai(learn, folder, files):
    save_bundle(learn, folder)
    model, again = load_bundle(folder), reference.learner(folder)
    assert model.info.architecture == "graph"
    for file in files:
        with learn.no_bar(), again.no_bar():
            said, _, expected = learn.predict(file)
            _, _, of_reference = again.predict(file)
        [found] = model.predict([preprocess.decode(file.read_bytes())])
        if model.info.task == "classification":
            assert found.label == said
            assert np.array_equal(found.probabilities, expected.numpy())
        else:
            assert np.array_equal(found.array, np.asarray(said))
        assert np.array_equal(of_reference.numpy(), expected.numpy())


def own_network():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


LEARNERS = {
    "a network of one's own": lambda dls: Learner(dls, own_network(), loss_func=CrossEntropyLossFlat()),
    "xresnet": lambda dls: Learner(dls, xresnet18(n_out=3), loss_func=CrossEntropyLossFlat()),
    "another head": lambda dls: vision_learner(dls, models.resnet18, pretrained=False, lin_ftrs=[64], ps=0.2),
    "no concat": lambda dls: vision_learner(dls, models.resnet18, pretrained=False, concat_pool=False, bn_final=True),
    "y_range": lambda dls: vision_learner(dls, models.resnet18, pretrained=False, y_range=(0, 1)),
    "mobilenet": lambda dls: vision_learner(dls, models.mobilenet_v3_small, pretrained=False),
    "timm": lambda dls: vision_learner(dls, "resnet26d", pretrained=False),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=needs_timm if n == "timm" else ()) for n in LEARNERS])
def test_a_learner_on_any_network_is_answered_as_in_fastai(photos, tmp_path, name):
    learn = LEARNERS[name](loaders(photos))
    randomized(learn.model)
    assert_answers_as_in_fastai(learn, tmp_path, sorted(photos.rglob("*.jpg"))[::9])


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"act_cls": Mish, "self_attention": True}, marks=pytest.mark.slow),
        {"y_range": (0, 1)},
        pytest.param({"arch": models.vgg11_bn}, marks=pytest.mark.slow),
        pytest.param({"norm_type": NormType.Weight, "blur": True}, marks=pytest.mark.slow),
    ],
    ids=["mish", "y_range", "vgg", "weight norm"],
)
def test_any_unet_is_answered_as_in_fastai(scenes, tmp_path, options):
    set_seed(4)
    dls = SegmentationDataLoaders.from_label_func(
        scenes,
        bs=2,
        fnames=sorted((scenes / "images").iterdir()),
        label_func=lambda file: scenes / "labels" / f"{file.stem}_P.png",
        codes=["ground", "box", "disc", "Void"],
        item_tfms=Resize(32, method="squish"),
        num_workers=0,
    )
    learn = unet_learner(dls, **{"arch": models.resnet18, "pretrained": False, **options})
    assert isinstance(learn.model, DynamicUnet)
    randomized(learn.model)
    assert_answers_as_in_fastai(learn, tmp_path, sorted((scenes / "images").iterdir())[::5])


SERVE = """
import sys
from pathlib import Path
for name in ("fastai", "timm", "pandas", "spacy"):
    sys.modules[name] = None  # importing it fails
folder, file = sys.argv[1:]
sys.path.insert(0, folder + "/code")
from fastmaker import load_bundle, preprocess
[found] = load_bundle(folder).predict([preprocess.decode(Path(file).read_bytes())])
print(found.label)
"""


def test_a_graph_serves_from_the_bundles_own_code_without_fastai_and_timm(photos, tmp_path):
    learn = LEARNERS["a network of one's own"](loaders(photos))
    save_bundle(learn, tmp_path / "model")
    file = next(photos.rglob("*.jpg"))
    command = [sys.executable, "-I", "-c", SERVE, str(tmp_path / "model"), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    with learn.no_bar():
        assert done.stdout.strip() == learn.predict(file)[0]
