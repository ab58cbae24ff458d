"""The former module of `fastmaker.save_bundle`."""

import warnings
from typing import Any


def __getattr__(name: str) -> Any:
    if name != "save_bundle":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        "fastmaker.learner.save_bundle has moved; use fastmaker.save_bundle", DeprecationWarning, stacklevel=2
    )
    from fastmaker.training.from_learner import save_bundle

    return save_bundle
