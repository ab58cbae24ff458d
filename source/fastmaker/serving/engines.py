"""The engine torch: a network on one device, in float32 or bfloat16. (`onnx_engine` has the engine onnxruntime.)"""

from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fastmaker import bundle, graph, graph_rewrites, pipeline, preprocess, tasks

PRECISIONS = ("float32", "bf16")


class TorchEngine:
    """A network on one device, in one of PRECISIONS.

    float32 runs the network as it was trained. bf16 folds the batch norms into the convolutions and computes in
    bfloat16, channels last.
    """

    def __init__(self, network: nn.Module, info: bundle.ModelInfo, device: str = "cpu", precision: str = "float32"):
        self.device = torch.device(device)
        self.network = network.eval().requires_grad_(False).to(self.device)
        self.dtype, self.memory_format = torch.float32, torch.contiguous_format
        if precision == "bf16":
            self.dtype, self.memory_format = torch.bfloat16, torch.channels_last
            self.network = _in_bf16(self.network, info)
        self.mean, self.std = (
            torch.tensor(values, device=self.device).view(1, -1, 1, 1) for values in (info.mean, info.std)
        )
        self.resampled, self.steps = info.resampled, info.steps
        self.activation = tasks.ACTIVATIONS[info.activation]

    @torch.inference_mode()
    def numbers(self, batch: torch.Tensor) -> torch.Tensor:
        """Return the numbers of images, uint8 (N, C, H, W): float32 (N, ...) on the engine's device.

        They are the network's output after the activation of its loss, of the shape `ModelInfo.shape` for each image.
        """
        batch = self.prepare(batch).to(self.dtype, memory_format=self.memory_format)
        return self.activation(self.network(batch).float())

    def prepare(self, batch: torch.Tensor) -> torch.Tensor:
        """Return images of `pipeline.to_tensor`, uint8 (N, C, H, W), as the network's input.

        It is float32 on the engine's device.
        """
        pixels = pipeline.to_pixels(batch.to(self.device), self.steps)
        return preprocess.standardise(pixels, self.mean, self.std, self.resampled)


def _in_bf16(network: nn.Module, info: bundle.ModelInfo) -> nn.Module:
    """Return the network with folded batch norms, in bfloat16 and channels last.

    Raises BundleError for a graph that cannot be computed so: its calls may name another type.
    """
    if isinstance(network, graph.GraphNetwork):
        folded: Any = graph_rewrites.fold_batch_norms(network)
    else:
        folded = fold_batch_norms(network)
    folded = folded.to(dtype=torch.bfloat16, memory_format=torch.channels_last)
    if isinstance(folded, graph.GraphNetwork):
        try:
            graph.try_out(folded, info.channels, info.image_size)
        except graph.GraphError as error:
            raise bundle.BundleError(f"{bundle.GRAPH_FILE}: the network cannot be computed in bf16: {error}") from None
    return folded


def fold_batch_norms(network: nn.Module) -> nn.Module:
    """Fold each BatchNorm2d behind a Conv2d into that convolution, in place, and return the network.

    It finds the pairs that are neighbours in a Sequential or a torchvision block.
    """
    children = dict(network.named_children())
    for (name, module), (next_name, follower) in zip(children.items(), list(children.items())[1:], strict=False):
        if isinstance(module, nn.Conv2d) and isinstance(follower, nn.BatchNorm2d):
            setattr(network, name, fuse_conv_bn_eval(module, follower))
            setattr(network, next_name, nn.Identity())
    for child in network.children():
        fold_batch_norms(child)
    return network
