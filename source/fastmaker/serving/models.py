"""A loaded bundle: images in, predictions out, without a server.

    model = fastmaker.load_bundle("model")
    model.predict([preprocess.decode(open("cat.jpg", "rb").read())])

In float32, the default, one image gives the same bits as fastai's ``learn.predict`` on the same torch build. bf16 uses
the processor's bfloat16 units (AMX, AVX512-BF16), where it has them, and is several times faster. The engines
onnxruntime and openvino compute with the model.onnx of the bundle, and give the same numbers up to rounding.
"""

import itertools
import math
import os
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from PIL import Image

from fastmaker import answers, bundle, masks, pipeline, preprocess
from fastmaker.serving import limits, settings
from fastmaker.serving.engines import PRECISIONS, TorchEngine
from fastmaker.serving.onnx_engine import OnnxEngine
from fastmaker.serving.openvino_engine import OpenvinoEngine
from fastmaker.serving.settings import ENGINES

# Images of a request that are computed in one batch: enough to keep the processor busy, in moderate memory.
MAX_BATCH = 16
BATCH_PIXELS = 2_000_000  # of the network's input; 16 images of 352x352


class Model:
    """A bundle's `ModelInfo` and the engine that computes its numbers."""

    def __init__(self, engine: TorchEngine | OnnxEngine | OpenvinoEngine, info: bundle.ModelInfo):
        self.engine, self.info = engine, info

    def to_tensor(self, image: Image.Image) -> torch.Tensor:
        """Return a Pillow image as the engine's input, uint8 (C, H, W). Raises preprocess.ImageError."""
        return pipeline.to_tensor(image, self.info)

    def numbers(self, batch: torch.Tensor) -> torch.Tensor:
        """Return the numbers of images, uint8 (N, C, H, W): float32 (N, ...), of `ModelInfo.shape` for each image.

        They are those of the third value of ``learn.predict``: the probabilities of labels, or what the task asks for.
        """
        return self.engine.numbers(batch)

    def predict(self, images: list[Image.Image], mask_size: str | None = None) -> list[answers.Answer]:
        """Return one answer for each Pillow image, in order. Its class depends on the task, see `answers`.

        Images may have any mode and size; `preprocess.decode` reads them from bytes. `mask_size` is one of masks.SIZES,
        by default the bundle's. Raises preprocess.ImageError for an image that cannot be resized, or whose mask has no
        original size.
        """
        return self._predict(images, images, mask_size)

    def predict_in_time(self, images: list[Image.Image], mask_size: str | None = None) -> list[answers.Answer]:
        """Return `predict` for the images of a request. Raises preprocess.ImageError as well if they take too long."""
        return self._predict(limits.in_time(images), images, mask_size)

    def _predict(
        self, given: Iterable[Image.Image], images: list[Image.Image], mask_size: str | None
    ) -> list[answers.Answer]:
        outputs = self.outputs(map(self.to_tensor, given))
        return [self.answer(output, image, mask_size) for output, image in zip(outputs, images, strict=True)]

    def outputs(self, tensors: Iterable[torch.Tensor]) -> Iterator[np.ndarray]:
        """Yield the output for each tensor of `to_tensor`.

        It is the numbers, float32 of `ModelInfo.shape`, or the mask, uint8 (H, W), as large as the tensor. Rounding
        differs between an image in a batch and one alone, by about 1e-7 in a probability.
        """
        most = 1 if self.info.task == "segmentation" else MAX_BATCH  # one image keeps a U-Net busy
        for batch in batches(tensors, most):
            outputs = self._computed(torch.stack(batch))
            if self.info.task == "segmentation":
                # As in fastai, of the probabilities, not the logits: rounding may have made two of them equal.
                outputs = outputs.argmax(dim=1).to(torch.uint8)
            yield from outputs.cpu().numpy()

    def _computed(self, batch: torch.Tensor) -> torch.Tensor:
        try:
            return self.numbers(batch)
        except (RuntimeError, ValueError) as error:
            if not pipeline.takes_any_size(self.info):
                raise
            raise preprocess.ImageError(  # too small, for instance
                f"the model takes no image of {batch.shape[-1]}x{batch.shape[-2]}: {' '.join(str(error).split())[:200]}"
            ) from None

    def answer(self, output: np.ndarray, image: Image.Image, mask_size: str | None = None) -> answers.Answer:
        """Return the answer for `image`, of which `output` is one of `outputs`. Raises preprocess.ImageError."""
        info = self.info
        if info.task == "segmentation" and (mask_size or info.mask_size) == "original":
            output = masks.resize_to_original(output, image.size, info.resize_method, info.void_code, info.steps)
        return answers.of(output, image.size, info)


