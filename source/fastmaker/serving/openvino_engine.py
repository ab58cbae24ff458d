"""The engine openvino: model.onnx in OpenVINO in place of torch.

It is the file that the engine onnxruntime serves (`onnx_engine`), with the same checks. Serving needs openvino alone.
"""

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastmaker import bundle, image_steps
from fastmaker.serving import onnx_engine

if TYPE_CHECKING:
    import openvino

# OpenVINO's names of engines.PRECISIONS, and of the units that a processor needs for them.
HINTS = {"float32": "f32", "bf16": "bf16"}
UNITS = {"float32": "FP32", "bf16": "BF16"}


class OpenvinoEngine:
    """Computes on the CPU with as many threads as torch is set to use, in float32 or bf16.

    In bf16 the activation behind the network stays float32. The quantised layers of an int8 file are computed in int8.
    """

    def __init__(self, model_dir: str | os.PathLike, info: bundle.ModelInfo, precision: str = "float32"):
        """Load the model.onnx in `model_dir`.

        Raises BundleError if it was not made from that bundle, ValueError if the processor lacks the precision.
        """
        path = onnx_engine.find_file(model_dir, "openvino")
        import openvino

        if not supports(precision):
            raise ValueError(f"FASTMAKER_PRECISION is {precision!r}; OpenVINO has no such units on this processor")
        core = openvino.Core()
        try:
            onnx_engine.check_alone(path)
            model = core.read_model(path)
        except Exception as error:  # RuntimeError, and what pybind11 makes of other exceptions
            raise onnx_engine.not_loaded(path, "OpenVINO", error) from None
        onnx_engine.check_origin(path, info, _metadata(model), _input_dtype(model))
        try:
            self.compiled = core.compile_model(model, "CPU", _options(precision))
        except Exception as error:
            raise onnx_engine.not_loaded(path, "OpenVINO", error) from None
        self.request = self.compiled.create_infer_request()
        self.output, self.info = self.compiled.output(onnx_engine.output_name(info)), vars(info)

    def numbers(self, batch: torch.Tensor) -> torch.Tensor:
        """Return the numbers of images, uint8 (N, C, H, W): float32 (N, ...), of `ModelInfo.shape` for each image.

        Raises preprocess.ImageError for images that are too large for the file.
        """
        image_steps.check_for_onnx(batch.shape[-2:], self.info)
        outputs = self.request.infer({onnx_engine.IMAGE: batch.numpy()}, share_inputs=True)
        return torch.from_numpy(outputs[self.output])


def supports(precision: str) -> bool:
    """Return whether this processor has units for one of engines.PRECISIONS. Needs openvino."""
    import openvino

    return UNITS[precision] in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _options(precision: str) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": HINTS[precision],  # by itself it takes bf16 where the processor has it
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # each worker would pin its threads to the same cores
    }


def _metadata(model: "openvino.Model") -> dict[str, Any]:
    """Return the model.json that the file was made from, or {} if it has none."""
    try:
        return onnx_engine.parse_metadata(model.get_rt_info(["framework", onnx_engine.MODEL_JSON]).astype(str))
    except RuntimeError:  # OpenVINO's way to say that there is no such entry
        return {}


def _input_dtype(model: "openvino.Model") -> np.dtype:
    return np.dtype(model.input(onnx_engine.IMAGE).get_element_type().to_dtype())
