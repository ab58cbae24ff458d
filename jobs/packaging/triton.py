"""Triton model repositories made from a bundle (https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide).

    REPOSITORY/NAME/config.pbtxt          the network: image -> probabilities, values or points; of masks mask, too
    REPOSITORY/NAME/labels.txt            of classifiers
    REPOSITORY/NAME/1/model.onnx

With preprocessing NAME is an ensemble that takes `image_bytes`, encoded images, and runs two models: the Python
backend's NAME_preprocess (source/fastmaker/export/triton_preprocess.py) and NAME_network, which is as above. The
parameter `model.json` of each holds the bundle's model.json, with the preprocessing and the labels for clients.
"""

import importlib
import json
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fastmaker.local.containers import pack

# The image of release 26.07, with ONNX Runtime 1.27: "Release Compatibility Matrix" of Triton's user guide,
# https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/introduction/compatibility.html
IMAGE = "nvcr.io/nvidia/tritonserver:26.07-py3"
# The environment variable that names the model that a SageMaker endpoint answers with; for an ensemble, the ensemble
# (https://docs.aws.amazon.com/sagemaker/latest/dg/deploy-models-frameworks-triton.html).
SAGEMAKER_MODEL_NAME = "SAGEMAKER_TRITON_DEFAULT_MODEL_NAME"
BACKENDS = ("onnxruntime", "python")
INFO = "model.json"  # the parameter that holds the bundle's model.json
PREPROCESS, NETWORK = "_preprocess", "_network"  # suffixes of the names of an ensemble's models
CONFIG_FILE, LABELS_FILE, VERSION = "config.pbtxt", "labels.txt", "1"


@dataclass(frozen=True)
class Options:
    """How Triton serves a model."""

    batch_size: int = 8  # most requests that share a forward pass
    max_batch_delay: int = 0  # ms that a request waits for a full batch
    instances: int = 1  # of each model; of the network on each GPU, if the server has any
    backend: str = "onnxruntime"  # one of BACKENDS, which runs the network
    preprocessing: bool = False  # whether the model takes encoded images

    @property
    def python_packages(self) -> list[str]:
        """Packages that the server's Python needs beside NumPy, which the Python backend needs itself."""
        return ["pillow"] * self.preprocessing + ["onnxruntime"] * (self.backend == "python")


def import_tritonclient(protocol: str):
    """Return the module of tritonclient for `protocol`, grpc or http. Raises ValueError if it is not installed."""
    try:
        return importlib.import_module(f"tritonclient.{protocol}")
    except (ImportError, RuntimeError) as error:  # without one of its extras it raises RuntimeError
        raise ValueError(f"Triton needs tritonclient[{protocol}]: pip install 'fastmaker[triton]' ({error})") from None


def model_folders(name: str, options: Options) -> list[str]:
    """Return the folders of the model `name`; the last is the one that clients ask."""
    return [name + PREPROCESS, name + NETWORK, name] if options.preprocessing else [name]


def make_repository(
    model_dir: Path, name: str, repository: Path, options: Options, archive: Path | None = None
) -> None:
    """Write the bundle in `model_dir` as the model `name` of `repository`, whole or not at all.

    An existing model of this name is replaced, other models stay. `archive` is written as well if given, for SageMaker:
    a tar.gz with the models at its root. Raises bundle.BundleError, ValueError or OSError.
    """
    import_tritonclient("grpc")
    repository.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=repository.parent, prefix=f".{repository.name}-") as scratch:
        built = Path(scratch, "built")
        _build(model_dir, name, built, options)
        if archive:
            pack(built, packed := Path(scratch, "packed.tar.gz"))
        _install(built, repository, model_folders(name, options), Path(scratch, "replaced"))
        if archive:
            packed.replace(archive)


def docker_command(repository: Path, options: Options) -> str:
    """Return the command that serves the repository on loopback, at ports 8000 (HTTP) and 8001 (gRPC).

    https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/getting_started/quickstart.html
    """
    words = ["docker", "run", "--rm", "-p", "127.0.0.1:8000:8000", "-p", "127.0.0.1:8001:8001"]
    command = ["tritonserver", "--model-repository=/models"]
    if packages := options.python_packages:
        # Processes of the Python backend pass tensors in shared memory, of which Docker gives 64 MB.
        words += ["--shm-size=1g", "-e", "PIP_BREAK_SYSTEM_PACKAGES=1"]
        command = ["sh", "-c", f"pip install {shlex.join(packages)} && exec {shlex.join(command)}"]
    return shlex.join([*words, "-v", f"{repository.resolve()}:/models:ro", IMAGE, *command])


def _build(model_dir: Path, name: str, built: Path, options: Options) -> None:
    """Write the folders of the model, or of an ensemble and its models, into `built`."""
    from fastmaker import bundle
    from fastmaker.export import onnx_file

    info = bundle.load_info(model_dir)
    network = built / (name + NETWORK if options.preprocessing else name)
    version = network / VERSION
    version.mkdir(parents=True)
    onnx_file.to_onnx(model_dir, version / bundle.ONNX_FILE)
    labels = info.labels if info.task in ("classification", "multilabel") else None
    if labels:
        _write_labels(network / LABELS_FILE, labels)
    if options.backend == "python":
        shutil.copy2(_source("export/triton_network.py"), version / "model.py")
    description = json.dumps(asdict(info), ensure_ascii=False)
    config = _network_config(network.name, version / bundle.ONNX_FILE, bool(labels), options, description)
    _write_config(network, config)
    if options.preprocessing:
        _write_config(built / name, _ensemble_config(name, config))
        # Triton requires a version of an ensemble as well, and S3 keeps no empty folder.
        (built / name / VERSION).mkdir()
        (built / name / VERSION / ".keep").touch()
        if labels:
            shutil.copy2(network / LABELS_FILE, built / name)
        _write_preprocess(built / (name + PREPROCESS), config, options)


