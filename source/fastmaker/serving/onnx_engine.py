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
        if importlib.util.find_spec("onnxruntime") is None:
            raise bundle.BundleError("the engine onnxruntime needs the package onnxruntime, which is not installed")
        path = os.path.join(model_dir, bundle.ONNX_FILE)
        if not os.path.isfile(path):
            raise bundle.BundleError(f"{path}: missing; `fastmaker package onnx MODEL --bundle FOLDER` adds it")
        try:
            self.session = session(path, torch.get_num_threads())
        except Exception as error:  # ONNX Runtime's exceptions derive from Exception alone
            reason = " ".join(str(error).split())[:300]
            raise bundle.BundleError(f"{path}: not a model that ONNX Runtime loads: {reason}") from None
        if other := [
            key for key, value in baked_in_fields(info).items() if onnx_metadata(self.session).get(key) != value
        ]:
            raise bundle.BundleError(
                f"{path}: made of another bundle: its {', '.join(other)} is not that of {bundle.INFO_FILE} beside it"
            )
        if (found := input_dtype(self.session)) != np.uint8:
            raise bundle.BundleError(f"{path}: takes {found} images; the engine serves models that take uint8")
        self.output, self.info = output_name(info), vars(info)

    def numbers(self, batch: torch.Tensor) -> torch.Tensor:
        """Return the numbers of images, uint8 (N, C, H, W): float32 (N, ...), of `ModelInfo.shape` for each image.

        Raises preprocess.ImageError for images that are too large for the file.
        """
        image_steps.check_for_onnx(batch.shape[-2:], self.info)
        (outputs,) = self.session.run([self.output], {IMAGE: batch.numpy()})
        return torch.from_numpy(outputs)


def session(path: str | os.PathLike, threads: int) -> "onnxruntime.InferenceSession":
    """Return an onnxruntime.InferenceSession on the CPU, with `threads` threads.

    Raises ValueError for a model that takes tensors from other files: ONNX Runtime would read any.
    """
    import onnxruntime

    if _names_other_files(path):
        raise ValueError("it takes tensors from other files; expected all of them in this one")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only: its warnings are about graph optimisations
    return onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])


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
    try:
        values = checks.parse(session.get_modelmeta().custom_metadata_map[MODEL_JSON])
    except (KeyError, ValueError):
        return {}
    return {"resampled": False, "activation": "softmax", **values} if isinstance(values, dict) else {}


def input_dtype(session: "onnxruntime.InferenceSession") -> np.dtype:
    """Return the dtype of the images that the session's model takes: uint8, or float32 scaled to 0..1."""
    return np.dtype({"tensor(uint8)": np.uint8}.get(session.get_inputs()[0].type, np.float32))
