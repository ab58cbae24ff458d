"""The weights that a network starts from: those that torchvision and timm download, or those of a file."""

import contextlib
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
WITHIN = ("state_dict", "model", "model_state_dict")  # what holds the tensors in a file that holds more
# As torchvision's own loader renames the tensors of its older files of DenseNets.
OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|conv))\.([12]\.\w+)$")
SECONDS = 10  # that a server may take to answer
SHOWN = 3
MAX_MISSING = 0.1  # a larger fraction of the body means a file of another network


class WeightsError(ValueError):
    """Weights to start from that cannot be had, or that do not fit the network."""


@contextlib.contextmanager
def downloading(architecture: str, source: str) -> Iterator[None]:
    """Turn the OSError of a failed download from the URL `source` within the block into a WeightsError.

    A server that does not answer is waited for SECONDS.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SECONDS)
    try:
        yield
    except OSError as error:  # urllib's errors are OSErrors
        raise not_downloaded(architecture, source, error) from None
    finally:
        socket.setdefaulttimeout(before)


def check_server(architecture: str, source: str) -> None:
    """Raise WeightsError if the server of a URL does not answer within SECONDS; any status is an answer."""
    with downloading(architecture, source), contextlib.suppress(urllib.error.HTTPError):
        urllib.request.urlopen(urllib.request.Request(source, method="HEAD")).close()


def not_downloaded(architecture: str, source: str, error: Exception) -> WeightsError:
    """Return the error of weights that cannot be downloaded from a URL."""
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return WeightsError(
        f"the pretrained weights of {architecture} cannot be downloaded ({reason}); give the file of {source} as"
        " --pretrained FILE or in the channel pretrained, or use --pretrained false"
    )


def find(path: Path) -> Path:
    """Return the file of weights that `path` is, or the one that it holds. Raises WeightsError."""
    if path.is_file():
        return path
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES) if path.is_dir() else []
    if len(files) != 1:
        raise WeightsError(
            f"--pretrained {path}: found {', '.join(file.name for file in files[:SHOWN]) or 'no file of weights'};"
            f" expected true, false, a file, or a folder or channel that holds one of {', '.join(SUFFIXES)}"
        )
    return files[0]


def read(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a file by name. No code of the file runs. Raises WeightsError."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise WeightsError(
            f"--pretrained {path}: the package safetensors is missing: pip install safetensors"
        ) from None
    except Exception as error:  # damaged bytes make torch raise almost anything
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"--pretrained {path}: no tensors that load without running code: {reason}") from None
    while isinstance(state, dict) and (name := next((n for n in WITHIN if isinstance(state.get(n), dict)), None)):
        state = state[name]
    named = state.items() if isinstance(state, dict) else ()
    tensors = {name: value for name, value in named if isinstance(value, torch.Tensor)}
    if not tensors:
        raise WeightsError(f"--pretrained {path}: it holds no tensors by name; expected a state_dict")
    return {OLD_DENSENET.sub(r"\1\2", name.removeprefix("module.")): tensor for name, tensor in tensors.items()}


def load(path: Path, networks: Sequence[nn.Module], body: nn.Module) -> str:
    """Copy the tensors of a file into that of `networks` whose names they have, and return a line about it.

    `body` is what all of them share. Raises WeightsError if one of the body has another shape, or many are missing.
    """
    state = read(path)
    network = max(networks, key=lambda module: len(state.keys() & module.state_dict().keys()))
    own = network.state_dict(keep_vars=True)
    of_body = {id(tensor) for tensor in body.state_dict(keep_vars=True).values()}
    expected = [name for name, tensor in own.items() if id(tensor) in of_body and not name.endswith("batches_tracked")]
    missing = [name for name in expected if name not in state]
    if len(missing) > MAX_MISSING * len(expected):
        raise WeightsError(
            f"--pretrained {path}: it lacks {len(missing)} of the {len(expected)} tensors of the network's body, such"
            f" as {missing[0]!r}, and has others, such as {next(iter(state))!r}; is it of another --arch?"
        )
    for name in state.keys() & own.keys():
        tensor, target = state[name], own[name]
        if tensor.ndim == 4 and tensor.shape[1] == 3 and target.shape[1] == 1:
            tensor = tensor.sum(1, keepdim=True)  # of colours, for a network of grey images, as fastai does
        if tensor.shape == target.shape:
            target.data.copy_(tensor)
        elif id(target) in of_body:
            raise WeightsError(
                f"--pretrained {path}: {name!r} has the shape {list(tensor.shape)}; the network's has"
                f" {list(target.shape)}: it is of another --arch or --image-size"
            )
    taken = f"{path}: took {len(expected) - len(missing)} of the {len(expected)} tensors of the network's body"
    return taken + _differences(missing, [name for name in state if name not in own])


def _differences(missing: list[str], unused: list[str]) -> str:
    return "".join(
        f"; {what}: {', '.join(names[:SHOWN])}{f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''}"
        for what, names in (("not in it", missing), ("not used", unused))
        if names
    )
