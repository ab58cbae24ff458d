"""The old place of `fastmaker.save_bundle`."""

import warnings


def __getattr__(name: str):
    if name != "save_bundle":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn("fastmaker.learner.save_bundle is fastmaker.save_bundle", DeprecationWarning, stacklevel=2)
    from fastmaker.training.learner import save_bundle

    return save_bundle
