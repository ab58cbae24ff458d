"""Which image classes of a Learner a bundle can stand for: fastai's own, and those that only name another mode."""

from typing import Any

from fastai.vision.all import PILBase, PILImage, PILImageBW, TensorImage, TensorImageBW
from PIL import Image

from fastmaker import bundle, preprocess

# What a class may define and yet read images as PILBase does.
HARMLESS = {
    *("_open_args", "_show_args", "_tensor_cls"),
    *("__module__", "__qualname__", "__doc__", "__signature__", "__annotations__"),
    *("__firstlineno__", "__static_attributes__", "__annotate_func__", "__annotations_cache__"),  # of later Pythons
}


def mode_of(image: Image.Image) -> str:
    """Return the mode of what a Learner opens, one of preprocess.IMAGE_MODES. Raises BundleError."""
    kind: Any = type(image)
    if not _reads_as_pilbase(kind):
        raise bundle.BundleError(f"the Learner's images are {kind.__name__}; expected PILImage or PILImageBW")
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
    own = [base for base in kind.mro()[: kind.mro().index(PILBase)] if base not in (PILImage, PILImageBW)]
    return all(name in HARMLESS for base in own for name in vars(base))
