"""The project's files that are read rather than imported: a container's source_dir and the context of images.

A wheel holds them as a checkout does, in fastmaker/checkout (see setup.py).
"""

from pathlib import Path

_BESIDE = Path(__file__).resolve().parents[1]  # the checkout, or the installed package fastmaker

ROOT = _BESIDE / "checkout" if (_BESIDE / "checkout").is_dir() else _BESIDE  # the context of `docker build`
SOURCE = ROOT / "source"  # the source_dir of estimators
