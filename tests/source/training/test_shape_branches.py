"""A condition on shapes is found wherever it stands in a network's code: in another one, in a layer, in arithmetic."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastmaker.training import capture, shape_branches


class Layer(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def network(function, inner=None):
    """A network whose forward is `function` of its layers and the images; the layer `inner` is among these."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            parts = nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), Layer(inner or nn.Identity()), nn.AdaptiveAvgPool2d(1)
            self.layers = nn.Sequential(*parts, nn.Flatten(), nn.Linear(4, 2))

        def forward(self, x):
            return function(self.layers, x)

    torch.manual_seed(3)
    return Network().eval()


def twice_if(*conditions):
    """Twice the answer if all conditions on (number, height, width) hold, each looked at within those before it."""

    def forward(layers, x):
        number, _, height, width = x.shape
        for condition in conditions:
            if not condition(number, height, width):
                return layers(x)
        return layers(x) * 2

    return network(forward)


def in_layer(function):
    return network(lambda layers, x: layers(x), function)


def single_and_high(x):
    if x.numel() > 10_000 and x.shape[0] == 1:
        return x * 2
    return x


def band_of_tokens(x):
    tokens = x.flatten(2).transpose(1, 2)
    if tokens.shape[1] > 1000 and tokens.shape[1] < 1100:
        tokens = tokens * 2
    return tokens.transpose(1, 2).reshape(x.shape)


def padded(x):
    low, right = -x.shape[2] % 8, -x.shape[3] % 8
    if low or right:
        x = F.pad(x, (0, right, 0, low))
        if low > 5 and right > 5:
            x = x * 2
    return x


def interpolated(x):
    again = F.interpolate(F.avg_pool2d(x, 2, ceil_mode=True), size=x.shape[-2:])
    if x.shape[-2] % 2 == 0:
        return x + again
    return x + again if x.shape[-1] > 30 else x


def by_product(x):
    return x * 2 if np.prod(x.shape[2:]) > 3000 and min(x.shape[2:]) < 20 else x


NESTED = {
    "one image, high": twice_if(lambda n, h, w: n == 1, lambda n, h, w: h > 300),
    "high, one image": twice_if(lambda n, h, w: h > 300, lambda n, h, w: n == 1),
    "high, narrow": twice_if(lambda n, h, w: h > 300, lambda n, h, w: w < 8),
    "high, wide": twice_if(lambda n, h, w: h > 300, lambda n, h, w: w > 500),
    "band": twice_if(lambda n, h, w: h > 300, lambda n, h, w: h < 310),
    "many, large": twice_if(lambda n, h, w: n > 20, lambda n, h, w: max(h, w) > 64),
    "three": twice_if(lambda n, h, w: h > 100, lambda n, h, w: w % 7 == 3, lambda n, h, w: n > 4),
    "one row, one image": twice_if(lambda n, h, w: n == 1, lambda n, h, w: h == 1),
    "ratio": twice_if(lambda n, h, w: h / w > 1.5, lambda n, h, w: n == 1),
    "numel in a layer": in_layer(single_and_high),
    "tokens in a layer": in_layer(band_of_tokens),
    "padding in a layer": in_layer(padded),
    "interpolation in a layer": in_layer(interpolated),
    "numpy in a layer": in_layer(by_product),
}
FEW = ("one image, high", "tokens in a layer")


@pytest.mark.parametrize("name", [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in NESTED])
def test_a_network_with_such_a_branch_is_kept_for_its_own_size(name):
    found = capture.capture(NESTED[name], torch.rand(2, 3, 24, 20), any_size=True)
    assert found.shape == (3, 24, 20)
    with torch.no_grad():
        for number in (1, 4, 30):
            images = torch.rand(number, 3, 24, 20)
            assert torch.equal(found(images), NESTED[name](images))


@pytest.mark.parametrize(
    "conditions",
    [
        (lambda n, h, w: n > 20, lambda n, h, w: n < 24),
        pytest.param((lambda n, h, w: n > 20, lambda n, h, w: n % 7 == 3), marks=pytest.mark.slow),
    ],
)
def test_a_network_with_such_a_branch_on_the_number_of_images_is_refused(conditions):
    with pytest.raises(capture.CaptureError, match=r"it computes otherwise for 2[1-9] images of 24 x 20 pixels"):
        capture.capture(twice_if(*conditions), torch.rand(2, 3, 24, 20))


def harmless(layers, x):
    """Conditions on shapes that change no answer."""
    if x.shape[2] > 100:
        assert x.shape[2] > 50
        x = x * 1.0
    return layers(x) if x.shape[0] > 1 else layers(x.contiguous())


def test_branches_that_change_nothing_leave_the_size_free():
    given = network(harmless)
    found = capture.capture(given, torch.rand(2, 3, 24, 20), any_size=True)
    assert found.shape == (3, None, None)
    with torch.no_grad():
        for shape in itertools.product((1, 3), (3,), (24, 140), (20, 33)):
            images = torch.rand(shape)
            assert torch.equal(found(images), given(images))


@pytest.mark.slow
def test_a_network_with_very_many_ways_is_refused(monkeypatch):
    monkeypatch.setattr(shape_branches, "MOST", 3)

    def forward(layers, x):
        for side in range(40, 400, 40):
            if x.shape[0] > side:
                x = x * 1.0
        return layers(x)

    with pytest.raises(capture.CaptureError, match="it has conditions on shapes that lead 3 ways and more"):
        capture.capture(network(forward), torch.rand(2, 3, 24, 20))
