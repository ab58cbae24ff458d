"""The model of a Triton repository that decodes and resizes images: `image_bytes` -> `image`.

jobs/packaging/triton.py copies it into the repository as model.py, beside fastmaker/preprocess.py and image_steps.py.
Triton's Python backend runs it, with Pillow and NumPy (https://github.com/triton-inference-server/python_backend#usage).
"""

import json

import numpy as np
import triton_python_backend_utils as pb_utils

from fastmaker import image_steps, preprocess


class TritonPythonModel:
    """The class that Triton's Python backend creates in each instance's process."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read model.json, a parameter of the model's configuration."""
        self.info = json.loads(json.loads(args["model_config"])["parameters"]["model.json"]["string_value"])

    def execute(self, requests: list) -> list:
        """Return a response for each request: encoded images (N, 1) -> uint8 (N, C, H, W), or an error."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: "pb_utils.InferenceRequest") -> "pb_utils.InferenceResponse":
        encoded = pb_utils.get_input_tensor_by_name(request, "image_bytes").as_numpy()
        try:
            images = [image_steps.to_array(preprocess.decode(data), self.info) for data in encoded.ravel()]
        except preprocess.ImageError as error:
            invalid = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=invalid)
        return pb_utils.InferenceResponse([pb_utils.Tensor("image", np.stack(images))])
