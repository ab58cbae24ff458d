"""Serving, without fastai: request -> images -> predictions -> answer."""

import warnings


def __getattr__(name: str):
    if name != "load":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn("fastmaker.serving.load is fastmaker.load_bundle", DeprecationWarning, stacklevel=2)
    from fastmaker.serving.models import load

    return load
