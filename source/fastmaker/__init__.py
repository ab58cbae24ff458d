"""Train fastai vision models and serve them as pure PyTorch in the managed SageMaker containers.

    from fastmaker import save_bundle, load_bundle

    save_bundle(learn, "model")                  # a fastai Learner -> a model directory that serves without fastai
    model = load_bundle("model")                 # a `fastmaker.serving.models.Model`

One direction: ``training -> bundle`` to train, ``bundle -> serving`` to answer, ``bundle -> export`` for other servers.
Only `fastmaker.training` and `fastmaker.export.reference` use fastai, and only when they are called: serving needs
torch, torchvision, Pillow and NumPy.

The exceptions, all but the first of which are ValueErrors::

    Exception
    └── serving.wire.RequestError       a request that is not answered: its HTTP status and one line
        ├── BadRequest                  400: the body is empty, damaged, too large or no image
        ├── NotAcceptable               406: no wanted type can hold the answer
        ├── UnsupportedContentType      415: the Content-Type is none of those that are known
        └── InternalError                       500: a fault of this package, of one request of a batch
    ValueError
    ├── bundle.BundleError              a model directory that cannot be used, or a Learner that cannot become one
    ├── preprocess.ImageError           bytes that are no image, or one that is too large
    ├── export.onnx_file.ExportError    a network that ONNX cannot hold, or a package that is missing
    ├── training.data.DataError         training data that cannot be used
    ├── training.checkpoint.CheckpointError   a checkpoint of another run
    ├── training.distributed.GroupError       processes that cannot train together
    └── training.learner.WeightsError         pretrained weights that cannot be had
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastmaker.bundle import BundleError
    from fastmaker.serving.models import load as load_bundle
    from fastmaker.training.learner import save_bundle

__version__ = "0.2.0"
__all__ = ["BundleError", "__version__", "load_bundle", "save_bundle"]


def __getattr__(name: str):
    # Loaded when they are first used: torch takes a second to import, fastai more, and most commands need neither.
    if name == "load_bundle":
        from fastmaker.serving.models import load

        return load
    if name == "save_bundle":
        from fastmaker.training.learner import save_bundle

        return save_bundle
    if name == "BundleError":
        from fastmaker.bundle import BundleError

        return BundleError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
