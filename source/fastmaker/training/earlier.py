"""An earlier model's bundle, which ``--resume-from`` names, -> the weights that a Learner starts from."""

import contextlib
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from fastai.vision.all import Learner

from fastmaker import bundle, graph, tasks
from fastmaker.training.weights import SHOWN, WeightsError

FILES = (bundle.INFO_FILE, bundle.STATE_FILE, bundle.GRAPH_FILE)


def state_sha256(path: Path) -> str:
    """Return the SHA-256 of the weights of the bundle at `path`. Raises WeightsError."""
    with _directory(path) as folder:
        return _checked(path, bundle.load_info, folder).state_sha256


def load(learn: Learner, path: Path, task: str, labels: list[str], image_mode: str) -> None:
    """Copy the weights of the bundle at `path`, a folder or model.tar.gz or a folder with that, into `learn`.

    `labels` are those of the data, of a regression the names of its numbers, which older bundles lack. Nothing in it is
    unpickled. Raises WeightsError if it has another task, other labels or another network.
    """
    with _directory(path) as folder:
        network, info = _checked(path, bundle.load, folder)
    for name, found, expected in (("task", info.task, task), ("image mode", info.image_mode, image_mode)):
        if found != expected:
            raise WeightsError(f"--resume-from {path}: its {name} is {found}; this run's is {expected}")
    found = list(info.labels or info.names)
    if found != labels and (task in tasks.LABELLED or (found and labels)):
        raise WeightsError(f"--resume-from {path}: {_label_difference(found, labels)}")
    state = network.tensors() if isinstance(network, graph.GraphNetwork) else network.state_dict()
    _check_tensors(path, info, state, learn.model.state_dict())
    learn.model.load_state_dict(state, strict=False)
    _check_numbers(path, info, network, learn)


def _check_tensors(path: Path, info: bundle.ModelInfo, state: dict[str, Any], own: dict[str, Any]) -> None:
    """Raise WeightsError unless the tensors that a bundle has are those of the Learner's network."""
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    # A graph holds the numbers in the network's code, too.
    more = [name for name in state if name not in own and "tensor" not in name]
    other = [name for name in own if name in state and state[name].shape != own[name].shape]
    if names := missing + more + other:
        what = "a graph" if info.architecture == bundle.GRAPH else info.architecture
        raise WeightsError(
            f"--resume-from {path}: its network, {what}, has not the layers of this run's: they differ in"
            f" {', '.join(names[:SHOWN])}; give the --arch and the options that it was trained with"
        )


def _check_numbers(path: Path, info: bundle.ModelInfo, network: torch.nn.Module, learn: Learner) -> None:
    """Raise WeightsError unless the Learner's network computes what the bundle's does."""
    model, device = learn.model.cpu(), learn.dls.device
    example = torch.rand(2, info.channels, *info.image_size, generator=torch.Generator().manual_seed(1))
    training = model.training
    try:
        with torch.no_grad():
            found, expected = torch.Tensor(model.eval()(example)), network(example)
        alike = found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-3, atol=1e-4)
    except RuntimeError:  # it takes images of this run's size alone
        alike = False
    model.train(training).to(device)
    if not alike:
        raise WeightsError(
            f"--resume-from {path}: this run's network computes otherwise with its weights; give the --arch, the"
            " --image-size and the options that it was trained with"
        )


def _label_difference(found: list[str], expected: list[str]) -> str:
    """Return how the labels of a bundle differ from those of the data."""
    lacks = [label for label in expected if label not in found]
    more = [label for label in found if label not in expected]
    parts = [
        f"{what} {', '.join(map(repr, labels[:SHOWN]))}{' and more' if len(labels) > SHOWN else ''}"
        for what, labels in (("it lacks", lacks), ("the data lacks", more))
        if labels
    ]
    return f"its labels are not those of the data: {'; '.join(parts) or 'they have another order'}"


@contextlib.contextmanager
def _directory(path: Path) -> Iterator[Path]:
    """Yield the folder with a bundle's files; of an archive these alone are unpacked, for the time being."""
    archives = [path] if path.is_file() else sorted(path.glob("*.tar.gz"))
    if (path / bundle.INFO_FILE).is_file() or len(archives) != 1:
        yield path
        return
    [archive] = archives
    with tempfile.TemporaryDirectory() as scratch:
        try:
            with tarfile.open(archive) as members:
                for member in members:
                    name = member.name.removeprefix("./")
                    if name in FILES and member.isfile() and (content := members.extractfile(member)):
                        with content, open(Path(scratch, name), "wb") as file:
                            shutil.copyfileobj(content, file)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise WeightsError(f"--resume-from {archive}: it cannot be unpacked: {error}") from None
        yield Path(scratch)


def _checked(path: Path, function: Any, folder: Path) -> Any:
    try:
        return function(folder)
    except bundle.BundleError as error:
        message = str(error).replace(str(folder), str(path))
        raise WeightsError(f"--resume-from {message}") from None
