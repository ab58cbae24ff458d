"""The model directory: what training leaves in /opt/ml/model and serving starts from.

    model.pth    the state_dict of the pure torch network
    model.json   everything else that an answer depends on (`ModelInfo`)
    code/        entry_point.py and this package, so that an endpoint needs nothing else
    model.onnx   if one was added (fastmaker.export.onnx_file): the network once more, for the engine onnxruntime

No pickled code anywhere: model.pth is read with ``weights_only=True``. This module is the only one that knows the
file names.
"""

import dataclasses
import hashlib
import json
import math
import os
import platform
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torchvision
from torch import nn

from fastmaker import __version__, masks, networks, preprocess, unet

STATE_FILE = "model.pth"
INFO_FILE = "model.json"
ONNX_FILE = "model.onnx"
CODE_DIR = "code"
FORMAT = 1
ARCHITECTURES = {"classification": networks.ARCHITECTURES, "segmentation": unet.ARCHITECTURES}  # by task


class BundleError(ValueError):
    """A model directory that cannot be used; the message names the file, the key and what was expected."""


@dataclass(frozen=True)
class ModelInfo:
    """What stands in model.json."""

    task: str  # one of ARCHITECTURES
    architecture: str  # one of ARCHITECTURES[task]; of a U-Net, its encoder
    labels: tuple[str, ...]  # in the order of the network's outputs
    image_mode: str  # one of preprocess.IMAGE_MODES: what each image is converted to
    image_size: tuple[int, int]  # (height, width) in pixels
    resize_method: str  # one of preprocess.RESIZE_METHODS, or NO_RESIZE
    mean: tuple[float, ...]  # one for each channel, for pixels scaled to 0..1
    std: tuple[float, ...]
    # fastai's aug_transforms pass validation images, too, through grid_sample with the identity, which moves some bits.
    resampled: bool = False
    # Of segmentation alone.
    options: dict[str, bool] = field(default_factory=dict)  # of unet.OPTIONS
    void_code: int | None = None  # the index of the class that counts for nothing
    mask_size: str = "model"  # one of masks.SIZES: what an answer's mask is as large as if the request does not say
    metrics: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT
    state_sha256: str = ""  # of model.pth

    @property
    def channels(self) -> int:
        return 3 if self.image_mode == "RGB" else 1


def save(model_dir: str | os.PathLike, network: nn.Module, info: ModelInfo) -> ModelInfo:
    """Write a complete bundle into `model_dir` and return the `ModelInfo` as written.

    model.json comes last: a directory without it is no bundle. Raises BundleError if `load` would not take `info`, or
    if the network's keys are not those of `info.architecture`.
    """
    model_dir = Path(model_dir)
    _checked(json.loads(_as_json(info)), model_dir / INFO_FILE)
    rebuilt(network, info)  # raises before anything is written
    model_dir.mkdir(parents=True, exist_ok=True)
    (model_dir / INFO_FILE).unlink(missing_ok=True)
    torch.save(_state(network), model_dir / STATE_FILE)
    save_code(model_dir / CODE_DIR)
    info = dataclasses.replace(info, versions=_versions() | info.versions, state_sha256=_sha256(model_dir / STATE_FILE))
    partial = model_dir / (INFO_FILE + ".partial")
    partial.write_text(_as_json(info), "utf-8")
    partial.rename(model_dir / INFO_FILE)
    return info


def rebuilt(network: nn.Module, info: ModelInfo) -> nn.Module:
    """The network that a bundle of `network` would hold, in eval mode on the CPU. Raises BundleError."""
    copy = _empty_network(info)
    _fill(copy, _state(network), Path(STATE_FILE))
    return copy.eval()


