"""Where a network looked: the map lies on what decided."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import task_bundles
from helpers.commands import exit_status, one_line
from helpers.local_mode import deployed
from PIL import Image, ImageDraw
from torchvision.models import VisionTransformer

from fastmaker import bundle, networks
from fastmaker.jobs import predict
from fastmaker.jobs.clients import explaining, sources
from fastmaker.local.containers import pack

SQUARE = (130, 20, 160, 50)  # in an image of 180x120, of which the model sees the middle 120x120


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A bundle whose label is "bright" the more, the more bright pixels an image has; each layer takes the mean."""
    folder = tmp_path_factory.mktemp("bright") / "model"
    changes = {"labels": ("dark", "bright"), "image_size": (112, 112)}
    info = dataclasses.replace(task_bundles.INFOS["classification"], **changes)
    network = networks.classifier("convnet", *info.shape)
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.constant_(layer.weight, 1 / layer.weight[0].numel())
    torch.nn.init.constant_(network[-1].weight, 0.1)
    with torch.no_grad():
        network[-1].weight[0] *= -1
        network[-1].bias.zero_()
    bundle.save(folder, network, info)
    return SimpleNamespace(bundle=str(folder), session=None, title="a bundle")


TRANSFORMER = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 16}
# A network, and which of its modules a map is of: all that a cell of it says, not what one branch adds to it
LAYERS = {
    "resnet": (lambda: networks.classifier("resnet18", 3), lambda network: network[0]),
    "convnet": (lambda: networks.classifier("convnet", 3), lambda network: network[4]),
    "transformer": (lambda: VisionTransformer(192, 32, **TRANSFORMER), lambda network: network.conv_proj),
    "no convolution": (lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 192**2, 3)), lambda _: None),
}


@pytest.mark.parametrize("case", LAYERS)
def test_a_map_is_of_what_a_network_goes_on_with(case):
    make, expected = LAYERS[case]
    network = make().eval()
    found = explaining._deepest_with_places(network, torch.zeros(1, 3, 192, 192))
    assert found is expected(network), found


@pytest.mark.browser  # its environment has captum
@pytest.mark.parametrize("least", [explaining.LEAST_PLACES, 10_000], ids=["grad-cam", "integrated gradients"])
def test_the_map_lies_on_the_square_that_decides(source, monkeypatch, least):
    monkeypatch.setattr(explaining, "LEAST_PLACES", least)
    image = Image.new("RGB", (180, 120), (20, 20, 20))
    ImageDraw.Draw(image).rectangle(SQUARE, fill=(250, 250, 250))
    explainer = explaining.Explainer(source)
    explainer.check()
    found = explainer._on_image(image, 1)
    assert found.shape == (120, 180)
    row, column = np.unravel_index(found.argmax(), found.shape)
    left, top, right, bottom = SQUARE
    assert (left <= column <= right, top <= row <= bottom) == (True, True)
    margin = 20  # a cell of Grad-CAM's layer
    on_square = found[top - margin : bottom + margin, left - margin : right + margin].sum()
    assert on_square / found.sum() > 0.9
    assert not found[:, :28].any()  # what was cropped


@pytest.mark.server
@pytest.mark.slow
def test_the_model_of_an_endpoint_of_this_machine_is_at_hand_and_answers_with_its_bytes(
    source, home, session, tmp_path, monkeypatch
):
    monkeypatch.setenv("FASTMAKER_HOME", str(home))
    pack(Path(source.bundle), tmp_path / "model.tar.gz")
    Image.new("RGB", (60, 40), "white").save(tmp_path / "white.png")
    white = (tmp_path / "white.png").read_bytes()
    with deployed(session, tmp_path / "model.tar.gz") as predictor:
        args = predict.parse_args(["--endpoint", predictor.endpoint_name, "-"])
        with sources.connect(args) as endpoint:
            assert explaining.Explainer(endpoint)._model.info.labels == ("dark", "bright")
            assert "http://127.0.0.1:" in endpoint.requests["curl"]
            assert endpoint.ask(white) == sources.Bundle(Path(source.bundle), "model").ask(white)


@pytest.mark.parametrize(
    ("of", "words"),
    [
        (
            SimpleNamespace(bundle=None, title="the model m of the Triton server u"),
            "the model m of the Triton server u",
        ),
        (SimpleNamespace(bundle=None, title="the endpoint e"), "expected an endpoint of this machine"),
    ],
    ids=["triton", "endpoint"],
)
def test_a_model_that_is_not_at_hand_is_refused_by_name(of, words):
    with pytest.raises(ValueError, match=words):
        explaining.Explainer(of).check()


def test_a_map_needs_a_folder_to_be_saved_in(capsys):
    assert exit_status(predict, "--explain", "a.png") == 2
    assert "--explain draws into the folder of --save, which is missing" in one_line(capsys.readouterr().err)
