"""Which image classes of a Learner a bundle can stand for: fastai's own, and those that only name another mode."""

from typing import Any

from fastai.vision.all import PILBase, PILImage, PILImageBW, TensorImage, TensorImageBW
from PIL import Image

from fastmaker import bundle, preprocess
from fastmaker.training import own_code

NAMED = {"_open_args", "_show_args", "_tensor_cls"}  # what a class may define, and yet read images as PILBase does


def mode_of(image: Image.Image) -> str:
    """Return the mode of what a Learner opens, one of preprocess.IMAGE_MODES. Raises BundleError."""
    kind: Any = type(image)
    if not _reads_as_pilbase(kind):
        raise bundle.BundleError(
            f"the Learner's images are {kind.__name__}; expected PILImage or PILImageBW, or a class that overrides"
            " nothing of theirs but _open_args"
        )
    options = {**kind._open_args}
    if options.keys() != {"mode"} or options["mode"] is None:
        raise bundle.BundleError(f"the Learner's images, {kind.__name__}, have no one mode")
    if image.mode not in preprocess.IMAGE_MODES:
        raise bundle.BundleError(
            f"the Learner's images are opened in the mode {image.mode}; expected one of"
            f" {', '.join(preprocess.IMAGE_MODES)}"
        )
    return image.mode


def _reads_as_pilbase(kind: type) -> bool:
    if not issubclass(kind, PILBase) or getattr(kind, "_tensor_cls", None) not in (TensorImage, TensorImageBW):
        return False
    return own_code.base_of(kind, own_code.HARMLESS - {"__init__"} | NAMED) in (PILBase, PILImage, PILImageBW)
