"""The bundle: the model directory that training leaves in /opt/ml/model and serving starts from.

    model.pth    the state_dict of the pure torch network
    model.json   everything else that an answer depends on (`ModelInfo`)
    network.json only of a network that this package cannot rebuild: its calls, as data (`fastmaker.graph`)
    code/        entry_point.py and this package, so that an endpoint needs nothing else
    serving.json optional (fastmaker.serving.settings): how a machine serves it fastest
    config.yaml  what Ray Serve runs of it (`fastmaker.serving.ray_serve`)
    model.onnx   optional (fastmaker.export.onnx_file): the same network, for onnxruntime and openvino
    baseline.npz optional (fastmaker.baseline): how the validation images looked, which serving never reads

Nothing in it is unpickled: model.pth is read with ``weights_only=True``. Only this module knows the file names.
"""

import dataclasses
import json
import math
import os
import platform
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from fastmaker import __version__, checks, files, graph, graph_sizes, masks, networks, pipeline, preprocess, tasks, unet

STATE_FILE = "model.pth"
INFO_FILE = "model.json"
GRAPH_FILE = "network.json"
ONNX_FILE = "model.onnx"
SERVING_FILE = "serving.json"
BASELINE_FILE = "baseline.npz"
CODE_DIR = "code"
RAY_FILE = "config.yaml"  # where AWS's Ray image looks; its PYTHONPATH has CODE_DIR
RAY_CONFIG = """\
applications:
  - name: fastmaker
    route_prefix: /
    import_path: fastmaker.serving.ray_serve:app
"""
FORMAT = 2  # the newest that is read
PLAIN_FORMAT = 1  # of a pipeline without steps, which older versions of this package read, too
ARCHITECTURES = dict.fromkeys(tasks.TASKS, networks.ARCHITECTURES) | {"segmentation": unet.ARCHITECTURES}  # by task
_MOST = f"{preprocess.DEFAULT_MAX_PIXELS:,}"
GRAPH = "graph"  # the architecture of a network that is kept in GRAPH_FILE


class BundleError(ValueError):
    """A model directory that cannot be used, or a Learner that cannot become one.

    The message is one line. It names the file, the key and what was expected.
    """


@dataclass(frozen=True)
class ModelInfo:
    """The content of model.json: all that a prediction depends on besides the weights."""

    task: str  # one of ARCHITECTURES
    architecture: str  # one of ARCHITECTURES[task], of a U-Net its encoder; or GRAPH
    labels: tuple[str, ...]  # in the order of the network's outputs; () of a task without labels
    image_mode: str  # one of preprocess.IMAGE_MODES: what each image is converted to
    image_size: tuple[int, int]  # (height, width) in pixels; with the step any_size one of them
    resize_method: str  # one of preprocess.RESIZE_METHODS, or NO_RESIZE, or STEPS
    mean: tuple[float, ...]  # one for each channel, for pixels scaled to 0..1
    std: tuple[float, ...]
    # fastai's aug_transforms pass validation images through grid_sample with an identity transform, which changes some
    # low bits. True repeats that.
    resampled: bool = False
    # Of a pipeline that resize_method and resampled cannot express: what an image goes through, see `pipeline`.
    steps: tuple[dict[str, Any], ...] = ()
    activation: str = "softmax"  # one of tasks.ACTIVATIONS: what makes numbers of the network's output
    threshold: tasks.Threshold = None  # several labels only: those whose number is above it, see tasks.is_over
    output_shape: tuple[int, ...] | None = None  # of the network's output for one image, if there are no labels
    names: tuple[str, ...] = ()  # of the numbers of a regression, in their order, if they have any
    # Segmentation only.
    options: dict[str, bool] = field(default_factory=dict)  # of unet.OPTIONS
    void_code: int | None = None  # the index of the class that is ignored in loss and metrics
    mask_size: str = "model"  # one of masks.SIZES: the size of a served mask unless the request names one
    metrics: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    format: int = PLAIN_FORMAT
    state_sha256: str = ""  # of model.pth
    network_sha256: str = ""  # of network.json, if there is one

    @property
    def channels(self) -> int:
        """How many channels the network's input has."""
        return preprocess.CHANNELS[self.image_mode]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the network's output for one image."""
        if self.output_shape is not None:
            return self.output_shape
        return len(self.labels), *(self.image_size if self.task == "segmentation" else ())


