"""fastai's create_vision_model is the reference: same keys, same shapes, same order, same bits."""

import pytest
import torch
import torchvision.models
from fastai.vision.learner import create_vision_model

from fastmaker import networks


def fastai_network(name, n_out, n_in=3):
    return create_vision_model(getattr(torchvision.models, name), n_out, pretrained=False, n_in=n_in, init=None)


def layout(network):
    return [(key, tensor.shape, tensor.dtype) for key, tensor in network.state_dict().items()]


def filled(network, seed):
    """`network`, built without memory, with random weights and batch norm statistics that are not a new one's."""
    torch.manual_seed(seed)
    network = network.to_empty(device="cpu")
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape) + 0.5 if tensor.ndim == 1 else torch.randn(tensor.shape) * 0.05)
        else:
            tensor.zero_()
    return network.eval()


@pytest.mark.parametrize("n_in", [3, 1])
@pytest.mark.parametrize("name", networks.TORCHVISION_CUTS)
def test_the_state_dict_is_laid_out_like_fastais(name, n_in):
    with torch.device("meta"):
        reference = fastai_network(name, 7, n_in)
    assert layout(networks.empty_classifier(name, 7, n_in)) == layout(reference)


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "vgg11_bn", "alexnet", "squeezenet1_1"])
def test_weights_load_both_ways_and_give_the_same_logits(name):
    with torch.device("meta"):
        fastais = fastai_network(name, 5)
    fastais, ours = filled(fastais, 1), filled(networks.empty_classifier(name, 5), 2)
    batch = torch.randn(2, 3, 72, 64)
    for giver, taker in ((ours, fastais), (fastais, ours)):
        with torch.no_grad():
            logits = giver(batch)
            assert logits.isfinite().all()
            assert not torch.equal(logits, taker(batch))
            taker.load_state_dict(giver.state_dict())
            assert torch.equal(logits, taker(batch))
        filled(giver, 3)


@pytest.mark.parametrize("build", [networks.classifier, networks.empty_classifier])
def test_an_unknown_architecture_is_refused_with_the_right_names(build):
    with pytest.raises(ValueError, match="unknown architecture 'resnet19'") as error:
        build("resnet19", 5)
    assert all(name in str(error.value) for name in networks.ARCHITECTURES)


@pytest.mark.parametrize("n_in", [1, 3])
def test_the_convnet_takes_images_of_any_size(n_in):
    network = networks.classifier("convnet", 10, n_in).eval()
    for size in ((28, 28), (8, 8), (33, 91)):
        assert network(torch.randn(2, n_in, *size)).shape == (2, 10)


@pytest.mark.parametrize("name", ["convnet", "resnet18", "densenet121", "squeezenet1_1"])
def test_an_empty_network_takes_no_memory_and_can_be_filled(name):
    network = networks.empty_classifier(name, 4)
    assert all(tensor.is_meta for tensor in network.state_dict().values())
    assert not [key for key, _ in network.named_buffers() if key not in network.state_dict()]


def test_an_empty_network_filled_with_weights_answers_like_the_one_they_came_from():
    full, empty = networks.classifier("convnet", 4).eval(), networks.empty_classifier("convnet", 4)
    empty.load_state_dict(full.state_dict(), assign=True)
    batch = torch.randn(1, 3, 64, 64)
    assert torch.equal(empty.eval()(batch), full(batch))


def test_building_a_network_leaves_it_in_training_mode():
    assert all(module.training for module in networks.classifier("resnet18", 4).modules())