def _network_config(name: str, file: Path, has_labels: bool, options: Options, description: str):
    """Return the configuration of the ONNX model in `file`, with the inputs and outputs of its graph."""
    from tritonclient.grpc import model_config_pb2 as pb

    from fastmaker.serving import onnx_engine

    session = onnx_engine.session(file, threads=1)
    config = pb.ModelConfig(name=name, max_batch_size=options.batch_size)
    if options.backend == "python":
        config.backend = "python"
    else:
        config.platform = "onnxruntime_onnx"
    for node in session.get_inputs():
        config.input.add(name=node.name, data_type=_data_type(node.type), dims=node.shape[1:])
    for node in session.get_outputs():
        config.output.add(name=node.name, data_type=_data_type(node.type), dims=node.shape[1:])
        if has_labels and node.name == onnx_engine.PROBABILITIES:
            config.output[-1].label_filename = LABELS_FILE
    config.parameters[INFO].string_value = description
    return _scheduled(config, pb.ModelInstanceGroup.KIND_AUTO, options)


def _ensemble_config(name: str, network):
    """Return the configuration of the ensemble `name` of preprocessing and `network`, a model's configuration."""
    from tritonclient.grpc import model_config_pb2 as pb

    config = pb.ModelConfig(name=name, platform="ensemble", max_batch_size=network.max_batch_size)
    config.input.add(name="image_bytes", data_type=pb.TYPE_STRING, dims=[1])
    config.output.extend(network.output)
    config.parameters[INFO].CopyFrom(network.parameters[INFO])
    config.ensemble_scheduling.step.add(
        model_name=name + PREPROCESS,
        model_version=-1,
        input_map={"image_bytes": "image_bytes"},
        output_map={"image": "image"},
    )
    config.ensemble_scheduling.step.add(
        model_name=network.name,
        model_version=-1,
        input_map={"image": "image"},
        output_map={output.name: output.name for output in network.output},
    )
    return config


def _write_preprocess(folder: Path, network, options: Options) -> None:
    """Write the Python model that turns encoded images into the input of `network`, a model's configuration."""
    from tritonclient.grpc import model_config_pb2 as pb

    config = pb.ModelConfig(name=folder.name, backend="python", max_batch_size=network.max_batch_size)
    config.input.add(name="image_bytes", data_type=pb.TYPE_STRING, dims=[1])
    (image,) = network.input
    config.output.add(name="image", data_type=image.data_type, dims=image.dims)
    config.parameters[INFO].CopyFrom(network.parameters[INFO])
    _write_config(folder, _scheduled(config, pb.ModelInstanceGroup.KIND_CPU, options))
    package = folder / VERSION / "fastmaker"  # the Python backend puts the version's folder on the path
    package.mkdir(parents=True)
    for name in ("__init__.py", "preprocess.py", "image_steps.py"):
        shutil.copy2(_source(name), package)
    shutil.copy2(_source("export/triton_preprocess.py"), folder / VERSION / "model.py")


def _scheduled(config, kind: int, options: Options):
    """Return the configuration with its instances and dynamic batching."""
    config.instance_group.add(count=options.instances, kind=kind)
    if options.batch_size > 1:
        config.dynamic_batching.max_queue_delay_microseconds = 1000 * options.max_batch_delay
    return config


def _data_type(onnx_type: str) -> int:
    """Return Triton's constant for a data type of ONNX Runtime."""
    from tritonclient.grpc import model_config_pb2 as pb

    return {"tensor(uint8)": pb.TYPE_UINT8, "tensor(float)": pb.TYPE_FP32}[onnx_type]


def _write_config(folder: Path, config) -> None:
    from google.protobuf import text_format

    folder.mkdir(exist_ok=True)
    (folder / CONFIG_FILE).write_text(text_format.MessageToString(config, as_utf8=True), "utf-8")


def _write_labels(file: Path, labels: Sequence[str]) -> None:
    if invalid := [label for label in labels if len(label.splitlines()) != 1]:
        raise ValueError(f"the label {invalid[0]!r} is no line of text, as {LABELS_FILE} needs")
    file.write_text("".join(f"{label}\n" for label in labels), "utf-8")


def _source(name: str) -> Path:
    """Return the path of a file of the package fastmaker; `name` is relative to it."""
    import fastmaker

    return Path(fastmaker.__file__).parent / name


def _install(built: Path, repository: Path, new: list[str], replaced: Path) -> None:
    """Move the folders `new` of `built` into the repository, in this order, which suits a server that polls it.

    Folders that they replace are moved to `replaced`. If a move fails, all are undone.
    """
    repository.mkdir(exist_ok=True)
    replaced.mkdir()
    old = dict.fromkeys([*reversed(new), *_steps(repository / new[-1])])
    moves = [(repository / folder, replaced / folder) for folder in old if (repository / folder).exists()]
    moves += [(built / folder, repository / folder) for folder in new]
    done = []
    try:
        for source, target in moves:
            source.rename(target)
            done.append((source, target))
    except BaseException:
        for source, target in reversed(done):
            target.rename(source)
        raise


def _steps(model: Path) -> list[str]:
    """Return the names of an ensemble's models; of any other model none."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2 as pb

    try:
        config = text_format.Parse((model / CONFIG_FILE).read_text("utf-8"), pb.ModelConfig())
    except (OSError, ValueError):  # text_format.ParseError as well
        return []
    return [step.model_name for step in config.ensemble_scheduling.step]
