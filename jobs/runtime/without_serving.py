"""A training job's sitecustomize: what its image on AWS lacks cannot be imported, though this environment has it.

Published scripts decide by an import whether they train or serve.
"""

import contextlib
import os
import shutil
import sys
from pathlib import Path

LACKING = (
    *("sagemaker_inference", "sagemaker_pytorch_serving_container", "ts", "model_archiver"),
    *("moto", "fastmaker.jobs", "fastmaker.local"),
)


def put_below(folder: Path) -> str:
    """Have Python find this file as its sitecustomize by a new folder below `folder`, which is returned."""
    site = folder / "site"
    site.mkdir(exist_ok=True)
    shutil.copyfile(__file__, site / "sitecustomize.py")
    return str(site)


class Without:
    """A finder of modules that does not find those that are LACKING."""

    def __init__(self, finder):
        self._finder = finder

    def __getattr__(self, name):
        return getattr(self._finder, name)

    def find_spec(self, name, path=None, target=None):
        """Return the spec of a module, None if there is none."""
        if name.startswith(LACKING) and any(f"{name}.".startswith(f"{lacking}.") for lacking in LACKING):
            return None
        return self._finder.find_spec(name, path, target)


if __name__ == "sitecustomize":
    sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
    # This file stands before a sitecustomize of the environment.
    sys.path[:] = [path for path in sys.path if path != os.path.dirname(__file__)]
    this = sys.modules.pop(__name__)
    with contextlib.suppress(ImportError):
        import sitecustomize  # noqa: F401
    sys.modules.setdefault(__name__, this)
