"""A bundle -> one ONNX file that includes normalisation and the activation of its loss.

    onnx_file.to_onnx("model", "model.onnx")

    image          input: uint8 (N, C, H, W) from preprocess.to_tensor, or float32, the same divided by 255
    probabilities  output: float32 (N, n_labels), for segmentation (N, n_labels, H, W)
    values         output in its place, for regression: float32 (N, n)
    points         output in its place, for points: float32 (N, 2n), -1..1 of the network's input (`geometry`)
    mask           output, only for segmentation: uint8 (N, H, W), the class of each pixel

N is dynamic; C, H and W are those of images after their own steps. The metadata holds the text of model.json, the
labels and the version of this package. Each file is run in ONNX Runtime and compared with torch before it appears.
`to_int8` quantises such a file.
"""

import importlib.util
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from fastmaker import __version__, bundle, files, graph, graph_rewrites, networks, pipeline, preprocess, tasks
from fastmaker.serving import onnx_engine
from fastmaker.serving.onnx_engine import IMAGE, MASK, MODEL_JSON, output_name
from fastmaker.training import layouts

if TYPE_CHECKING:
    import onnx

INPUTS = ("uint8", "float")
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
OPSET = 18
CHECKED_BATCHES = (1, 3, 8)
# Rounding changes a probability by a few millionths, a wrong layer by far more than this. Relative above 1.
TOLERANCE = 1e-4
CLOSE = 0.02  # of int8 to float32, where numbers stand for no label; relative above 1


class ExportError(ValueError):
    """A network that cannot be exported to ONNX, or a missing package; the message is one line."""


class Exported(nn.Module):
    """A bundle's network with normalisation and activation: images (N, C, H, W) -> the outputs above."""

    channel_mean: torch.Tensor
    channel_std: torch.Tensor

    def __init__(self, network: nn.Module, info: bundle.ModelInfo, image_input: str):
        super().__init__()
        self.network, self.info, self.image_input = network, info, image_input
        self.register_buffer("channel_mean", torch.tensor(info.mean).view(1, -1, 1, 1))
        self.register_buffer("channel_std", torch.tensor(info.std).view(1, -1, 1, 1))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self.image_input == "float" and pipeline.changes_batches(self.info.steps):
            image = image * 255.0
        if self.image_input == "uint8" or pipeline.changes_batches(self.info.steps):
            image = pipeline.to_pixels(image, self.info.steps)
        image = preprocess.standardise(image, self.channel_mean, self.channel_std, self.info.resampled)
        numbers = tasks.ACTIVATIONS[self.info.activation](self.network(image))
        if self.info.task == "segmentation":
            return numbers, numbers.argmax(dim=1).to(torch.uint8)
        return (numbers,)


class Maximum(nn.Module):
    """``nn.AdaptiveMaxPool2d(1)`` in an exportable form: (N, C, H, W) -> (N, C, 1, 1)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.amax(dim=(2, 3), keepdim=True)


def to_onnx(model_dir: str | os.PathLike, file: str | os.PathLike, image_input: str = "uint8") -> float:
    """Write the bundle in `model_dir` as the ONNX model `file`, and return the largest difference from torch.

    `image_input` is one of INPUTS. The difference is that of a number, over random images. `file` appears complete
    or not at all. Raises bundle.BundleError or ExportError.
    """
    check_packages()
    if image_input not in INPUTS:
        raise ExportError(f"the input is {image_input!r}; expected one of {', '.join(INPUTS)}")
    network, info = bundle.load(model_dir)
    if pipeline.input_size(info) is None:
        raise ExportError(
            f"{model_dir}: the Learner resized images of any size in batches; an ONNX file takes images of one size"
        )
    model = Exported(network, info, image_input).eval().requires_grad_(False)
    proto = _export(model)
    _set_metadata(proto, Path(model_dir, bundle.INFO_FILE).read_text("utf-8"), info)
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    with files.atomic(file) as partial:
        _save(proto, partial)
        return _compare(partial, model)


def to_int8(float_file: str | os.PathLike, file: str | os.PathLike, images: Sequence[np.ndarray]) -> tuple[int, int]:
    """Quantise the convolutions and linear layers of `float_file`, from `to_onnx`, to int8 and write them as `file`.

    Each of `images` is an input (1, C, H, W) of `float_file`; they calibrate the ranges of the activations. Returns on
    how many of their labels (for segmentation, pixels; for regression and points, numbers) both files agree, and how
    many there are. `file` appears complete or not at all. Raises ExportError.
    """
    check_packages()
    import onnx
    from onnxruntime import quantization

    proto = onnx.load(float_file)
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    with files.atomic(file) as partial:
        with _quiet(None):  # the root logger recommends a preparation that the exporter has done
            quantization.quantize_static(
                proto,
                partial,
                _Reader(images),
                quant_format=quantization.QuantFormat.QDQ,
                # The pair of types that CPUs have instructions for, and the layers where rounding costs little.
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                per_channel=True,
                op_types_to_quantize=["Conv", "Gemm", "MatMul"],
            )
        proto = onnx.load(partial)
        onnx.helper.set_model_props(proto, metadata)
        _save(proto, partial)
        return _agreement(Path(float_file), partial, images)


def calibration_images(
    folder: str | os.PathLike, info: bundle.ModelInfo, image_input: str = "uint8"
) -> list[np.ndarray]:
    """Return the images below `folder`, each as the exported model's input (1, C, H, W). Raises ExportError."""
    images = layouts.image_files(Path(folder))
    if not images:
        raise ExportError(f"{folder} holds no image")
    return inputs(images, info, image_input)


