"""A graph answers for each image as alone, for batches and images of every size, or the network is refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import checkpoint

from fastmaker.training import capture

NEWEST_THAT_REFUSES = (2, 9)  # torch 2.10 follows a network that stores what it computes


FIXED_BATCH = "the number of images in a batch as a constant"


class Network(nn.Module):
    """A small network whose forward is a function of itself and the images."""

    def __init__(self, function=None):
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Linear(8, 2)
        self.function = function
        self.kept = None

    def answer(self, x):
        return self.last(F.relu(self.norm(self.first(x))).mean((2, 3)))

    def forward(self, x):
        return self.function(self, x) if self.function else self.answer(x)


def captured(network, any_size=False, size=(24, 20)):
    torch.manual_seed(0)
    return capture.capture(network, torch.rand(2, 3, *size), any_size)


def assert_refused(network, reason, any_size=False):
    with pytest.raises(capture.CaptureError) as error:
        captured(network, any_size)
    assert reason in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 300


def assert_same_bits(network, found, *shapes):
    network.eval()
    for shape in shapes:
        images = torch.rand(shape) * 4 - 2
        with torch.no_grad():
            assert torch.equal(found(images), network(images))


def norm_of(x, *dims):
    return (x - x.mean(dims, keepdim=True)) / (x.std(dims, keepdim=True) + 1e-5)


DEPENDENT = {
    "smallest and largest of the batch": lambda net, x: net.answer((x - x.min()) / (x.max() - x.min())),
    "largest": lambda net, x: net.answer(x / x.abs().max()),
    "mean of the batch": lambda net, x: net.answer(x) - 1e-3 * net.answer(x).mean(0, keepdim=True),
    "standardized batch": lambda net, x: net.answer(norm_of(x, 0, 2, 3)),
    "batch norm in training": lambda net, x: net.answer(F.batch_norm(x, None, None, training=True)),
    "softmax over images": lambda net, x: net.answer(x).softmax(0),
    "normalized over images": lambda net, x: F.normalize(net.answer(x), dim=0),
    "order in the batch": lambda net, x: net.answer(x).sort(0).values,
    "first image": lambda net, x: net.answer(x) - net.answer(x)[:1],
    "image before": lambda net, x: net.answer(x.roll(1, 0)),
    "sums up": lambda net, x: net.answer(x).cumsum(0),
    "any image": lambda net, x: net.answer(torch.where((x > 8).any(), x * 2, x)),
    "attention between images": lambda net, x: (net.answer(x) @ net.answer(x).T).softmax(1) @ net.answer(x),
}


@pytest.mark.parametrize("any_size", [False, True])
@pytest.mark.parametrize("name", DEPENDENT)
def test_an_answer_that_depends_on_the_other_images_is_refused(name, any_size):
    assert_refused(
        Network(DEPENDENT[name]), "the answer for an image depends on the other images of its batch", any_size
    )


class Scale(nn.Module):
    def forward(self, x):
        return x / x.max()


class Holds(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Scale(), "layer 1 (Scale)"),
        (Holds(Scale()), "layer 1.layer (Scale)"),
        (nn.Softmax(0), "layer 1 (Softmax)"),
        (nn.BatchNorm2d(8, track_running_stats=False), "layer 1 (BatchNorm2d) the answer"),
        (Holds(nn.BatchNorm2d(8, affine=False, track_running_stats=False)), "layer 1.layer (BatchNorm2d)"),
    ],
    ids=["layer", "layer within one", "softmax", "batch norm", "batch norm within a layer"],
)
def test_the_layer_that_looks_at_the_other_images_is_named(layer, reason):
    end = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    assert_refused(nn.Sequential(nn.Conv2d(3, 8, 3), layer, end), reason)


def standardized(weight):
    return F.batch_norm(weight.view(1, 8, -1), None, None, training=True).view(8, 3, 3, 3)


INDEPENDENT = {
    "smallest and largest of the image": lambda net, x: net.answer(
        (x - x.amin((1, 2, 3), keepdim=True)) / (x.amax((1, 2, 3), keepdim=True) - x.amin((1, 2, 3), keepdim=True))
    ),
    "standardized weights": lambda net, x: net.last(F.conv2d(x, standardized(net.first.weight)).mean((2, 3))),
    "instance norm": lambda net, x: net.answer(F.instance_norm(x)),
    "batch norm of one image's channels": lambda net, x: net.answer(
        F.batch_norm(x.reshape(1, -1, *x.shape[2:]), None, None, training=True).view(x.shape)
    ),
    "branch on values by where": lambda net, x: net.answer(torch.where(x > 8, x * 2, x)),
    "cut": lambda net, x: net.answer(x.clamp(-3, 3)),
}


@pytest.mark.parametrize("name", INDEPENDENT)
def test_an_answer_that_depends_on_its_image_alone_is_kept(name):
    network = Network(INDEPENDENT[name])
    assert_same_bits(network, captured(network), (1, 3, 24, 20), (5, 3, 24, 20))


def twice_if(condition):
    """A network that takes images twice as bright if `condition` is true of number, height and width."""
    return Network(lambda net, x: net.answer(x * 2 if condition(x.shape[0], *x.shape[2:]) else x))


@pytest.mark.parametrize(
    "condition",
    [
        lambda n, h, w: n > 16,
        lambda n, h, w: n == 37,
        lambda n, h, w: n == 1,
        lambda n, h, w: n % 7 == 6,
        lambda n, h, w: n * h > 500,
        lambda n, h, w: n <= 2,
    ],
    ids=["more than 16", "37", "one", "modulo", "times height", "few"],
)
def test_a_network_that_computes_otherwise_for_some_batches_is_refused(condition):
    assert_refused(twice_if(condition), "batch" if condition(1, 24, 20) else "it computes otherwise for ")


@pytest.mark.parametrize(
    "condition",
    [
        lambda n, h, w: max(h, w) > 700,
        lambda n, h, w: h > 700,
        lambda n, h, w: w > 5000,
        lambda n, h, w: h < 10,
        lambda n, h, w: h == 100,
        lambda n, h, w: h == 1,
        lambda n, h, w: h == w,
        lambda n, h, w: h > w,
        lambda n, h, w: h * w > 300_000,
        lambda n, h, w: h * w > 20_000_000,
        lambda n, h, w: h % 32 == 31,
        lambda n, h, w: (h + w) % 2 == 0,
        lambda n, h, w: h // 2 + w // 3 > 400,
        lambda n, h, w: h / w > 3,
        lambda n, h, w: h > 100 and w > 100,
        lambda n, h, w: h > 100 and w > 350,
        lambda n, h, w: h < 16 and w < 9,
        lambda n, h, w: h == 24,
    ],
    ids=[
        "either side", "height", "very wide", "low", "one height", "one row", "square", "upright", "pixels",
        "many pixels",        "modulo", "parity", "halves", "ratio", "both sides",
        "both sides, one more", "both sides low", "this height",
    ],
)  # fmt: skip
def test_a_network_that_computes_otherwise_for_some_sizes_is_kept_for_its_own_size(condition):
    network = twice_if(condition)
    found = captured(network, any_size=True)
    assert found.shape == (3, 24, 20)
    assert_same_bits(network, found, (1, 3, 24, 20), (4, 3, 24, 20))


@pytest.mark.parametrize(
    "function",
    [
        lambda net, x: net.answer(x),
        lambda net, x: net.answer(F.interpolate(x, scale_factor=0.5)),
        lambda net, x: net.answer(F.pad(x, (1, 1, 1, 1))),
        lambda net, x: net.answer(x[:, :, 1:-1]),
        lambda net, x: net.answer(x if x.shape[1] == 3 else x[:, :3]),
    ],
    ids=["convolutions", "half", "padded", "cut", "channels"],
)
def test_a_network_that_computes_alike_for_all_sizes_is_kept_for_all(function):
    network = Network(function)
    found = captured(network, any_size=True)
    assert found.shape == (3, None, None)
    assert_same_bits(network, found, (1, 3, 24, 20), (2, 3, 90, 41), (3, 3, 30, 30))


def under(context, *contexts):
    """A network whose first layer is computed under each context."""

    def function(net, x):
        if contexts:
            with context():
                return under(*contexts)(net, x)
        with context():
            hidden = net.first(x)
            again = hidden * 2
        return net.last(F.relu(net.norm(hidden + again)).mean((2, 3)))

    return function


def without_autocast():
    return torch.autocast("cpu", enabled=False)


BLOCKS = {
    "no_grad": under(torch.no_grad),
    "enable_grad": under(torch.enable_grad),
    "inference_mode": under(torch.inference_mode),
    "no autocast": under(without_autocast),
    "no autocast on a GPU": under(lambda: torch.autocast("cuda", enabled=False)),
    "nested": under(torch.enable_grad, without_autocast, torch.no_grad, torch.enable_grad),
    "checkpoint": lambda net, x: checkpoint.checkpoint(net.answer, x, use_reentrant=False),
}


@pytest.mark.parametrize("any_size", [False, True])
@pytest.mark.parametrize("name", BLOCKS)
def test_what_switches_gradients_or_autocast_off_is_kept(name, any_size):
    network = Network(BLOCKS[name])
    assert_same_bits(network, captured(network, any_size), (1, 3, 24, 20), (5, 3, 24, 20))


def cond(net, x):
    return net.answer(torch.cond(x.sum() > 0, lambda x: x * 2, lambda x: x + 1, (x,)))


def cond_without_gradients(net, x):
    with torch.enable_grad():
        return cond(net, x)


def with_autocast(net, x):
    with torch.autocast("cpu"):
        return net.answer(x)


def with_autocast_within(net, x):
    with torch.enable_grad():
        return with_autocast(net, x)


def stores(net, x):
    net.features = net.first(x)
    return net.answer(x)


def stores_list(net, x):
    net.features = [net.first(x), x]
    return net.answer(x)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (with_autocast, "computes under torch.autocast for cpu, in bfloat16"),
        (with_autocast_within, "computes under torch.autocast for cpu, in bfloat16"),
        (cond, "cond, which runs a part of the network as a function"),
        (cond_without_gradients, "cond, which runs a part of the network as a function"),
        (lambda net, x: net.answer(x).view(2, 2), FIXED_BATCH),
        (
            lambda net, x: torch.stack([net.answer(i[None])[0] for i in x]),
            FIXED_BATCH,
        ),
        (lambda net, x: net.answer(x) / len(x), FIXED_BATCH),
        (lambda net, x: net.answer(x).mean(), "expected a row for each"),
    ],
    ids=["autocast", "autocast within", "cond", "cond within", "view", "loop", "divided", "one number"],
)
def test_a_network_that_no_graph_holds_is_refused_in_one_line(function, reason):
    assert_refused(Network(function), reason)


@pytest.mark.parametrize("function", [stores, stores_list])
def test_a_network_that_stores_its_features_is_told_so(function):
    network = Network(function)
    if tuple(map(int, torch.__version__.split(".")[:2])) > NEWEST_THAT_REFUSES:
        assert_same_bits(network, captured(network), (1, 3, 24, 20))
    else:
        assert_refused(network, "stores a result on the network, as self.features")


def test_a_network_that_stores_what_it_has_set_to_none_is_kept():
    def function(net, x):
        net.kept = net.first(x)
        return net.answer(x)

    network = Network(function)
    assert_same_bits(network, captured(network), (1, 3, 24, 20), (5, 3, 24, 20))


def test_a_network_that_uses_what_it_stored_is_refused():
    def function(net, x):
        before, net.kept = net.kept, net.first(x).mean().detach()
        return net.answer(x) + (0 if before is None else before)

    assert_refused(Network(function), "its graph does not give its own answer")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda net: net.double(), "its first.weight is float64, and a Learner's images are float32"),
        (lambda net: net.last.double(), "its last.weight is float64, and a Learner's images are float32"),
    ],
    ids=["all", "the last layer"],
)
def test_a_network_of_double_precision_is_told_so(change, reason):
    network = Network()
    change(network)
    assert_refused(network, reason)


def test_a_network_that_computes_with_double_precision_itself_is_kept():
    network = Network(lambda net, x: net.answer(x.double()).float()).double()
    assert_same_bits(network, captured(network), (1, 3, 24, 20), (5, 3, 24, 20))