def save(model_dir: str | os.PathLike, network: nn.Module, info: ModelInfo) -> ModelInfo:
    """Write a complete bundle into `model_dir` and return the `ModelInfo` as written.

    A `graph.GraphNetwork` is for the architecture GRAPH. model.json is written last: a directory without it is no
    bundle. Raises BundleError if `load` would reject `info`, or if the network's keys are not those of
    `info.architecture`.
    """
    model_dir = Path(model_dir)
    _parse_info(json.loads(_to_json(info)), model_dir / INFO_FILE)
    rebuild(network, info)  # raises before anything is written
    model_dir.mkdir(parents=True, exist_ok=True)
    for name in (INFO_FILE, BASELINE_FILE):  # of an earlier bundle in the same directory
        (model_dir / name).unlink(missing_ok=True)
    # A file object: torch.save names the archive's entries after a path, which would change the SHA-256.
    with files.atomic(model_dir / STATE_FILE) as partial, open(partial, "wb") as file:
        torch.save(_state_dict(network), file)
    info = dataclasses.replace(info, network_sha256=_save_graph(network, model_dir / GRAPH_FILE))
    save_application(model_dir)
    info = dataclasses.replace(
        info, versions=_versions() | info.versions, state_sha256=files.sha256(model_dir / STATE_FILE)
    )
    files.write_text(model_dir / INFO_FILE, _to_json(info))
    return info


def rebuild(network: nn.Module, info: ModelInfo) -> nn.Module:
    """Return the network that a bundle of `network` would load, in eval mode on the CPU. Raises BundleError."""
    if info.architecture == GRAPH:
        if not isinstance(network, graph.GraphNetwork):
            raise BundleError(f"the architecture is {GRAPH}; expected a graph, found {type(network).__name__}")
        return _build_graph(network.document, network.tensors(), info, Path(GRAPH_FILE))
    copy = _empty_network(info, Path(INFO_FILE))
    _load_state(copy, _state_dict(network), Path(STATE_FILE))
    return copy.eval()


def _save_graph(network: nn.Module, path: Path) -> str:
    """Write the document of a graph and return its SHA-256; of another network remove the file and return ""."""
    if not isinstance(network, graph.GraphNetwork):
        path.unlink(missing_ok=True)  # of an earlier bundle in the same directory
        return ""
    with files.atomic(path) as partial:
        partial.write_text(graph.to_json(network.document), "utf-8")
    return files.sha256(path)


def _load_graph(path: Path, info: ModelInfo, tensors: dict[str, torch.Tensor]) -> nn.Module:
    """Return the network of the document at `path` with these tensors. Raises BundleError."""
    if not path.is_file():
        raise BundleError(f"{path}: missing; a bundle whose architecture is {GRAPH} holds it")
    if path.stat().st_size > checks.MAX_BYTES:
        raise BundleError(f"{path}: 'nodes' are too many: it has more than {checks.MAX_BYTES} bytes")
    if files.sha256(path) != info.network_sha256:
        raise BundleError(f"{path}: its SHA-256 is not the network_sha256 of {INFO_FILE}; it was altered or cut short")
    try:
        document = checks.parse(path.read_text("utf-8"))
    except ValueError as error:
        raise BundleError(f"{path}: not JSON: {error}") from None
    return _build_graph(document, tensors, info, path)


def _build_graph(document: Any, tensors: dict[str, torch.Tensor], info: ModelInfo, path: Path) -> nn.Module:
    try:
        network = graph.build(document, tensors)
        graph_sizes.check(network, info.channels, info.image_size)
        result = graph.try_out(network, info.channels, info.image_size)
    except graph.GraphError as error:
        raise BundleError(f"{path}: {error}") from None
    expected = (1, *info.shape)
    if result.shape != expected:
        raise BundleError(
            f"{path}: 'output' has the shape {list(result.shape)} for one image; expected {list(expected)}, as"
            f" {INFO_FILE} says"
        )
    return network


def save_application(model_dir: Path) -> None:
    """Write what serves a bundle into `model_dir`: its code, and the file by which Ray Serve finds that."""
    save_code(model_dir / CODE_DIR)
    files.write_text(model_dir / RAY_FILE, RAY_CONFIG)


def save_code(code_dir: Path) -> None:
    """Copy the entry point and this package into `code_dir`, without requirements.txt: serving installs nothing.

    Other files in `code_dir` may be the user's own, and stay.
    """
    source = _source_dir()
    shutil.rmtree(code_dir / "fastmaker", ignore_errors=True)
    shutil.copytree(
        source / "fastmaker", code_dir / "fastmaker", ignore=shutil.ignore_patterns("__pycache__", "py.typed")
    )
    shutil.copy2(source / "entry_point.py", code_dir)


