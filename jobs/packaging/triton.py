"""A Triton model repository made of a bundle (https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide).

    REPOSITORY/NAME/config.pbtxt          the network: image -> probabilities, for segmentation mask as well
    REPOSITORY/NAME/labels.txt            of classifiers
    REPOSITORY/NAME/1/model.onnx

With preprocessing NAME is an ensemble that takes `image_bytes`, encoded images, and leads them through two models: the
Python backend's NAME_preprocess (source/fastmaker/export/triton_preprocess.py) and NAME_network, which is as above. The
parameter `model.json` of each is the bundle's: what a client must know about images and labels.
"""

import importlib
import json
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from fastmaker.local.containers import pack

# The image of release 26.07, with ONNX Runtime 1.27: "Release Compatibility Matrix" of Triton's user guide,
# https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/introduction/compatibility.html
IMAGE = "nvcr.io/nvidia/tritonserver:26.07-py3"
# Names the model that a SageMaker endpoint answers with, of an ensemble the ensemble
# (https://docs.aws.amazon.com/sagemaker/latest/dg/deploy-models-frameworks-triton.html).
SAGEMAKER_MODEL_NAME = "SAGEMAKER_TRITON_DEFAULT_MODEL_NAME"
BACKENDS = ("onnxruntime", "python")
INFO = "model.json"  # the parameter that holds the bundle's
PREPROCESS, NETWORK = "_preprocess", "_network"  # what an ensemble's models are called after its own name
CONFIG_FILE, LABELS_FILE, VERSION = "config.pbtxt", "labels.txt", "1"


@dataclass(frozen=True)
class Options:
    """How a model is served."""

    batch_size: int = 8  # requests that go through the network together, at most
    max_batch_delay: int = 0  # ms that a request waits for others
    instances: int = 1  # of each model; for the network on each GPU, if there are some
    backend: str = "onnxruntime"  # one of BACKENDS: what runs the network
    preprocessing: bool = False  # whether encoded images are taken

    @property
    def python_packages(self) -> list[str]:
        """What the server's Python needs beside NumPy, which its Python backend needs itself."""
        return ["pillow"] * self.preprocessing + ["onnxruntime"] * (self.backend == "python")


def add_arguments(parser) -> None:
    """The arguments that say how and where a repository is made."""
    default = "(default: %(default)s)"
    parser.add_argument("--output", type=Path, default=Path("model_repository"), help=f"the repository {default}")
    for name, meaning in {
        "batch_size": "images of a batch",
        "max_batch_delay": "ms to wait for them",
        "instances": "of each model, on each GPU",
    }.items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=int, default=getattr(Options, name), help=f"{meaning} {default}")
    parser.add_argument("--preprocessing", action="store_true", help="take encoded images: an ensemble of models")
    parser.add_argument("--backend", choices=BACKENDS, default=Options.backend, help=f"of the network {default}")
    parser.add_argument("--sagemaker", action="store_true", help="write OUTPUT.tar.gz, for SageMaker, as well")


def options(args) -> Options:
    """The options that `add_arguments` has read."""
    return Options(**{field.name: getattr(args, field.name) for field in fields(Options)})


def library(name: str):
    """The module `name` of tritonclient. Raises ValueError if it is not installed."""
    try:
        return importlib.import_module(f"tritonclient.{name}")
    except (ImportError, RuntimeError) as error:  # without one of its extras it raises RuntimeError
        raise ValueError(f"Triton needs tritonclient[{name}]: pip install 'fastmaker[triton]' ({error})") from None


def model_folders(name: str, options: Options) -> list[str]:
    """The folders that make up the model `name`, the one that clients ask last."""
    return [name + PREPROCESS, name + NETWORK, name] if options.preprocessing else [name]


def make_repository(
    model_dir: Path, name: str, repository: Path, options: Options, archive: Path | None = None
) -> None:
    """Write the bundle in `model_dir` as the model `name` of `repository`, whole or not at all.

    What is of this name there is replaced, other models stay. `archive` gets the same for SageMaker: a tar.gz with the
    models at its root. Raises bundle.BundleError, ValueError or OSError.
    """
    library("grpc")
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
    """Serves the repository at 8000 (HTTP) and 8001 (gRPC) of this machine alone.

    https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/getting_started/quickstart.html
    """
    words = ["docker", "run", "--rm", "-p", "127.0.0.1:8000:8000", "-p", "127.0.0.1:8001:8001"]
    command = ["tritonserver", "--model-repository=/models"]
    if packages := options.python_packages:
        # Processes of the Python backend hand tensors over in shared memory, of which Docker gives 64 MB.
        words += ["--shm-size=1g", "-e", "PIP_BREAK_SYSTEM_PACKAGES=1"]
        command = ["sh", "-c", f"pip install {shlex.join(packages)} && exec {shlex.join(command)}"]
    return shlex.join([*words, "-v", f"{repository.resolve()}:/models:ro", IMAGE, *command])


