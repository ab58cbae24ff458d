"""Sessions with a home of their own, an endpoint, and scripts to run."""

import textwrap
from pathlib import Path

import pytest
from local_mode import deployed, running_below

from jobs.local import ProcessSession
from jobs.local.container import pack


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A FASTMAKER_HOME; whatever still runs below it when the tests end is ended, and counts as an error."""
    home = tmp_path_factory.mktemp("home")
    yield home
    left = running_below(home)
    for process in left:
        process.kill()
    assert not left


@pytest.fixture(scope="session")
def session(home):
    return ProcessSession(home=home)


@pytest.fixture(scope="session")
def digits_archive(digits_bundle, tmp_path_factory):
    archive = tmp_path_factory.mktemp("archive") / "model.tar.gz"
    pack(digits_bundle, archive)
    return archive


@pytest.fixture(scope="session")
def digits_predictor(session, digits_archive):
    with deployed(session, digits_archive) as predictor:
        yield predictor


@pytest.fixture
def write_script(tmp_path):
    """Write a source directory with a train.py; returns the directory."""

    def write(text: str, **files: str) -> Path:
        source = tmp_path / "source"
        source.mkdir(exist_ok=True)
        for name, content in {"train.py": text, **files}.items():
            (source / name).write_text(textwrap.dedent(content))
        return source

    return write