def inputs(image_files: Sequence[Path], info: bundle.ModelInfo, image_input: str = "uint8") -> list[np.ndarray]:
    """Return each image file as the exported model's input (1, C, H, W). Raises ExportError."""
    arrays = []
    for file in image_files:
        try:
            image = preprocess.decode(file.read_bytes())
            tensor = pipeline.to_tensor(image, info)
        except preprocess.ImageError as error:
            raise ExportError(f"{file}: {error}") from None
        arrays.append(_as_input(tensor[None], image_input).numpy())
    return arrays


def check_packages() -> None:
    """Raise ExportError if one of PACKAGES is not installed."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise ExportError(f"ONNX needs {', '.join(missing)}, not installed here: pip install 'fastmaker[onnx]'")


def _export(model: Exported) -> "onnx.ModelProto":
    """Return the model as an onnx.ModelProto. Raises ExportError."""
    if isinstance(model.network, graph.GraphNetwork):
        model.network = graph_rewrites.for_onnx(model.network)
    for module in model.modules():
        if isinstance(module, networks.AdaptiveConcatPool2d):
            module.mp = Maximum()  # type: ignore[assignment]
    outputs = [output_name(model.info)] + [MASK] * (model.info.task == "segmentation")
    # Two images: the exporter would take a batch size of 1 for a constant.
    example = _images(2, model.info, model.image_input)
    with torch.inference_mode():
        model(example)  # computes what `pipeline` caches
    try:
        with _quiet("torch.onnx"):  # it warns about torchvision operators that are not used here
            program = torch.onnx.export(
                model,
                (example,),
                input_names=[IMAGE],
                output_names=outputs,
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(f"torch cannot export this network: {' '.join(str(error).split())[-300:]}") from None
    assert program is not None  # as with dynamo=False
    return program.model_proto


def _set_metadata(proto: "onnx.ModelProto", model_json: str, info: bundle.ModelInfo) -> None:
    import onnx

    for node in proto.graph.node:
        del node.metadata_props[:]  # the exporter's stack traces, with local paths
    labels = json.dumps(info.labels, ensure_ascii=False)
    onnx.helper.set_model_props(proto, {MODEL_JSON: model_json, "labels": labels, "fastmaker": __version__})


def _save(proto: "onnx.ModelProto", file: Path) -> None:
    import onnx

    onnx.save(proto, file)
    try:
        onnx.checker.check_model(file, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"onnx.checker rejects the file that torch exported: {' '.join(str(error).split())[:300]}"
        ) from None


def _compare(file: Path, model: Exported) -> float:
    """Return the largest difference of a number from torch's. Raises ExportError above TOLERANCE."""
    session = onnx_engine.session(file, torch.get_num_threads())
    largest = 0.0
    for n in CHECKED_BATCHES:
        images = _images(n, model.info, model.image_input)
        with torch.inference_mode():
            expected = model(images)[0].numpy()
        numbers, *masks = session.run(None, {IMAGE: images.numpy()})
        difference = float((np.abs(numbers - expected) / np.maximum(1, np.abs(expected))).max())
        if not difference <= TOLERANCE:  # also for nan
            name = output_name(model.info)
            raise ExportError(f"ONNX Runtime's {name} of {n} images are off torch's by up to {difference:.1e}")
        if any((mask != numbers.argmax(axis=1)).any() for mask in masks):
            raise ExportError(f"ONNX Runtime's masks of {n} images are not the classes of the highest probabilities")
        largest = max(largest, difference)
    return largest


def _agreement(float_file: Path, int8_file: Path, images: Sequence[np.ndarray]) -> tuple[int, int]:
    """Return on how many labels (for segmentation, pixels; else numbers) the files agree, and how many there are."""
    sessions = [onnx_engine.session(file, torch.get_num_threads()) for file in (float_file, int8_file)]
    values = onnx_engine.onnx_metadata(sessions[0])
    same = total = 0
    for image in images:
        one, other = (session.run(None, {IMAGE: image})[0] for session in sessions)
        agree = _agree(one, other, values)
        same += int(agree.sum())
        total += agree.size
    return same, total


def _agree(one: np.ndarray, other: np.ndarray, values: dict[str, Any]) -> np.ndarray:
    """Return for each label, pixel or number of two outputs whether they agree. `values` are those of model.json."""
    if values["task"] == "multilabel":
        threshold = values["threshold"]
        return tasks.is_over(one, threshold) == tasks.is_over(other, threshold)
    if values["task"] in tasks.LABELLED:
        return one.argmax(axis=1) == other.argmax(axis=1)
    return np.abs(one - other) <= CLOSE * np.maximum(1, np.abs(one))


class _Reader:
    """ONNX Runtime's CalibrationDataReader for `images`."""

    def __init__(self, images: Sequence[np.ndarray]):
        self.images = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.images, None)
        return None if image is None else {IMAGE: image}


def _images(n: int, info: bundle.ModelInfo, image_input: str) -> torch.Tensor:
    """Return `n` random images of soft coloured spots; on plain noise a network is more certain than on photos."""
    spots = torch.rand((n, info.channels, 6, 6), generator=torch.Generator().manual_seed(n))
    images = nn.functional.interpolate(spots, pipeline.input_size(info), mode="bilinear").mul(255).to(torch.uint8)
    return _as_input(images, image_input)


def _as_input(images: torch.Tensor, image_input: str) -> torch.Tensor:
    return images if image_input == "uint8" else images.float() / 255.0


@contextmanager
def _quiet(logger: str | None) -> Iterator[None]:
    """Let `logger` log only errors within the block."""
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
