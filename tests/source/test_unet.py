"""fastai's create_unet_model is the reference: same keys, same shapes, same order, same bits."""

import pytest
import torch
import torchvision.models
from fastai.vision.learner import create_unet_model
from torch import nn

from fastmaker import bundle, unet
from fastmaker.serving import engines

OPTIONS = [{}, {"blur": True}, {"blur": True, "blur_final": False}, {"self_attention": True}, {"last_cross": False}]
NAMES = {"ids": lambda value: "+".join(value) or "default" if isinstance(value, dict) else str(value)}


def fastai_unet(name, n_out, size, **options):
    return create_unet_model(getattr(torchvision.models, name), n_out, size, pretrained=False, **options)


def layout(network):
    return [(key, tensor.shape, tensor.dtype) for key, tensor in network.state_dict().items()]


def randomise(network):
    """Weights and batch norm statistics that are not a new network's, and let what goes through keep its size."""
    for key, tensor in network.state_dict().items():
        if tensor.is_floating_point() and tensor.ndim == 1 and not key.endswith(("weight_u", "weight_v")):
            tensor.copy_(torch.rand(tensor.shape) + 0.5)
    return network.eval()


@pytest.mark.parametrize("options", OPTIONS, **NAMES)
@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_the_options_are_laid_out_like_fastais(name, options):
    assert_same_layout(name, options)


@pytest.mark.parametrize("name", unet.ARCHITECTURES)
def test_the_state_dict_is_laid_out_like_fastais(name):
    assert_same_layout(name, {})


def assert_same_layout(name, options):
    with torch.device("meta"):
        reference = fastai_unet(name, 7, (64, 96), **options)
    assert layout(unet.empty_unet(name, 7, (64, 96), **options)) == layout(reference)


@pytest.mark.parametrize("size", [(64, 64), (32, 32), (16, 24), (8, 8), (33, 65), (100, 7), (96, 128)], **NAMES)
def test_the_layers_follow_from_the_image_size_as_in_fastai(size):
    with torch.device("meta"):
        reference = fastai_unet("resnet18", 3, size)
    assert layout(unet.empty_unet("resnet18", 3, size)) == layout(reference)


def test_a_gray_image_has_one_channel():
    with torch.device("meta"):
        reference = fastai_unet("resnet18", 3, (32, 40), n_in=1)
    assert layout(unet.empty_unet("resnet18", 3, (32, 40), n_in=1)) == layout(reference)


def assert_same_both_ways(name, options):
    """Weights load strictly from and into fastai's network, and give its bits at every image size."""
    sizes = [(40, 56), (33, 47), (64, 32)]
    torch.manual_seed(1)
    fastais = randomise(fastai_unet(name, 5, sizes[0], **options))
    ours = unet.empty_unet(name, 5, sizes[0], **options).eval()
    ours.load_state_dict(fastais.state_dict(), strict=True, assign=True)
    batches = [torch.randn(2, 3, *size) for size in sizes]
    with torch.no_grad():
        logits = [torch.Tensor(fastais(batch)) for batch in batches]
        assert all(torch.equal(ours(batch), expected) for batch, expected in zip(batches, logits, strict=True))
        assert all(expected.isfinite().all() and expected.std() > 0 for expected in logits)
        again = fastai_unet(name, 5, sizes[0], **options).eval()
        again.load_state_dict(ours.state_dict(), strict=True)
        assert torch.equal(torch.Tensor(again(batches[0])), logits[0])


@pytest.mark.parametrize("options", OPTIONS, **NAMES)
@pytest.mark.parametrize("name", ["resnet18", "resnet34", pytest.param("resnet50", marks=pytest.mark.slow)])
def test_weights_load_both_ways_and_give_the_same_logits(name, options):
    assert_same_both_ways(name, options)


def test_an_unknown_architecture_is_refused_with_the_right_names():
    with pytest.raises(ValueError, match="no U-Net with the encoder 'vgg11_bn'") as error:
        unet.empty_unet("vgg11_bn", 5, (32, 32))
    assert all(name in str(error.value) for name in unet.ARCHITECTURES)


def test_no_hook_is_left_on_the_encoder():
    encoder = unet.unet("resnet18", 3, (32, 32)).layers[0]
    assert not [module for module in encoder.modules() if module._forward_hooks or module._forward_pre_hooks]
    assert all(module.training for module in encoder.modules())


@pytest.mark.parametrize("options", [{}, {"self_attention": True}], **NAMES)
def test_folding_batch_norms_changes_no_logits(options):
    torch.manual_seed(2)
    network = randomise(unet.unet("resnet18", 4, (48, 48), **options)).double()
    batch = torch.randn(1, 3, 48, 48, dtype=torch.float64)
    with torch.no_grad():
        expected = network(batch)
        folded = engines.fold_batch_norms(network)
        assert torch.allclose(folded(batch), expected, rtol=1e-9)
    # Those of the encoder; the decoder's follow no convolution.
    assert not [module for module in folded.layers[0].modules() if isinstance(module, nn.BatchNorm2d)]


def test_the_bundles_architectures_are_those_that_can_be_built():
    assert bundle.ARCHITECTURES["segmentation"] == unet.ARCHITECTURES
