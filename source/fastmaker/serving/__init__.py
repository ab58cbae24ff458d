"""Serving, without fastai: request -> images -> predictions -> answer."""

import warnings
from typing import Any


def __getattr__(name: str) -> Any:
    if name != "load":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn("fastmaker.serving.load has moved; use fastmaker.load_bundle", DeprecationWarning, stacklevel=2)
    from fastmaker.serving.models import load

    return load
