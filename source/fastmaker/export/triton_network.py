"""The network of a Triton repository without the ONNX backend: model.onnx in ONNX Runtime's Python API.

jobs/packaging/triton.py copies it into the repository as model.py; Triton's Python backend runs it
(https://github.com/triton-inference-server/python_backend#usage).
"""

import json
import os
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """The class that Triton's Python backend creates in each instance's process."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load model.onnx, on the GPU if Triton assigns one to this instance."""
        file = Path(args["model_repository"], args["model_version"], "model.onnx")
        self.session = onnxruntime.InferenceSession(file, _options(args), providers=_providers(args))

    def execute(self, requests: list) -> list:
        """Return a response for each request; the images (N, C, H, W) of all requests are computed in one batch."""
        images = [pb_utils.get_input_tensor_by_name(request, "image").as_numpy() for request in requests]
        names = sorted({name for request in requests for name in request.requested_output_names()})
        outputs = dict(zip(names, self.session.run(names, {"image": np.concatenate(images)}), strict=True))
        ends = np.cumsum([len(of_request) for of_request in images])
        return [
            pb_utils.InferenceResponse(
                [
                    pb_utils.Tensor(name, outputs[name][end - len(of_request) : end])
                    for name in request.requested_output_names()
                ]
            )
            for request, of_request, end in zip(requests, images, ends, strict=True)
        ]


def _options(args: dict[str, str]) -> onnxruntime.SessionOptions:
    """Return options that divide the cores among the instances: by default each would use all of them."""
    options = onnxruntime.SessionOptions()
    instances = sum(group["count"] for group in json.loads(args["model_config"])["instance_group"])
    options.intra_op_num_threads = max(1, len(os.sched_getaffinity(0)) // max(1, instances))
    return options


def _providers(args: dict[str, str]) -> list:
    if args["model_instance_kind"] == "GPU" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        return [("CUDAExecutionProvider", {"device_id": args["model_instance_device_id"]}), "CPUExecutionProvider"]
    return ["CPUExecutionProvider"]
