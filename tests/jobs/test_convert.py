"""`fastmaker convert`, as a user runs it."""

import pickle
import subprocess
import sys
import zipfile

import pytest
from helpers import exports, unresized
from helpers.commands import ENVIRONMENT, exit_status, next_command, one_line

from fastmaker import bundle
from fastmaker.jobs import convert
from fastmaker.jobs.__main__ import COMMANDS


@pytest.fixture(scope="module")
def files(photos, tmp_path_factory):
    """Exports of a notebook."""
    return exports.make(photos, tmp_path_factory.mktemp("exports") / "notebook", "functions", "network")


def run(*words, cwd):
    command = [sys.executable, "-m", "fastmaker.jobs", "convert", *map(str, words)]
    return subprocess.run(command, env=ENVIRONMENT, cwd=cwd, capture_output=True)


@pytest.mark.server
def test_an_export_of_a_notebook_becomes_a_bundle(files, tmp_path):
    done = run(files / "functions.pkl", "model", "--trust", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    loading, stand_ins, made, _ = done.stdout.decode().splitlines()
    assert loading.endswith("functions.pkl: to load a pickle runs whatever code it holds")
    for name in ("is_striped", "my_splitter", "my_metric"):
        assert f"__main__.{name}" in stand_ins
    assert stand_ins.endswith(": the answer does not depend on them")
    assert made == "made:    model, squeezenet1_1 for classification, 2 labels, 64x64 pixels"
    assert bundle.load_info(tmp_path / "model").labels == ("False", "True")
    name, *words = next_command(done)
    assert name == "deploy"
    assert COMMANDS[name]
    assert words == ["--model", "model"]


@pytest.mark.server
def test_a_network_that_is_missing_is_refused_in_one_line_and_nothing_is_written(files, tmp_path):
    done = run(files / "network.pkl", "model", "--trust", cwd=tmp_path)
    assert done.returncode == 2
    assert "depends on __main__.Net, which the pickle names but does not hold" in one_line(done.stderr.decode())
    assert not (tmp_path / "model").exists()


class Leaving:
    """An object that leaves a file wherever it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.server
def test_a_pickle_is_loaded_only_if_it_is_trusted(tmp_path):
    left = tmp_path / "left"
    with zipfile.ZipFile(tmp_path / "export.pkl", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Leaving(left), 2))
        archive.writestr("archive/version", "3\n")
    done = run("export.pkl", "model", cwd=tmp_path)
    assert done.returncode == 2
    assert "to load a pickle runs whatever code it holds; if you trust it, add --trust" in one_line(
        done.stderr.decode()
    )
    assert not left.exists()
    done = run("export.pkl", "model", "--trust", cwd=tmp_path)
    assert done.returncode == 2
    assert "it holds a TextIOWrapper; expected a file of learn.export" in one_line(done.stderr.decode())
    assert left.exists()
    assert not (tmp_path / "model").exists()


@pytest.mark.server
def test_a_process_that_dies_is_told_in_one_line(tmp_path):
    with zipfile.ZipFile(tmp_path / "export.pkl", "w") as archive:
        archive.writestr("archive/data.pkl", b"cos\nabort\n)R.")
        archive.writestr("archive/version", "3\n")
    done = run("export.pkl", "model", "--trust", cwd=tmp_path)
    assert done.returncode == 2
    assert one_line(done.stderr.decode()).endswith("the process that loaded it was ended by SIGABRT")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("nothing.pkl model --trust", "nothing.pkl is missing; expected a file of learn.export"),
        ("folder model --trust", "folder is a folder; expected a file of learn.export"),
        ("export.pkl folder --trust", "folder exists; --force writes into it"),
        ("export.pkl export.pkl --trust", "export.pkl is a file, where a folder is to be made"),
        ("export.pkl model", "if you trust it, add --trust"),
    ],
)
def test_bad_usage_gets_one_line(tmp_path, monkeypatch, capsys, words, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").touch()
    (tmp_path / "export.pkl").write_bytes(b"no")
    assert exit_status(convert, *words.split()) == 2
    assert reason in one_line(capsys.readouterr().err)
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_the_command_takes_the_size_that_it_asks_for(tmp_path):
    export = unresized.exported(unresized.learner(tmp_path / "photos")).path / "export.pkl"
    refused = run(export, "model", "--trust", cwd=tmp_path)
    assert refused.returncode == 2
    assert "--image-size HEIGHTxWIDTH" in one_line(refused.stderr.decode())
    made = run(export, "model", "--trust", "--image-size", "20x28", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "3 labels, 20x28 pixels" in made.stdout.decode()
