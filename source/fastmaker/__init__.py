"""Train fastai vision models and serve them as pure PyTorch in the managed SageMaker containers.

    from fastmaker import save_bundle, load_bundle

    save_bundle(learn, "model")    # a fastai Learner -> a model directory that serves without fastai
    model = load_bundle("model")   # a `fastmaker.serving.models.Model`
    model.predict([image])         # Pillow images -> the classes of `fastmaker.answers`

Imports go one way: ``training -> bundle`` to train, ``serving -> bundle`` to serve, ``export -> bundle`` for other
servers. Only `fastmaker.training` and `fastmaker.export.reference` import fastai: serving needs torch, torchvision,
Pillow and NumPy.

The exceptions, which can be imported from here, too::

    Exception
    └── serving.errors.RequestError             a request that cannot be answered: an HTTP status and one line
        ├── serving.errors.BadRequest               400: the body is empty, damaged, too large or not an image
        ├── serving.errors.NotAcceptable            406: no accepted type can hold the answer
        ├── serving.errors.UnsupportedContentType   415: an unknown Content-Type
        └── serving.errors.InternalError            500: a fault of the server
    ValueError
    ├── bundle.BundleError                      a model directory that cannot be used, or a Learner that cannot be saved
    │   └── training.stand_ins.MissingError         an object that answers depend on is missing where a pickle is loaded
    ├── preprocess.ImageError                   bytes that are not an image, or an image that is too large
    ├── export.onnx_file.ExportError            a network that cannot be exported, or a missing package
    ├── graph.GraphError                        a document or tensors that are no network
    ├── graph_operators.OperatorError           an operator that a graph may not call
    ├── training.tracing.CaptureError           a network that cannot be kept as a graph
    ├── training.layouts.files.DataError        training data that cannot be used
    ├── training.checkpoint.CheckpointError     a checkpoint of another run
    ├── training.distributed.ProcessGroupError  processes that cannot train together
    ├── training.precision.PrecisionError       a precision that the device does not compute with
    ├── training.schedule.ScheduleError         a schedule that the network or the data does not allow
    ├── training.architectures.ArchitectureError  a name of no network, or of one that cannot be trained so
    └── training.weights.WeightsError           weights to start from that cannot be had, or do not fit
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastmaker.bundle import BundleError
    from fastmaker.export.onnx_file import ExportError
    from fastmaker.graph import GraphError
    from fastmaker.graph_operators import OperatorError
    from fastmaker.preprocess import ImageError
    from fastmaker.serving.errors import (
        BadRequest,
        InternalError,
        NotAcceptable,
        RequestError,
        UnsupportedContentType,
    )
    from fastmaker.serving.models import load as load_bundle
    from fastmaker.training.architectures import ArchitectureError
    from fastmaker.training.checkpoint import CheckpointError
    from fastmaker.training.distributed import ProcessGroupError
    from fastmaker.training.from_learner import save_bundle
    from fastmaker.training.layouts.files import DataError
    from fastmaker.training.precision import PrecisionError
    from fastmaker.training.schedule import ScheduleError
    from fastmaker.training.stand_ins import MissingError
    from fastmaker.training.tracing import CaptureError
    from fastmaker.training.weights import WeightsError

__version__ = "0.2.0"
__all__ = [
    "ArchitectureError",
    "BadRequest",
    "BundleError",
    "CaptureError",
    "CheckpointError",
    "DataError",
    "ExportError",
    "GraphError",
    "ImageError",
    "InternalError",
    "MissingError",
    "NotAcceptable",
    "OperatorError",
    "PrecisionError",
    "ProcessGroupError",
    "RequestError",
    "ScheduleError",
    "UnsupportedContentType",
    "WeightsError",
    "__version__",
    "load_bundle",
    "save_bundle",
]

# Imported on first use: torch takes a second to import, fastai several, and most commands need neither.
_LAZY = {
    "load_bundle": "serving.models.load",
    "save_bundle": "training.from_learner.save_bundle",
    "ArchitectureError": "training.architectures.ArchitectureError",
    "BadRequest": "serving.errors.BadRequest",
    "BundleError": "bundle.BundleError",
    "CaptureError": "training.tracing.CaptureError",
    "CheckpointError": "training.checkpoint.CheckpointError",
    "DataError": "training.layouts.files.DataError",
    "ExportError": "export.onnx_file.ExportError",
    "GraphError": "graph.GraphError",
    "ImageError": "preprocess.ImageError",
    "InternalError": "serving.errors.InternalError",
    "MissingError": "training.stand_ins.MissingError",
    "NotAcceptable": "serving.errors.NotAcceptable",
    "OperatorError": "graph_operators.OperatorError",
    "ProcessGroupError": "training.distributed.ProcessGroupError",
    "RequestError": "serving.errors.RequestError",
    "PrecisionError": "training.precision.PrecisionError",
    "ScheduleError": "training.schedule.ScheduleError",
    "UnsupportedContentType": "serving.errors.UnsupportedContentType",
    "WeightsError": "training.weights.WeightsError",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _LAZY[name].rpartition(".")
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
