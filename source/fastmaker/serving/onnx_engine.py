"""The engine onnxruntime: model.onnx in ONNX Runtime in place of torch.

fastmaker.export.onnx_file writes the file. Serving needs onnxruntime, but neither onnx nor the exporter.
"""

import importlib.util
import mmap
import os
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastmaker import bundle, checks, image_steps

if TYPE_CHECKING:
    import onnxruntime

IMAGE, MASK = "image", "mask"  # names of the input, and of the output with a mask's classes
# Names of the output with the numbers; it has the first one for tasks with labels.
PROBABILITIES, VALUES, POINTS = "probabilities", "values", "points"
LOCATION = b"location"
# What is before a key of that length in protobuf's encoding: field 1, 8 bytes. Either number may be padded with zeros.
KEY = re.compile(rb"(\x0a|\x8a\x80*\x00)(\x08|\x88\x80*\x00)\Z")
MODEL_JSON = "model.json"  # metadata key whose value is the text of the bundle's model.json


class OnnxEngine:
    """Computes on the CPU, in the precision of the file, with as many threads as torch is set to use."""

    def __init__(self, model_dir: str | os.PathLike, info: bundle.ModelInfo):
        """Load the model.onnx in `model_dir`. Raises BundleError if it was not made from that bundle."""
        path = find_file(model_dir, "onnxruntime")
        try:
            self.session = session(path, torch.get_num_threads())
        except Exception as error:  # ONNX Runtime's exceptions derive from Exception alone
            raise not_loaded(path, "ONNX Runtime", error) from None
        check_origin(path, info, onnx_metadata(self.session), input_dtype(self.session))
        self.output, self.info = output_name(info), vars(info)

    def numbers(self, batch: torch.Tensor) -> torch.Tensor:
        """Return the numbers of images, uint8 (N, C, H, W): float32 (N, ...), of `ModelInfo.shape` for each image.

        Raises preprocess.ImageError for images that are too large for the file.
        """
        image_steps.check_for_onnx(batch.shape[-2:], self.info)
        (outputs,) = self.session.run([self.output], {IMAGE: batch.numpy()})
        return torch.from_numpy(outputs)


def find_file(model_dir: str | os.PathLike, engine: str) -> str:
    """Return the path of the model.onnx in `model_dir`, for an engine that has the name of its package.

    Raises BundleError if either is missing.
    """
    if importlib.util.find_spec(engine) is None:
        raise bundle.BundleError(
            f"the engine {engine} needs the package {engine}, which is not installed: install it, or set"
            " FASTMAKER_ENGINE=torch"
        )
    path = os.path.join(model_dir, bundle.ONNX_FILE)
    if not os.path.isfile(path):
        raise bundle.BundleError(f"{path}: missing; `fastmaker package onnx MODEL --bundle FOLDER` adds it")
    return path


def not_loaded(path: str, name: str, error: Exception) -> bundle.BundleError:
    """Return the error of a file that the engine of that name does not load, in one line."""
    return bundle.BundleError(f"{path}: not a model that {name} loads: {' '.join(str(error).split())[:300]}")


def check_origin(path: str, info: bundle.ModelInfo, metadata: dict[str, Any], dtype: np.dtype) -> None:
    """Raise BundleError unless a file with this metadata, for images of `dtype`, was made from the bundle of `info`."""
    if other := [key for key, value in baked_in_fields(info).items() if metadata.get(key) != value]:
        raise bundle.BundleError(
            f"{path}: made of another bundle: its {', '.join(other)} is not that of {bundle.INFO_FILE} beside it"
        )
    if dtype != np.uint8:
        raise bundle.BundleError(f"{path}: takes {dtype} images; the engine serves models that take uint8")


def session(path: str | os.PathLike, threads: int) -> "onnxruntime.InferenceSession":
    """Return an onnxruntime.InferenceSession on the CPU, with `threads` threads. Raises as `check_alone`."""
    import onnxruntime

    check_alone(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only: its warnings are about graph optimisations
    return onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])


def check_alone(path: str | os.PathLike) -> None:
    """Raise ValueError for a model that takes tensors from other files: the engines would read any."""
    if _names_other_files(path):
        raise ValueError("it takes tensors from other files; expected all of them in this one")


def output_name(info: bundle.ModelInfo) -> str:
    """Return the name of an ONNX file's output that holds the numbers."""
    return {"regression": VALUES, "points": POINTS}.get(info.task, PROBABILITIES)


def _names_other_files(path: str | os.PathLike) -> bool:
    """Return whether a tensor has the key "location", under which an ONNX file names another."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        position = data.find(LOCATION)
        while position >= 0:
            if KEY.search(data[max(0, position - 20) : position]):
                return True
            position = data.find(LOCATION, position + 1)
    return False


def baked_in_fields(info: bundle.ModelInfo) -> dict[str, Any]:
    """Return the fields of model.json that an ONNX file contains as constants, as JSON values."""
    values: dict[str, Any] = {"resampled": info.resampled, "activation": info.activation}
    values |= {"state_sha256": info.state_sha256, "image_mode": info.image_mode}
    if info.steps:
        values["steps"] = list(info.steps)
    if info.network_sha256:
        values["network_sha256"] = info.network_sha256
    return values | {key: list(getattr(info, key)) for key in ("image_size", "mean", "std")}


def onnx_metadata(session: "onnxruntime.InferenceSession") -> dict[str, Any]:
    """Return the model.json that the session's model was made from, or {} if it has none."""
    return parse_metadata(session.get_modelmeta().custom_metadata_map.get(MODEL_JSON))


def parse_metadata(text: str | None) -> dict[str, Any]:
    """Return the object of MODEL_JSON's text, with the fields that old ones lack; {} if it is none."""
    try:
        values = checks.parse(text or "")
    except ValueError:
        return {}
    return {"resampled": False, "activation": "softmax", **values} if isinstance(values, dict) else {}


def input_dtype(session: "onnxruntime.InferenceSession") -> np.dtype:
    """Return the dtype of the images that the session's model takes: uint8, or float32 scaled to 0..1."""
    return np.dtype({"tensor(uint8)": np.uint8}.get(session.get_inputs()[0].type, np.float32))