def _build(model_dir: Path, name: str, built: Path, options: Options) -> None:
    """Write the folders of all models into `built`."""
    from fastmaker import bundle
    from fastmaker.export import onnx_file

    info = bundle.load_info(model_dir)
    network = built / (name + NETWORK if options.preprocessing else name)
    version = network / VERSION
    version.mkdir(parents=True)
    onnx_file.to_onnx(model_dir, version / bundle.ONNX_FILE)
    labels = info.labels if info.task == "classification" else None
    if labels:
        _write_labels(network / LABELS_FILE, labels)
    if options.backend == "python":
        shutil.copy2(_source("triton_network.py"), version / "model.py")
    description = json.dumps(asdict(info), ensure_ascii=False)
    config = _network_config(network.name, version / bundle.ONNX_FILE, bool(labels), options, description)
    _write_config(network, config)
    if options.preprocessing:
        _write_config(built / name, _ensemble_config(name, config))
        # Triton wants a version of an ensemble as well, and S3 keeps no empty folder.
        (built / name / VERSION).mkdir()
        (built / name / VERSION / ".keep").touch()
        if labels:
            shutil.copy2(network / LABELS_FILE, built / name)
        _write_preprocess(built / (name + PREPROCESS), config, options)


def _network_config(name: str, file: Path, has_labels: bool, options: Options, description: str):
    """The configuration of the ONNX model in `file`: its inputs and outputs are those of the graph."""
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
    from tritonclient.grpc import model_config_pb2 as pb

    config = pb.ModelConfig(name=folder.name, backend="python", max_batch_size=network.max_batch_size)
    config.input.add(name="image_bytes", data_type=pb.TYPE_STRING, dims=[1])
    (image,) = network.input
    config.output.add(name="image", data_type=image.data_type, dims=image.dims)
    config.parameters[INFO].CopyFrom(network.parameters[INFO])
    _write_config(folder, _scheduled(config, pb.ModelInstanceGroup.KIND_CPU, options))
    package = folder / VERSION / "fastmaker"  # the Python backend puts the version's folder on the path
    package.mkdir(parents=True)
    for name in ("__init__.py", "preprocess.py"):
        shutil.copy2(_source(name), package)
    shutil.copy2(_source("triton_preprocess.py"), folder / VERSION / "model.py")


def _scheduled(config, kind: int, options: Options):
    """The configuration with its instances, and with batches of what arrives together."""
    config.instance_group.add(count=options.instances, kind=kind)
    if options.batch_size > 1:
        config.dynamic_batching.max_queue_delay_microseconds = 1000 * options.max_batch_delay
    return config


def _data_type(of_onnx: str) -> int:
    from tritonclient.grpc import model_config_pb2 as pb

    return {"tensor(uint8)": pb.TYPE_UINT8, "tensor(float)": pb.TYPE_FP32}[of_onnx]


def _write_config(folder: Path, config) -> None:
    from google.protobuf import text_format

    folder.mkdir(exist_ok=True)
    (folder / CONFIG_FILE).write_text(text_format.MessageToString(config, as_utf8=True), "utf-8")


def _write_labels(file: Path, labels: Sequence[str]) -> None:
    if broken := [label for label in labels if len(label.splitlines()) != 1]:
        raise ValueError(f"the label {broken[0]!r} is no line of text, as {LABELS_FILE} needs")
    file.write_text("".join(f"{label}\n" for label in labels), "utf-8")


def _source(name: str) -> Path:
    """A file of the package fastmaker."""
    from fastmaker import export

    return Path(export.__file__).with_name(name)


def _install(built: Path, repository: Path, new: list[str], replaced: Path) -> None:
    """Move the folders `new` of `built` into the repository, in this order, which suits a server that polls it.

    What they take the place of goes to `replaced`. If it cannot be done, all is put back.
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
    """The folders of the models that an ensemble leads through; of any other model none."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2 as pb

    try:
        config = text_format.Parse((model / CONFIG_FILE).read_text("utf-8"), pb.ModelConfig())
    except (OSError, ValueError):  # text_format.ParseError as well
        return []
    return [step.model_name for step in config.ensemble_scheduling.step]