def save_code(code_dir: Path) -> None:
    """Put the entry point and this package into `code_dir`, less requirements.txt: serving installs nothing.

    What else is there may be somebody's own, and stays.
    """
    source = _own_code()
    shutil.rmtree(code_dir / "fastmaker", ignore_errors=True)
    shutil.copytree(source / "fastmaker", code_dir / "fastmaker", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(source / "entry_point.py", code_dir)


def _own_code() -> Path:
    """The folder that holds the entry point and this package alone: source/, a bundle's code/, or a wheel's copy."""
    package = Path(__file__).resolve().parent
    of_wheel = package / "checkout" / "source"
    return of_wheel if of_wheel.is_dir() else package.parent


def load(model_dir: str | os.PathLike) -> tuple[nn.Module, ModelInfo]:
    """The network, in eval mode on the CPU, and its `ModelInfo`. Raises BundleError."""
    info = load_info(model_dir)
    path = Path(model_dir) / STATE_FILE
    if not path.is_file():
        raise BundleError(f"{path}: missing; a bundle holds {STATE_FILE}, {INFO_FILE} and {CODE_DIR}/")
    if _sha256(path) != info.state_sha256:
        raise BundleError(f"{path}: its SHA-256 is not the state_sha256 of {INFO_FILE}; it was altered or cut short")
    network = _empty_network(info)
    _fill(network, _read_state(path), path)
    return network.eval(), info


def load_info(model_dir: str | os.PathLike) -> ModelInfo:
    """Read and check model.json. Raises BundleError."""
    path = Path(model_dir) / INFO_FILE
    try:
        values = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(f"{path}: missing; is {model_dir} a model directory that fastmaker wrote?") from None
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise BundleError(f"{path}: expected one JSON object, found {type(values).__name__}")
    return _checked(values, path)


def _as_json(info: ModelInfo) -> str:
    return json.dumps(dataclasses.asdict(info), indent=2, ensure_ascii=False) + "\n"


def _checked(values: dict, path: Path) -> ModelInfo:
    def check(key: str, good: bool, expected: str) -> None:
        if not good:
            raise BundleError(f"{path}: {key!r} is {json.dumps(values.get(key))[:80]}; expected {expected}")

    def is_list(key: str, kind: type | tuple[type, ...], length: int | None = None) -> bool:
        items = values.get(key)
        return (
            isinstance(items, list)
            and all(isinstance(item, kind) and not isinstance(item, bool) for item in items)
            and (length is None or len(items) == length)
        )

    check("format", isinstance(values.get("format"), int), f"a whole number, {FORMAT} or less")
    if values["format"] > FORMAT:
        raise BundleError(
            f"{path}: 'format' is {values['format']}, newer than {FORMAT}, the newest that fastmaker {__version__}"
            " reads; use a newer fastmaker"
        )
    for key, allowed in {
        "task": tuple(ARCHITECTURES),
        "architecture": ARCHITECTURES.get(values.get("task"), ()),
        "image_mode": preprocess.IMAGE_MODES,
        "resize_method": (*preprocess.RESIZE_METHODS, preprocess.NO_RESIZE),
    }.items():
        check(key, values.get(key) in allowed, f"one of {', '.join(allowed)}")
    channels = 3 if values["image_mode"] == "RGB" else 1
    check("labels", is_list("labels", str) and len(values["labels"]) > 1, "a list of two or more strings")
    check("image_size", is_list("image_size", int, 2) and min(values["image_size"]) > 0, "[height, width]")
    check(
        "mean",
        is_list("mean", (int, float), channels) and all(map(math.isfinite, values["mean"])),
        f"a list of {channels} numbers",
    )
    check(
        "std",
        is_list("std", (int, float), channels) and all(0 < n < math.inf for n in values["std"]),
        f"{channels} numbers above 0",
    )
    if values["task"] == "segmentation":
        _check_segmentation(values, check)
    check("state_sha256", isinstance(values.get("state_sha256"), str), "a string of 64 hexadecimal digits")
    names = {f.name for f in dataclasses.fields(ModelInfo)}
    known = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items() if name in names}
    return ModelInfo(**known)


def _check_segmentation(values: dict, check) -> None:
    n_labels, options, void_code = len(values["labels"]), values.get("options"), values.get("void_code")
    unique = len(set(values["labels"])) == n_labels
    check(
        "labels", unique and n_labels <= masks.MAX_CLASSES, f"at most {masks.MAX_CLASSES} strings, none of them twice"
    )
    known = isinstance(options, dict) and options.keys() == unet.OPTIONS.keys()
    check(
        "options",
        known and all(isinstance(on, bool) for on in options.values()),
        f"true or false for {', '.join(unet.OPTIONS)}",
    )
    is_index = type(void_code) is int and 0 <= void_code < n_labels
    check("void_code", void_code is None or is_index, f"null or 0 to {n_labels - 1}")
    check("mask_size", values.get("mask_size") in masks.SIZES, f"one of {', '.join(masks.SIZES)}")


def _state(network: nn.Module) -> dict[str, torch.Tensor]:
    """The state_dict as plain tensors on the CPU: fastai's own tensor classes would be pickled by name."""
    state = network.state_dict()
    return {name: tensor.detach().cpu().contiguous().as_subclass(torch.Tensor) for name, tensor in state.items()}


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what the bytes lead it to: struct.error, RuntimeError, UnpicklingError
        reason = " ".join(str(error).split())[:300]
        raise BundleError(f"{path}: not a state_dict that torch reads with weights_only=True: {reason}") from None
    if not isinstance(state, dict):
        raise BundleError(f"{path}: expected a state_dict, found {type(state).__name__}")
    return state


def _empty_network(info: ModelInfo) -> nn.Module:
    if info.task == "segmentation":
        return unet.empty_unet(info.architecture, len(info.labels), info.image_size, info.channels, **info.options)
    return networks.empty_classifier(info.architecture, len(info.labels), info.channels)


def _fill(network: nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    try:
        network.load_state_dict(state, strict=True, assign=True)
    except (RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise BundleError(f"{path}: the weights do not fit the architecture in {INFO_FILE}: {reason}") from None


def _versions() -> dict[str, str]:
    return {
        "fastmaker": __version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
    }


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
