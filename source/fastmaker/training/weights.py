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
            f"{not_downloaded(architecture, error)}, or put it into {torch.hub.get_dir()}/checkpoints"
        ) from None


def not_downloaded(architecture: str, error: Exception) -> str:
    """Return a line about weights that cannot be downloaded."""
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return (
        f"the pretrained weights of {architecture} cannot be downloaded ({reason}); use --pretrained false, or give"
        " their file as --pretrained FILE"
    )
