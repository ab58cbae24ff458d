"""Endpoints of the engine, on the PyTorch serving toolkit and TorchServe."""