def _source_dir() -> Path:
    """Return the folder with the entry point and only this package: source/, a bundle's code/, or a wheel's copy."""
    package = Path(__file__).resolve().parent
    in_wheel = package / "checkout" / "source"
    return in_wheel if in_wheel.is_dir() else package.parent


def load(model_dir: str | os.PathLike) -> tuple[nn.Module, ModelInfo]:
    """Return the network, in eval mode on the CPU, and its `ModelInfo`. Raises BundleError."""
    info = load_info(model_dir)
    path = Path(model_dir) / STATE_FILE
    if not path.is_file():
        raise BundleError(f"{path}: missing; a bundle holds {STATE_FILE}, {INFO_FILE} and {CODE_DIR}/")
    if files.sha256(path) != info.state_sha256:
        raise BundleError(f"{path}: its SHA-256 is not the state_sha256 of {INFO_FILE}; it was altered or cut short")
    if info.architecture == GRAPH:
        return _load_graph(Path(model_dir) / GRAPH_FILE, info, _read_state(path)), info
    network = _empty_network(info, Path(model_dir) / INFO_FILE)
    _load_state(network, _read_state(path), path)
    return network.eval(), info


def load_info(model_dir: str | os.PathLike) -> ModelInfo:
    """Return the checked content of model.json. Raises BundleError."""
    path = Path(model_dir) / INFO_FILE
    try:
        if path.stat().st_size > checks.MAX_BYTES:
            raise BundleError(f"{path}: it has more than {checks.MAX_BYTES} bytes")
        values = checks.parse(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(f"{path}: missing; is {model_dir} a model directory that fastmaker wrote?") from None
    except BundleError:
        raise
    except ValueError as error:
        raise BundleError(f"{path}: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise BundleError(f"{path}: expected one JSON object, found {type(values).__name__}")
    return _parse_info(values, path)


def _to_json(info: ModelInfo) -> str:
    return json.dumps(dataclasses.asdict(info), indent=2, ensure_ascii=False) + "\n"


def _parse_info(values: dict[str, Any], path: Path) -> ModelInfo:
    """Return `values`, read from model.json at `path`, as a `ModelInfo`. Raises BundleError."""

    def check(key: str, good: bool, expected: str) -> None:
        if not good:
            raise BundleError(f"{path}: {key!r} is {checks.shown(values.get(key))}; expected {expected}")

    found = values.get("format")
    check("format", type(found) is int and found >= 0, f"a whole number, {FORMAT} or less")
    if values["format"] > FORMAT:
        raise BundleError(
            f"{path}: 'format' is {checks.shown(found)}, newer than {FORMAT}, the newest that fastmaker {__version__}"
            " reads; use a newer fastmaker"
        )
    _check_choices(values, check)
    tasks.check(values, check)
    _check_lists(values, check)
    _check_steps(values, check)
    _check_segmentation(values, check)
    _check_notes(values, check)
    check("state_sha256", isinstance(values.get("state_sha256"), str), "a string of 64 hexadecimal digits")
    check("network_sha256", isinstance(values.get("network_sha256", ""), str), "a string of 64 hexadecimal digits")
    names = {f.name for f in dataclasses.fields(ModelInfo)}
    known: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in values.items() if name in names
    }
    return ModelInfo(**known)


def _check_choices(values: dict[str, Any], check: tasks.Check) -> None:
    check("task", values.get("task") in tasks.TASKS, f"one of {', '.join(tasks.TASKS)}")
    for key, allowed in {
        "architecture": (*ARCHITECTURES[values["task"]], GRAPH),
        "image_mode": preprocess.IMAGE_MODES,
        "resize_method": (*preprocess.RESIZE_METHODS, preprocess.NO_RESIZE, preprocess.STEPS),
    }.items():
        check(key, values.get(key) in allowed, f"one of {', '.join(allowed)}")


def _check_steps(values: dict[str, Any], check: tasks.Check) -> None:
    steps: Any = values.get("steps", [])
    with_steps = values["resize_method"] == preprocess.STEPS
    check("steps", bool(steps) == with_steps, f"steps if, and only if, 'resize_method' is {preprocess.STEPS}")
    if with_steps:
        problem = pipeline.problem(steps, preprocess.CHANNELS[values["image_mode"]])
        check("steps", problem is None, f"the steps of this package: {problem}")
        size = pipeline.output_size(steps)
        check("image_size", size in (None, tuple(values["image_size"])), f"{size}, the size after the steps")


def _check_lists(values: dict[str, Any], check: tasks.Check) -> None:
    channels = preprocess.CHANNELS[values["image_mode"]]
    check("image_size", checks.is_size(values.get("image_size")), f"[height, width], at most {_MOST} pixels")
    for key, good, expected in (
        ("mean", checks.is_number, f"a list of {channels} numbers"),
        ("std", checks.is_positive, f"{channels} numbers above 0"),
    ):
        numbers: Any = values.get(key)
        check(key, isinstance(numbers, list) and len(numbers) == channels and all(map(good, numbers)), expected)
    check("resampled", isinstance(values.get("resampled", False), bool), "true or false")


def _check_notes(values: dict[str, Any], check: tasks.Check) -> None:
    metrics, versions = (values.get(key, {}) for key in ("metrics", "versions"))
    numbers = isinstance(metrics, dict) and all(isinstance(n, float) or checks.is_number(n) for n in metrics.values())
    check("metrics", numbers, "an object of numbers")
    check("versions", isinstance(versions, dict) and checks.are_texts([*versions.values()]), "an object of strings")


def _check_segmentation(values: dict[str, Any], check: tasks.Check) -> None:
    labels, void_code = values["labels"], values.get("void_code")
    options: Any = values.get("options")
    check("mask_size", values.get("mask_size", "model") in masks.SIZES, f"one of {', '.join(masks.SIZES)}")
    if values["task"] != "segmentation":
        check("options", not options, f"{{}}, as the task is {values['task']}")
        check("void_code", void_code is None, f"null, as the task is {values['task']}")
        return
    unique = len(set(labels)) == len(labels) <= masks.MAX_CLASSES
    check("labels", unique, f"at most {masks.MAX_CLASSES} strings, none of them twice")
    known = isinstance(options, dict) and options.keys() == unet.OPTIONS.keys()
    flags = known and all(isinstance(on, bool) for on in options.values())
    if values["architecture"] == GRAPH:
        check("options", options == {}, "{}, as the network is a graph")
    else:
        check("options", flags, f"true or false for {', '.join(unet.OPTIONS)}")
    is_index = type(void_code) is int and 0 <= void_code < len(labels)
    check("void_code", void_code is None or is_index, f"null or 0 to {len(labels) - 1}")


def _state_dict(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state_dict as plain tensors on the CPU: fastai's own tensor classes would be pickled by name."""
    state = network.tensors() if isinstance(network, graph.GraphNetwork) else network.state_dict()
    return {name: tensor.detach().cpu().contiguous().as_subclass(torch.Tensor) for name, tensor in state.items()}


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make torch raise almost anything
        reason = " ".join(str(error).split())[:300]
        raise BundleError(f"{path}: not a state_dict that torch reads with weights_only=True: {reason}") from None
    if not isinstance(state, dict):
        raise BundleError(f"{path}: expected a state_dict, found {type(state).__name__}")
    return state


def _empty_network(info: ModelInfo, path: Path) -> nn.Module:
    """Return the network without its weights. Raises BundleError if no request could pay for one image."""
    size = pipeline.input_size(info) or info.image_size
    try:
        network: nn.Module
        if info.task == "segmentation":
            network = unet.empty_unet(
                info.architecture, len(info.labels), info.image_size, info.channels, **info.options
            )
        else:
            network = networks.empty_classifier(info.architecture, math.prod(info.shape), info.channels)
        network.eval()
        images = torch.zeros(1, info.channels, *size, dtype=torch.uint8, device="meta")
        graph_sizes.check_layers(network, pipeline.to_pixels(images, info.steps))
    except Exception as error:  # wrong sizes make torch raise almost anything
        reason = " ".join(str(error).split())[:300]
        raise BundleError(f"{path}: 'image_size' or 'steps': no image of {size} can be computed: {reason}") from None
    return network


def _load_state(network: nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    expected = network.state_dict()
    for name, tensor in state.items():
        if name in expected and not _is_like(tensor, expected[name]):
            raise BundleError(f"{path}: {name!r} is no dense tensor of {expected[name].dtype}, as the network has it")
    try:
        network.load_state_dict(state, strict=True, assign=True)
    except (RuntimeError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise BundleError(f"{path}: the weights do not fit the architecture in {INFO_FILE}: {reason}") from None


def _is_like(tensor: Any, expected: torch.Tensor) -> bool:
    return isinstance(tensor, torch.Tensor) and (tensor.dtype, tensor.layout) == (expected.dtype, expected.layout)


def _versions() -> dict[str, str]:
    return {
        "fastmaker": __version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
    }
