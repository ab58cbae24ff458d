"""A bundle made ready to answer: images in, predictions out, as fast as the processor allows.

    model = serving.load("model")
    model.predict([preprocess.decode(open("cat.jpg", "rb").read())])

Callable without a server. In float32, the default, one image gives the bits that fastai's ``learn.predict`` gives on
the same torch build: the network runs as it was trained. bf16 folds the batch norms into the convolutions and uses the
processor's bfloat16 units (AMX, AVX512-BF16), which is several times faster where there are some. The engine
onnxruntime answers with the model.onnx beside the bundle, up to rounding as torch does.
"""

import itertools
import os
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fastmaker import bundle, masks, preprocess
from fastmaker.masks import Mask
from fastmaker.serving.onnx_engine import OnnxEngine
from fastmaker.serving.wire import Prediction

PRECISIONS = ("float32", "bf16")
ENGINES = ("torch", "onnxruntime")
# Images of one request that go through the network together: enough to keep it busy, little enough memory.
MAX_BATCH = 16


class TorchEngine:
    """A network on one device, in one precision."""

    def __init__(self, network: nn.Module, info: bundle.ModelInfo, device: str = "cpu", precision: str = "float32"):
        self.device = torch.device(device)
        self.network = network.eval().requires_grad_(False).to(self.device)
        self.dtype, self.memory_format = torch.float32, torch.contiguous_format
        if precision == "bf16":
            self.dtype, self.memory_format = torch.bfloat16, torch.channels_last
            self.network = fold_batch_norms(self.network).to(dtype=self.dtype, memory_format=self.memory_format)
        self.mean, self.std = (
            torch.tensor(values, device=self.device).view(1, -1, 1, 1) for values in (info.mean, info.std)
        )
        self.resampled = info.resampled

    @torch.inference_mode()
    def probabilities(self, batch: torch.Tensor) -> torch.Tensor:
        """uint8 (N, C, H, W) -> float32 (N, n_labels), for segmentation (N, n_labels, H, W)."""
        batch = preprocess.normalise(batch.to(self.device), self.mean, self.std, self.resampled)
        batch = batch.to(self.dtype, memory_format=self.memory_format)
        return self.network(batch).float().softmax(dim=1)


class Model:
    """A `ModelInfo` and the engine that computes the probabilities."""

    def __init__(self, engine: TorchEngine | OnnxEngine, info: bundle.ModelInfo):
        self.engine, self.info = engine, info

    def to_tensor(self, image: Image.Image) -> torch.Tensor:
        """A Pillow image as the network wants it: uint8 (C, H, W). Raises preprocess.ImageError."""
        return preprocess.to_tensor(image, self.info.image_mode, self.info.image_size, self.info.resize_method)

    def probabilities(self, batch: torch.Tensor) -> torch.Tensor:
        """uint8 (N, C, H, W) -> float32 (N, n_labels), for segmentation (N, n_labels, H, W)."""
        return self.engine.probabilities(batch)

    def predict(self, images: list[Image.Image], mask_size: str | None = None) -> list[Prediction] | list[Mask]:
        """One answer for each image, in order; `mask_size` is one of masks.SIZES, by default the bundle's.

        Raises preprocess.ImageError.
        """
        found = self.outputs(map(self.to_tensor, images))
        return [self.answer(output, image, mask_size) for output, image in zip(found, images, strict=True)]

    def outputs(self, tensors: Iterable[torch.Tensor]) -> Iterator[np.ndarray]:
        """What the network finds in each of `to_tensor`'s tensors: probabilities, or the class of each pixel.

        Images that go through together have other rounding than one alone: about 1e-7 in a probability.
        """
        together = 1 if self.info.task == "segmentation" else MAX_BATCH  # one keeps a U-Net busy
        tensors = iter(tensors)
        while batch := list(itertools.islice(tensors, together)):
            found = self.probabilities(torch.stack(batch))
            if self.info.task == "segmentation":
                # The argmax of the probabilities, as in fastai: rounding may have made two of them equal.
                found = found.argmax(dim=1).to(torch.uint8)
            yield from found.cpu().numpy()

    def answer(self, output: np.ndarray, image: Image.Image, mask_size: str | None = None) -> Prediction | Mask:
        """The answer that one of `outputs` is for its image. Raises preprocess.ImageError."""
        info = self.info
        if info.task == "classification":
            return Prediction(output, info.labels)
        if (mask_size or info.mask_size) == "original":
            output = masks.resize_to_original(output, image.size, info.resize_method, info.void_code)
        return Mask(output, info.labels, info.void_code)


def load(
    model_dir: str | os.PathLike, device: str = "cpu", precision: str | None = None, engine: str | None = None
) -> Model:
    """The bundle in `model_dir`; `precision` is one of PRECISIONS, by default FASTMAKER_PRECISION or float32.

    `engine` is one of ENGINES, by default FASTMAKER_ENGINE or torch; onnxruntime computes on the processor whatever
    the device is, in the precision of model.onnx. Raises bundle.BundleError or ValueError.
    """
    precision = _setting("FASTMAKER_PRECISION", precision, PRECISIONS)
    engine = _setting("FASTMAKER_ENGINE", engine, ENGINES)
    preprocess.max_pixels()  # a value that is no number shows now, not at each request
    if engine == "torch":
        network, info = bundle.load(model_dir)
        return Model(TorchEngine(network, info, device, precision), info)
    if precision != "float32":
        raise ValueError(
            f"FASTMAKER_PRECISION={precision} is for the engine torch; onnxruntime computes as model.onnx says"
        )
    info = bundle.load_info(model_dir)
    return Model(OnnxEngine(model_dir, info), info)


def _setting(name: str, value: str | None, allowed: tuple[str, ...]) -> str:
    """The value, or else that of the environment variable `name`, or else the first that is allowed."""
    value = value or os.environ.get(name, allowed[0])
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(allowed)}")
    return value


def threads_per_worker(workers: int | None = None) -> int:
    """cores // workers, at least 1: with all cores in every worker, throughput collapses under concurrent requests.

    TorchServe starts as many workers as there are cores unless `workers` or one of these variables says otherwise.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers:
        return max(1, cores // workers)
    for name in (
        "SAGEMAKER_TS_MAX_WORKERS",
        "SAGEMAKER_MODEL_SERVER_WORKERS",
        "TS_DEFAULT_WORKERS_PER_MODEL",
    ):
        if os.environ.get(name, "").isdigit():
            return max(1, cores // max(1, int(os.environ[name])))
    return 1


def fold_batch_norms(network: nn.Module) -> nn.Module:
    """Fold each BatchNorm2d that follows a Conv2d in a Sequential or a torchvision block into that convolution."""
    children = dict(network.named_children())
    for (name, module), (next_name, follower) in zip(children.items(), list(children.items())[1:], strict=False):
        if isinstance(module, nn.Conv2d) and isinstance(follower, nn.BatchNorm2d):
            setattr(network, name, fuse_conv_bn_eval(module, follower))
            setattr(network, next_name, nn.Identity())
    for child in network.children():
        fold_batch_norms(child)
    return network
