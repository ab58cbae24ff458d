"""Files that are written whole or not at all."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from fastmaker.jobs.storage.atomic import atomic_path, write_text


def test_a_file_appears_when_it_is_whole_and_nothing_stays_beside_it(tmp_path):
    with atomic_path(tmp_path / "file") as partial:
        partial.write_bytes(b"whole")
        assert partial.parent == tmp_path  # a rename is atomic within one file system
        assert not (tmp_path / "file").exists()
    assert (tmp_path / "file").read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path, error):
    def fail():
        with atomic_path(tmp_path / "file") as partial:
            partial.write_text("half")
            raise error

    (tmp_path / "file").write_text("before")
    with pytest.raises(error):
        fail()
    assert (tmp_path / "file").read_text() == "before"
    assert os.listdir(tmp_path) == ["file"]


def test_a_body_that_wrote_nothing_is_an_error_and_leaves_what_was_there(tmp_path):
    (tmp_path / "file").write_text("before")
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "before"


def test_a_target_that_cannot_be_replaced_leaves_no_partial_file(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path / "folder", "text")
    assert os.listdir(tmp_path) == ["folder"]


def test_writers_of_one_file_at_once_do_not_mix(tmp_path):
    texts = [str(number) * 100_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: write_text(tmp_path / "file", text), texts * 4))
    assert (tmp_path / "file").read_text() in texts
    assert os.listdir(tmp_path) == ["file"]


def test_a_writer_that_is_killed_leaves_what_was_there(tmp_path):
    (tmp_path / "file").write_text("before")
    program = """
import os, pathlib, signal, sys
from fastmaker.jobs.storage.atomic import atomic_path
with atomic_path(pathlib.Path(sys.argv[1])) as partial:
    partial.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "file")])
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "file").read_text() == "before"


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="asks /proc what is synced")
def test_the_file_and_then_its_folder_are_on_the_disk_before_the_writer_goes_on(tmp_path, monkeypatch):
    synced, sync = [], os.fsync

    def record(descriptor):
        synced.append((os.readlink(f"/proc/self/fd/{descriptor}"), (tmp_path / "file").exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    write_text(tmp_path / "file", "text")
    (partial, before), (folder, after) = synced
    assert os.path.dirname(partial) == folder == str(tmp_path)
    assert (before, after) == (False, True)
