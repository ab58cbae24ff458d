"""A model for another server: TorchServe, ONNX Runtime, Triton."""
