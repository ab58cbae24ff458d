"""Where a classifier's network looked: a map over the image, by captum, of a bundle that is at hand.

Grad-CAM (https://arxiv.org/abs/1610.02391) behind the deepest convolution that still has places, else integrated
gradients (https://arxiv.org/abs/1703.01365): of a network that is kept as a graph, or has no such convolution.
"""

import copy
import functools
import importlib.util
import threading
from collections import Counter
from typing import Any

import numpy as np
from PIL import Image

from fastmaker.jobs.cli import pictures
from fastmaker.jobs.clients.sources import Source
from fastmaker.jobs.packaging.models import model_directory

TASKS = ("classification", "multilabel")
LEAST_PLACES = 6  # rows and columns of a layer's output: of fewer, a map says little of where
STEPS = 32  # of integrated gradients, between a gray image and the image


def is_installed() -> bool:
    """Return whether captum is there."""
    return importlib.util.find_spec("captum") is not None


def label_of(answer: dict[str, Any]) -> str:
    """Return the label that is explained: the answer's, of several the most probable."""
    return answer["label"] if "label" in answer else max(answer["probabilities"], key=answer["probabilities"].get)


class Explainer:
    """The model of a source, which is loaded at the first question; it computes with torch in float32."""

    def __init__(self, source: Source):
        self._source, self._lock = source, threading.Lock()

    def check(self) -> None:
        """Load the model. Raises ValueError if it cannot be explained here, ModuleNotFoundError without captum."""
        if self._source.bundle is None:
            raise ValueError(
                f"--explain runs the network itself, and the model of {self._source.title} is not at hand: expected an"
                " endpoint of this machine, or a bundle for fastmaker page"
            )
        if not is_installed():
            raise ModuleNotFoundError("No module named 'captum'", name="captum")
        if (task := self._model.info.task) not in TASKS:
            raise ValueError(f"--explain is for {' and '.join(TASKS)}, and {self._source.title} has a model of {task}")

    @functools.cached_property
    def _model(self) -> Any:
        from fastmaker.serving import models

        assert self._source.bundle
        with model_directory(self._source.bundle, lambda: self._source.session) as folder:
            return models.load(folder, engine="torch", precision="float32")

    def picture(self, image: bytes, label: str) -> Image.Image:
        """Return an image under the map of what spoke for a label. Raises preprocess.ImageError."""
        from fastmaker import preprocess

        decoded = preprocess.decode(image)
        with self._lock:
            return pictures.with_heat(decoded, self._on_image(decoded, self._model.info.labels.index(label)))

    def _on_image(self, image: Image.Image, target: int) -> np.ndarray:
        """Return the map as large as the image; what the model did not see of it is 0."""
        from fastmaker import geometry

        seen = heat(self._model, image, target)
        (left, top), (right, bottom) = geometry.to_image(np.array([[-1, -1], [1, 1]]), image.size, self._model.info)
        box = round(left), round(top), round(right), round(bottom)
        scaled = Image.fromarray(seen).resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.BILINEAR)
        whole = Image.new("F", image.size)
        whole.paste(scaled, box[:2])
        return np.asarray(whole)


def heat(model: Any, image: Image.Image, target: int) -> np.ndarray:
    """Return how much each pixel of the network's input spoke for the output `target`, float32 (H, W), 0 to 1."""
    import torch
    from captum.attr import IntegratedGradients, LayerAttribution, LayerGradCam
    from torch.nn.functional import avg_pool2d

    prepared = model.engine.prepare(model.to_tensor(image)[None]).cpu()
    network = copy.deepcopy(model.engine.network).cpu()
    for module in network.modules():
        if hasattr(module, "inplace"):
            module.inplace = False  # captum keeps a layer's output, which may not change behind it
    if layer := _deepest_with_places(network, prepared):
        found = LayerGradCam(network, layer).attribute(prepared.requires_grad_(), target, relu_attributions=True)
        found = LayerAttribution.interpolate(found, tuple(prepared.shape[2:]), "bilinear")
    else:
        by_pixel = IntegratedGradients(network).attribute(
            prepared, target=target, n_steps=STEPS, internal_batch_size=STEPS // 4
        )
        smoothed = max(1, min(prepared.shape[2:]) // 16) * 2 + 1
        found = avg_pool2d(by_pixel.abs().sum(1, keepdim=True), smoothed, 1, smoothed // 2)
    found = found.detach()[0, 0].clamp(min=0)
    return (found / found.max().clamp(min=torch.finfo(torch.float32).tiny)).float().numpy()


def _deepest_with_places(network: Any, prepared: Any) -> Any:
    """Return what follows the last convolution whose output has LEAST_PLACES rows and columns, None without one.

    That is the last module that runs once and whose output is as large: of a ResNet its last block, after the sum and
    the ReLU. A convolution's own output lacks what goes past it, and of that the map may be empty.
    """
    import torch

    ran: list[tuple[Any, Any]] = []  # each module with its output's rows and columns, as it ended
    hooks = [
        module.register_forward_hook(lambda module, _, output: ran.append((module, getattr(output, "shape", ())[2:])))
        for module in network.modules()
    ]
    with torch.no_grad():
        network(prepared)
    for hook in hooks:
        hook.remove()
    sizes = [size for module, size in ran if isinstance(module, torch.nn.Conv2d) and min(size) >= LEAST_PLACES]
    runs = Counter(module for module, _ in ran)
    return next((module for module, size in reversed(ran) if sizes and size == sizes[-1] and runs[module] == 1), None)
