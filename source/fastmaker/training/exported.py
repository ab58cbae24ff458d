"""An export.pkl -> its Learner, on the CPU, also where what the pickle names is missing or of another version.

    exported = load("export.pkl")
    with exported.answering():
        exported.learn.predict("cat.jpg")

To load a pickle runs the code that it holds. `fastmaker convert` does so in a process of its own.
"""

import contextlib
import dataclasses
import importlib
import importlib.util
import os
import sys
import types
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from fastai.vision.all import CastToTensor, DataLoaders, L, Learner

from fastmaker import bundle
from fastmaker.training import from_learner, image_sizes, stand_ins, unpickling


@dataclasses.dataclass(frozen=True)
class Exported:
    """A Learner of a pickle, and what was missing."""

    learn: Learner
    stand_ins: stand_ins.StandIns

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Raise MissingError at the end of the block, or in place of its error, if an answer used a stand-in."""
        try:
            yield
        except Exception:
            if error := self.stand_ins.error():
                raise error from None
            raise
        if error := self.stand_ins.error():
            raise error

    def save_bundle(
        self, model_dir: str | os.PathLike, mask_size: str = "model", image_size: image_sizes.ImageSize = None
    ) -> bundle.ModelInfo:
        """Write the Learner's bundle into `model_dir`, as `from_learner.save_bundle` does. Raises BundleError."""
        with self.answering():  # nothing is written where an answer used a stand-in
            network, info = from_learner.checked(self.learn, mask_size=mask_size, image_size=image_size)
        return bundle.save(model_dir, network, info)


def load(path: str | os.PathLike, imports: Sequence[str] = (), ignored: Sequence[str] = ()) -> Exported:
    """Return the Learner in the file `path`, which ``learn.export`` wrote.

    `imports` are files or modules whose names take the place of those that the pickle lacks; `ignored` names callbacks
    that are missing and may be left out, as "__main__.Name". Raises BundleError, and OSError for a file that cannot be
    read.
    """
    missing = stand_ins.StandIns()
    pickle_module = unpickling.PickleModule(missing, [_imported(name) for name in imports])
    found = _unpickled(Path(path), pickle_module, missing)
    if not isinstance(found, Learner):
        raise bundle.BundleError(f"{path}: {_what_it_is(found)}")
    missing.loading = False
    exported = Exported(found, missing)
    with exported.answering():
        _prepare(found, ignored)
    return exported


def _imported(name: str) -> types.ModuleType:
    """Return a module by its name, or by its file. Raises BundleError."""
    path = Path(name)
    try:
        if path.suffix != ".py":
            return importlib.import_module(name)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module  # the pickle may name it so
        spec.loader.exec_module(module)
        return module
    except Exception as error:  # whatever the user's code raises
        raise bundle.BundleError(f"--import {name}: {_line(error)}") from None


def _unpickled(path: Path, pickle_module: types.ModuleType, missing: stand_ins.StandIns) -> Any:
    """Return the object of the file. Raises BundleError."""
    if not path.stat().st_size:
        raise bundle.BundleError(f"{path} is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about old sources and versions
            return torch.load(path, map_location="cpu", pickle_module=pickle_module, weights_only=False)
    except Exception as error:  # whatever the code in a pickle raises
        raise bundle.BundleError(f"{path} {_why_unreadable(path, error, missing)}") from None


def _why_unreadable(path: Path, error: Exception, missing: stand_ins.StandIns) -> str:
    with open(path, "rb") as file:
        start = file.read(4)
    if start == b"PK\x03\x04" and "central directory" in str(error):
        return "is cut short: copy it again"
    if start == b"PK\x03\x04" and any(words in str(error) for words in ("failed locating file", "file in archive")):
        return "is an archive that learn.export did not write"
    if start != b"PK\x03\x04" and not missing.names() and type(error).__name__ in _NO_PICKLE:
        return "is no file of learn.export, or is cut short"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"cannot be loaded without the package {error.name.partition('.')[0]}: install it"
    lacking = f", and lacks {', '.join(missing.names())}" if missing.names() else ""
    return f"cannot be loaded: {_line(error)}{lacking}"


_NO_PICKLE = (
    "UnpicklingError",
    "EOFError",
    "RuntimeError",
    "ValueError",
    "KeyError",
    "IndexError",
    "UnicodeDecodeError",
)


def _what_it_is(found: Any) -> str:
    """Return what an object is that is no Learner."""
    expected = "expected a file of learn.export"
    if isinstance(found, stand_ins.StandIn):
        kind = type(found)
        return (
            f"its Learner is a {kind.__module__}.{kind.__qualname__}, which is missing here; --import FILE.py gives it"
        )
    if isinstance(found, torch.nn.Module):
        return f"it holds a network alone, {type(found).__name__}; {expected}"
    if isinstance(found, dict) and {"model_class", "cls", "data"} & found.keys():
        return f"fastai 1 made it; {expected} of fastai 2"
    if isinstance(found, dict) and (
        "model" in found or (found and all(isinstance(value, torch.Tensor) for value in found.values()))
    ):
        return "it holds weights alone: it was made by learn.save or torch.save, not by learn.export"
    return f"it holds a {type(found).__name__}; {expected}"


def _prepare(learn: Learner, ignored: Sequence[str]) -> None:
    """Put a loaded Learner on the CPU, and take from it what only trains and is missing. Raises BundleError."""
    if not isinstance(learn.dls, DataLoaders):
        raise bundle.BundleError(f"the Learner's data is a {type(learn.dls).__name__}; expected DataLoaders")
    learn.metrics = L()  # no answer depends on them
    for needed in (learn.model, learn.loss_func):
        kind = needed if isinstance(needed, type) else type(needed)
        if issubclass(kind, stand_ins.StandIn):
            kind.stand_ins.fail(kind)
    for callback in list(learn.cbs):
        if isinstance(callback, stand_ins.StandIn):
            _leave_out(learn, callback, ignored)
        elif type(callback).__qualname__ in [name.rpartition(".")[2] for name in ignored]:
            learn.remove_cb(callback)
    if not any(isinstance(callback, CastToTensor) for callback in learn.cbs):
        learn.add_cb(CastToTensor())  # fastai before 2.7 had none: numbers would be decoded as the pixels of an image
    for loader in learn.dls.loaders:
        for pipeline in (loader.after_item, loader.before_batch, loader.after_batch):
            pipeline.fs = L(transform for transform in pipeline.fs if not _only_trains(transform))
    learn.dls.cpu()
    if hasattr(learn, "channels_last"):  # as load_learner does
        learn.to_contiguous(to_fp32=True)
    elif hasattr(learn, "mixed_precision"):
        learn.to_fp32()
    elif hasattr(learn, "non_native_mixed_precision"):
        learn.to_non_native_fp32()


def _leave_out(learn: Learner, callback: stand_ins.StandIn, ignored: Sequence[str]) -> None:
    name = f"{type(callback).__module__}.{type(callback).__qualname__}"
    if name not in ignored:
        raise stand_ins.MissingError(
            f"the Learner has the callback {name}, which is missing and could change answers: --import FILE.py gives"
            f" it, --ignore {name} leaves it out"
        )
    learn.cbs.remove(callback)


def _only_trains(transform: Any) -> bool:
    """Return whether a missing transform is left out of validation: its split_idx says so, as any transform's does."""
    return isinstance(transform, stand_ins.StandIn) and stand_ins.state_of(transform).get("split_idx") == 0


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
