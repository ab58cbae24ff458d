"""Kernels for the notebooks: of this Python, with settings and a home of their own, and cut off from the network."""

import pytest
from helpers.kernels import NO_NETWORK
from ipykernel.kernelspec import write_kernel_spec

from fastmaker.jobs import cleanup


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Sets variables for the kernels of a module, which are those of this Python and read no user's settings."""
    folder = tmp_path_factory.mktemp("jupyter")
    write_kernel_spec(folder / "data" / "kernels" / "python3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(folder / "data"))
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        patch.setenv("FASTAI_HOME", str(folder / "fastai"))
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))  # torch's, by default in TMPDIR for good
        patch.setenv("https_proxy", NO_NETWORK)
        yield patch


@pytest.fixture(scope="module")
def home(environment, tmp_path_factory):
    """FASTMAKER_HOME of the notebooks, emptied in the end as the pets notebook's last sentence says."""
    folder = tmp_path_factory.mktemp("home")
    environment.setenv("FASTMAKER_HOME", str(folder))
    yield folder
    cleanup.main(cleanup.parse_args(["--all", "--yes"]))
