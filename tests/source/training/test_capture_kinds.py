"""Networks of every kind that people give to fastai become graphs with their own bits."""

import pytest
import torch
from helpers import kinds

from fastmaker import graph_sizes
from fastmaker.training import capture

WITH_A_FAST_PATH = (
    "attention",
    "encoder",
    "vit_b_16",
    "maxvit_t",
)  # of torch's attention, which adds up in another order
WITH_SCRIPTED_FUNCTIONS = ("MishJit", "SwishJit")  # in which torch 2.6 takes the batch's size as a constant


def assert_same_bits(name, build, size):
    torch.manual_seed(0)
    network = kinds.randomized(build())
    channels = kinds.channels_of(network)
    captured = capture.capture(network, torch.rand(2, channels, size, size))
    images = torch.rand(2, channels, size, size) * 4 - 2
    with torch.no_grad():
        expected, found = torch.Tensor(network(images)), captured(images)
    assert expected.isfinite().all()
    assert expected.std() > 0
    if name in WITH_A_FAST_PATH:
        assert (found.softmax(1) - expected.softmax(1)).abs().max() <= 1e-6
    else:
        assert torch.equal(found, expected)
    graph_sizes.check(captured, channels, (size, size))
    assert "aten._weight_norm" not in str(captured.document)


@pytest.mark.parametrize("name", kinds.SMALL)
def test_small_networks(name):
    if name in WITH_SCRIPTED_FUNCTIONS and tuple(map(int, torch.__version__.split(".")[:2])) < (2, 7):
        with pytest.raises(capture.CaptureError, match="number of images in a batch as a constant"):
            assert_same_bits(name, kinds.SMALL[name], kinds.SIZE)
        return
    assert_same_bits(name, kinds.SMALL[name], kinds.SIZE)


@pytest.mark.slow
@pytest.mark.parametrize("name", kinds.HEADS)
def test_heads(name):
    assert_same_bits(name, kinds.HEADS[name], kinds.SIZE)


@pytest.mark.slow
@pytest.mark.parametrize("name", kinds.UNETS)
def test_unets(name):
    assert_same_bits(name, kinds.UNETS[name], kinds.SIZE)


@pytest.mark.slow
@pytest.mark.parametrize("name", kinds.XRESNETS)
def test_xresnets(name):
    assert_same_bits(name, kinds.XRESNETS[name], kinds.SIZE)