def batches(tensors: Iterable[torch.Tensor], size: int) -> Iterator[list[torch.Tensor]]:
    """Yield the tensors in order, in lists of at most `size`, and of few large ones, that have one shape."""
    for (_, *area), alike in itertools.groupby(tensors, lambda tensor: tensor.shape):
        of_this_shape = min(size, max(1, BATCH_PIXELS // math.prod(area)))
        while batch := list(itertools.islice(alike, of_this_shape)):
            yield batch


def load(
    model_dir: str | os.PathLike, device: str = "cpu", precision: str | None = None, engine: str | None = None
) -> Model:
    """Load the bundle in `model_dir` and return its `Model`.

    `device` is a torch device, such as cpu or cuda:0. `precision` is one of PRECISIONS, by default FASTMAKER_PRECISION,
    that of serving.json or float32. `engine` is one of ENGINES, by default FASTMAKER_ENGINE, that of serving.json or
    torch; the others compute on the CPU, whatever the device, onnxruntime in the precision of model.onnx. Raises
    bundle.BundleError, or ValueError for another setting.
    """
    own = settings.load(model_dir) or settings.Settings()
    engine = _setting("FASTMAKER_ENGINE", engine, ENGINES, own.engine)
    # The precision was measured with its engine: it means nothing for another.
    precision = _setting(
        "FASTMAKER_PRECISION", precision, PRECISIONS, own.precision if engine == own.engine else "float32"
    )
    for limit in (preprocess.max_pixels, limits.max_images, limits.max_seconds):
        limit()  # raises here, not at each request, if it is not a number
    if engine == "torch":
        network, info = bundle.load(model_dir)
        return Model(TorchEngine(network, info, device, precision), info)
    if engine == "onnxruntime" and precision != "float32":
        raise ValueError(
            f"FASTMAKER_PRECISION={precision} is for the engines torch and openvino; onnxruntime computes as"
            " model.onnx says"
        )
    info = bundle.load_info(model_dir)
    if engine == "openvino":
        return Model(OpenvinoEngine(model_dir, info, precision), info)
    return Model(OnnxEngine(model_dir, info), info)


def _setting(name: str, value: str | None, allowed: tuple[str, ...], default: str) -> str:
    """Return `value`, or the environment variable `name`, or the default. Raises ValueError."""
    value = value or os.environ.get(name, default)
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(allowed)}")
    return value


def threads_per_worker(count: int | None = None, model_dir: str | os.PathLike | None = None) -> int:
    """Return cores // workers, at least 1: if each worker uses all cores, throughput collapses under load.

    The number of workers is `count`, or what `workers` says. FASTMAKER_THREADS wins; the threads of serving.json in
    `model_dir` count where its workers do. Raises ValueError.
    """
    if given := os.environ.get(settings.THREADS):
        if not given.isdigit() or not 1 <= int(given) <= settings.MOST:
            raise ValueError(f"{settings.THREADS} is {given!r}; expected a whole number, 1 to {settings.MOST}")
        return int(given)
    cores = settings.cores()
    count = count or workers(cores)
    own = settings.load(model_dir) if model_dir else None
    return own.threads if own and own.workers == count else max(1, cores // count)


def workers(cores: int) -> int:
    """Return how many workers serve a model: one for each core unless a variable of the container says otherwise."""
    for name in (settings.MAX_WORKERS, settings.WORKERS, "TS_DEFAULT_WORKERS_PER_MODEL"):
        if os.environ.get(name, "").isdigit():
            return max(1, int(os.environ[name]))
    return cores


def toolkit_workers() -> int:
    """Return how many workers AWS's serving toolkit has TorchServe start for a model.

    It is one for each GPU, else for each core, unless a variable says otherwise. In a container of many models it is
    one.
    """
    many = os.environ.get("SAGEMAKER_MULTI_MODEL") == "true"
    if not many and any(name in os.environ for name in settings.OF_TORCHSERVE):
        return max(1, int(os.environ.get(settings.MIN_WORKERS, 1)))
    for name in ("TS_DEFAULT_WORKERS_PER_MODEL", settings.WORKERS):  # 0 is as if it were not set
        if os.environ.get(name, "").isdigit() and (count := int(os.environ[name])):
            return count
    return 1 if many else torch.cuda.device_count() or settings.cores()
