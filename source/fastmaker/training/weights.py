"""The weights that a network starts from: those that torchvision and timm download."""

import contextlib
from collections.abc import Iterator

import torch


class WeightsError(ValueError):
    """Weights to start from that cannot be had, or that do not fit the network."""


@contextlib.contextmanager
def downloading(architecture: str) -> Iterator[None]:
    """Turn the OSError of a failed download within the block into a WeightsError."""
    try:
        yield
    except OSError as error:  # urllib's errors are OSErrors
        raise WeightsError(
            f"the pretrained weights of {architecture} cannot be downloaded ({error}); use --pretrained false, or put"
            f" the file into {torch.hub.get_dir()}/checkpoints"
        ) from None
